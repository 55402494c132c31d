"""``unskew lineage`` and ``unskew search`` from definitions, from a log, and from the registry in Redis."""

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from tests.features.definitions.test_lineage import lineage
from tests.support.definitions import stream, view
from tests.support.written import write_log
from unskew import Derived, Feature, FeatureStore, Service, Sliding, agg
from unskew.cli import main
from unskew.cli.openlineage import OpenLineage
from unskew.features.definitions.compile import compile
from unskew.features.registry import describe
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.parquet import record_shards

T0 = 1_490_400_000_000_000
MINUTE = 60_000_000
EXAMPLES = Path(__file__).parents[2] / "examples"
JOURNEY = ("--definitions", str(EXAMPLES / "complete_journey"))
PLAN = compile(
    view(
        Feature("n", agg.count(), Sliding("1h"), description="How often"),
        Feature("spent", agg.sum("amount"), Sliding("1h"), filter="online"),
        Derived("each", "spent / n"),
        where="n_items > 0",
        stream=stream(topic="shop.transactions"),
        owner="growth",
        description="What users buy",
    ),
    Service("checkout", ["purchases:each", "purchases@1:n"], owner="payments"),
)


def invoke(*arguments: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, list(map(str, arguments)))


def shown(*arguments: object, **environment: str) -> str:
    result = invoke(*arguments, **environment)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def registry(redis_client, redis_url: str) -> dict[str, str]:
    RedisWriter(redis_client, "shop", "main").publish_registry(json.dumps(describe(PLAN)))
    return {"UNSKEW_REDIS_URL": redis_url, "UNSKEW_PREFIX": "shop"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    at = pl.Series([T0, T0 + MINUTE]).cast(pl.Datetime("us", "UTC"))
    events = pl.DataFrame(
        {"user_id": ["a", "b"], "amount": [1.0, 2.0], "online": [True, False], "n_items": [1, 2], "event_time": at},
        schema_overrides={"n_items": pl.Int32},
    ).with_columns(_partition=pl.lit(0, pl.Int32), _offset=pl.int_range(2), _arrival=at, _event_time=at)
    one = PLAN.views["purchases"]
    record_shards(tmp_path / "log" / "purchases" / "v1", ["h0"], view=one)
    write_log(tmp_path / "log", one, events, T0 + 2 * MINUTE)
    return tmp_path / "log"


def test_the_registry_in_redis_and_a_log_are_enough(registry: dict[str, str], log: Path) -> None:
    tree = shown("lineage", "purchases:each", **registry)
    alone = shown("lineage", "purchases:each", "--log", log)

    above = tree.split("is read by")[0]
    assert above == alone.split("is read by")[0]
    for text in (
        "feature purchases@1:each  float64, derived, spent / n, sliding(1h,hop=10s), owner growth",
        "column transactions.amount  (value)",
        "column transactions.online  (filter)",
        "column transactions.n_items  (where)",
        "topic shop.transactions  (read)",
    ):
        assert text in above
    assert "service checkout  (read)  owner payments" in tree
    # No log knows services.
    assert "nothing that is known" in alone
    assert "service checkout" in shown("lineage", "shop.transactions", **registry)


def test_json_has_every_node_and_edge(registry: dict[str, str]) -> None:
    found = json.loads(shown("lineage", "purchases:n", "--json", **registry))

    assert found["named"] == ["feature purchases@1:n"]
    assert found["upstream"][0] == "view purchases@1"
    assert {"topic shop.transactions", "stream transactions"} <= set(found["upstream"])
    assert set(found["downstream"]) == {"feature purchases@1:each", "service checkout"}
    nodes = {node["id"]: node for node in found["nodes"]}
    assert set(nodes) == {*found["named"], *found["upstream"], *found["downstream"]}
    assert nodes["feature purchases@1:n"]["description"] == "How often"
    assert {"source": "feature purchases@1:n", "target": "service checkout", "how": "read"} in found["edges"]
    assert all(edge["source"] in nodes and edge["target"] in nodes for edge in found["edges"])


STRING = r'"(?:[^"\\\n]|\\.)*"'


def test_names_of_others_are_data_in_a_graph(registry: dict[str, str], log: Path, tmp_path: Path) -> None:
    labels = [{"user_id": "a", "event_timestamp": dt.datetime.fromtimestamp(T0 // 1e6 + 30, dt.UTC)}]
    models = tmp_path / "models"
    models.mkdir()
    answer = FeatureStore(log=log).get_historical_features(labels, ["purchases:n"])
    hostile = 'x"]; n0 -> \\N \x1b[31m <b>'
    answer.to_parquet(models / f"{hostile}.parquet")

    dot = shown("lineage", "purchases:n", "--dot", "--models", models, **registry)
    found = json.loads(shown("lineage", "purchases:n", "--json", "--models", models, **registry))

    assert f"model {hostile}" in found["downstream"]
    first, *lines, last, end = dot.split("\n")
    assert (first, last, end) == ("digraph lineage {", "}", "")
    assert all(line.isprintable() for line in lines)
    statement = (
        rf"  (rankdir=LR|node \[shape=box\]|n\d+ \[label={STRING}, shape=\w+\]|n\d+ -> n\d+ \[label={STRING}\]);"
    )
    assert [line for line in lines if not re.fullmatch(statement, line)] == []
    assert len([line for line in lines if " -> n" in re.sub(STRING, "", line)]) == len(found["edges"])
    (label,) = [line for line in lines if "model" in line]
    assert r'label="model\nx\"]; n0 -> \\N \\x1b[31m <b>"' in label


def test_openlineage_says_of_each_field_what_it_is_made_of(registry: dict[str, str]) -> None:
    lines = shown("lineage", "purchases", "--openlineage", "--bootstrap-servers", "k1:9092,k2:9092", **registry)
    job, service = map(json.loads, lines.splitlines())

    for event in (job, service):
        assert_is_a_job_event(event)
    assert (job["job"]["name"], service["job"]["name"]) == ("purchases@1", "service checkout")
    topic = {"namespace": "kafka://k1:9092", "name": "shop.transactions"}
    assert (job["inputs"], service["inputs"]) == ([topic], [{"namespace": "unskew", "name": "purchases@1"}])
    ((output,), (columns,)) = job["outputs"], service["outputs"]
    assert [(one["name"], one["type"]) for one in output["facets"]["schema"]["fields"]] == [
        ("n", "int64"), ("spent", "float64"), ("each", "float64"),
    ]  # fmt: skip
    assert output["facets"]["documentation"]["description"] == "What users buy"
    assert output["facets"]["ownership"]["owners"] == [{"name": "growth"}]
    always = {("n_items", "INDIRECT", "FILTER"), ("user_id", "INDIRECT", "GROUP_BY")}
    spent = {("amount", "DIRECT", "AGGREGATION"), ("online", "INDIRECT", "FILTER")}
    assert fields_of(output, topic) == {"n": always, "spent": always | spent, "each": always | spent}
    assert fields_of(columns, service["inputs"][0]) == {
        "each": {("each", "DIRECT", "IDENTITY")}, "n": {("n", "DIRECT", "IDENTITY")},
    }  # fmt: skip


def test_openlineage_follows_sessions_tables_inputs_and_models() -> None:
    graph = OpenLineage(lineage(), namespace="ns", topics="kafka://k:1", now_us=T0)
    events = {event["job"]["name"]: event for event in graph.events(lineage().nodes.values())}

    for event in events.values():
        assert_is_a_job_event(event)
    assert set(events) == {
        "purchases@1", "visits@1", "returns@1", "on_demand basket@1", "service checkout", "model fraud",
    }  # fmt: skip
    eu = {("user_id", "INDIRECT", "GROUP_BY"), ("event_time", "INDIRECT", "WINDOW"), ("shop_id", "INDIRECT", "FILTER")}
    ((visits,), (basket,), (model,)) = (
        events[name]["outputs"] for name in ("visits@1", "on_demand basket@1", "model fraud")
    )
    both = [{"namespace": "kafka://k:1", "name": name} for name in ("eu", "us")]
    most = visits["facets"]["columnLineage"]["fields"]["most"]["inputFields"]
    assert [one for one in both if one not in events["visits@1"]["inputs"]] == []
    for topic in both:
        its = [one for one in most if one["name"] == topic["name"]]
        found = {(one["field"], each["type"], each["subtype"]) for one in its for each in one["transformations"]}
        assert found == eu | {("amount", "DIRECT", "AGGREGATION")}
    assert events["returns@1"]["inputs"] == [{"namespace": "file", "name": "returned.parquet"}]
    assert events["returns@1"]["job"]["facets"]["jobType"]["processingType"] == "BATCH"
    purchases = {"namespace": "ns", "name": "purchases@1"}
    made_of = basket["facets"]["columnLineage"]["fields"]
    assert {name: [(one["name"], one["field"]) for one in its["inputFields"]] for name, its in made_of.items()} == {
        "share": [("purchases@1", "spent")], "age_s": [("visits@1", "last")],
    }  # fmt: skip
    assert set(model["facets"]["columnLineage"]["fields"]) == {"each", "f"}
    assert events["model fraud"]["inputs"] == [purchases, {"namespace": "ns", "name": "gone@3"}]


def fields_of(output: dict[str, Any], of: dict[str, str]) -> dict[str, set[tuple[str, str, str]]]:
    found = {}
    for name, field in output["facets"]["columnLineage"]["fields"].items():
        assert all({"namespace": one["namespace"], "name": one["name"]} == of for one in field["inputFields"])
        found[name] = {
            (one["field"], each["type"], each["subtype"])
            for one in field["inputFields"]
            for each in one["transformations"]
        }
    return found


def assert_is_a_job_event(event: dict[str, Any]) -> None:
    """What the specification requires of a JobEvent 2-0-2 and of each of its facets."""
    uri = re.compile(r"https://\S+")
    assert set(event) == {"eventTime", "producer", "schemaURL", "job", "inputs", "outputs"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", event["eventTime"])
    assert uri.fullmatch(event["producer"])
    assert event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/JobEvent"
    for one in (event["job"], *event["inputs"], *event["outputs"]):
        assert {type(one["namespace"]), type(one["name"])} == {str}
        assert all(one[word] for word in ("namespace", "name"))
        for name, facet in one.get("facets", {}).items():
            assert uri.fullmatch(facet["_producer"])
            kind = f"{name[0].upper()}{name[1:]}{'Job' if one is event['job'] else 'Dataset'}Facet"
            assert re.fullmatch(
                rf"https://openlineage\.io/spec/facets/\d-\d-\d/{kind}\.json#/\$defs/{kind}", facet["_schemaURL"]
            )
    assert {"processingType", "integration"} <= set(event["job"]["facets"]["jobType"])


def test_definitions_know_columns_that_no_feature_reads() -> None:
    assert "is read by\n└── nothing that is known" in shown("lineage", "transactions.retail_disc", *JOURNEY)


def test_the_page_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (EXAMPLES.parent / "docs" / "lineage.md").read_text("utf-8")
    (command,) = re.findall(r"^unskew (lineage .* --definitions .*)$", page, re.MULTILINE)
    (printed,) = re.findall(r"^```\n(feature .*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(EXAMPLES.parent)

    lines = iter(shown(*command.split()).splitlines())
    assert all(line in lines for line in printed.splitlines() if line != "...")


def test_search_shows_the_best_first(registry: dict[str, str], log: Path) -> None:
    table = shown("search", "purchases", "growth", **registry)
    few = shown("search", "purchases", "--limit", 2, **registry)
    found = json.loads(shown("search", "often", "--json", **registry))
    logged = json.loads(shown("search", "spent", "--json", "--log", log))

    assert "What users buy" in table
    assert re.search(r"\d+ more; add a word, or a higher --limit", few)
    assert [(one["kind"], one["name"]) for one in found["found"]] == [("feature", "purchases@1:n")]
    assert found["found"][0]["entity"] == "user (user_id)"
    assert logged["found"][0]["name"] == "purchases@1:spent"


def test_a_search_without_results_says_the_nearest_words(registry: dict[str, str]) -> None:
    nothing = invoke("search", "chekout", **registry)
    program = invoke("search", "chekout", "--json", **registry)

    assert (nothing.exit_code, program.exit_code) == (1, 1)
    assert "matches 'chekout'; nearest words: checkout" in nothing.output
    assert json.loads(program.output) == {"n_found": 0, "found": [], "nearest": ["checkout"]}
