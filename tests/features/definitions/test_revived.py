"""What is published of a view is enough to compute it again, over a stream that is read as it was and no other."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from tests.support.definitions import stream, view
from unskew import Calendar, Derived, Feature, FeatureView, Lifetime, Session, Sessions, Sliding, Tumbling, agg
from unskew.features.definitions.compile import compile
from unskew.features.definitions.expressions import canonical_polars
from unskew.features.definitions.load import load
from unskew.features.definitions.revived import names_in, revived
from unskew.features.definitions.trees import tree_of
from unskew.features.errors import LayoutError
from unskew.features.plan import Plan
from unskew.features.registry import describe, parse

EXAMPLES = Path(__file__).parents[3] / "examples"
HOUR = Sliding("1h", "1min")
SHOP = pl.col("shop_id")
AGGREGATIONS = {
    "count": agg.count(),
    "count_by": agg.count(by="status", keys=3),
    "sum": agg.sum("amount * 2"),
    "mean": agg.mean("price"),
    "var": agg.var("amount", ddof=0),
    "std": agg.std("amount"),
    "least": agg.min("n_items"),
    "most": agg.max("event_time"),
    "first": agg.first("status"),
    "last": agg.last("online"),
    "first_n": agg.first_n("amount", 3),
    "last_n": agg.last_n("status", 4),
    "first_time": agg.first_time(),
    "last_time": agg.last_time(),
    "distinct": agg.count_distinct("shop_id"),
    **{f"approx_{n}": agg.approx_count_distinct("shop_id", error=error) for n, error in enumerate((0.005, 0.02, 0.26))},
    "mode": agg.mode("status"),
    "top_k": agg.top_k("shop_id", 5),
    "histogram": agg.histogram("amount", edges=[0, 2.5]),
    **{f"quantile_{n}": agg.quantile("amount", 0.9, error=error) for n, error in enumerate((2.0**-13, 0.01, 0.5))},
    "decayed_count": agg.decayed_count(half_life="2min"),
    "decayed_sum": agg.decayed_sum("amount", half_life="90min"),
}
FILTERS = [
    "amount > 1.5 AND status <> 'it''s'",
    SHOP.is_in([1, 2]),
    pl.col("status").is_in(["completed", 'it\'s "x"']) & pl.col("online"),
    pl.col("price").cast(pl.Float64).is_in([1.5, 2.0]),
    SHOP.replace_strict(pl.Series([3, 4]), pl.Series([5, 6]), default=0) > 5,
    pl.col("event_time") > dt.datetime(2017, 3, 1, tzinfo=dt.UTC),
    pl.when(pl.col("amount") > 3).then(pl.col("online")).otherwise(pl.lit(value=False)),
]
WINDOWS = [HOUR, Sliding("30d"), Tumbling("1d"), Tumbling("7h", closed=True), Calendar("week", "Europe/Berlin"), Lifetime(), Session("30min", "1min")]  # fmt: skip
# What Polars writes for a function of Python, which would be unpickled and called.
CODE = '{"AnonymousFunction": {"input": [{"Column": "amount"}], "function": [128, 5, 149], "options": {}}}'


def hidden(code: str) -> str:
    """An expression inside the type of a cast, where no child of a node is looked for."""
    return f'{{"Cast": {{"expr": {{"Column": "amount"}}, "dtype": {{"OfExpr": {code}}}, "options": "NonStrict"}}}}'


EVERYTHING = [
    view(*(Feature(name, each, HOUR) for name, each in AGGREGATIONS.items()), name="aggregations"),
    view(*(Feature(f"f{n}", agg.count(), HOUR, filter=each) for n, each in enumerate(FILTERS)), name="filters"),
    view(
        *(Feature(f"w{n}", agg.mean("n_items"), each, default=float(n)) for n, each in enumerate(WINDOWS)),
        Derived("ratio", "w0 / w1", default=0.5),
        name="windows",
        where=FILTERS[1],
        version=3,
        owner="shop",
        description="All windows",
    ),
    FeatureView(
        "visits",
        entity=view().entity,
        stream=Sessions("seen", stream(), gap="30min", hop="1min", values={"spent": agg.sum("amount")}, where="online"),
        features=[Feature("mean_length", agg.mean("length_s"), Sliding("1d"), filter="spent > 2 AND events > 1")],
    ),
]


@pytest.mark.parametrize("plan", [compile(EVERYTHING), *map(load, sorted(EXAMPLES.iterdir()))], ids=["all", "journey", "market", "store"])  # fmt: skip
def test_a_published_view_is_compiled_again_to_the_same_plan(plan: Plan) -> None:
    published = parse(json.dumps(describe(plan))).views
    for one in plan.views.values():
        found = revived(published[one.id], plan.streams)

        assert found.published == one.published
        assert found.state_fingerprint == one.state_fingerprint
        for part in ("filters", "values"):
            assert [each.text for each in getattr(found, part)] == [each.text for each in getattr(one, part)]
            pairs = zip(getattr(found, part), getattr(one, part), strict=True)
            assert all(mine.expr.meta.eq(its.expr) for mine, its in pairs)


@pytest.mark.parametrize(
    ("changed", "published", "said"),
    [
        ({"name": "others", "topic": "others"}, {}, "its stream 'transactions' is not defined any more"),
        ({"max_age": "1d"}, {}, "it is another view"),
        ({"schema": {**stream().schema, "fields": stream().schema["fields"][-1:] + stream().schema["fields"][1:2]}}, {}, "the stream has no column 'amount'"),
        ({}, {"where": '{"Nonsense": 1}'}, "cannot be computed"),
        ({}, {"where": '{"Literal": ["Binary", ["x"]]}'}, "cannot be computed"),
        ({}, {"where": '{"Column": '}, "cannot be computed"),
        ({}, {"where": '{"Function": {"function": "Abs"}}'}, "cannot be computed"),
        ({}, {"where": CODE}, "holds AnonymousFunction, which no checked one has"),
        ({}, {"where": hidden(CODE)}, "holds AnonymousFunction, which no checked one has"),
        ({}, {"where": '{"Literal": {"Series": [1, 2]}}'}, "holds bytes, which no checked one has"),
        ({}, {"where": '{"Function": {"function": {"Range": "IntRange"}, "input": [{"Column": "amount"}]}}'}, "holds Function, which"),
        ({}, {"where": "amount >"}, "Polars cannot read the SQL text"),
        ({}, {"where": "amount > 4"}, "it is another view"),
    ],
)  # fmt: skip
def test_another_stream_or_text_is_never_taken_for_the_published_view(
    changed: dict[str, Any], published: dict[str, Any], said: str
) -> None:
    one = view(Feature("spend", agg.sum("amount"), HOUR), where="amount > 3")
    known = msgspec.structs.replace(compile(one).views["purchases"].published, **published)

    with pytest.raises(LayoutError, match=said) as error:
        revived(known, compile(stream(**changed)).streams)

    assert "give the definitions that it was made from" in str(error.value)


def test_columns_are_found_in_texts_that_nobody_runs() -> None:
    assert names_in("amount * price > 3 OR status = 'price'") == ["amount", "price", "status"]
    assert names_in(canonical_polars(tree_of((pl.col("amount") > 3) & pl.col("amount").is_in([1.5])))) == ["amount"]
    assert names_in(hidden(CODE)) == ["amount"]
    for text in ("amount >", '{"Column": ', '{"Column": [1]}', "[]", "{}", "", '{"Function": 1}', "1" * 100_000):
        assert names_in(text) == []
