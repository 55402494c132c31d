"""An erased entity is nowhere, everybody else is as before, and the pipeline goes on as if it had never been."""

import io
import json
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import fastavro
import polars as pl
import pyarrow as pa
import pytest
import redis
from click.testing import CliRunner, Result

from tests.support.pipeline import SCHEMA, Bench, Outcome, history
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.plan import Plan
from unskew.monitoring.audit import audit
from unskew.offline.compaction import Limits, archive_tables, compact, dead_letter_tables, log_tables
from unskew.pipelines.deployment import owner_of
from unskew.pipelines.history.ahead import Ahead, backfill_ahead
from unskew.pipelines.run import run
from unskew.pipelines.state import changelog, ordering
from unskew.pipelines.state.changelog import Manifest
from unskew.pipelines.state.folder import RECOVERY
from unskew.pipelines.state.saved import read_saved
from unskew.sinks import ipc
from unskew.sinks.aside import Aside
from unskew.sinks.lease import Lease
from unskew.sinks.tables import parquet
from unskew.sinks.tables.layout import published_files, view_root
from unskew.sinks.tables.parquet import rows_of

DEFINITIONS = """
from tests.support.pipeline import SCHEMA
from unskew import Entity, Feature, FeatureView, Lifetime, Sessions, Sliding, Stream, Tumbling, agg

user, item, both = Entity("user", key="user"), Entity("item", key="item"), Entity("both", key=["item", "user"])
stream = Stream(
    "purchases", topic={topic!r}, schema=SCHEMA, event_time="at", partitioned_by="user", owner="tests",
    event_id="item", dedupe_within="20s",
)
features = [
    Feature("n", agg.count(), Sliding("10min", hop="10s")),
    Feature("total", agg.sum("amount"), Lifetime()),
    Feature("items", agg.top_k("item", k=3), Tumbling("1h")),
    Feature("last", agg.last_n("amount", n=3), Sliding("1h", hop="10min")),
]
by_user = FeatureView("by_user", entity=user, stream=stream, owner="tests", features=features)
by_item = FeatureView("by_item", entity=item, stream=stream, owner="tests", features=features[:2], where="amount > 0")
by_both = FeatureView("by_both", entity=both, stream=stream, owner="tests", features=features[:3])
visits = FeatureView(
    "visits", entity=user, stream=Sessions("sits", stream, gap="5min"), owner="tests",
    features=[Feature("n", agg.count(), Sliding("1h", hop="10min"))],
)
"""
LATER = """
later = FeatureView("later", entity=user, stream=stream, owner="tests", features=features[:3])
"""
# Polars keeps texts of more than twelve bytes apart from the rows, also those of rows that were filtered out.
GONE = "user 3% with a long name"
QUOTED = quote(GONE, safe="")
RECORDS = [
    replace(one, user=GONE) if one.user == "user 3%" else one
    for one in history(240, seed=29, n_users=6, n_partitions=2)
]


@dataclass
class Pipeline:
    """A pipeline on definitions in a file, and its outcome."""

    outcome: Outcome
    definitions: Path
    redis_url: str

    @property
    def plan(self) -> Plan:
        return self.outcome.plan

    def ran(self) -> None:
        self.outcome.status = run(self.plan, self.outcome.deployment, stop=threading.Event())

    def erase(self, *keys: str, entity: str = "user", more: tuple[str, ...] = ()) -> Result:
        return CliRunner().invoke(main, self.erasing(*keys, entity=entity, more=more))

    def erasing(
        self, *keys: str, entity: str = "user", more: tuple[str, ...] = (), definitions: bool = True
    ) -> list[str]:
        where = self.outcome.deployment
        folders = {"log": where.log, "archive": where.archive, "dead-letters": where.dead_letters, "state": where.state}
        options = [f"--{name}={folder}" for name, folder in folders.items()]
        given = [f"--definitions={self.definitions}"] if definitions else []
        return ["erase", entity, *keys, *given, f"--redis-url={self.redis_url}", *options, *more]

    def audited(self) -> list[str]:
        where = self.outcome.deployment
        source = {"redis_source": self.redis_url, "prefix": where.prefix}
        report = audit(self.plan, where.log, where.archive, **source, samples=300, patience_s=0)
        return [str(one) for one in report.differences]

    def audited_by_the_log(self) -> list[str]:
        """As ``audited``, by the command and without definitions."""
        where = self.outcome.deployment
        folders = ["--log", str(where.log), "--archive", str(where.archive)]
        more = ["--redis-url", self.redis_url, "--prefix", where.prefix, "--samples", "300", "--json"]
        report = json.loads(CliRunner().invoke(main, ["audit", *folders, *more]).stdout)
        assert {one["view"] for one in report["views"]} == {one.id for one in self.plan.views.values()}
        assert all(one["samples"] for one in report["views"])
        return [str(one) for one in report["differences"]]

    def content(self) -> dict[str, Any]:
        """What readers see of everybody but the erased one."""
        logs = {name: self.outcome.log(name) for name in self.plan.views}
        others = {name: rows.filter(~is_theirs(rows)) for name, rows in logs.items()}
        client = redis.Redis.from_url(self.redis_url, decode_responses=True)
        prefix = self.outcome.deployment.prefix
        served = {key: client.hgetall(key) for key in client.scan_iter(f"{prefix}:*@*") if QUOTED not in key}
        return {**{name: rows.to_dict(as_series=False) for name, rows in others.items()}, "served": served}


def is_theirs(rows: pl.DataFrame) -> pl.Series:
    return rows["user"] == GONE if "user" in rows.columns else pl.repeat(value=False, n=rows.height, eager=True)


def traces(pipeline: Pipeline) -> list[str]:
    """Every place that still holds the key: each column of each Parquet file as DuckDB reads it, the bytes of every
    other file, and every key and value of Redis."""
    found = []
    where = pipeline.outcome.deployment
    for path in sorted(path for root in where.folders().values() for path in root.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            source = f"read_parquet('{path}', hive_partitioning=false)"
            columns = duckdb.sql(f"SELECT * FROM {source} LIMIT 0")
            texts = [
                f'hex("{name}")' if str(kind) == "BLOB" else f'"{name}"::VARCHAR'
                for name, kind in zip(columns.columns, columns.types, strict=True)
            ]
            query = f"SELECT count(*) FROM (SELECT concat_ws(' ', {', '.join(texts)}) AS row FROM {source})"
            wanted = [GONE, GONE.encode().hex().upper()]
            n_rows = (
                duckdb.connect().execute(f"{query} WHERE contains(row, $1) OR contains(row, $2)", wanted).fetchone()
            )
            found += [str(path)] * (n_rows != (0,))
        elif any(form in path.read_bytes() for form in (GONE.encode(), QUOTED.encode())):
            found.append(str(path))
    client = redis.Redis.from_url(pipeline.redis_url)
    for key in client.scan_iter():
        octets = key + b"".join(sum(client.hgetall(key).items(), ())) if client.type(key) == b"hash" else key
        found += [str(key)] * (QUOTED.encode() in octets or GONE.encode() in octets)
    return found


@pytest.fixture
def pipeline(bench: Bench) -> Pipeline:
    return _pipeline(bench)


def _pipeline(bench: Bench) -> Pipeline:
    """Return a pipeline with records of six users.

    They are in files small and merged, with superseded ones, in dead letters, and in seeds of a new view.
    """
    topic = bench.produce(RECORDS[:160], n_partitions=2)
    definitions = bench.root / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    redis.Redis.from_url(bench.redis_url).flushdb()
    made = Pipeline(Outcome(load(definitions), bench.deployment(n_hashes=2)), definitions, bench.redis_url)
    made.ran()
    where = made.outcome.deployment
    for table in (*log_tables(where.log), *archive_tables(where.archive), *dead_letter_tables(where.dead_letters)):
        compact(table, Limits(min_files=2), now_s=0.0)
    bench.append(topic, RECORDS[160:200])
    made.ran()
    definitions.write_text(DEFINITIONS.format(topic=topic) + LATER)
    both = load(definitions)
    backfill_ahead(
        Ahead(
            views=[both.views["later"]],
            log=where.log,
            archive=where.archive,
            state=where.state,
            owner=owner_of("a test", where.state),
        ),
        threading.Event(),
    )
    return replace(made, outcome=Outcome(both, where))


def test_nothing_of_the_entity_is_left_and_all_others_are_as_before(bench: Bench, pipeline: Pipeline) -> None:
    other = pipeline.redis_url
    client = redis.Redis.from_url(other)
    client.hset(f"live:by_user@1:{{{QUOTED}}}", "n", 1)
    client.hset("live:by_item@1:{3}", "n", 1)
    sample = pipeline.outcome.deployment.log / "_served" / "served-1-1-1.jsonl"
    sample.parent.mkdir()
    line = '{"view": "by_user@1", "key": "%s", "as_of": 1, "values": {}}\n'
    sample.write_text(line % QUOTED + line % "user%201%25" + '{"view": "by_u')
    before, archived = pipeline.content(), pipeline.outcome.archive()
    assert len(traces(pipeline)) > 15

    looked = pipeline.erase(GONE, more=("--dry-run",))
    assert looked.exit_code == 0, looked.output
    by_log = CliRunner().invoke(main, pipeline.erasing(GONE, more=("--dry-run",), definitions=False))
    assert (by_log.exit_code, by_log.output) == (0, looked.output)
    assert len(traces(pipeline)) > 15
    erased = pipeline.erase(GONE)

    assert erased.exit_code == 0, erased.output
    assert "nothing is left" in erased.output
    assert traces(pipeline) == []
    assert client.exists("live:by_item@1:{3}")
    assert sample.read_text() == line % "user%201%25"
    assert pipeline.content() == before
    places = ["_partition", "_offset", "_arrival"]
    assert pipeline.outcome.archive().select(places).equals(archived.select(places))

    topic = next(iter(pipeline.plan.views.values())).stream.topic
    pipeline.ran()
    back = replace(RECORDS[-1], user=GONE, partition=1, stamp_ms=RECORDS[-1].stamp_ms + 1000, item=1, raw=None)
    bench.append(topic, [*RECORDS[200:], back, replace(back, user="user 5%", stamp_ms=back.stamp_ms + 1000)])
    pipeline.ran()
    assert pipeline.audited() == []
    assert pipeline.audited_by_the_log() == []
    new = pipeline.outcome.log("by_user").filter(pl.col("user") == GONE)
    n_new = sum(record.user == GONE and record.raw is None for record in RECORDS[200:])
    assert 1 <= new["n"].max() <= n_new + 1, "records that come later begin the entity anew"
    table = next(one for one in log_tables(pipeline.outcome.deployment.log) if one.name == "log by_user@1")
    report = compact(table, Limits(min_files=2, grace_s=0.0), now_s=2e9)
    assert report.faults == ()
    assert pipeline.audited() == []


def texts_of_events(pipeline: Pipeline) -> bytes:
    """Return what the buffers of all events in the state hold, also of those that are compressed."""
    state = Path(pipeline.outcome.deployment.state)
    kept = [Manifest.from_bytes(one["changelog"]).kept for one in read_saved(state / RECOVERY, {}).shards]
    records = [path.read_bytes() for path in sorted(state.rglob("*.events"))]
    records += [one.data for one in kept if one is not None]
    found = []
    for data in records:
        at = 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            events = pa.ipc.open_stream(data[at + 8 : at + 8 + length]).read_all()
            at += 8 + length
            buffers = [held for column in events.columns for chunk in column.chunks for held in chunk.buffers()]
            found += [held.to_pybytes() for held in buffers if held is not None]
    return b" ".join(found)


@pytest.mark.parametrize("compressed_from", [1, 1 << 16])
def test_files_with_texts_of_rows_that_were_filtered_out_are_written_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, compressed_from: int
) -> None:
    """As an earlier version wrote them: also in shards that the entity is not in."""
    monkeypatch.setattr(ipc, "COMPRESSED_FROM", compressed_from)
    with monkeypatch.context() as earlier:
        for one in (changelog, ordering):
            earlier.setattr(one, "own_texts", lambda frame: frame)
        pipeline = _pipeline(bench)
    before = pipeline.content()
    assert QUOTED.encode() in texts_of_events(pipeline)

    erased = pipeline.erase(GONE)

    assert erased.exit_code == 0, erased.output
    assert traces(pipeline) == []
    assert QUOTED.encode() not in texts_of_events(pipeline)
    assert pipeline.content() == before


@pytest.mark.parametrize("way", ["rows", "files", "a file and rows"])
def test_rows_that_only_the_recovery_store_holds_are_published_without_the_entity(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "files":
        monkeypatch.setattr(parquet, "AHEAD_CELLS", 1)
    if way == "a file and rows":
        monkeypatch.setattr(parquet, "SOON_ROWS", 3)
        monkeypatch.setattr(Aside, "near", lambda _: lambda: True)
    topic = bench.produce(RECORDS[:160], n_partitions=2)
    definitions = bench.root / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    redis.Redis.from_url(bench.redis_url).flushdb()
    pipeline = Pipeline(
        # So long that all polls of a run are in one epoch.
        Outcome(load(definitions), bench.deployment(n_hashes=2, poll_records=20, epoch_s=30.0)),
        definitions,
        bench.redis_url,
    )
    pipeline.ran()
    bench.append(topic, RECORDS[160:])
    pipeline.ran()
    before, archived = pipeline.content(), pipeline.outcome.archive()
    where = pipeline.outcome.deployment
    saved = read_saved(Path(where.state) / RECOVERY, {})
    held = [part for table in saved.tables.values() for part in table.get("kept", ())]
    assert any("files" in part for part in held) == (way != "rows")
    assert any("rest" in part for part in held) == (way == "a file and rows")
    # As after a kill before anything of the last epoch was published.
    unpublished = 0
    for name, table in saved.tables.items():
        kind, place, part = name.split("/")
        if not rows_of(table):
            continue
        root = {
            "log": lambda place=place: view_root(where.log, *_version(place)),
            "archive": lambda place=place: Path(where.archive) / place,
            "dead": lambda place=place: Path(where.dead_letters) / place,
        }[kind]()
        for file in published_files(root, part if kind == "log" else f"p{part}"):
            if file.first >= table["shown"]["next"]:
                file.path.unlink()
                unpublished += 1
    assert unpublished

    looked = pipeline.erase(GONE, more=("--dry-run",))
    assert "the entity is in" in looked.output, looked.output
    erased = pipeline.erase(GONE)

    assert erased.exit_code == 0, erased.output
    assert traces(pipeline) == []
    assert pipeline.content() == before
    places = ["_partition", "_offset", "_arrival"]
    assert pipeline.outcome.archive().select(places).equals(archived.select(places))
    pipeline.ran()
    assert pipeline.content() == before


def _version(view_id: str) -> tuple[str, int]:
    name, _, version = view_id.partition("@")
    return name, int(version)


KILLED = """
import os, signal, sys
from pathlib import Path
from unskew.sinks import durable
from unskew.cli import main
left = int(sys.argv.pop(1))
def counted(call):
    def step(*arguments, **more):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return step
for name in ("rename", "sync", "like"):
    setattr(durable, name, counted(getattr(durable, name)))
Path.unlink = counted(Path.unlink)
main(sys.argv[1:])
"""


@pytest.mark.long
def test_an_erasure_that_is_killed_is_finished_by_the_same_command(pipeline: Pipeline) -> None:
    before = pipeline.content()
    for step in (9, 40):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(step), *pipeline.erasing(GONE)],
            capture_output=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if step != 40:
            continue
        assert traces(pipeline), "it was not done yet"

    assert pipeline.erase(GONE).exit_code == 0
    assert traces(pipeline) == []
    assert pipeline.content() == before
    pipeline.ran()


def test_numbers_and_keys_of_several_columns(bench: Bench, pipeline: Pipeline) -> None:
    def others(name: str, gone: pl.Expr) -> pl.DataFrame:
        return pipeline.outcome.log(name).filter(~gone)

    pending = pipeline.erase("3", entity="item")
    assert pending.exit_code == 1
    assert "later@1 reads the key as a value, and its backfill will be compared" in pending.output
    pipeline.ran()
    pipeline.ran()
    letters = pipeline.outcome.dead_letters()
    items = [item_of(value) for value in letters["value"]]
    number = next(item for item in items if item is not None)
    of_item = pl.col("item") == number
    _, other, whose = pipeline.outcome.log("by_both").filter(~of_item).select("shard", "item", "user").row(0)
    of_both = (pl.col("item") == other) & (pl.col("user") == whose)
    before = {"by_user": others("by_user", pl.lit(value=False)), "by_both": others("by_both", of_item | of_both)}
    before["by_item"] = others("by_item", of_item)
    assert pipeline.outcome.log("by_both").filter(of_item).height
    assert pipeline.outcome.log("by_both").filter(of_both).height

    item = pipeline.erase(str(number), entity="item")
    # A letter that is binary and cannot be read may hold so small a number.
    assert "so short a key cannot be looked for in them" in item.output
    assert item.exit_code == 1
    kept = letters.filter(pl.Series([one != number for one in items]))
    assert pipeline.outcome.dead_letters().equals(kept)

    item = pipeline.erase(str(number), entity="item", more=("--doubted-letters",))
    both = pipeline.erase(str(other), whose, entity="both", more=("--doubted-letters",))

    assert item.exit_code == both.exit_code == 0, item.output + both.output
    for name, expected in before.items():
        assert pipeline.outcome.log(name).equals(expected)
    archived = pipeline.outcome.archive()
    assert archived.filter(of_item | of_both).is_empty()
    assert archived.filter(pl.col("item").is_null(), pl.col("user").is_not_null()).height
    client = redis.Redis.from_url(pipeline.redis_url, decode_responses=True)
    served = [key.rpartition(":{")[2][:-1] for key in client.scan_iter("*@1:*")]
    assert not {str(number), f"{other}|{quote(whose)}"} & set(served)
    assert not [key for key in served if key.startswith(f"{number}|")]
    topic = next(iter(pipeline.plan.views.values())).stream.topic
    bench.append(topic, RECORDS[200:])
    pipeline.ran()
    assert "by_user@1 reads item as a value: what it has counted stays" in item.output
    assert "by_both@1" not in {one.partition(" ")[0] for one in pipeline.audited()}


def item_of(value: bytes) -> int | None:
    """The item of a record that can be read."""
    try:
        record = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(SCHEMA), None)
    except (EOFError, ValueError, IndexError):
        return None
    return int(record["item"])  # type: ignore[call-overload,index]


def test_a_key_that_others_hold_as_a_value_is_reported_as_left(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:80], n_partitions=2)
    definitions = bench.root / "definitions.py"
    holds = """
holds = FeatureView("holds", entity=item, stream=stream, owner="tests", features=[
    Feature("who", agg.last('"user"'), Lifetime()), Feature("them", agg.top_k('"user"', k=9), Lifetime()),
])
"""
    definitions.write_text(DEFINITIONS.format(topic=topic) + holds)
    client = redis.Redis.from_url(bench.redis_url)
    client.flushdb()
    made = Pipeline(Outcome(load(definitions), bench.deployment(n_hashes=2)), definitions, bench.redis_url)
    made.ran()
    where = made.outcome.deployment

    result = made.erase(GONE)

    assert result.exit_code == 1
    assert "error: log holds@1: " in result.output
    assert "a view of another entity stores the key as a value" in result.output
    left = {path for path in traces(made) if "/holds" not in path and ":holds@" not in path}
    saved = read_saved(Path(made.outcome.deployment.state) / RECOVERY, {})
    assert {path.rpartition("/")[2] for path in left} <= {"part-0.sqlite3"}
    # Of what the recovery store holds, only the newest events of that view.
    assert {one["view"] for one in saved.shards if GONE.encode() in pickle.dumps(one)} <= {"holds@1"}
    assert GONE.encode() not in pickle.dumps(saved.tables)
    assert traces(made) != []
    shutil.rmtree(where.log / "holds")
    definitions.write_text(DEFINITIONS.format(topic=topic))
    made = replace(made, outcome=Outcome(load(definitions), replace(where, drop=["holds"])))
    made.ran()
    CliRunner().invoke(main, ["purge", "holds@1", f"--redis-url={bench.redis_url}", f"--prefix={where.prefix}"])
    again = made.erase(GONE)
    assert again.exit_code == 0, again.output
    assert traces(made) == []


def test_what_cannot_be_done_is_refused_before_anything_changes(pipeline: Pipeline) -> None:
    where = pipeline.outcome.deployment
    before = traces(pipeline)
    lease = Lease(where.log, "--log", where.owner(), frozenset(["by_user@1/p0.0"]))
    refused = [
        (pipeline.erase(GONE), "is in use by pipeline 'main'"),
        (pipeline.erase(GONE, entity="usr"), "there is no entity 'usr'; did you mean 'user'?"),
        (pipeline.erase(GONE, "1"), "entity user has the key USER: 1 expected, 2 given"),
        (pipeline.erase("one", entity="item"), "item is a whole number, and 'one' is not"),
    ]
    lease.release()
    for result, said in refused:
        assert result.exit_code == 1, result.output
        assert said in result.output
        assert "Traceback" not in result.output
    assert traces(pipeline) == before
