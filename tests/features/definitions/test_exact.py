"""Whole numbers in expressions: the exact value, or a record that is refused; never another number."""

import functools
import itertools
import math
import operator
from decimal import Decimal

import polars as pl
import pytest

from tests.support.definitions import view as defined
from unskew import Derived, Feature, Sliding, agg, compile
from unskew.features.definitions.expressions import check_expression
from unskew.features.errors import DefinitionError
from unskew.features.evaluate import evaluate
from unskew.features.plan import ValuePlan
from unskew.features.types import Type
from unskew.monitoring.recount_texts import Texts

LEAST, MOST = -(2**63), 2**63 - 1
EXTREMES = [0, 1, -1, 7, -7, MOST, LEAST, MOST // 2, 3_037_000_500, None]
SMALL = [0, 1, -1, 46_341, 100_000, -100_000, 2**31 - 1, -(2**31), None]
PAIRS = [*itertools.product(EXTREMES, EXTREMES)]
FRAME = pl.DataFrame(
    {
        "n": [n for n, _ in PAIRS],
        "m": [m for _, m in PAIRS],
        "i": [SMALL[at % len(SMALL)] for at in range(len(PAIRS))],
        "j": [SMALL[at // len(SMALL) % len(SMALL)] for at in range(len(PAIRS))],
        "h": [[1.1, 3e38, None][at % 3] for at in range(len(PAIRS))],
        "s": ["x" * (at % 5) for at in range(len(PAIRS))],
    },
    schema_overrides={"i": pl.Int32, "j": pl.Int32, "h": pl.Float32},
)
# The recount looks for each row on which DuckDB fails, which takes its time.
EVERY = 3


class Inexact(Exception):
    pass


class Whole:
    """A whole number, or null, whose arithmetic raises where int64 does not suffice.

    Divisions cut the fraction off, and by zero they are null.
    """

    def __init__(self, value) -> None:
        if value is not None and not LEAST <= value <= MOST:
            raise Inexact
        self.value = value

    def _with(self, other, function):
        values = (self.value, other.value if isinstance(other, Whole) else other)
        return Whole(None if None in values else function(*values))

    def __add__(self, other) -> "Whole":
        return self._with(other, operator.add)

    def __sub__(self, other) -> "Whole":
        return self._with(other, operator.sub)

    def __mul__(self, other) -> "Whole":
        return self._with(other, operator.mul)

    def __radd__(self, other) -> "Whole":
        return Whole(other) + self

    def __rsub__(self, other) -> "Whole":
        return Whole(other) - self

    def __rmul__(self, other) -> "Whole":
        return Whole(other) * self

    def __neg__(self) -> "Whole":
        return Whole(0) - self

    def __abs__(self) -> "Whole":
        return Whole(None if self.value is None else abs(self.value))

    def __floordiv__(self, other) -> "Whole":
        return self._divided(other, _quotient)

    def __mod__(self, other) -> "Whole":
        return self._divided(other, lambda a, b: a - _quotient(a, b) * b)

    def _divided(self, other, function):
        by_zero = (other.value if isinstance(other, Whole) else other) == 0
        return Whole(None) if by_zero else self._with(other, function)


def _quotient(a, b):
    if a == LEAST and b == -1:
        raise Inexact
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


ARITHMETIC = [
    "n + m",
    "n - m",
    "n * m",
    "n * 1000000",
    "-3 * n",
    "n * -1",
    "5 - n",
    "-n",
    "abs(n)",
    "n // m",
    "n % m",
    "n // 2",
    "n % 7",
    "n // -1",
    "n + m * n - m",
    "(n - m) - (m - n)",
    "n * n * n",
    "1000000 * 1000000 + n",
    "i * i",
    "i * j",
    "i * 1000000",
    "i * 1000000 * j",
    "i * 1000000 * 1000000",
    "i * j * i",
    "-i",
    "abs(i) * 3",
    "i // j",
    "i + j - n",
    "(n // m) % i",
]


@pytest.mark.parametrize("text", ARITHMETIC)
def test_arithmetic_is_exact_or_fails_in_the_stream_as_in_the_recount(text):
    expected = []
    for row in FRAME.iter_rows(named=True):
        names = {name: Whole(row[name]) for name in "nmij"}
        try:
            expected.append(eval(text, {"abs": abs}, names).value)
        except Inexact:
            expected.append("fails")

    assert _by_the_stream(text) == expected
    engine, found = _by_the_recount(text)
    assert (engine, found) == ("duckdb", expected[::EVERY])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Small types of other functions and casts, and of the columns themselves.
        ("length(s) * 1000000000", lambda row: len(row["s"]) * 10**9),
        ("TRY_CAST(n AS INTEGER) * 1000000", lambda row: _times(row["n"], 10**6, -(2**31), 2**31 - 1)),
        ("TRY_CAST(n AS SMALLINT) * 1000000", lambda row: _times(row["n"], 10**6, -(2**15), 2**15 - 1)),
        ("CASE WHEN i > 0 THEN 2000000000 ELSE 1 END * 3", lambda row: 6 * 10**9 if (row["i"] or 0) > 0 else 3),
        ("h * 2", lambda row: None if row["h"] is None else row["h"] * 2),
        # Only the branch that is taken counts.
        ("CASE WHEN n BETWEEN -9 AND 9 THEN n * 1000000 END", lambda row: _times(row["n"], 10**6, -9, 9)),
        ("n % NULLIF(i, 0) + 0 * i", None),
        ("coalesce(i, n * 3)", lambda row: _tripled(row["n"]) if row["i"] is None else row["i"]),
        ("n * m > 5", lambda row: _is_above(row["n"], row["m"])),
    ],
)
def test_small_types_are_widened_and_branches_not_taken_do_not_fail(text, expected):
    found = _by_the_stream(text)

    assert found[::EVERY] == _by_the_recount(text)[1]
    if expected is not None:
        assert found == [expected(row) for row in FRAME.iter_rows(named=True)]


def _times(value, factor, least, most):
    return value * factor if value is not None and least <= value <= most else None


def _tripled(value):
    return None if value is None else value * 3 if LEAST <= value * 3 <= MOST else "fails"


def _is_above(one, other):
    if one is None or other is None:
        return None
    return one * other > 5 if LEAST <= one * other <= MOST else "fails"


def _plan(text):
    checked = check_expression(text, dict(FRAME.schema))
    dtype = Type.of_values(checked.dtype)
    return ValuePlan(text=checked.text, expr=checked.expr.cast(dtype.polars), dtype=dtype, fails=checked.fails)


def _by_the_stream(text):
    plan = _plan(text)
    frame = FRAME.with_columns(pl.col("i", "j").cast(pl.Int64), pl.col("h").cast(pl.Float64))
    fails = pl.lit(value=False) if plan.fails is None else plan.fails
    found = frame.select(x=plan.expr, fails=fails)
    return ["fails" if fails else value for value, fails in found.iter_rows()]


def _by_the_recount(text):
    plan, texts = _plan(text), Texts()
    values = texts.value(plan, FRAME.gather_every(EVERY)).to_list()
    return texts.engines[plan.text], ["fails" if row in texts.failed else value for row, value in enumerate(values)]


def test_an_event_beyond_int64_is_rejected_and_its_neighbours_keep_their_values():
    plan = compile(
        defined(
            Feature("spend", agg.sum("n_items * 5000000000"), Sliding("1h"), filter="status <> 'free'"),
            Feature("n", agg.count(), Sliding("1h")),
        )
    ).views["purchases"]
    columns = plan.stream.columns
    rows = [(3, "paid"), (2**31 - 1, "paid"), (2**31 - 1, "free"), (None, "paid")]
    frame = pl.DataFrame(
        {name: [None] * len(rows) for name in columns}
        | {"n_items": [n for n, _ in rows], "status": [status for _, status in rows], "user_id": "u"}
        | {"_partition": 0, "_offset": range(len(rows)), "_arrival": 5, "_event_time": 5},
        schema={**columns, "_partition": pl.Int32, "_offset": pl.Int64, "_arrival": pl.Int64, "_event_time": pl.Int64},
    )

    found = evaluate(plan, frame)

    assert found.events["offset"].to_list() == [0, 2, 3]
    assert found.events["v0"][0] == 15_000_000_000
    assert found.rejected.rows() == [(0, 1, "number", "purchases.spend: its value has a whole number beyond 64 bits")]


def test_a_derived_feature_that_leaves_int64_is_null():
    plan = compile(
        defined(
            Feature("total", agg.sum("n_items"), Sliding("1h")),
            Derived("square", "total * total"),
            Derived("share", "total % (total - 3)"),
        )
    ).views["purchases"]
    values = pl.DataFrame({"total": [3, 4_000_000_000, LEAST]})

    found = values.select(each.expr.alias(each.name) for each in plan.derived)

    assert found["square"].to_list() == [9, None, None]
    assert found["share"].to_list()[:2] == [None, 3]


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("n % 0", "it divides by zero"),
        ("n + 9223372036854775807 * 2", "a constant part of it is beyond 64 bits"),
        # A number of SQL text or of Polars that no whole number can be, wherever it stands.
        ("n + 99999999999999999999", "the number 99999999999999999999 is beyond 64 bits; write it as a float"),
        ("n - 9223372036854775808", "is beyond 64 bits"),
        ("n + -9223372036854775809", "is beyond 64 bits"),
        ("-(-9223372036854775808) + n", "is beyond 64 bits"),
        ("n < 9223372036854775808", "is beyond 64 bits"),
        ("n BETWEEN -99999999999999999999 AND 0", "is beyond 64 bits"),
        ("n IN (1, 9223372036854775808)", "is beyond 64 bits"),
        ("coalesce(n, 99999999999999999999)", "is beyond 64 bits"),
        ("h + 1e400", "the number 1e400 is beyond what a float holds"),
        ("h IN (1, 1e400)", "is beyond what a float holds"),
        ("h * 1e-400", "is so near zero"),
        (pl.col("n") < 2**70, "is beyond 64 bits"),
        (pl.col("n") + pl.lit(2**63, pl.UInt64), "is beyond 64 bits"),
        (pl.col("n").is_in([1, 2**63]), "is beyond 64 bits"),
        (pl.col("n").is_in(pl.Series([1, -(2**70)], dtype=pl.Int128).implode()), "is beyond 64 bits"),
        (pl.col("n").replace_strict({1: 2**70}, default=0), "is beyond 64 bits"),
        (pl.col("n").is_in([Decimal(2**63)]), "is beyond 64 bits"),
        (pl.col("n") + Decimal("0.12345678901234567890"), r"is beyond 2\^63 - 1 units of its last digit"),
        (pl.col("h").is_in([math.inf]), "NaN or an infinity as a literal"),
        (pl.col("n") ** -1, "to a negative power"),
        (pl.col("h").fill_null(math.nan), "NaN or an infinity as a literal"),
    ],
)
def test_a_constant_without_an_exact_result_is_a_fault_of_the_definition(expression, fault):
    with pytest.raises(DefinitionError, match=fault):
        check_expression(expression, dict(FRAME.schema))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n + -9223372036854775808", lambda n: n + LEAST),
        ("-9223372036854775808 - n", lambda n: LEAST - n),
        ("n * -9223372036854775808", lambda n: n * LEAST),
        ("n > -9223372036854775808", lambda n: n > LEAST),
        ("n IN (7, -9223372036854775808)", lambda n: n in {7, LEAST}),
        ("greatest(n, -9223372036854775808)", lambda n: max(n, LEAST)),
        (pl.col("n").is_in([7, LEAST]), lambda n: n in {7, LEAST}),
    ],
)
def test_the_least_int64_is_a_number_like_any_other(text, expected):
    numbers = [n for n in EXTREMES if n is not None]

    checked = check_expression(text, {"n": pl.Int64()})

    frame = pl.DataFrame({"n": numbers}).select(
        value=checked.expr, fails=pl.lit(False) if checked.fails is None else checked.fails
    )
    exact = list(map(expected, numbers))
    assert [None if fails else value for value, fails in frame.rows()] == [
        value if LEAST <= value <= MOST else None for value in exact
    ]


LONG = [
    (" OR ".join(f"n = {at}" for at in range(500)), lambda n: n in range(500)),
    (f"n IN ({','.join(map(str, range(1000)))})", lambda n: n in range(1000)),
    (" AND ".join(f"n <> {at}" for at in range(300)), lambda n: n not in range(300)),
    (functools.reduce(operator.or_, [pl.col("n") == at for at in range(500)]), lambda n: n in range(500)),
    (pl.col("n").is_in(list(range(5000))), lambda n: n in range(5000)),
    (" || ".join(["s"] * 60), lambda _: "yes" * 60),
    (" + ".join(["n"] * 70), lambda n: n * 70),
    (
        "CASE" + "".join(f" WHEN n = {at} THEN {at * 2}" for at in range(50)) + " END",
        lambda n: n * 2 if n < 50 else None,
    ),
]


@pytest.mark.parametrize(("expression", "expected"), LONG, ids=range(len(LONG)))
def test_long_lists_of_conditions_work(expression, expected):
    values = [0, 7, 49, 299, 499, 500, 999, 4999, 5000]
    checked = check_expression(expression, {"n": pl.Int64(), "s": pl.String()})
    frame = pl.DataFrame({"n": values, "s": "yes"})

    assert frame.select(x=checked.expr)["x"].to_list() == [expected(value) for value in values]


@pytest.mark.parametrize(
    "expression",
    [
        " OR ".join(["n = 1"] * 20_000),
        " || ".join(["s"] * 20_000),
        " + ".join(["n"] * 1_900),
        "(" * 5_000 + "n" + ")" * 5_000,
        "NOT " * 1_900 + "n > 1",
        "- " * 1_900 + "n",
        "n" + "::bigint" * 1_900,
        "n" + " BETWEEN 1 AND 2" * 900,
        "nullif(" * 39 + "n" + ", 0)" * 39,
        "n > " + "1" * 5_000,
        "s = '" + "x" * 300_000 + "'",
        functools.reduce(operator.add, [pl.col("n")] * 20_000),
        functools.reduce(operator.or_, [pl.col("n") == 1] * 20_000),
        # Texts that fill the memory.
        "lpad(s, 1000000000)",
        "rpad(s, n)",
        "replace(replace(s, 'a', 'aaaaaaaaaaaaa'), 'a', 'aaaaaaaaaaaaa')",
        f"strftime(t, '{'%c' * 9_000}')",
        " || ".join(["s"] * 150),
        pl.col("s").str.zfill(10**9),
        pl.col("s").str.replace_all("a", pl.col("s")),
    ],
    ids=range(20),
)
def test_what_no_engine_should_read_is_a_fault_of_the_definition(expression):
    with pytest.raises(DefinitionError) as caught:
        check_expression(expression, {"n": pl.Int64(), "s": pl.String(), "t": pl.Datetime("us", "UTC")})

    assert len(str(caught.value)) < 1_000
