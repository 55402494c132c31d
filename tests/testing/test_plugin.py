"""The plugin of pytest, as a project has it that tests its own definitions."""

import os
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
DEFINITIONS = """
from unskew import Entity, Feature, FeatureView, Lifetime, Sliding, Stream, agg

SCHEMA = {
    "type": "record",
    "name": "Purchase",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "amount", "type": ["null", "double"], "default": None},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}], "default": None},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
user = Entity("user", key="user_id")
purchases = Stream("purchases", topic="purchases", schema=SCHEMA, event_time="event_time", partitioned_by="user_id")
spending = FeatureView("spending", entity=user, stream=purchases, features=[
    Feature("n", agg.count(), Sliding("1h")),
    Feature("spent", agg.sum("amount"), Sliding("1h")),
    Feature("paid", agg.sum("price"), Lifetime()),
    Feature("last", agg.last("amount"), Sliding("1h")),
])
CLICK = {
    "type": "object",
    "required": ["who", "ms"],
    "properties": {
        "who": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}},
        "ms": {"type": "integer"},
        "price": {"type": "string"},
        "seen": {"type": "string", "format": "date-time"},
        "until": {"type": "integer", "format": "unix-time"},
    },
}
clicks = Stream(
    "clicks", topic="clicks", format="json", schema=CLICK, event_time="ms", headers=["trace"], key_column="k",
    key_format="int64", fields={"id": "who.id"}, read_as={"ms": "unix-ms", "price": "decimal(38,2)"},
)
clicked = FeatureView("clicked", entity=Entity("visitor", key="id"), stream=clicks, features=[
    Feature("n", agg.count(), Lifetime()),
    Feature("price", agg.sum("price"), Lifetime()),
    Feature("seen", agg.max("seen"), Lifetime()),
    Feature("until", agg.max("until"), Lifetime()),
    Feature("its_key", agg.max("k"), Lifetime()),
    Feature("trace", agg.last("trace"), Lifetime()),
])
"""
TESTS = """
import datetime as dt
import socket
from decimal import Decimal

import polars as pl
import pytest
from definitions import clicked, spending
from unskew import RequestError
from unskew.testing import values

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def test_what_is_produced_is_served_and_is_what_values_says(unskew_pipeline, pytestconfig):
    events = [
        {"user_id": "a", "amount": 2.5, "price": Decimal("1.10"), "day": dt.date(2026, 3, 1), "event_time": NOW},
        {"user_id": "a", "amount": 1, "price": "2.00", "event_time": NOW.isoformat()},
        {"user_id": "b", "price": 3, "event_time": NOW.replace(tzinfo=None)},
    ]
    of_clicks = [
        {"who": {"id": 7}, "ms": NOW, "price": Decimal("0.10"), "seen": NOW, "until": NOW, "k": 5, "trace": "x"},
        {"id": 7, "ms": int(NOW.timestamp() * 1000), "price": "0.05", "k": 6},
    ]
    pipeline = unskew_pipeline([spending, clicked])
    servers = [pipeline.deployment.bootstrap, pipeline.deployment.redis_url.split("/")[2]]
    for server in servers:
        socket.create_connection(server.split(":")).close()
    (pytestconfig.rootpath / "servers").write_text(" ".join(servers))

    pipeline.produce("purchases", events[:1])
    pipeline.wait()
    first = pipeline.store.get_online_features(["spending:n"], [{"user_id": "a"}]).to_dict()
    pipeline.produce("purchases", events[1:])
    pipeline.produce("clicks", of_clicks)
    pipeline.wait()

    assert first["n"] == [1]
    asked = dt.datetime.now(dt.UTC)
    pipeline.produce("purchases", [])
    pipeline.wait()
    for view, key, given, entities in ((spending, "user_id", events, ["a", "b"]), (clicked, "id", of_clicks, [7])):
        names = [feature.name for feature in view.features]
        rows = [{key: entity} for entity in entities]
        served = pipeline.store.get_online_features([f"{view.name}:{name}" for name in names], rows).columns.to_dicts()
        expected = values(view, given, at=NOW)
        assert served == [expected[entity] for entity in entities]
        labels = pl.DataFrame([{key: entity, "event_timestamp": asked} for entity in entities])
        found = pipeline.store.get_historical_features(labels, [f"{view.name}:{name}" for name in names])
        assert found.frame.to_dicts() == [label | expected[label[key]] for label in labels.to_dicts()]
    with pytest.raises(RequestError, match="event 0 of stream 'purchases': amount: 'x' is not a number"):
        pipeline.produce("purchases", [{**events[0], "amount": "x"}])
    with pytest.raises(RequestError, match="no view reads stream 'purchase'; did you mean 'purchases'"):
        pipeline.produce("purchase", events)


def test_a_pipeline_that_is_refused_says_why(unskew_pipeline, tmp_path):
    (tmp_path / "unskew-1").write_text("a file where the folder should be")
    pipeline = unskew_pipeline(spending)

    with pytest.raises(Exception, match="unskew-1"):
        pipeline.wait()
"""


def test_a_projects_test_runs_a_pipeline_whose_servers_end_with_it(pytester, monkeypatch):
    # Of an installation that has the plugin already.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(definitions=DEFINITIONS, test_spending=TESTS)

    result = pytester.runpytest_subprocess("-p", "unskew.testing.plugin", "-p", "no:cacheprovider", timeout=300)

    result.assert_outcomes(passed=2)
    for address in (pytester.path / "servers").read_text().split():
        host, _, port = address.partition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5).close()


def test_pytest_finds_the_plugin_and_imports_nothing_with_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (place,) = project["entry-points"]["pytest11"].values()
    module = EntryPoint("unskew", place, "pytest11").load()
    code = f"""
import pytest, sys
before = set(sys.modules)
import {place}
slow = {{"polars", "numba", "numpy", "redis", "bytewax", "confluent_kafka", "hypothesis"}}
print(sorted(slow & (set(sys.modules) - before)), len([name for name in set(sys.modules) - before if "unskew" in name]))
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)

    assert hasattr(module, "unskew_pipeline")
    assert done.stdout == "[] 3\n"


@pytest.mark.parametrize("absent", ["numba", "bytewax", "confluent_kafka"])
def test_without_the_pipeline_extra_the_error_says_what_to_install(absent, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "test_it.py").write_text(
        f"import sys\nsys.modules[{absent!r}] = None\ndef test_it(unskew_pipeline): ...\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "unskew.testing.plugin", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "300"},  # noqa: TID251 - of a program
    )

    assert (
        f"unskew_pipeline needs the package {absent.replace('_', '-')}, which is not installed: pip install 'unskew["
        in done.stdout
    )


def test_without_the_pipeline_extra_values_say_what_to_install():
    code = """
import sys
sys.modules["numba"] = None
try:
    from unskew.testing import values
except ImportError as error:
    print("ImportError", error)
except Exception as error:
    print(error)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)

    assert (
        done.stdout
        == "unskew.testing needs the package numba, which is not installed: pip install 'unskew[pipeline]'\n"
    )
