"""What comes from what, from definitions and from what is published alone; and what words find in it."""

import json
from typing import Any

import pytest

from tests.support.definitions import SCHEMA, stream, view
from unskew import Derived, Feature, FeatureView, Lifetime, OnDemand, Service, Sessions, Sliding, Table, agg
from unskew.features.definitions.compile import compile
from unskew.features.definitions.lineage import Lineage, Model
from unskew.features.definitions.search import nearest_words, search
from unskew.features.errors import RequestError
from unskew.features.registry import Published, describe, parse

HOUR = Sliding("1h")
PURCHASES = view(
    Feature("n", agg.count(), HOUR),
    Feature("spent", agg.sum("amount * n_items"), HOUR, filter="status = 'completed'", owner="shop"),
    Feature("by_status", agg.sum("price", by="status"), Lifetime()),
    Derived("each", "spent / n", description="What an item costs"),
    stream=stream(topic=["eu", "us"], partitioned_by=None, owner="tills"),
    where="online",
    owner="growth",
    description="What users buy",
    tags={"grade": "silver"},
)
VISITS = FeatureView(
    "visits",
    entity=PURCHASES.entity,
    stream=Sessions("seen", PURCHASES.stream, gap="30min", values={"most": agg.max("amount")}, where="shop_id > 3"),
    features=[
        Feature("mean_length", agg.mean("length_s"), HOUR),
        Feature("most", agg.max("most"), HOUR),
        Feature("last", agg.last_time(), HOUR),
    ],
)
RETURNS = FeatureView(
    "returns",
    entity=PURCHASES.entity,
    stream=Table("returned", "returned.parquet", schema=SCHEMA, event_time="event_time", delay="1h"),
    features=[Feature("n", agg.count(), HOUR)],
)
CHECKOUT = Service(
    "checkout",
    ["purchases:each", "visits:most", "basket:share"],
    owner="payments",
    description="Fraud",
    tags={"tier": "gold"},
)
BASKET = OnDemand(
    "basket",
    inputs={"total": "float64"},
    features=[
        Derived("share", "total / purchases:spent"),
        Derived("age_s", "seconds_between(visits:last, now)", description="Since the last visit"),
    ],
    tags={"team": "ranking"},
)
PLAN = compile(PURCHASES, VISITS, RETURNS, CHECKOUT, BASKET)


MODELS = [Model(name="fraud", features=["purchases@1:each", "gone@3:f"], service="checkout")]


def lineage(**changes: Any) -> Lineage:
    how: dict[str, Any] = {"streams": PLAN.streams, "models": MODELS, **changes}
    return Lineage(Published.of(PLAN), **how)


def sources(graph: Lineage, reference: str) -> set[tuple[str, str]]:
    """What one thing reads itself, with how."""
    (node,) = graph.find(reference)
    return {(edge.source, edge.how) for edge in graph.sources(node)}


def test_each_thing_reads_what_its_definition_names() -> None:
    graph = lineage()

    assert sources(graph, "purchases:n") == {("view purchases@1", "of")}
    assert sources(graph, "purchases:spent") == {
        ("view purchases@1", "of"),
        ("column transactions.amount", "value"),
        ("column transactions.n_items", "value"),
        ("column transactions.status", "filter"),
    }
    assert sources(graph, "purchases@1:by_status") == {
        ("view purchases@1", "of"),
        ("column transactions.price", "value"),
        ("column transactions.status", "by"),
    }
    assert sources(graph, "purchases:each") == {
        ("view purchases@1", "of"),
        ("feature purchases@1:spent", "derived"),
        ("feature purchases@1:n", "derived"),
    }
    assert {(edge.source, edge.how) for edge in graph.sources(graph.nodes["view purchases@1"])} == {
        ("stream transactions", "read"),
        ("column transactions.user_id", "key"),
        ("column transactions.online", "where"),
        ("column transactions.event_time", "event time"),
    }
    assert sources(graph, "transactions") == {("topic eu", "read"), ("topic us", "read")}
    assert sources(graph, "returned") == {("table returned.parquet", "read")}
    assert sources(graph, "checkout") == {
        ("feature purchases@1:each", "read"), ("feature visits@1:most", "read"), ("feature basket@1:share", "read"),
    }  # fmt: skip
    assert sources(graph, "basket:share") == {
        ("on_demand basket@1", "of"), ("input total", "value"), ("feature purchases@1:spent", "derived"),
    }  # fmt: skip
    assert sources(graph, "basket@1:age_s") == {("on_demand basket@1", "of"), ("feature visits@1:last", "derived")}
    assert sources(graph, "fraud") == {
        ("feature purchases@1:each", "trained"), ("feature gone@3:f", "trained"), ("service checkout", "trained"),
    }  # fmt: skip


def test_sessions_stand_between_a_stream_and_its_view() -> None:
    graph = lineage()

    assert sources(graph, "visits:most") == {("view visits@1", "of"), ("column sessions of visits@1.most", "value")}
    assert sources(graph, "sessions of visits@1.most") == {
        ("sessions sessions of visits@1", "read"), ("column transactions.amount", "value"),
    }  # fmt: skip
    assert {(edge.source, edge.how) for edge in graph.sources(graph.nodes["sessions sessions of visits@1"])} == {
        ("stream transactions", "read"),
        ("column transactions.user_id", "key"),
        ("column transactions.event_time", "event time"),
        ("column transactions.shop_id", "where"),
    }
    assert "topic eu" in {node.id for node in graph.upstream(graph.find("visits:most"))}


def test_what_depends_on_a_column_is_followed_to_the_models() -> None:
    graph = lineage()

    def dependents(reference: str) -> set[str]:
        return {node.id for node in graph.downstream(graph.find(reference))}

    assert dependents("transactions.price") == {"feature purchases@1:by_status"}
    assert dependents("transactions.n_items") == {
        "feature purchases@1:spent", "feature purchases@1:each", "feature basket@1:share", "service checkout",
        "model fraud",
    }  # fmt: skip
    assert {"view purchases@1", "feature purchases@1:by_status", "service checkout"} <= dependents(
        "transactions.online"
    )
    assert dependents("eu") == dependents("us") >= {"stream transactions", "service checkout", "model fraud"}
    assert dependents("purchases") == {"feature basket@1:share", "service checkout", "model fraud"}
    assert dependents("returns") == set()


def test_what_is_published_is_enough_except_for_columns_that_no_feature_reads() -> None:
    whole = lineage()
    alone = Lineage(parse(json.dumps(describe(PLAN))), models=MODELS)

    edges = {(edge.source, edge.target, edge.how) for edge in alone.between(alone.nodes.values())}
    defined = {(edge.source, edge.target, edge.how) for edge in whole.between(whole.nodes.values())}
    missing = {edge for edge in defined - edges if edge[2] != "event time"}
    assert edges - defined == {("topic returned", "stream returned", "read")}
    assert all(source in {"stream transactions", "stream returned", "table returned.parquet"} for source, *_ in missing)


@pytest.mark.parametrize(
    ("reference", "kind", "said"),
    [
        ("purchase", None, "there is no thing 'purchase' in the lineage; did you mean 'purchases"),
        ("purchases:spend", None, "did you mean"),
        ("purchases", "topic", "there is no topic 'purchases' in the lineage; there are eu, us"),
        ("purchases@9", None, "there is no thing 'purchases@9'"),
        ("", None, "there is no thing '' in the lineage; there are purchases@1, visits@1, returns@1, checkout"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(reference: str, kind: Any, said: str) -> None:
    with pytest.raises(RequestError) as error:
        lineage().find(reference, kind)
    assert said in str(error.value)


def test_a_kind_chooses_among_things_of_one_name() -> None:
    same = Lineage(Published.of(compile(view(stream=stream(name="purchases", topic="purchases")))))

    assert [node.id for node in same.find("purchases")] == ["view purchases@1", "feature purchases@1:n"]
    assert [node.id for node in same.find("purchases", "stream")] == ["stream purchases"]
    assert [node.id for node in same.find("purchases", "topic")] == ["topic purchases"]
    assert same.find("purchases", "view") == same.find("purchases")


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["spent"], "feature purchases@1:spent"),
        (["purchases"], "view purchases@1"),
        (["checkout"], "service checkout"),
        (["payments"], "service checkout"),
        (["gold"], "service checkout"),
        (["silver"], "view purchases@1"),
        (["What an item costs"], "feature purchases@1:each"),
        (["growth", "lifetime"], "feature purchases@1:by_status"),
        (["user", "max"], "feature visits@1:most"),
        (["tills"], "stream transactions"),
        (["eu"], "topic eu"),
        (["AMOUNT"], "column returned.amount"),
        (["by_status"], "feature purchases@1:by_status"),
        (["fraud"], "model fraud"),
        (["share"], "feature basket@1:share"),
        (["ranking"], "on_demand basket@1"),
        (["since visit"], "feature basket@1:age_s"),
    ],
)
def test_words_find_the_best_thing_first(words: list[str], first: str) -> None:
    hits = search(lineage(), words)

    assert hits[0].node.id == first
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_words_that_match_nothing_have_nearest_words() -> None:
    assert search(lineage(), ["spnt"]) == search(lineage(), ["spent", "nowhere"]) == search(lineage(), ["  "]) == []
    assert nearest_words(lineage(), ["spnt", "chekout"]) == ["spent", "checkout"]
