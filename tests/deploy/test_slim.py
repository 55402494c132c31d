"""An installation without extras: what it imports, what it reads, and what it says of all else.

The packages of the extras cannot be imported in the processes that these tests start. ``make package`` does the same in
an environment that really lacks them.
"""

import datetime as dt
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cli.test_command_line import VALID
from tests.offline.test_join import CLOCK, EVENTS, T0, VIEW
from tests.serving.test_http import FEATURES, fill
from tests.support.plans import SECOND
from tests.support.written import write_log
from unskew import FeatureStore
from unskew.features.extras import EXTRAS
from unskew.sinks.tables.parquet import record_shards

ROOT = Path(__file__).parents[2]
ABSENT = sorted({module for modules in EXTRAS.values() for module in modules} | {"duckdb", "scipy"})
BLOCKED = f"""
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
"""
# What a reader, an author of definitions and a reviewer call; `train` needs an extra once it joins.
WITHOUT_EXTRAS = {
    *("check", "describe", "get", "log", "train", "lineage", "search", "export", "monitor", "baseline"),
    *("plan", "apply", "promote", "rollback", "registry", "init", "completion"),
}
IMPORT = """
import json, sys
import unskew
first = sorted({name.partition(".")[0] for name in sys.modules} & {"polars", "numpy", "redis", "click"})
for name in unskew.__all__:
    getattr(unskew, name)
print(json.dumps(first))
"""
READ = """
import asyncio, json, sys
import polars as pl
from unskew import FeatureStore
url, features, users = sys.argv[1], *map(json.loads, sys.argv[2:])
rows = [{"user": user} for user in users]
with FeatureStore(redis_url=url) as store:
    answers = [store.get_online_features(features, rows), store.get_online_features(features, pl.DataFrame(rows))]
    answers.append(asyncio.run(store.get_online_features_async(features, rows)))
    print(json.dumps([[repr(one.to_dict()), repr(one.metadata["orders"].to_dict(as_series=False))] for one in answers]))
    refused = []
    for ask in (answers[0].to_arrow, answers[0].to_pandas, lambda: store.history("orders", "full").to_arrow()):
        try:
            ask()
        except Exception as error:
            refused.append(f"{type(error).__name__}: {error}")
    print(json.dumps(refused))
"""
REFUSED = """
import datetime as dt, json, sys
from unskew import FeatureStore
class Stream:
    def __arrow_c_stream__(self, schema=None): ...
store = FeatureStore(log=sys.argv[1], redis_url="redis://127.0.0.1:1/0")
trained = FeatureStore(log=sys.argv[1])
label = {"user": "u", "event_timestamp": dt.datetime.fromtimestamp(int(sys.argv[2]) / 1e6, dt.UTC)}
said = {}
for name, ask in {
    "labels": lambda: trained.get_historical_features([label], ["clicks:count"]),
    "stream": lambda: store.get_online_features(["clicks:count"], Stream()),
    "objects": lambda: FeatureStore(log="s3://bucket/log"),
    "plot": lambda: trained.history("clicks", "u").plot(),
}.items():
    try:
        ask()
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
print(trained.history("clicks", "u").frame.height)
"""
COMMANDS = """
import json, sys
from click.testing import CliRunner
from unskew.cli import main
found = []
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, command)
    ended = result.exception is None or isinstance(result.exception, SystemExit)
    found.append([result.exit_code if ended else repr(result.exception), result.output])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("slim")
    (folder / "sitecustomize.py").write_text(BLOCKED)
    path = os.pathsep.join(map(str, [folder, ROOT / "src", ROOT]))
    return {**os.environ, "PYTHONPATH": path}  # noqa: TID251 - for a process of its own


def python(environment: dict[str, str], code: str, *arguments: str) -> list[Any]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def invoked(environment: dict[str, str], commands: list[list[str]]) -> list[tuple[Any, str]]:
    ((*found,),) = python(environment, COMMANDS, json.dumps(commands))
    return [(code, output) for code, output in found]


def test_the_table_of_extras_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {
        extra: {canonicalize_name(Requirement(text).name) for text in texts}
        for extra, texts in project["optional-dependencies"].items()
    }
    named = {
        extra: {one for text in texts for one in Requirement(text).extras}
        for extra, texts in project["optional-dependencies"].items()
    }
    modules: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for name in distributions:
            modules.setdefault(canonicalize_name(name), set()).add(module)

    def all_of(extra: str) -> set[str]:
        return (asked[extra] - {"unskew", "duckdb"}).union(*(all_of(one) for one in named[extra]))

    assert asked.keys() == EXTRAS.keys()
    for extra, found in EXTRAS.items():
        for name in all_of(extra):
            assert modules[name] & found, f"{name} of unskew[{extra}] has no module in EXTRAS"
    plain = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert not {module for name in plain for module in modules[name]} & set(ABSENT)


def test_every_public_name_is_there_without_the_packages_of_extras_and_none_is_imported_before_it_is_used(environment):
    (first,) = python(environment, IMPORT)

    assert first == []


def test_features_are_read_without_the_packages_of_extras(environment, redis_url, redis_client):
    redis_client.flushdb()
    fill(redis_url)
    users = ["full", "empty", "bare", "nobody", "sœur d/b%|", None]
    rows = [{"user": user} for user in users]

    read, refused = python(environment, READ, redis_url, json.dumps(FEATURES), json.dumps(users))
    ((_, shown),) = invoked(environment, [["get", "orders", "full", "--json", "--redis-url", redis_url]])

    expected = FeatureStore(redis_url=redis_url).get_online_features(FEATURES, rows)
    as_of = expected.metadata["orders"]
    assert read == [[repr(expected.to_dict()), repr(as_of.to_dict(as_series=False))]] * 3
    assert isinstance(as_of["as_of"][0], dt.datetime)
    assert json.loads(shown)["status"] == as_of["status"][0]
    assert refused[0].startswith("NotInstalled: an Arrow table needs the package pyarrow")
    assert "pip install 'unskew[training]'" in refused[0]
    assert "pip install 'unskew[pandas]'" in refused[1]
    assert refused[2].startswith("RequestError: the history is read from the log")


def test_every_command_runs_or_says_which_extra_it_needs(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "labels.csv").write_text("household_id,event_timestamp\n1,2017-03-01T00:00:00Z\n")
    helped = invoked(environment, [[*path, "--help"] for path in VALID])
    started = invoked(environment, [[*path, *arguments] for path, arguments in VALID.items()])

    assert [code for code, _ in helped] == [0] * len(VALID)
    named = set()
    for path, (code, output) in zip(VALID, started, strict=True):
        assert "fault of unskew" not in output, output
        if f"error: unskew {path[0]} needs the package" in output:
            extra = {"catalog": "serve", "demo": "demo", "serve": "serve"}.get(path[0], "pipeline")
            assert output.endswith(f"which is not installed: pip install 'unskew[{extra}]'\n"), output
            assert code == 1
            named.add(path[0])
    assert named == {path[0] for path in VALID} - WITHOUT_EXTRAS, "place a new command in WITHOUT_EXTRAS, or not"


def test_a_shell_completes_commands_without_the_packages_of_extras(environment):
    words = {"COMP_WORDS": "unskew reh", "COMP_CWORD": "1", "_UNSKEW_COMPLETE": "bash_complete"}
    command = [sys.executable, "-c", "from unskew.cli import main; main(prog_name='unskew')"]
    done = subprocess.run(command, env=environment | words, capture_output=True, text=True, check=True, timeout=60)

    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == {"rehydrate"}


def test_training_sets_and_tables_of_others_name_the_extra_that_reads_them(environment, tmp_path):
    write_log(tmp_path, VIEW, EVENTS, CLOCK)
    record_shards(tmp_path / "clicks" / "v1", ["h0"], view=VIEW)

    said, rows = python(environment, REFUSED, str(tmp_path), str(T0 + 40 * SECOND))

    assert {name: text.partition("needs the package ")[2] for name, text in said.items()} == {
        "labels": "numba, which is not installed: pip install 'unskew[training]'",
        "stream": "pyarrow, which is not installed: pip install 'unskew[training]'",
        "objects": "obstore, which is not installed: pip install 'unskew[objects]'",
        "plot": "matplotlib, which is not installed: pip install 'unskew[plot]'",
    }
    assert all(text.startswith("NotInstalled: ") for text in said.values())
    assert rows == FeatureStore(log=tmp_path).history("clicks", "u").frame.height > 0
