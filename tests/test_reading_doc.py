"""Every example of docs/reading.md runs, and all of them read the same values."""

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

import unskew
from tests.support.plans import DAY
from tests.support.updates import closing
from unskew.cli import main
from unskew.features.plan import Plan, ViewPlan
from unskew.features.registry import describe
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.kinds import ArchiveTable, LogTable

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reading.md").read_text("utf-8")
DEFINITION = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)[0]
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

AT_US = int(datetime(2026, 3, 1, 11, tzinfo=UTC).timestamp()) * 1_000_000
NOON_US = AT_US + 3_600_000_000
SCHEMA = {
    "type": "record",
    "name": "transaction",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "status", "type": "string"},
        {"name": "amount", "type": "double"},
    ],
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The definitions of the README, in a folder."""
    folder = tmp_path / "definitions"
    (folder / "schemas").mkdir(parents=True)
    (folder / "schemas" / "transaction.avsc").write_text(json.dumps(SCHEMA))
    (folder / "features.py").write_text(DEFINITION)
    return unskew.load(folder)


def write(view: ViewPlan, log: Path, writer: RedisWriter) -> None:
    """One purchase at 11, another one at noon: at the very instant of the labels."""
    first = {"purchase_count_30d": 1, "spend_30d": 2.5, "avg_amount_today": 2.5}
    second = {"purchase_count_30d": 2, "spend_30d": 10.0, "avg_amount_today": 5.0}
    rows = [
        {"user_id": "u-42", **values, "available_at": at_us, "cause": "event", "seq": seq}
        for seq, (values, at_us) in enumerate([(first, AT_US), (second, NOON_US)])
    ]
    table = LogTable(log, view, "p0.0", None, now_us=lambda: NOON_US)
    table.append(closing(view, NOON_US + 1, log_rows=rows, shard="p0.0", since_us=AT_US - 40 * DAY))
    table.snapshot()
    table.settle()
    at = pl.Series([AT_US, NOON_US]).cast(pl.Datetime("us", "UTC"))
    events = pl.DataFrame(
        {"user_id": ["u-42"] * 2, "event_time": at, "status": ["completed"] * 2, "amount": [2.5, 7.5]}
    )
    events = events.with_columns(_partition=pl.lit(0, pl.Int32), _offset=pl.Series([0, 1]), _arrival=at, _event_time=at)
    archive = ArchiveTable(log.with_name("archive"), view.stream.topic, 0, None)
    archive.append(events, first_us=AT_US - 40 * DAY, clock_us=NOON_US + 1)
    archive.snapshot()
    archive.snapshot()
    current = {"key": "u-42", **second, "_at": NOON_US, "_until": NOON_US + DAY}
    writer.add(closing(view, NOON_US + 1, [current], shard="p0.0", since_us=AT_US - 40 * DAY))
    writer.flush(time.time_ns() // 1000)


def test_all_examples_read_the_same_values(plan, tmp_path, redis_url, redis_client, monkeypatch):
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(json.dumps(describe(plan)))
    write(plan.views["user_purchases"], tmp_path / "log", writer)
    assert CliRunner().invoke(main, ["publish", "--log", str(tmp_path / "log")]).exit_code == 0
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in PYTHON:
        assert "redis://localhost:6379/0" in block or "redis" not in block
        exec(block.replace("redis://localhost:6379/0", redis_url), found)

    assert found["values"] == {
        "user_id": ["u-42", "nobody"],
        "purchase_count_30d": [2, 0],
        "spend_30d": [10.0, 0.0],
        "avg_amount_today": [5.0, None],
    }
    assert found["about"]["status"].to_list() == ["lagging", "lagging"]
    assert found["frame"].drop("event_timestamp").rows() == [
        ("u-42", True, 1, 2.5, 2.5),
        ("nobody", False, 0, 0.0, None),
    ]
    assert found["tried"].equals(found["frame"])
    assert found["exists"]["reference"].to_list()[:1] == ["user_purchases:purchase_count_30d"]
    assert found["changes"]["purchase_count_30d"].to_list() == [1, 2]
    assert found["training_again"].to_df().equals(found["frame"])
    assert pl.read_parquet("training.parquet").equals(found["frame"])
    assert found["counts"].select("present", "default").rows() == [(1, 1)] * 3
    assert found["row"] == {
        "purchase_count_30d": "2",
        "spend_30d": "10.0",
        "avg_amount_today": "5.0",
        "_at": str(NOON_US),
        "_until": str(NOON_US + DAY),
    }
    assert int(found["clocks"]["user_purchases@1/p0.0"]) == NOON_US + 1
    expected = [(0, 1), (1, 0)]
    assert found["by_duckdb"].rows() == expected
    assert found["by_polars"].rows() == expected
    assert found["by_delta"].rows() == expected
    assert found["polars_too"] == 2
    assert pl.from_pandas(found["by_pandas"].astype("int64")).rows() == expected


def test_the_page_has_every_status_and_column_of_the_answers(plan):
    from unskew.features.warming import Statuses
    from unskew.sinks.tables.layout import log_schema

    statuses = PAGE[PAGE.index("| status | meaning | where |") :].split("\n\n")[0]
    listed = set(re.findall(r"^\| `(\w+)`", statuses, re.MULTILINE))
    assert listed == {status.name for status in Statuses} | {"lagging"}
    columns = PAGE[PAGE.index("| the entity's keys, the features |") :].split("\n\n")[0]
    view = plan.views["user_purchases"]
    own = {"user_id", *(output.name for output in view.outputs)}
    assert own | set(re.findall(r"`(\w+)`", columns)) >= set(log_schema(view))
