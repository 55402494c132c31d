"""The recount's own reading of SQL text: what it evaluates with DuckDB agrees with Polars on hostile records."""

import datetime as dt
import math
import random
from decimal import Decimal
from itertools import pairwise

import polars as pl
import pytest

from unskew.features.definitions.expressions import check_expression
from unskew.features.definitions.sql_text import FUNCTIONS, tokens_of
from unskew.features.plan import ValuePlan
from unskew.features.types import Type
from unskew.monitoring.recount_texts import Texts

INT64 = 2**63
UTC = dt.UTC
COLUMNS = {
    "n": pl.Int64(),
    "m": pl.Int64(),
    "x": pl.Float64(),
    "y": pl.Float64(),
    "s": pl.String(),
    "t": pl.String(),
    "b": pl.Boolean(),
    "at": pl.Datetime("us", "UTC"),
    "d": pl.Decimal(38, 2),
}
INTEGERS = [0, 1, -1, 2, -3, 5, 7, -7, 100, 63, 2**31, 2**53 + 1, -(2**53) - 1, 10**18, INT64 - 1, -INT64, None]
FLOATS = [
    0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -1.5, -2.5, 0.125, 1.005, 1.115, 2.675, 0.285, 1e15 + 0.5, 0.1, -0.1, 3.0, -7.0,
    1e300, -1e300, 1e308, 5e-324, 1e17, 1e16, 1000.0, 10.0, 2.0**53 + 2, 2.0**63, math.nan, math.inf, -math.inf, None,
]  # fmt: skip
STRINGS = [
    "", "a", "A", " a b ", "ß", "straße", "İ", "ı", "ﬁ", "Σας", "e\u0301", "日b", "ßb", "👍🏽", "a%b", "a_b", "7", "-7",
    "1.5", " 7", "7 ", "+7", "0x10", "1e3", "nan", "inf", "2017-03-26", "true", "f", "a\nb", "\t", "\u00a0a\u00a0", "A.b",
    "Ǆ", "ŉ", "o'neill x-ray", "9223372036854775808", "a\u0000b", "1_000", "٣", "\u212a", "ſ", "\u2003x\u2003",
    "\x1cz\x1c", "NaN", "-0", ".5", "5.", "1e400", None,
]  # fmt: skip
INSTANTS = [
    dt.datetime(2017, 3, 26, 1, 2, 3, 456789, UTC), dt.datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
    dt.datetime(1970, 1, 1, tzinfo=UTC), dt.datetime(1900, 1, 1, tzinfo=UTC),
    dt.datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC), dt.datetime(2021, 1, 3, 12, 0, 0, 500000, UTC),
    dt.datetime(2020, 2, 29, tzinfo=UTC), dt.datetime(2024, 12, 30, tzinfo=UTC),
    dt.datetime(1965, 5, 5, 5, 5, 5, 500501, UTC), None,
]  # fmt: skip
DECIMALS = [*map(Decimal, ("0", "1.50", "-1.50", "2.50", "0.05", "-0.05", "99999999999999.99", "7.00", "-7.25")), None]

# By DuckDB, or by plain Python inside of it: one line for each group of words, expressions separated by ;
INDEPENDENT = """
abs(x); abs(d); sign(n); sign(x); sign(d); ceil(x); ceil(d); ceil(n); ceiling(x); floor(x); floor(d); floor(n)
round(x); round(x, 0); round(x, 1); round(x, 2); round(x, 3); round(n); round(d); round(d, 1); trunc(x); truncate(x)
exp(x); ln(x); log(x, 2); log(2, x); log(x, 10); log10(x); log10(n); log2(x); log2(n); log1p(x); sqrt(x); sqrt(n)
mod(n, 3); mod(x, 3); mod(x, y); mod(d, 2); n % 3; n % -3; x % 3; x % y; d % 2; n / 3; n / m; x / y; x / 3; n / 2.5
n // 3; d * 2; d + 1; d * x; d + n; d - 0.5; d > 1.5; x + y; x - y; x * y; n + x; n * 0.1; .5 + x
n = 1; n <> 1; n != 1; x = y; x < y; x <= y; x <> y; x > 1; x >= y; s = 'a'; s < t; s > 'a'; b = true; n = x; n < x
n <=> m; x <=> y; s <=> t; n IS DISTINCT FROM m; n IS NOT DISTINCT FROM m; x IS DISTINCT FROM y
n BETWEEN 1 AND 5; x BETWEEN 0 AND 1; x NOT BETWEEN 0 AND 1; s BETWEEN 'a' AND 'b'; n IN (1, 2); n NOT IN (1, 2)
s IN ('a', 'b'); x IN (1.5, 2.5); b IN (true); n IS NULL; x IS NOT NULL; b AND n > 1; NOT b
n > 1 OR m > 1; NOT n > 1 AND b; s LIKE 'a%'; s LIKE '%b'; s LIKE 'a_b'; s NOT LIKE 'a%'; s LIKE '__'; s ~ '^a'
s !~ '^a'; s ~ '[a-z]+'; s ~ '.'; regexp_like(s, '^a'); s ~~ 'a%'; s ^@ 'a'; starts_with(s, 'a'); ends_with(s, t)
coalesce(n, m); coalesce(x, y, 0.0); coalesce(s, 'none'); greatest(n, m); greatest(x, y); greatest(n, x)
greatest(n, m, 3); greatest(x, y, n); greatest(s, t); least(n, m); least(x, y); least(s, t); least(x, y, n)
if(n > 1, x, y); ifnull(n, 0); nullif(n, 0); nullif(x, y); nullif(s, ''); CASE WHEN n > 1 THEN x ELSE y END
CASE n WHEN 1 THEN 'a' WHEN 2 THEN 'b' END; CASE WHEN n > 0 THEN 100 / n ELSE 0 END; CASE WHEN x > 0 THEN ln(x) END
bit_length(s); octet_length(s); length(s); char_length(s); character_length(s); concat(s, t); concat(s, '-', n)
concat_ws('-', s, t); s || t; s || n; lower(s); upper(s); trim(s); ltrim(s); rtrim(s); ltrim(s, 'a'); rtrim(s, 'b')
replace(s, 'a', 'bb'); replace(s, '', 'x'); reverse(s); strpos(s, 'b'); strpos(s, 'ß'); strpos(s, ''); left(s, 2)
left(s, -1); right(s, 2); right(s, -1); substr(s, 2); substr(s, 0); substr(s, -1); substr(s, 2, 2)
substr(s, 0, 2); substr(s, -2, 4); substr(s, 1, 0); substring(s, 2, 3); lpad(s, 5, '0'); rpad(s, 5, 'ß'); lpad(s, 0, 'a')
extract(year from at); extract(month from at); extract(day from at); extract(hour from at); extract(minute from at)
extract(second from at); extract(microsecond from at); extract(millisecond from at); extract(epoch from at)
extract(dow from at); extract(isodow from at); extract(doy from at); extract(week from at); extract(isoyear from at)
extract(quarter from at); extract(century from at); extract(decade from at); date_part('year', at)
date_part('epoch', at); strftime(at, '%Y-%m-%d'); strftime(at, '%H:%M:%S %j'); year(at); month(at); day(at); hour(at)
minute(at); second(at); quarter(at); week(at); dayofweek(at); dayofyear(at); dayofmonth(at)
CAST(n AS DOUBLE); CAST(n AS VARCHAR); CAST(x AS VARCHAR); CAST(b AS VARCHAR); CAST(b AS BIGINT); CAST(d AS DOUBLE)
CAST(d AS VARCHAR); CAST(n AS BOOLEAN); TRY_CAST(x AS BIGINT); TRY_CAST(x AS INTEGER); TRY_CAST(n AS INTEGER)
TRY_CAST(n AS TINYINT); TRY_CAST(x AS SMALLINT); TRY_CAST(s AS BIGINT); TRY_CAST(s AS DOUBLE); TRY_CAST(d AS BIGINT)
TRY_CAST(x AS FLOAT); TRY_CAST(s AS INTEGER); CAST('9.99' AS DECIMAL(38,2)) + d
n & 3; n | 3; bit_and(n, 3); bit_or(n, m); bit_xor(n, m); bit_not(n); bit_count(n)
"""
# On some of these records the result is out of the range of int64, and there is no value.
WITHOUT_VALUE = "n + 1; n - 1; n * 2; -n; n + m; n * m; abs(n); n % m; mod(n, m)"
# DuckDB lacks them, or they mean something else there.
DEPENDENT = """
cbrt(x); d / 3; d // 2; b + 1; b IS TRUE; b IS FALSE; b IS NOT TRUE; b IS NOT FALSE; n > 1 XOR m > 1; s ILIKE 'A%'; s ~* '^A'; s !~* 'a'
s RLIKE '^a'; s REGEXP '^a'; regexp_like(s, 'A', 'i'); s ~ '\\d'; s ~ '(?i)a'; s ~ '[[:alpha:]]'; initcap(s)
s || '-' || x; concat_ws(',', s, x); trim(both 'a' from s); normalize(s); position('b' in s); left(s, n); substr(s, n)
substring(s from 2 for 2); strftime(at, '%f'); split_part(s, 'a', 1)
acos(x); acosd(x); asin(x); asind(x); atan(x); atan2(x, y); atan2d(x, y); atand(x); cos(x); cosd(x); cot(x); cotd(x)
degrees(x); radians(x); sin(x); sind(x); tan(x); tand(x); x * pi(); pow(x, 2); power(n, 2); power(x, y)
d / n; n / d; d / d
CAST(at AS VARCHAR); CAST(x AS REAL); TRY_CAST(x AS DECIMAL(38,2)); n::DOUBLE
TRY_CAST(n AS UBIGINT); div(n, 3); regexp_replace(s, 'a', 'b'); x'61' = s; extract(nanosecond from at); n > 1 = b
"""


def each(texts: str) -> list[str]:
    return [text.strip() for text in texts.replace("\n", ";").split(";") if text.strip()]


# Definitions refuse them all.
REFUSED = set("date microsecond millisecond nanosecond string_to_array strptime time timestamp weekofyear".split())  # noqa: SIM905


def test_every_function_of_definitions_is_among_the_texts():
    tokens = [tokens_of(text) for text in each(INDEPENDENT + WITHOUT_VALUE + ";" + DEPENDENT)]
    called = {token.word for text in tokens for token, after in pairwise(text) if after.text == "("}

    assert FUNCTIONS - called == REFUSED


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    """Every hostile value, then pairs of them by chance."""
    chance = random.Random(1)
    hostile = [INTEGERS, INTEGERS, FLOATS, FLOATS, STRINGS, STRINGS, [True, False, None], INSTANTS, DECIMALS]
    drawn = [[*values, *(chance.choice(values) for _ in range(400 - len(values)))] for values in hostile]
    return pl.DataFrame(dict(zip(COLUMNS, drawn, strict=True)), schema=COLUMNS)


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts()


def plan_of(text: str) -> ValuePlan:
    checked = check_expression(text, COLUMNS)
    kinds = {pl.Boolean(): "bool", pl.String(): "string"}
    if isinstance(checked.dtype, pl.Decimal):
        name = f"decimal(38,{checked.dtype.scale})"
    else:
        name = kinds.get(checked.dtype, "float64" if checked.dtype.is_float() else "int64")
    dtype = Type.parse(name)
    return ValuePlan(text=text, expr=checked.expr.cast(dtype.polars), dtype=dtype, fails=checked.fails)


def shown(value: object) -> object:
    """What tells values apart of which a view can hold one; those that it cannot hold are alike."""
    if isinstance(value, float):
        return "no number" if not math.isfinite(value) else (value + 0.0 if value else 0.0).hex()
    return value.as_tuple() if isinstance(value, Decimal) else (type(value).__name__, value)


def differing(texts: Texts, text: str, records: pl.DataFrame) -> list[tuple[object, ...]]:
    plan = plan_of(text)
    texts.failed.clear()
    counted = texts.value(plan, records).to_list()
    computed = records.select(plan.expr.alias("x"))["x"].to_list()
    fails = set() if plan.fails is None else set(records.select(row=plan.fails.arg_true())["row"])
    assert fails == texts.failed
    names = sorted(set(plan.expr.meta.root_names()))
    rows = enumerate(zip(counted, computed, strict=True))
    return [
        (*records.select(names).row(row), f"counted {one!r}", f"computed {other!r}")
        for row, (one, other) in rows
        if row not in texts.failed and shown(one) != shown(other)
    ]


@pytest.mark.parametrize("text", each(INDEPENDENT))
def test_what_duckdb_evaluates_agrees_bit_for_bit_on_every_record(texts, records, text):
    assert differing(texts, text, records) == []
    assert texts.engines[text] == "duckdb", texts.dependent[text]
    assert not texts.failed


@pytest.mark.parametrize("text", each(WITHOUT_VALUE))
def test_a_value_out_of_range_is_no_reason_to_use_the_pipelines_own_engine(texts, records, text):
    assert differing(texts, text, records) == []
    assert texts.engines[text] == "duckdb"
    assert 0 < len(texts.failed) < 300


@pytest.mark.parametrize("text", each(DEPENDENT))
def test_what_is_not_evaluated_independently_is_said_with_a_reason(texts, records, text):
    assert differing(texts, text, records) == []
    assert texts.engines[text] == "polars"
    assert texts.dependent[text]


def test_columns_may_be_named_like_words_of_sql_and_differ_in_case(texts):
    columns = {"at": pl.Int64(), "A": pl.Int64(), "a": pl.Int64(), "year": pl.Int64(), 'q"x': pl.Int64()}
    records = pl.DataFrame({name: [number + 1] for number, name in enumerate(columns)}, schema=columns)
    text = '"at" * 10000 + A * 1000 + a * 100 + "year" * 10 + "q""x"'
    checked = check_expression(text, columns)

    value = texts.value(ValuePlan(text=text, expr=checked.expr, dtype=Type.parse("int64")), records)

    assert value.to_list() == [12345]
    assert texts.engines[text] == "duckdb"
