"""Every aggregation as it is compiled: what it takes, is told, gives, and says where that cannot be."""

import datetime as dt
from decimal import Decimal
from typing import get_args

import pytest

from tests.support.definitions import SCHEMA, stream, view
from unskew import Calendar, DefinitionError, Entity, Feature, Lifetime, Session, Sliding, Tumbling, agg, compile
from unskew.features.definitions.agg import Aggregation
from unskew.features.errors import shown
from unskew.features.plan import FeaturePlan
from unskew.features.view import AggregationName, Parameters

HOUR = Sliding("1h", hop="1min")
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}
WIDER = SCHEMA | {"fields": [*SCHEMA["fields"], {"name": "price_paid", "type": MONEY}]}
COLUMN = {
    "int64": "n_items",
    "float64": "amount",
    "bool": "online",
    "string": "status",
    "timestamp": "event_time",
    "decimal(38,2)": "price_paid",
}
NUMBERS = ("int64", "float64", "bool", "decimal(38,2)")
OWN = {dtype: dtype for dtype in COLUMN}
LISTS = {dtype: f"list[{dtype}]" for dtype in COLUMN}
ALWAYS_FLOAT = dict.fromkeys(NUMBERS, "float64")

# What each aggregation gives of each type of value that it takes; None: without a value.
RESULTS: dict[AggregationName, dict[str | None, str]] = {
    "count": dict.fromkeys((None, *COLUMN), "int64"),
    "sum": {"int64": "int64", "float64": "float64", "bool": "int64", "decimal(38,2)": "decimal(38,2)"},
    "mean": ALWAYS_FLOAT,
    "var": ALWAYS_FLOAT,
    "std": ALWAYS_FLOAT,
    "min": OWN,
    "max": OWN,
    "first": OWN,
    "last": OWN,
    "first_n": LISTS,
    "last_n": LISTS,
    "first_time": {None: "timestamp"},
    "last_time": {None: "timestamp"},
    "count_distinct": dict.fromkeys(COLUMN, "int64"),
    "approx_count_distinct": dict.fromkeys(COLUMN, "int64"),
    "mode": OWN,
    "top_k": LISTS,
    "histogram": dict.fromkeys(NUMBERS, "list[int64]"),
    "quantile": ALWAYS_FLOAT,
    "decayed_count": {None: "float64"},
    "decayed_sum": ALWAYS_FLOAT,
}
TOLD: dict[AggregationName, dict[str, object]] = {
    "first_n": {"n": 3},
    "last_n": {"n": 3},
    "top_k": {"n": 3},
    "histogram": {"edges": [0, 1.5]},
    "quantile": {"q": 0.5},
    "decayed_count": {"half_life": "10min"},
    "decayed_sum": {"half_life": "10min"},
}
EMPTY = {"int64": 0, "float64": 0.0, "decimal(38,2)": Decimal("0.00")}
ZERO = ("count", "sum", "count_distinct", "approx_count_distinct", "decayed_count", "decayed_sum")


def aggregation(function: AggregationName, of: str | None, **told: object) -> Aggregation:
    return Aggregation(function, None if of is None else COLUMN[of], **{**TOLD.get(function, {}), **told})


def planned(wanted: object, window: object = HOUR, **fields: object) -> FeaturePlan:
    defined = view(Feature("x", wanted, window, **fields), stream=stream(schema=WIDER))
    return compile(defined).views["purchases"].features[0]


def faults_of(wanted: object, window: object = HOUR, **fields: object) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        planned(wanted, window, **fields)
    return caught.value.faults


def test_every_aggregation_is_tried_here_and_has_a_constructor():
    assert list(RESULTS) == list(get_args(AggregationName))
    assert all(callable(getattr(agg, function)) for function in RESULTS)


@pytest.mark.parametrize(
    ("function", "of", "dtype"), [(f, of, dtype) for f, results in RESULTS.items() for of, dtype in results.items()]
)
def test_result_and_empty_value_have_the_type_that_value_and_function_say(function, of, dtype):
    feature = planned(aggregation(function, of), type=dtype)
    empty = EMPTY[dtype] if function in ZERO else None

    assert str(feature.dtype) == dtype
    found = feature.published.empty
    assert (found, type(found), str(found)) == (empty, type(empty), str(empty))


@pytest.mark.parametrize(
    ("function", "of"), [(f, of) for f, results in RESULTS.items() for of in COLUMN if of not in results]
)
def test_value_of_another_type_is_a_fault_that_says_which_are_taken(function, of):
    (fault,) = faults_of(aggregation(function, of))

    assert fault.startswith("purchases.x")
    assert "leave it out" in fault if None in RESULTS[function] else "takes int64, float64, bool and decimal" in fault


@pytest.mark.parametrize("function", [f for f, results in RESULTS.items() if None not in results])
def test_aggregation_of_values_needs_one(function):
    assert faults_of(aggregation(function, None)) == [
        f"purchases.x: {function} needs a value; give it a column or an expression"
    ]


@pytest.mark.parametrize("function", ["count", "sum", "mean"])
def test_a_map_has_a_value_of_the_functions_type_by_key_and_nothing_when_empty(function):
    for of, dtype in RESULTS[function].items():
        feature = planned(aggregation(function, of, by="status"), type=f"map[{dtype}]")

        assert (str(feature.dtype), feature.published.empty, feature.parameters) == (
            f"map[{dtype}]",
            None,
            Parameters(keys=16),
        )


@pytest.mark.parametrize("by", ["status", "n_items", "online", "lower(status)"])
def test_keys_of_a_map_are_texts_of_strings_whole_numbers_and_bool(by):
    defined = view(Feature("x", agg.count(by=by), HOUR))
    plan = compile(defined).views["purchases"]

    assert [(value.text, str(value.dtype)) for value in plan.values] == [(by, "string")]
    assert plan.features[0].by == 0


@pytest.mark.parametrize(
    ("wanted", "parameters"),
    [
        (agg.var("amount"), Parameters(ddof=1)),
        (agg.std("amount", ddof=0), Parameters(ddof=0)),
        (agg.first_n("amount", 1), Parameters(n=1)),
        (agg.top_k("amount", 128), Parameters(n=128)),
        # The bits of a register are the fewest whose error, 1.04 / sqrt(2**bits), is small enough.
        (agg.approx_count_distinct("amount"), Parameters(bits=12)),
        (agg.approx_count_distinct("amount", error=0.26), Parameters(bits=4)),
        (agg.approx_count_distinct("amount", error=0.0041), Parameters(bits=16)),
        # Half a bin is 2**-(bits + 1) of its value.
        (agg.quantile("amount", 0.5), Parameters(q=0.5, bits=6)),
        (agg.quantile("amount", 0, error=0.5), Parameters(q=0.0, bits=0)),
        (agg.quantile("amount", 1, error=2**-13), Parameters(q=1.0, bits=12)),
        (agg.histogram("amount", [-0.0, 1, 2.5]), Parameters(edges=(0.0, 1.0, 2.5))),
        (agg.decayed_count(half_life="30min"), Parameters(half_life_hops=30)),
        (agg.decayed_sum("amount", half_life=dt.timedelta(hours=2)), Parameters(half_life_hops=120)),
        (agg.count(by="status", keys=64), Parameters(keys=64)),
    ],
)
def test_what_an_aggregation_is_told_is_kept_in_the_kernels_units(wanted, parameters):
    assert planned(wanted).parameters == parameters
    assert str(planned(wanted).parameters) == str(parameters)


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        *(
            (
                agg.last_n("amount", n),
                f"n={n!r} is not a whole number between 1 and 128; write for example n=5",
            )
            for n in (0, 129, -1, 2.0, True, "3", None)
        ),
        *(
            (
                agg.var("amount", ddof=n),
                f"ddof={n!r} is not a whole number between 0 and 1000; write for example ddof=1",
            )
            for n in (-1, 1.5, False)
        ),
        *(
            (agg.quantile("amount", q), f"q={q!r} is not a number between 0 and 1; write for example q=0.95")
            for q in (-0.1, 95, float("nan"), "0.5", None, True)
        ),
        *(
            (
                agg.quantile("amount", 0.5, error=e),
                f"error={e!r} is not a number between 0.0001220703125 and 0.5; write for",
            )
            for e in (0, 0.6, 1e-4, "1%")
        ),
        *(
            (
                agg.approx_count_distinct("amount", error=e),
                f"error={e!r} is not a number between 0.0041 and 0.26; write for example error=0.02",
            )
            for e in (0.004, 0.3, float("nan"))
        ),
        *(
            (agg.histogram("amount", edges), f"edges={edges!r} is not a list of 1 to 127 ascending numbers; write for")
            for edges in (
                [],
                [1, 1],
                [2, 1],
                [float("inf")],
                [float("nan")],
                ["a"],
                [True],
                "12",
                5,
                None,
                list(range(128)),
                [10**400],
                [2**53, 2**53 + 1],
                [-0.0, 0.0],
            )
        ),
        (agg.Aggregation("decayed_count"), "decayed_count has no half_life; give it one, for example half_life='7d'"),
        (agg.decayed_count(half_life="soon"), "'soon' is not a duration; write a number and a unit"),
        (
            agg.decayed_count(half_life="90s"),
            "half_life 90s is not a multiple of the window's hop 1min; choose a multiple, for example 1min, or another hop",
        ),
        (
            agg.decayed_count(half_life="0s"),
            "half_life 0s is not a multiple of the window's hop 1min; choose a multiple",
        ),
        (agg.count(by="status", keys=0), "keys=0 is not a whole number between 1 and 64; write for example keys=16"),
        (agg.count(by="status", keys=65), "keys=65 is not a whole number between 1 and 64"),
        (agg.count(keys=5), "keys limits the size of a map, but there is no by; give by, or leave keys out"),
        (agg.Aggregation("min", "amount", by="status"), "min does not take by; leave it out"),
        (agg.Aggregation("count", n=5, q=0.5), "count does not take n; leave it out"),
        (agg.Aggregation("sum", "amount", half_life="1d"), "sum does not take half_life; leave it out"),
    ],
)
def test_what_an_aggregation_cannot_be_told_is_a_fault_with_a_remedy(wanted, fault):
    found = faults_of(wanted)[0]

    assert found.startswith(f"purchases.x: {fault}")
    assert "; " in found


def test_everything_wrong_with_one_aggregation_is_said_at_once():
    assert [
        fault.partition(";")[0] for fault in faults_of(agg.Aggregation("quantile", "status", q=2, n=1, error=1))
    ] == [
        "purchases.x: quantile does not take n",
        "purchases.x: q=2 is not a number between 0 and 1",
        "purchases.x: error=1 is not a number between 0.0001220703125 and 0.5",
        "purchases.x: value: 'status' is String",
    ]


@pytest.mark.parametrize(
    ("by", "fault"),
    [
        ("amount", "by: 'amount' is Float64; keys of a map must be strings, whole numbers or bool"),
        ("event_time", "by: 'event_time' is Datetime"),
        ("statu", "by: the stream has no column 'statu'; did you mean 'status'?"),
        ("count(*)", "by: it contains a count of rows"),
        ("", "by: the SQL text is empty"),
    ],
)
def test_keys_that_cannot_be_are_a_fault(by, fault):
    (found,) = faults_of(agg.count(by=by))

    assert found.startswith(f"purchases.x: {fault}")


@pytest.mark.parametrize(
    "window", [Tumbling("1h"), Tumbling("1h", closed=True), Calendar("day"), Lifetime(), Session("1h")]
)
def test_decayed_aggregations_are_over_sliding_windows_alone(window):
    (fault,) = faults_of(agg.decayed_count(half_life="1h"), window)

    assert "a decayed aggregation needs a Sliding window, because ages are counted in hops" in fault


def test_half_lives_are_bounded_in_hops_and_in_the_window():
    (long,) = faults_of(agg.decayed_count(half_life="2d"), Sliding("10d", hop="1s"))
    (short,) = faults_of(agg.decayed_count(half_life="1s"), Sliding("20min", hop="1s"))

    assert "half_life 2d is 172800 hops" in long
    assert "the window is 1200 half-lives long" in short


@pytest.mark.parametrize(
    ("of", "default", "kept"),
    [
        ("int64", -1, -1),
        ("float64", 1, 1.0),
        ("bool", False, False),
        ("string", "none", "none"),
        (
            "timestamp",
            dt.datetime(2020, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
            dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
        ),
        ("decimal(38,2)", "-1.5", Decimal("-1.50")),
        ("decimal(38,2)", 3, Decimal("3.00")),
        ("decimal(38,2)", Decimal("92233720368547758.07"), Decimal("92233720368547758.07")),
    ],
)
def test_a_default_is_kept_in_the_type_of_the_feature(of, default, kept):
    found = planned(aggregation("last", of), default=default).published.default

    # As text: a decimal has its digits, an instant is in UTC.
    assert (found, type(found), str(found)) == (kept, type(kept), str(kept))


@pytest.mark.parametrize(
    ("of", "default", "remedy"),
    [
        ("int64", 1.0, "give a value of type int64"),
        ("float64", float("inf"), "leave it out for null"),
        ("float64", True, "give a value of type float64"),
        ("bool", 1, "give a value of type bool"),
        ("string", 7, "give a value of type string"),
        ("timestamp", "2020-01-01", "give a datetime with its time zone"),
        ("timestamp", dt.datetime(2020, 1, 1), "give a datetime with its time zone"),  # noqa: DTZ001 - the fault
        ("decimal(38,2)", 0.5, "give a whole number, or text with at most 2 digits after the point"),
        ("decimal(38,2)", "0.005", "give a whole number, or text with at most 2 digits after the point"),
        ("decimal(38,2)", "NaN", "give a whole number, or text with at most 2 digits after the point"),
        ("decimal(38,2)", "Infinity", "give a whole number, or text with at most 2 digits after the point"),
        ("decimal(38,2)", "much", "give a whole number, or text with at most 2 digits after the point"),
        ("int64", 2**63, "give one from -2^63 to 2^63 - 1"),
        ("int64", -(2**63) - 1, "give one from -2^63 to 2^63 - 1"),
        ("float64", 10**400, "give one of at most 1.7e308"),
        *[
            (
                "decimal(38,2)",
                too_large,
                "give a whole number, or text with at most 2 digits after the point, of at most 2^63 - 1 units of its last digit",
            )
            for too_large in (2**63, "-92233720368547758.08", Decimal("92233720368547758.08"), "1e30")
        ],
        ("decimal(38,2)", True, "give a whole number, or text with at most 2 digits after the point"),
    ],
)
def test_a_default_of_another_type_is_a_fault(of, default, remedy):
    assert faults_of(aggregation("last", of), default=default) == [
        f"purchases.x: the default {shown(default)} is not of type {of}; {remedy}"
    ]


@pytest.mark.parametrize("wanted", [agg.top_k("status", 2), agg.histogram("amount", [0]), agg.count(by="status")])
def test_lists_and_maps_have_no_default(wanted):
    (fault,) = faults_of(wanted, default=[])

    assert fault.endswith("; leave it out for null")


@pytest.mark.parametrize("function", ZERO)
def test_a_default_beside_a_value_that_is_never_null_would_never_show(function):
    of = next(iter(RESULTS[function]))

    assert "would never be used" in faults_of(aggregation(function, of), default=7)[0]
    planned(aggregation(function, of), default=0)


@pytest.mark.parametrize("declared", ["decimal(38,3)", "list[int64]", "map[float64]", "integer", "list[integer]"])
def test_declared_type_is_checked(declared):
    (fault,) = faults_of(aggregation("sum", "decimal(38,2)"), type=declared)

    assert fault.startswith(f"purchases.x: its type is declared as {declared!r}, but sum gives decimal(38,2) here; ")
    assert ("types are int64" in fault) == ("integer" in declared)


BASE = [
    agg.top_k("status", 3),
    agg.quantile("amount", 0.5),
    agg.histogram("amount", [0, 1]),
    agg.decayed_count(half_life="10min"),
    agg.var("amount"),
    agg.approx_count_distinct("status"),
    agg.count(by="status"),
]
CHANGED = [
    agg.top_k("status", 4),
    agg.quantile("amount", 0.75),
    agg.quantile("amount", 0.5, error=0.1),
    agg.histogram("amount", [0, 2]),
    agg.decayed_count(half_life="20min"),
    agg.var("amount", ddof=0),
    agg.approx_count_distinct("status", error=0.1),
    agg.count(by="status", keys=8),
    agg.count(by="online"),
]


def fingerprint(wanted: Aggregation) -> str:
    return compile(view(Feature("x", wanted, HOUR))).views["purchases"].state_fingerprint


def test_whatever_an_aggregation_is_told_is_in_the_state_fingerprint():
    found = [fingerprint(wanted) for wanted in (*BASE, *CHANGED)]

    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (agg.quantile("amount", 1), agg.quantile("amount", 1.0)),
        # Errors that choose the same bits.
        (agg.quantile("amount", 0.5, error=0.01), agg.quantile("amount", 0.5, error=0.0079)),
        (agg.histogram("amount", [0, 1]), agg.histogram("amount", (-0.0, 1.0))),
        (agg.decayed_count(half_life="60min"), agg.decayed_count(half_life="1h")),
        (agg.var("amount"), agg.var("amount", ddof=1)),
        (agg.count(by="status"), agg.count(by="status", keys=16)),
    ],
)
def test_what_means_the_same_has_the_same_state_fingerprint(one, other):
    assert fingerprint(one) == fingerprint(other)


def test_defaults_are_in_the_presentation_fingerprint_alone():
    def both(default: object) -> tuple[str, str]:
        defined = view(
            Feature("x", agg.last("event_time"), HOUR, default=default), entity=Entity("user", key="user_id")
        )
        plan = compile(defined).views["purchases"]
        return plan.state_fingerprint, plan.presentation_fingerprint

    noon = dt.datetime(2020, 1, 1, 12, tzinfo=dt.UTC)
    same = noon.astimezone(dt.timezone(dt.timedelta(hours=-5)))
    state, shown = both(noon)

    assert both(same) == (state, shown)
    assert both(None)[0] == state
    assert both(None)[1] != shown


@pytest.mark.parametrize("name", ["key", "Key", "Partition", "SEQ", "User_Id"])
def test_a_name_that_every_row_already_has_is_refused_in_any_case(name):
    with pytest.raises(DefinitionError, match="rename"):
        compile(view(Feature(name, agg.count(), Sliding("1h"))))


@pytest.mark.parametrize("text", ["\ud800", "half \udc00"])
def test_text_that_cannot_be_written_is_refused(text):
    with pytest.raises(DefinitionError) as raised:
        compile(
            view(Feature("n", agg.min("user_id"), Sliding("1h"), default=text)),
        )
    assert "is not of type string" in str(raised.value)
    with pytest.raises(DefinitionError, match="is not text"):
        compile(view(Feature("n", agg.count(), Sliding("1h"), description=text)))


def test_a_row_of_values_wider_than_a_view_may_have_is_refused():
    lists = [Feature(f"l{number}", agg.last_n("n_items", 128), Sliding("1h")) for number in range(40)]

    with pytest.raises(DefinitionError, match="its row of values has 5160 words, more than 4096"):
        compile(view(*lists))
