"""Features that are expressions over other features of their view."""

import polars as pl
import pytest

from tests.support.definitions import stream, view
from unskew import DefinitionError, Derived, Feature, Sliding, agg, compile
from unskew.features.plan import DerivedPlan, ViewPlan

HOUR = Sliding("1h")
COUNT = Feature("n", agg.count(), HOUR)
SPEND = Feature("spend", agg.sum("amount"), HOUR)
STATUS = Feature("status_last", agg.last("status"), HOUR)
TOP = Feature("tops", agg.top_k("status", 2), HOUR)
BY = Feature("by_status", agg.count(by="status"), HOUR)
SINCE = Feature("since", agg.first_time(), HOUR)


def compiled(*derived: Derived, **changes: object) -> ViewPlan:
    return compile(view(COUNT, SPEND, STATUS, TOP, BY, SINCE, *derived, **changes)).views["purchases"]


def planned(derived: Derived) -> DerivedPlan:
    (plan,) = compiled(derived).derived
    return plan


def faults_of(*derived: object) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        compiled(*derived)  # type: ignore[arg-type]
    return caught.value.faults


@pytest.mark.parametrize(
    ("expression", "dtype", "empty"),
    [
        ("spend / n", "float64", None),
        ("n / 2", "float64", 0.0),
        ("n > 3", "bool", False),
        ("n + 1", "int64", 1),
        ("status_last", "string", None),
        ("coalesce(status_last, 'none')", "string", "none"),
        ("since", "timestamp", None),
        (pl.col("spend") * -1, "float64", 0.0),
        (pl.col("n").cast(pl.Int8, strict=False), "int64", 0),
    ],
)
def test_type_and_empty_value_follow_from_the_expression_on_the_empty_row(expression, dtype, empty):
    plan = planned(Derived("x", expression, type=dtype))

    # As text: no zero is negative.
    assert (str(plan.dtype), repr(plan.published.empty)) == (dtype, repr(empty))


def test_what_is_not_finite_is_null():
    plan = planned(Derived("x", "spend / n"))
    rows = pl.DataFrame({"spend": [1.0, 0.0, 6.0, -1.0, None], "n": [0, 0, 4, 0, 1]})

    assert rows.select(plan.expr.alias("x"))["x"].to_list() == [None, None, 1.5, None, None]


def test_outputs_are_features_first_and_derived_ones_after_them_in_the_order_of_their_definition():
    plan = compile(view(Derived("twice", "n * 2"), COUNT, Derived("thrice", "n * 3"), SPEND)).views["purchases"]

    assert [output.name for output in plan.outputs] == ["n", "spend", "twice", "thrice"]
    assert [each.inputs for each in plan.derived] == [("n",), ("n",)]


def test_owner_is_the_views_where_it_has_none():
    plan = compiled(Derived("x", "n"), Derived("y", "n", owner="risk"), owner="growth")

    assert [each.published.owner for each in plan.derived] == ["growth", "risk"]


@pytest.mark.parametrize(
    ("derived", "fault"),
    [
        (
            Derived("x", "spent / n"),
            "purchases.x: expression: the view has no other single-valued feature 'spent'; did you mean 'spend'?",
        ),
        (
            Derived("x", "tops"),
            "purchases.x: expression: 'tops' is list[string], and a derived feature takes single values; leave it out",
        ),
        (Derived("x", "top"), "purchases.x: expression: Polars cannot read the SQL text 'top': expected an expression"),
        (
            Derived("x", "by_status"),
            "purchases.x: expression: 'by_status' is map[int64], and a derived feature takes single values; leave it out",
        ),
        (Derived("x", "x + 1"), "purchases.x: expression: 'x' is this feature itself; name other features of the view"),
        (Derived("x", "amount"), "purchases.x: expression: the view has no other single-valued feature 'amount'"),
        (
            Derived("x", "1"),
            "purchases.x: expression: it reads no column, so its result is always the same; leave it out",
        ),
        (Derived("x", "sum(n)"), "purchases.x: expression: it contains an aggregate over rows"),
        (Derived("x", "n +"), "purchases.x: expression: Polars cannot read the SQL text 'n +'"),
        (Derived("x", "n > now()"), "purchases.x: expression: now() reads a clock; "),
        (Derived("x", None), "purchases.x: expression: None is not an expression; write SQL text"),
        (Derived("x", pl.col("since").dt.date()), "purchases.x: expression: '{"),
        (
            Derived("x", "spend / n", type="int64"),
            "purchases.x: its type is declared as 'int64', but the expression gives float64 here; correct the type",
        ),
        (
            Derived("x", "spend / n", default="0"),
            "purchases.x: the default '0' is not of type float64; give a value of type float64",
        ),
        (Derived("x", "n", description=3), "purchases.x: description: 3 is not text; put it in quotes"),
        (Derived("offset", "n"), "purchases.offset: a column of the log has this name; rename the feature"),
        (Derived("user_id", "n"), "purchases.user_id: a key column of the entity has this name; rename the feature"),
        (Derived("SPEND", "n"), "purchases.SPEND: the name differs from spend only in"),
        (Derived("a b", "n"), "purchases.a b: the name is not allowed; use letters"),
    ],
)
def test_derived_feature_that_cannot_be_is_a_fault_with_a_remedy(derived, fault):
    (found,) = faults_of(derived)

    assert found.startswith(fault)
    assert "; " in found


def test_a_view_of_derived_features_alone_has_no_features():
    with pytest.raises(DefinitionError, match="purchases: it has no features; give it at least one"):
        compile(view(Derived("x", "n")))


def test_a_default_stands_in_for_null_even_where_the_empty_value_is_not_null():
    assert planned(Derived("x", "n / 2", default=-1)).published.default == -1.0


def test_expression_is_in_the_state_fingerprint_and_what_is_shown_is_not():
    def fingerprints(*derived: Derived) -> tuple[str, str]:
        plan = compile(view(COUNT, SPEND, *derived, stream=stream())).views["purchases"]
        return plan.state_fingerprint, plan.presentation_fingerprint

    state, shown = fingerprints(Derived("x", "spend / n"))
    others = [
        fingerprints(),
        fingerprints(Derived("x", "n / spend")),
        fingerprints(Derived("y", "spend / n")),
        fingerprints(Derived("x", "spend * n"), Derived("y", "n")),
    ]

    assert len({state, *(other for other, _ in others)}) == 5
    assert fingerprints(Derived("x", "spend  /  n  -- mean")) == (state, shown)
    for dressed in (Derived("x", "spend / n", default=0), Derived("x", "spend / n", description="mean")):
        assert fingerprints(dressed)[0] == state
        assert fingerprints(dressed)[1] != shown
