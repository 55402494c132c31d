"""The recount's aggregations, each by an example worked out by hand."""

import datetime as dt
import math
import struct
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest

from tests.support.plans import DAY, MINUTE, SECOND, Wanted, WantedOfOthers, events, sliding, tumbling, view
from unskew.features.types import FLOAT64, INT64, STRING, Type
from unskew.features.view import Parameters
from unskew.monitoring.recount import Recount, identical
from unskew.monitoring.recount_aggregates import estimate, hashed, registers, weight

U = ("u",)
CENTS = "decimal(38,2)"


def of(values, function, kind="int64", *, t=0, window=None, times=None, by=None, **told):
    """One aggregation of some values, all of one instant unless ``times`` says otherwise (effective, in seconds)."""
    columns = {"v": Type.parse(kind).polars, "k": pl.String()}
    at = [t] * len(values) if times is None else [time * SECOND for time in times]
    keys = [None] * len(values) if by is None else by
    given = [
        (max(at, default=0), effective, {"user": "u", "v": value, "k": key})
        for value, effective, key in zip(values, at, keys, strict=True)
    ]
    wanted = Wanted(
        "f",
        function,
        window or tumbling(DAY),
        None if function == "decayed_count" else "v",
        kind,
        by=None if by is None else "k",
        parameters=Parameters(**told),
    )
    recount = Recount(view(wanted, columns=columns), events(given, columns=columns))
    return recount.values(U, max(at, default=0))["f"]


def same(found, expected):
    return identical({"f": found}, {"f": expected})


def moment(*date):
    return dt.datetime(*date, tzinfo=dt.UTC)


ABC = ["b", "a", "é", "a", None, "c"]
DAYS = [moment(2017, 1, 2), moment(1969, 12, 31, 23, 59, 59, 999_999), moment(2017, 1, 2), None]
CENTS_OF = [Decimal("0.10"), Decimal("-2.00"), Decimal("0.10"), None]


@pytest.mark.parametrize(
    ("function", "values", "kind", "expected"),
    [
        ("count", ABC, "string", 5),
        ("count", CENTS_OF, CENTS, 3),
        ("sum", CENTS_OF, CENTS, Decimal("-1.80")),
        ("sum", [], CENTS, Decimal("0.00")),
        ("sum", [Decimal("92233720368547758.07"), Decimal("0.01")], CENTS, Decimal("92233720368547758.07")),
        ("sum", [Decimal("-92233720368547758.07"), Decimal("-0.05")], CENTS, Decimal("-92233720368547758.08")),
        ("mean", CENTS_OF, CENTS, -0.6),
        ("mean", [True, False, True, None], "bool", 2 / 3),
        ("mean", [2**63 - 1, 2**63 - 1], "int64", 2.0**63),
        ("min", ABC, "string", "a"),
        ("max", ABC, "string", "é"),
        ("max", ["\uffff", "\U0001d11e"], "string", "\U0001d11e"),  # as in UTF-8, not in UTF-16
        ("min", ["a", ""], "string", ""),
        ("min", DAYS, "timestamp", DAYS[1]),
        ("max", DAYS, "timestamp", DAYS[0]),
        ("min", CENTS_OF, CENTS, Decimal("-2.00")),
        ("max", CENTS_OF, CENTS, Decimal("0.10")),
        ("max", [False, True, None], "bool", True),
        ("first", ABC, "string", "b"),
        ("last", ABC, "string", "c"),
        ("first", CENTS_OF, CENTS, Decimal("0.10")),
        ("count_distinct", ABC, "string", 4),
        ("count_distinct", CENTS_OF, CENTS, 2),
        ("count_distinct", DAYS, "timestamp", 2),
        ("count_distinct", [0.0, -0.0, 1.0], "float64", 2),
        ("count_distinct", [None, None], "int64", 0),
        ("mode", ABC, "string", "a"),
        ("mode", ["b", "a"], "string", "a"),
        ("mode", [3, 1, 3, 1, 2], "int64", 1),
        ("mode", [True, False, True], "bool", True),
        ("mode", DAYS, "timestamp", DAYS[0]),
    ],
)
def test_scalars(function, values, kind, expected):
    assert same(of(values, function, kind), expected)


@pytest.mark.parametrize(
    "function", ["mean", "var", "std", "min", "max", "first", "last", "first_n", "last_n", "mode", "top_k", "histogram", "quantile"]
)  # fmt: skip
def test_without_a_value_there_is_none(function):
    told = {"n": 2, "edges": (1.0,), "q": 0.5, "bits": 6}

    assert of([None], function, "int64", **told) is None
    assert of([], function, "int64", **told) is None


def test_first_and_last_are_by_effective_time_and_then_by_the_order_in_which_they_came():
    #   s   1   2   3
    #       c   a   b        all arrive at 3 s: a (of 2 s), b (of 3 s), c (of 1 s), d (of 3 s), e (of 1 s)
    #       e       d
    values, times = ["a", "b", "c", "d", "e"], [2, 3, 1, 3, 1]

    assert of(values, "first", "string", times=times) == "c"
    assert of(values, "last", "string", times=times) == "d"
    assert of(values, "first_n", "string", times=times, n=3) == ["c", "e", "a"]
    assert of(values, "last_n", "string", times=times, n=3) == ["d", "b", "a"]
    assert of(values, "last_n", "string", times=times, n=9) == ["d", "b", "a", "e", "c"]
    assert of([1, None, 3], "last_n", times=[1, 2, 0], n=2) == [1, 3]


def test_first_and_last_time_are_effective_times():
    # The second is late, and the third says it is from the future: it counts from its arrival at 9 s.
    given = [(7, 7), (8, 2), (9, 99)]
    recount = Recount(
        view(Wanted("a", "first_time", tumbling(DAY)), Wanted("b", "last_time", tumbling(DAY), filter="n > 0")),
        events([(a * SECOND, e * SECOND, {"user": "u", "n": a - 7}) for a, e in given]),
    )

    assert identical(recount.values(U, 7 * SECOND), {"a": moment(1970, 1, 1, 0, 0, 7), "b": None})
    assert identical(
        recount.values(U, 9 * SECOND), {"a": moment(1970, 1, 1, 0, 0, 2), "b": moment(1970, 1, 1, 0, 0, 9)}
    )


def test_variance_is_exact_and_rounded_once():
    assert same(of([1, 2, 3, 4], "var", ddof=1), 5 / 3)
    assert same(of([1, 2, 3, 4], "var", ddof=0), 1.25)
    assert same(of([1, 2, 3, 4], "std", ddof=0), math.sqrt(1.25))
    assert of([5], "var", ddof=1) is None
    assert same(of([5], "var", ddof=0), 0.0)
    assert same(of([True, False], "var", "bool", ddof=1), 0.5)
    assert same(of([Decimal("0.10"), Decimal("0.30")], "var", CENTS, ddof=0), 0.01)
    # A naive sum of squares in floats would lose this wholly.
    assert same(of([1e9, 1e9 + 1, 1e9 + 2], "var", "float64", ddof=1), 1.0)
    assert same(of([2**53 + 1, 2**53 + 3], "var", "int64", ddof=1), 2.0)
    # Floats are multiples of 2^-64: this one is rounded to none, half to even.
    assert same(of([2.0**-65, 0.0], "var", "float64", ddof=1), 0.0)
    third, tenth = Fraction(1, 3), Fraction(1, 10)
    assert of([1 / 3, 0.1], "var", "float64", ddof=1) == pytest.approx(float((third - tenth) ** 2 / 2), rel=1e-14)


def test_top_k_is_by_frequency_and_then_the_smallest_first():
    values = ["b", "c", "a", "c", "b", "é", "c"]

    assert of(values, "top_k", "string", n=1) == ["c"]
    assert of(values, "top_k", "string", n=3) == ["c", "b", "a"]
    assert of(values, "top_k", "string", n=9) == ["c", "b", "a", "é"]
    assert of([1.5, -1.0, 1.5, None], "top_k", "float64", n=2) == [1.5, -1.0]


def test_histogram_counts_below_each_edge_and_from_the_last_on():
    #            |  -1  |   0   |   10  |
    #  counts    2      1       3       1
    values = [-5, -2, -1, 0, 9, 3, 10]

    assert of(values, "histogram", edges=(-1.0, 0.0, 10.0)) == [2, 1, 3, 1]
    assert of([0.1, 0.30000000000000004, 0.3], "histogram", "float64", edges=(0.3,)) == [1, 2]
    assert of([Decimal("0.30"), Decimal("0.29")], "histogram", CENTS, edges=(0.3,)) == [1, 1]
    assert of([True, False, True], "histogram", "bool", edges=(0.5, 2.0)) == [1, 2, 0]
    # As a float, 2^53 + 1 is 2^53.
    assert of([2**53 + 1], "histogram", edges=(2.0**53 + 2,)) == [1, 0]


@pytest.mark.parametrize(
    ("values", "q", "bits", "expected"),
    [
        # Bins of one bit of mantissa: [1, 1.5) [1.5, 2) [2, 3) [3, 4) [4, 6): the middle of each is the answer.
        ([1.0, 1.6, 2.5, 3.5, 5.0], 0.5, 1, 2.5),
        ([1.0, 1.6, 2.5, 3.5, 5.0], 0.0, 1, 1.25),
        ([1.0, 1.6, 2.5, 3.5, 5.0], 1.0, 1, 5.0),
        # Rank ceil(0.25 * 4) = 1, and ceil(0.26 * 4) = 2.
        ([1.0, 2.0, 4.0, 8.0], 0.25, 0, 1.5),
        ([1.0, 2.0, 4.0, 8.0], 0.26, 0, 3.0),
        # Below zero the larger magnitude comes first; zero is exact.
        ([-4.0, -2.0, 0.0, 2.0], 0.25, 0, -6.0),
        ([-4.0, -2.0, 0.0, 2.0], 0.5, 0, -3.0),
        ([-4.0, -2.0, -0.0, 2.0], 0.75, 0, 0.0),
        # What has no bit left is zero: the subnormals here.
        ([5e-324, -5e-324], 1.0, 6, 0.0),
        ([-5e-324, 5e-324], 0.5, 6, 0.0),
    ],
)
def test_quantile_is_the_middle_of_the_bin_in_which_the_rank_lies(values, q, bits, expected):
    assert same(of(values, "quantile", "float64", q=q, bits=bits), expected)


def test_quantile_of_other_types_is_of_their_floats():
    # 7 = 1.11b * 2^2: two bits of mantissa hold it exactly, and its bin is [7, 8).
    assert of([7, 7, 7], "quantile", q=0.5, bits=2) == 7.5
    assert of([Decimal("7.00")], "quantile", CENTS, q=0.5, bits=2) == 7.5
    assert of([True, False, True], "quantile", "bool", q=0.5, bits=2) == 1.125


@pytest.mark.parametrize("error", [0.01, 0.05, 0.3])
def test_quantile_is_no_further_from_the_value_of_the_rank_than_the_error_allows(error):
    bits = max(0, math.ceil(-math.log2(error)) - 1)
    values = [1.37**i for i in range(-30, 30)]
    for q in (0.01, 0.3, 0.5, 0.99):
        exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]

        assert abs(of(values, "quantile", "float64", q=q, bits=bits) - exact) <= error * exact


def test_decayed_values_weigh_each_hop_by_its_age():
    # Hops of 1 s, half-life 2 hops, at 4 s: ages 4, 2, 2, 0 hops: weights 1/4, 1/2, 1/2, 1.
    window, times = sliding(10 * SECOND, SECOND), [0, 2, 2, 4]

    assert same(of([1] * 4, "decayed_count", times=times, window=window, half_life_hops=2), 0.25 + 2 * 0.5 + 1.0)
    assert same(of([8, 10, 2, 5], "decayed_sum", times=times, window=window, half_life_hops=2), 2.0 + 6.0 + 5.0)
    assert same(
        of([True, False, True, True], "decayed_sum", "bool", times=times, window=window, half_life_hops=2), 1.75
    )
    cents = [Decimal("0.08"), Decimal("0.10"), Decimal("0.02"), Decimal("0.05")]
    assert same(of(cents, "decayed_sum", CENTS, times=times, window=window, half_life_hops=2), 13.0 / 100.0)
    assert same(of([None], "decayed_sum", times=[0], window=window, half_life_hops=2), 0.0)
    # Within a hop sums are exact: 1e17 + 1 - 1e17 is 1, which is then halved.
    values, times = [1e17, 1.0, -1e17, 0.0], [0, 0, 0, 2]
    assert same(of(values, "decayed_sum", "float64", times=times, window=window, half_life_hops=2), 0.5)


def test_weights_are_rounded_correctly():
    assert [weight(age, 1) for age in (0, 1, 10, 1074, 1076)] == [1.0, 0.5, 2.0**-10, 2.0**-1074, 0.0]
    assert weight(1, 2) == math.sqrt(0.5)
    for age, half_life in [(1, 3), (7, 5), (100, 17)]:
        # Of the floats beside it none is nearer: w^H is 2^-j.
        found = Fraction(weight(age, half_life))
        ulp = Fraction(math.ulp(weight(age, half_life)))
        assert (found - ulp / 2) ** half_life < Fraction(1, 2**age) < (found + ulp / 2) ** half_life


def test_maps_hold_the_keys_with_most_values_and_the_rest_together():
    #          b: 3, a: 2, é: 2, z: 1
    keys = ["b", "a", "é", "b", "z", "é", "a", "b", None]
    values = [1, 2, 4, 8, 16, 32, 64, 128, 256]

    assert of(values, "sum", by=keys, keys=9) == [
        {"key": "b", "value": 137},
        {"key": "a", "value": 66},
        {"key": "é", "value": 36},
        {"key": "z", "value": 16},
    ]
    assert of(values, "sum", by=keys, keys=2) == [
        {"key": "b", "value": 137},
        {"key": "a", "value": 66},
        {"key": "other", "value": 52},
    ]
    assert of(values, "mean", by=keys, keys=1) == [
        {"key": "b", "value": 137 / 3},
        {"key": "other", "value": (66 + 36 + 16) / 5},
    ]
    assert of(values, "count", by=keys, keys=1) == [{"key": "b", "value": 3}, {"key": "other", "value": 5}]


def test_a_key_that_is_called_other_is_counted_with_the_rest_and_comes_last():
    keys = ["other", "other", "other", "a", "b"]

    assert of([1, 1, 1, 1, 1], "count", by=keys, keys=1) == [{"key": "a", "value": 1}, {"key": "other", "value": 4}]
    assert of([1, 1, 1, 1, 1], "count", by=keys, keys=2) == [
        {"key": "a", "value": 1},
        {"key": "b", "value": 1},
        {"key": "other", "value": 3},
    ]
    assert of([1], "count", by=["other"], keys=2) == [{"key": "other", "value": 1}]


def test_keys_of_maps_rank_by_the_values_that_count_and_nulls_do_not():
    assert of([None, None, 1], "sum", by=["a", "a", "b"], keys=1) == [{"key": "b", "value": 1}]
    assert of([None, 1], "sum", by=["a", None], keys=1) is None
    assert of([], "count", by=[], keys=1) is None
    cents = [Decimal("0.10"), Decimal("0.20")]
    assert same(of(cents, "sum", CENTS, by=["", ""], keys=1), [{"key": "", "value": Decimal("0.30")}])


def test_derived_features_are_of_the_row_and_null_where_they_are_not_finite():
    #   s   0    10   20
    #       |-a--|    |      sum / count: 6 / 2, and 0 / 0 on the empty window
    window = tumbling(10 * SECOND)
    counted = view(
        Wanted("s", "sum", window, "n", "int64"),
        Wanted("c", "count", window, default=7),
        Wanted("m", "mean", window, "n", "int64"),
        derived=[
            WantedOfOthers("sql", "s / c"),
            WantedOfOthers("polars", pl.col("s") / pl.col("c")),
            WantedOfOthers("of_null", "m + 1"),
            WantedOfOthers("filled", "COALESCE(m, -1) > 2", "bool"),
            WantedOfOthers("big", "s * c", "int64"),
        ],
    )
    recount = Recount(counted, events([(0, 0, {"user": "u", "n": 2}), (1, 1, {"user": "u", "n": 4})]))

    assert identical(
        recount.values(U, 1),
        {"s": 6, "c": 2, "m": 3.0, "sql": 3.0, "polars": 3.0, "of_null": 4.0, "filled": True, "big": 12},
    )
    assert identical(
        recount.values(U, 10 * SECOND),
        {"s": 0, "c": 0, "m": None, "sql": None, "polars": None, "of_null": None, "filled": False, "big": 0},
    )
    assert {text: recount.engines[text] for text in ("s / c", "m + 1")} == {"s / c": "duckdb", "m + 1": "duckdb"}
    assert recount.engines[str(pl.col("s") / pl.col("c"))] == "polars"
    assert [row.instant_us for row in recount.rows(U, MINUTE)] == [0, 1, 10 * SECOND]
    assert [one.published.empty for one in counted.derived] == [None, None, None, False, 0]


def test_values_of_every_type_are_evaluated_from_sql_as_from_polars():
    columns = {"s": pl.String(), "at": pl.Datetime("ms", "UTC"), "d": pl.Decimal(10, 1), "b": pl.Boolean()}
    row = {"user": "u", "s": "é", "at": moment(2017, 1, 2), "d": Decimal("1.5"), "b": False, "n": 7}
    wanted = [
        (f"{name}{number}", text, of)
        for name, of, written in [
            ("s", "string", "s"),
            ("at", "timestamp", "at"),
            ("d", "decimal(38,1)", "d"),
            ("b", "bool", "b"),
            ("cast", "string", "CAST(n AS VARCHAR)"),
        ]
        for number, text in enumerate([written, pl.sql_expr(written)])
    ]
    recount = Recount(
        view(*(Wanted(name, "last", tumbling(DAY), text, of) for name, text, of in wanted), columns=columns),
        events([(0, 0, row)], columns=columns),
    )

    assert identical(
        recount.values(U, 0),
        {
            f"{name}{number}": value
            for name, value in [
                ("s", "é"),
                ("at", moment(2017, 1, 2)),
                ("d", Decimal("1.5")),
                ("b", False),
                ("cast", "7"),
            ]
            for number in range(2)
        },
    )


def test_a_decimal_beyond_64_bits_drops_its_event():
    columns = {"d": pl.Decimal(38, 2)}
    given = [
        (i, i, {"user": "u", "d": Decimal(units).scaleb(-2)}) for i, units in enumerate([2**63, 2**63 - 1, -(2**63)])
    ]
    recount = Recount(
        view(Wanted("c", "count", tumbling(DAY)), Wanted("s", "sum", tumbling(DAY), "d", CENTS), columns=columns),
        events(given, columns=columns),
    )

    assert recount.values(U, 9) == {"c": 1, "s": Decimal("92233720368547758.07")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0), (1, True), (0.0, -0.0), ("1", 1), (None, 0), ([1], [1.0]), ([1, 2], [2, 1]), ([], None),
        (Decimal("1.0"), Decimal("1.00")), (Decimal(1), 1),
        (moment(2017, 1, 1), moment(2017, 1, 1, 0, 0, 0, 1)), (moment(2017, 1, 1), moment(2017, 1, 1).replace(tzinfo=None)),
        ([{"key": "a", "value": 1}], [{"key": "a", "value": 1.0}]),
        ([{"key": "a", "value": 1}, {"key": "b", "value": 1}], [{"key": "b", "value": 1}, {"key": "a", "value": 1}]),
    ],
)  # fmt: skip
def test_values_that_differ_in_a_bit_or_in_type_are_not_identical(one, other):
    assert not same(one, other)
    assert same(one, one)
    assert same(other, other)


def test_an_instant_is_the_same_whoever_gave_it():
    polars = pl.Series([moment(2017, 1, 1)], dtype=pl.Datetime("us", "UTC")).to_list()[0]

    assert same(polars, moment(2017, 1, 1))


# FNV-1a of these texts is published (http://www.isthe.com/chongo/tech/comp/fnv/); undoing the finaliser shows it.
@pytest.mark.parametrize(("text", "fnv"), [("", 0xCBF29CE484222325), ("a", 0xAF63DC4C8601EC8C), ("foobar", 0x85944171F73967E8)])  # fmt: skip
def test_text_is_hashed_by_fnv_1a_and_finished(text, fnv):
    found = hashed(text, STRING)
    found ^= found >> 33
    found = found * pow(0xC4CEB9FE1A85EC53, -1, 2**64) % 2**64
    found ^= found >> 33
    found = found * pow(0xFF51AFD7ED558CCD, -1, 2**64) % 2**64

    assert found ^ found >> 33 == fnv


def test_numbers_are_hashed_by_their_eight_bytes():
    for value, kind, pattern in [
        (258, "int64", struct.pack("<q", 258)),
        (-1, "int64", b"\xff" * 8),
        (True, "bool", struct.pack("<q", 1)),
        (Decimal("1.50"), CENTS, struct.pack("<q", 150)),
        (moment(1970, 1, 1, 0, 0, 1), "timestamp", struct.pack("<q", 1_000_000)),
        (1.5, "float64", struct.pack("<d", 1.5)),
    ]:
        as_text = pattern.decode("latin-1")

        if as_text.isascii():  # then the text's UTF-8 is the very bytes
            assert hashed(value, Type.parse(kind)) == hashed(as_text, STRING)
    assert len({hashed(1, INT64), hashed(1.0, FLOAT64), hashed("1", STRING)}) == 3


def test_a_register_is_the_first_bits_and_keeps_the_longest_run_of_zeros_behind_them():
    #        register 5 |  rest: 000 1.. -> 4;  register 5 again: 01.. -> 2;  register 15, nothing but zeros -> 61
    hashes = [0b0101_0001 << 56, 0b0101_0100 << 56, 0b1111 << 60]

    found = registers(hashes, 4)

    assert found == [0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 61]


@pytest.mark.parametrize("bits", [4, 12, 16])
def test_an_estimate_of_nothing_is_zero_and_of_one_is_one(bits):
    assert estimate(registers([], bits), bits) == 0
    assert estimate(registers([hashed("a", STRING)], bits), bits) == 1
    assert of([None], "approx_count_distinct", "string", bits=bits) == 0


def test_an_estimate_of_few_is_almost_exact():
    # Of so few among 65,536 registers hardly two share one.
    for n in (2, 5, 10, 50):
        assert estimate(registers((hashed(i, INT64) for i in range(n)), 16), 16) == n
    assert of(["a", "b", "a", None, "é"], "approx_count_distinct", "string", bits=12) == 3


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("n", [100, 1_000, 30_000])
def test_an_estimate_is_as_near_as_the_registers_promise(bits, n):
    promised = 1.04 / math.sqrt(2**bits)
    errors = [
        estimate(registers((hashed(f"{seed} {i}", STRING) for i in range(n)), bits), bits) / n - 1 for seed in range(8)
    ]

    assert all(abs(error) < 3.5 * promised for error in errors)
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 1.6 * promised


def test_equal_sets_give_equal_estimates_whatever_their_order_and_repeats():
    one = registers((hashed(i, INT64) for i in range(500)), 6)
    other = registers((hashed(i % 500, INT64) for i in reversed(range(1500))), 6)

    assert one == other
    assert estimate(one, 6) == estimate(other, 6)
