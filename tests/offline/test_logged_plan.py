"""A log says how its views are computed: the plan made again from it alone is the one with which it was written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.definitions import SCHEMA, stream, view
from unskew import Feature, FeatureView, LayoutError, Sliding, Stream, Table, agg, compile
from unskew.features.definitions.load import load
from unskew.features.definitions.recorded import stream_of, words_of
from unskew.features.errors import RequestError
from unskew.features.plan import Plan
from unskew.offline.logged_plan import logged_plan
from unskew.sinks.tables.checksum import read_json, sealed_json
from unskew.sinks.tables.layout import shards_file, view_root
from unskew.sinks.tables.parquet import record_shards

EXAMPLES = Path(__file__).parents[2] / "examples"
JSON = {
    "type": "object",
    "properties": {"user_id": {"type": "string"}, "at": {"type": "string"}, "n": {"type": "integer"}},
}
NESTED = {
    "type": "record",
    "name": "Deep",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "at", "type": "long"},
        {
            "name": "geo",
            "type": {"type": "record", "name": "Geo", "fields": [{"name": "lat", "type": "double"}]},
        },
    ],
}
STREAMS = {
    "several topics": stream(topic=["a", "b"], partitioned_by=None),
    "a pattern": stream(topic="^orders-.*", partitioned_by=None),
    "all words": stream(
        event_id="transaction_id", dedupe_within="90s", settle="1500ms", max_age="30d", max_ahead="0s",
        key_column="record_key", key_format="int64", headers={"tenant": "x-tenant"}, schema_ids=[7, 8],
        owner="payments", description="what was bought", tags={"tier": "1"}, aliases=["buys"],
    ),
    "JSON": Stream("s", topic="t", schema=JSON, event_time="at", format="json", read_as={"at": "iso Europe/Berlin"}),
    "Connect": Stream("s", topic="t", schema=JSON, event_time="at", format="json", read_as={"at": "iso"}, envelope="connect"),
    "fields": Stream("s", topic="t", schema=NESTED, event_time="at", fields={"lat": "geo.lat"}, read_as={"at": "unix-ms"}),
    "Debezium": Stream(
        "s", topic="t", schema=JSON, event_time="at", format="json", read_as={"at": "iso"}, envelope="debezium",
        operations=["c", "u"], other_operations="dead_letter",
    ),
    "records": stream(records=["a.Transaction", "Transaction"]),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_planned_again_from_what_is_recorded_of_it(name: str) -> None:
    (plan,) = compile(STREAMS[name]).streams.values()

    words = json.loads(json.dumps(words_of(plan)))

    assert stream_of(words, "the log") == plan


@pytest.mark.parametrize("path", ["returns.parquet", ["a.csv", "b.csv"], pl.LazyFrame({"user_id": ["u"]})])
def test_a_table_is_planned_again_but_for_a_frame_in_memory(path: Any) -> None:
    table = Table(
        "returns",
        path=path,
        schema=SCHEMA,
        event_time="event_time",
        delay="2h",
        zone="UTC",
        columns={"amount": "Amount"},
    )
    (plan,) = compile(table).streams.values()

    again = stream_of(json.loads(json.dumps(words_of(plan))), "the log")

    assert plan.table is not None
    assert again.table is not None
    nowhere = [replace(one, table=replace(one.table, path=None)) for one in (plan, again)]
    assert nowhere[0] == nowhere[1]


def written(log: Path, plan: Plan) -> Path:
    for one in plan.views.values():
        record_shards(view_root(log, one.name, one.version), ["h0"], view=one)
    return log


@pytest.mark.parametrize("example", sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()))
def test_the_examples_are_planned_again(tmp_path: Path, example: str) -> None:
    plan = load(EXAMPLES / example)

    again = logged_plan(written(tmp_path, plan))

    assert {one.id for one in again.views.values()} == {one.id for one in plan.views.values()}
    for one in plan.views.values():
        other = again.views.find(one.id)
        assert other.state_fingerprint == one.state_fingerprint
        assert other.published == one.published
        assert (other.sessions is None) == (one.sessions is None)


def test_only_some_versions_are_planned_where_these_are_asked_for(tmp_path: Path) -> None:
    feature = Feature("n", agg.sum(pl.col("amount") * 2), Sliding("1h"), filter=pl.col("amount") > 1)
    first, second = (
        FeatureView("v", entity=view().entity, stream=stream(), features=[feature], version=n) for n in (1, 2)
    )
    for one in (first, second):
        written(tmp_path, compile(one))

    assert sorted(one.id for one in logged_plan(tmp_path).views.values()) == ["v@1", "v@2"]
    assert [one.id for one in logged_plan(tmp_path, ["v@2", "w@1"]).views.values()] == ["v@2"]
    with pytest.raises(RequestError, match="holds no log of a view that is applied"):
        logged_plan(tmp_path, ["v@3"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("stream"), "does not say how its stream is read"),
        (lambda found: found["stream"].clear(), "cannot be read"),
        (lambda found: found["stream"]["stream"].update(unheard_of=1), "cannot be read"),
        (lambda found: found["stream"]["stream"].update(event_time="nothing"), "no column 'nothing'"),
        (lambda found: found["stream"]["stream"].update(topic="another"), "it is another view"),
        (lambda found: found["view"].update(where="1; import os"), "cannot be computed from what is published"),
    ],
)
def test_a_log_that_does_not_say_all_is_an_error_that_says_so(tmp_path: Path, change: Any, said: str) -> None:
    written(tmp_path, compile(view()))
    path = shards_file(view_root(tmp_path, "purchases", 1))
    found = read_json(path.read_bytes())
    change(found)
    path.write_bytes(sealed_json(found))

    with pytest.raises(LayoutError, match=said) as caught:
        logged_plan(tmp_path)
    assert "--definitions" in str(caught.value) or "give the definitions" in str(caught.value)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no log of any view"):
        logged_plan(tmp_path)
