"""A view without a feature is the view that compiles from its definition without the feature."""

import polars as pl
import pytest

from tests.support.definitions import stream, view
from unskew import Calendar, Derived, Feature, Sessions, Sliding, agg, compile
from unskew.features.definitions.without import with_derived, without

FEATURES = {
    "n": Feature("n", agg.count(), Sliding("1h")),
    "spend": Feature("spend", agg.sum("amount"), Calendar("day", tz="Europe/Berlin"), filter="online"),
    "mean": Feature("mean", agg.mean("amount"), Sliding("1h"), filter=pl.col("n_items") > 1, default=0.5),
    "by_status": Feature("by_status", agg.count(by="status"), Sliding("7d")),
    "dearest": Feature("dearest", agg.max("price"), Sliding("7d"), filter="online"),
    "latest": Feature("latest", agg.last("price"), Sliding("1h"), description="The latest"),
    "late": Feature("late", agg.last_n("n_items", 3), Sliding("7d")),
    "rate": Derived("rate", "spend / n"),
    "gap": Derived("gap", "dearest - latest"),
}
SESSIONS = Sessions("visits", stream=stream(), gap="30min", values={"spent": agg.sum("amount")})
OF_SESSIONS = {
    "visits": Feature("visits", agg.count(), Sliding("7d")),
    "spent": Feature("spent", agg.mean("spent"), Sliding("1d")),
}


@pytest.mark.parametrize(
    ("features", "source", "gone", "also"),
    [
        *((FEATURES, None, {name}, ()) for name in ("mean", "by_status", "late", "rate", "gap")),
        (FEATURES, None, {"n"}, {"rate"}),
        (FEATURES, None, {"spend"}, {"rate"}),
        (FEATURES, None, {"dearest"}, {"gap"}),
        (FEATURES, None, {"latest"}, {"gap"}),
        (FEATURES, None, {"n", "late", "dearest"}, {"rate", "gap"}),
        *((OF_SESSIONS, SESSIONS, {name}, ()) for name in OF_SESSIONS),
    ],
)
def test_what_is_left_is_what_the_rest_compiles_to(features, source, gone, also):
    over = {} if source is None else {"stream": source}
    whole = compile(view(*features.values(), **over)).views["purchases"]
    rest = [one for name, one in features.items() if name not in gone and name not in also]
    wanted = compile(view(*rest, **over)).views["purchases"]

    left = without(whole, gone)

    assert left is not None
    assert left.published == wanted.published
    numbers = [(one.name, one.filter, one.value, one.by, one.window) for one in left.features]
    assert numbers == [(one.name, one.filter, one.value, one.by, one.window) for one in wanted.features]
    assert [one.text for one in left.values] == [one.text for one in wanted.values]
    assert [one.text for one in left.filters] == [one.text for one in wanted.filters]
    assert {each for name in gone for each in with_derived(whole.published, name)} == gone | set(also)


def test_what_is_left_keeps_the_tags_and_the_deprecation_of_the_view():
    said = {
        "tags": {"tier": "gold"},
        "deprecated": "use purchases@2",
        "description": "What was bought",
        "owner": "shop",
    }
    whole = compile(view(*FEATURES.values(), **said)).views["purchases"]
    rest = [one for name, one in FEATURES.items() if name != "late"]

    left = without(whole, ["late"])

    assert left is not None
    assert left.published == compile(view(*rest, **said)).views["purchases"].published


def test_nothing_is_left_of_a_view_without_its_only_feature():
    (whole,) = compile(view(FEATURES["n"], Derived("twice", "2 * n"))).views.values()

    assert without(whole, ["n"]) is None
    assert without(whole, ["twice"]) is not None
