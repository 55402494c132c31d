import os
import re
import socket
import threading

import polars as pl
import pytest

from unskew.features.definitions.expressions import canonical_sql, check_expression, how_to_cast
from unskew.features.errors import DefinitionError
from unskew.features.types import Type

COLUMNS = {
    "a": pl.Int64(),
    "b": pl.Int32(),
    "f": pl.Float64(),
    "k": pl.Boolean(),
    "s": pl.String(),
    "t": pl.Datetime("us", "UTC"),
    "now": pl.Int64(),
}
a, f, k, s, t = (pl.col(name) for name in "afkst")


@pytest.mark.parametrize(
    ("expression", "dtype"),
    [
        ("s = 'completed'", pl.Boolean()),
        ("a > 1 AND b IN (1, 2)", pl.Boolean()),
        ("NOT k", pl.Boolean()),
        ("f IS NOT NULL", pl.Boolean()),
        ("a <> 1", pl.Boolean()),
        ("s ILIKE 'A_%' -- why", pl.Boolean()),
        ("lower(s) LIKE 'a%'", pl.Boolean()),
        ("a BETWEEN 1 AND 3", pl.Boolean()),
        ("now > 3", pl.Boolean()),
        ("t > TIMESTAMP '2026-01-31 12:00:00' OR t < DATE '2026-01-31'", pl.Boolean()),
        ("now + (1) > 3", pl.Boolean()),
        ("s = 'current_date'", pl.Boolean()),
        ("f * 2", pl.Float64()),
        ("a / b", pl.Float64()),
        ("coalesce(f, 0) * a", pl.Float64()),
        ("CASE WHEN a > 1 THEN f END", pl.Float64()),
        ("CAST(a AS DOUBLE)", pl.Float64()),
        ("TRY_CAST(s AS BIGINT)", pl.Int64()),
        ("extract(hour FROM t)", pl.Int64()),
        ("greatest(a, b)", pl.Int64()),
        (a.is_in([1, 2]), pl.Boolean()),
        (s.str.contains("x"), pl.Boolean()),
        (t.dt.convert_time_zone("Europe/Berlin").dt.hour() < 6, pl.Boolean()),
        (pl.when(k).then(f).otherwise(0.0), pl.Float64()),
        (a.alias("other"), pl.Int64()),
        (a.clip(0, 5), pl.Int64()),
        (s.str.to_integer(strict=False), pl.Int64()),
        (a.cast(pl.Float64), pl.Float64()),
    ],
)
def test_row_by_row_expression_is_accepted_with_its_type(expression, dtype):
    assert check_expression(expression, COLUMNS).dtype == dtype


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(a) > 1", "an aggregate over rows"),
        ("first(a)", "an aggregate over rows"),
        ("count(*) > 1", "a count of rows"),
        ("rank() OVER (ORDER BY a)", "the function Rank"),
        ("row_number() OVER (ORDER BY a)", "a window function over other rows"),
        ("a - lag(a) OVER (ORDER BY t)", "a window function over other rows"),
        ("unnest(s)", "an explode"),
        ("a IN (SELECT 1)", "not known to be row by row"),
        ("a > now()", "now() reads a clock"),
        ("t > NOW ()", "now() reads a clock"),
        ("t > CURRENT_TIMESTAMP", "current_timestamp reads a clock"),
        ("t > current_timestamp()", "current_timestamp reads a clock"),
        ("CURRENT_DATE", "current_date reads a clock"),
        ("t > localtimestamp", "localtimestamp reads a clock"),
        ("random()", "random is not a function of SQL text here"),
        ("a +", "Polars cannot read the SQL text"),
        ("a, b", "Polars cannot read the SQL text"),
        ("", "the SQL text is empty"),
        ("-- nothing", "the SQL text is empty"),
        ("1", "it reads no column, so its result is always the same; leave it out"),
        ("true", "it reads no column, so its result is always the same; leave it out"),
        ("amount > 1", "the stream has no column 'amount'; it has a, b,"),
        ("ss = 'x'", "the stream has no column 'ss'; did you mean 's'?"),
        ("s > 1", "cannot compare string with numeric type"),
        ("t > '2026-01-31'", "; write an instant as TIMESTAMP '2026-01-31 12:00:00', a day as DATE '2026-01-31'"),
        ("t IN ('2026-01-31')", "; write an instant as TIMESTAMP '2026-01-31 12:00:00', a day as DATE '2026-01-31'"),
        ("CAST(s AS INT)", "it casts String to Int32 strictly"),
        ("CAST(f AS BIGINT)", "it casts Float64 to Int64 strictly"),
        ("date(s)", "it parses times without a format"),
        (a.sum(), "an aggregate over rows"),
        (a > a.mean(), "an aggregate over rows"),
        (a.first(), "an aggregate over rows"),
        (pl.len(), "a count of rows"),
        (a.over("s"), "a window function over other rows"),
        (a.cum_sum(), "the function CumSum"),
        (a.shift(), "the function Shift"),
        (a.diff(), "the function Diff"),
        (a.pct_change(), "the function PctChange"),
        (a.rank(), "the function Rank"),
        (a.filter(k), "a filter, which changes the number of rows"),
        (a.sort(), "a sort of the rows"),
        (a.sort_by("b"), "a sort of the rows"),
        (a.unique(), "the function Unique"),
        (a.reverse(), "the function Reverse"),
        (a.head(1), "a slice of the rows"),
        (a.gather([0]), "a gather of other rows"),
        (a.fill_null(strategy="forward"), "the function FillNullWithStrategy"),
        (a.interpolate(), "the function Interpolate"),
        (a.rolling_sum(2), "the function RollingExpr"),
        (a.ewm_mean(com=1), "the function EwmMean"),
        (a.is_first_distinct(), "the function Boolean.IsFirstDistinct"),
        (a.shuffle(), "the function Random"),
        (a.sample(1), "the function Random"),
        (a.hash(), "the function Hash"),
        (k.any(), "the function Boolean.Any"),
        (a.map_batches(lambda series: series), "a Python function"),
        (a.map_elements(lambda value: value, return_dtype=pl.Int64), "a Python function"),
        (a + pl.lit(pl.Series([1, 2])), "it contains a series as a literal"),
        (a + pl.lit(pl.Series([1])), "it contains a series as a literal"),
        (pl.lit(1), "it reads no column, so its result is always the same; leave it out"),
        (pl.all(), "it names several columns at once"),
        (pl.col("a", "b"), "it names several columns at once"),
        (pl.col("^a$"), "it names several columns at once"),
        (pl.nth(0), "it names several columns at once"),
        (pl.struct("a", "b"), "the function AsStruct"),
        (s.str.to_datetime(), "it parses times without a format"),
        (s.str.to_datetime("%Y"), "it parses times strictly"),
        (s.str.to_integer(), "it parses integers strictly"),
        (t.dt.cast_time_unit("ns"), "it changes a time's unit strictly"),
        (s.str.contains(s), "it reads a text pattern from a column"),
        (s.cast(pl.Categorical), "it casts to Categorical"),
        (a.replace_strict({1: 2}), "replace_strict fails on a record with any other value"),
        (3, "3 is not an expression"),
    ],
)
def test_expression_that_depends_on_more_than_its_record_is_refused(expression, fault):
    with pytest.raises(DefinitionError) as caught:
        check_expression(expression, COLUMNS)

    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a IN (SELECT a FROM {source})",
        "a IN (FROM {source})",
        "a > 1 AND EXISTS (SELECT 1 FROM {source})",
        "{source} > 1",
        "a IN (/* /* */ ' */ */ SELECT a FROM {source}) --')",
        "(SELECT max(a) FROM {source})",
        "a IN (WITH x AS (SELECT * FROM {source}) SELECT a FROM x)",
    ],
)
@pytest.mark.parametrize(
    "function", ["read_csv", "read_parquet", "read_ndjson", '"read_csv"', "`read_csv`", "scan_csv"]
)
def test_a_text_that_names_a_file_or_a_server_is_refused_before_anything_is_opened(tmp_path, text, function):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    faults = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        for place in (str(pipe), f"http://127.0.0.1:{server.getsockname()[1]}/x.csv"):

            def check(place=place):
                with pytest.raises(DefinitionError) as caught:
                    check_expression(text.format(source=f"{function}('{place}')"), COLUMNS)
                faults.append(str(caught.value))

            # Whoever opens the pipe waits in vain for a writer.
            reader = threading.Thread(target=check, daemon=True)
            reader.start()
            reader.join(60)
            with pytest.raises(OSError, match="No such device"):
                os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # no reader has it open
            with pytest.raises(BlockingIOError):
                server.accept()

    assert len(faults) == 2
    assert not [fault for fault in faults if "Polars" in fault]


def test_canonical_sql_ignores_layout_and_comments_but_not_quotes():
    assert canonical_sql(" status  =\n 'a  b' -- why\n AND\tx /* or\nnot */ > 1 ") == "status = 'a  b' AND x > 1"
    assert canonical_sql("a = 'it''s -- here'") == "a = 'it''s -- here'"
    assert canonical_sql('"my  column" = 1') == '"my  column" = 1'


def test_expressions_that_differ_in_an_option_alone_have_different_texts():
    # Their printed forms are equal.
    assert str(f.round(2)) == str(f.round(3))
    assert check_expression(f.round(2), COLUMNS).text != check_expression(f.round(3), COLUMNS).text


def test_text_of_a_polars_expression_is_golden():
    assert (
        check_expression((a.is_in([1, 2]) & (s == "x")).alias("name"), COLUMNS).text
        == '{"BinaryExpr":{"left":{"Function":{"function":{"Boolean":{"IsIn":{"nulls_equal":false}}},'
        '"input":[{"Column":"a"},{"Literal":["List(Int64)",["[1, 2]"]]}]}},"op":"And","right":{"BinaryExpr":'
        '{"left":{"Column":"s"},"op":"Eq","right":{"Literal":{"Scalar":{"String":"x"}}}}}}}'
    )


@pytest.mark.parametrize("text", ["n / 5", "x / 5", "x / 5.0", "(n / 3) / 7", "x / (2 * 2.5)", "1 / (x / 3)"])
def test_division_is_exact_and_the_same_in_a_batch_of_one_row_and_of_many(text):
    columns = {"n": pl.Int64(), "x": pl.Float64()}
    values = [7, 8, 9, 1, 3, 502_708]
    frame = pl.DataFrame({"n": values, "x": values}, schema=columns)
    checked = check_expression(text, columns)

    exact = [eval(text, {}, {"n": value, "x": float(value)}) for value in values]
    assert frame.select(checked.expr.alias("r"))["r"].to_list() == exact
    assert [frame[row : row + 1].select(checked.expr.alias("r"))["r"].item() for row in range(len(values))] == exact


@pytest.mark.parametrize("text", ["n * 1.5", "n / 4.0", "n + .5", "d * 0.9"])
def test_a_number_with_a_point_is_a_float_in_sql(text):
    columns = {"n": pl.Int64(), "d": pl.Decimal(38, 2)}

    assert check_expression(text, columns).dtype == pl.Float64()


@pytest.mark.parametrize(
    "expression",
    [
        pl.col("x") // 0.1,
        pl.col("x") % 0.7,
        pl.col("n") // 0.7,
        pl.col("n") % 7,
        pl.col("x") / 0.3,
        "x % 0.7",
        "n % 7",
        "n / 7",
    ],
)
def test_a_value_does_not_depend_on_how_many_rows_its_batch_has(expression):
    values = [8_973, 1_241, 7, -3, 0, 502_708, 999_999, 31, 17, 129]
    frame = pl.DataFrame({"n": values, "x": [value / 10 for value in values]})
    expr = check_expression(expression, {"n": pl.Int64(), "x": pl.Float64()}).expr.alias("r")

    whole = frame.select(expr)["r"].to_list()
    assert whole == [frame[row : row + 1].select(expr)["r"].item() for row in range(len(values))]


@pytest.mark.parametrize("text", ["x // 2", "d * d + d * d"])
def test_an_expression_that_fails_on_what_a_record_may_hold_is_refused(text):
    with pytest.raises(DefinitionError, match="fails on some values, and would fail their whole batch"):
        check_expression(text, {"x": pl.Float64(), "d": pl.Decimal(38, 2)})


@pytest.mark.parametrize("to_number", [False, True])
@pytest.mark.parametrize(
    "dtype", [pl.Date(), pl.Time(), pl.Datetime("us"), pl.Duration("us"), pl.Decimal(38, 20)], ids=str
)
def test_the_cast_that_a_fault_proposes_is_accepted_and_gives_a_type_that_a_feature_has(dtype, to_number):
    cast = re.sub(r".*?((TRY_)?CAST\()\.\.\.", r"\1c", how_to_cast(dtype, to_number=to_number))

    found = Type.of_values(check_expression(cast, {"c": dtype}).dtype)

    assert found is not None
    assert found.scalar == "float64" if to_number else found.scalar in {"string", "float64"}


def test_a_text_becomes_a_number_by_the_cast_that_a_fault_proposes():
    assert how_to_cast(pl.String(), to_number=True) == "write TRY_CAST(... AS DOUBLE)"
    assert check_expression("TRY_CAST(c AS DOUBLE)", {"c": pl.String()}).dtype == pl.Float64()


def test_bytes_are_not_to_be_cast():
    assert how_to_cast(pl.Binary()) == "leave it out, because bytes have no other type"
