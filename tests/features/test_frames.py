"""Whatever table comes in: only the asked columns are read, none is changed, and no key is taken for another."""

import datetime as dt
import decimal
import uuid
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from unskew.features.errors import RequestError
from unskew.features.frames import Answer, Given, key_column, read_table

BIG = 2**53 + 1
"""As a float it would be another integer."""
LOSSY = "cannot be converted to that without loss"
NO_COLUMN = "do not make a column of one type"
CONVERT = "convert the values to one type yourself"


@dataclass(frozen=True)
class Plain(Answer):
    given: Given
    columns: pl.DataFrame


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, 2], "int64", [1, 2]),
        ([BIG, None], "int64", [BIG, None]),
        ([np.int32(1), np.int64(2)], "int64", [1, 2]),
        ([1.0, 2], "int64", [1, 2]),
        ([1.0, float("nan")], "int64", [1, None]),
        ([float("nan"), None], "int64", [None, None]),
        ([decimal.Decimal("7.00")], "int64", [7]),
        (["7", "-8"], "int64", [7, -8]),
        ([None, None], "int64", [None, None]),
        ([], "int64", []),
        ([pd.NA, 3], "int64", [None, 3]),
        (["a", None], "string", ["a", None]),
        (["a", float("nan")], "string", ["a", None]),
        ([np.str_("a")], "string", ["a"]),
        ([42], "string", ["42"]),
        ([b"a"], "string", ["a"]),
    ],
)
def test_keys_of_rows_are_taken_as_what_they_are(values: list[Any], kind: Any, expected: list[Any]) -> None:
    column = read_table([{"key": value} for value in values] or pl.DataFrame({"key": []})).column("key")

    assert key_column(column, kind).to_list() == expected


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([42.0], "string", LOSSY),
        ([True], "string", LOSSY),
        ([True], "int64", LOSSY),
        ([dt.date(2020, 1, 1)], "string", LOSSY),
        ([decimal.Decimal("1.0")], "string", LOSSY),
        ([1.5], "int64", LOSSY),
        ([float(2**53 + 2)], "int64", LOSSY),
        ([-1e300], "int64", LOSSY),
        ([float("inf")], "int64", LOSSY),
        ([2**63], "int64", LOSSY),
        (["07"], "int64", LOSSY),
        (["1.0"], "int64", LOSSY),
        ([" 7"], "int64", LOSSY),
        ([dt.datetime(2020, 1, 1, tzinfo=dt.UTC)], "int64", LOSSY),
        ([[1]], "int64", LOSSY),
        ([b"\xff"], "string", LOSSY),
        ([uuid.UUID(int=1)], "string", LOSSY),
        ([1.5, BIG], "int64", "is not exact as a float"),
        (["a", 1], "string", f"{NO_COLUMN}: 1 of row 1 does not fit; {CONVERT}"),
        ([True, 1], "int64", f"{NO_COLUMN}: 1 of row 1 does not fit; {CONVERT}"),
        ([{"a": 1}, {"a": "x"}], "string", f"{NO_COLUMN}.* of row 1 does not fit; {CONVERT}"),
        ([decimal.Decimal(1), 2], "int64", f"{NO_COLUMN}: 2 of row 1 does not fit; {CONVERT}"),
        ([2**200], "int64", f"{NO_COLUMN}.* of row 0 does not fit; a whole number has at most 128 bits"),
        (["a", "\ud800"], "string", f"{NO_COLUMN}.* of row 1 does not fit; text must be valid Unicode"),
    ],
)
def test_a_key_that_might_be_another_entitys_is_refused(values: list[Any], kind: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        key_column(read_table([{"key": value} for value in values]).column("key"), kind)


@pytest.mark.parametrize(
    ("series", "kind", "expected"),
    [
        (pd.Series([BIG, None], dtype="Int64"), "int64", [BIG, None]),
        (pd.Series([BIG, None], dtype=object), "int64", [BIG, None]),
        (pd.Series([BIG, None], dtype=pd.ArrowDtype(pa.int64())), "int64", [BIG, None]),
        (pd.Series([1.0, None]), "int64", [1, None]),
        (pd.Series([1, 2]).astype("category"), "int64", [1, 2]),
        (pd.Series(["a", None]).astype("category"), "string", ["a", None]),
        (pd.Series(["a", None]), "string", ["a", None]),
        (pd.Series(["a", np.nan], dtype=object), "string", ["a", None]),
    ],
)
def test_keys_of_pandas_columns(series: Any, kind: Any, expected: list[Any]) -> None:
    assert key_column(read_table(pd.DataFrame({"key": series})).column("key"), kind).to_list() == expected


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([float(2**53 + 2)]),
        pd.Series([2**63], dtype="uint64"),
        pd.Series([1], dtype="Sparse[int]"),
        pd.Series([1j]),
        pd.Series(pd.period_range("2020", periods=1)),
    ],
    ids=lambda series: str(series.dtype),
)
def test_pandas_columns_that_cannot_be_keys_are_refused(series: Any) -> None:
    with pytest.raises(RequestError):
        key_column(read_table(pd.DataFrame({"key": series})).column("key"), "int64")


def test_instants_with_and_without_an_offset_in_one_column_are_each_what_they_say() -> None:
    east = dt.timezone(dt.timedelta(hours=1))
    noon = dt.datetime(2020, 1, 1, 12, tzinfo=east)
    values = [noon.replace(tzinfo=None), noon, None, pd.NaT]
    expected = [dt.datetime(2020, 1, 1, 12, tzinfo=dt.UTC), dt.datetime(2020, 1, 1, 11, tzinfo=dt.UTC), None, None]

    assert read_table([{"at": value} for value in values]).column("at").to_list() == expected
    assert read_table(pd.DataFrame({"at": pd.Series(values, dtype=object)})).column("at").to_list() == expected
    with pytest.raises(RequestError, match="'noon' of row 1 is not one"):
        read_table([{"at": values[0]}, {"at": "noon"}]).column("at")


def test_instants_in_seconds_and_with_a_fixed_offset_are_what_they_say() -> None:
    noon = dt.datetime(2026, 11, 27, 12, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))
    expected = [noon.astimezone(dt.UTC), None]

    arrow = pa.table({"at": pa.array([noon, None], pa.timestamp("us", "+05:30"))})
    assert read_table(arrow).column("at").to_list() == expected
    pandas = pd.DataFrame({"at": pd.to_datetime([noon.isoformat(), None])})
    assert read_table(pandas).column("at").to_list() == expected
    seconds = pa.table({"at": pa.array([int(noon.timestamp()), None], pa.timestamp("s", "UTC"))})
    assert read_table(seconds).column("at").to_list() == expected
    with pytest.raises(RequestError, match="out of bounds"):
        read_table(pa.table({"at": pa.array([2**62], pa.timestamp("s"))})).column("at")


def test_what_polars_or_pandas_cannot_give_is_refused_with_the_column() -> None:
    twice = pd.DataFrame([["a", 1, 2]], columns=["user", "x", "x"])
    for table in (twice, pa.table([["a"], [1], [2]], names=["user", "x", "x"])):
        with pytest.raises(RequestError, match="several columns 'x'"):
            Plain(read_table(table), pl.DataFrame({"n": [1]})).to_dict()
    with pytest.raises(RequestError, match="the LazyFrame cannot be collected"):
        read_table(pl.LazyFrame({"a": [1]}).select("b"))
    wide = [decimal.Decimal(1), decimal.Decimal("1e100")]
    for table in (pd.DataFrame({"x": pd.Series(wide, dtype=object)}), [{"x": value} for value in wide]):
        with pytest.raises(RequestError, match=r"the values of 'x' .* Decimal\('1E\+100'\) of row 1 does not fit"):
            read_table(table).column("x")


class Basket:
    """An object that only Python can hold."""


BASKETS = [Basket(), None]


@pytest.mark.parametrize(
    "table",
    [
        pl.DataFrame({"user": ["a", "b"], "basket": pl.Series(BASKETS, dtype=pl.Object)}),
        pl.LazyFrame({"user": ["a", "b"], "basket": pl.Series(BASKETS, dtype=pl.Object)}),
        pd.DataFrame({"user": ["a", "b"], "basket": BASKETS}),
        [{"user": "a", "basket": BASKETS[0]}, {"user": "b", "basket": BASKETS[1]}],
    ],
    ids=["polars", "lazy", "pandas", "rows"],
)
def test_python_objects_beside_the_features_stay_objects_and_never_become_addresses(table: Any) -> None:
    answer = Plain(read_table(table), pl.DataFrame({"n": [1, 2]}))

    for given in (answer.to_df(), answer.to_polars(), answer.to_pandas()):
        assert list(given.columns) == ["user", "basket", "n"]
        assert list(given["basket"]) == BASKETS
    assert answer.to_dict()["basket"] == BASKETS
    with pytest.raises(RequestError, match="the column 'basket' holds Python objects"):
        answer.to_arrow()


def test_a_type_on_which_polars_panics_is_refused_with_its_column() -> None:
    wide = pa.table({"user": ["a"], "money": pa.array([1], pa.decimal256(50, 2))})
    answer = Plain(read_table(wide), pl.DataFrame({"n": [1]}))

    assert answer.to_arrow().column_names == ["user", "money", "n"]
    with pytest.raises(RequestError, match="the values of 'money' do not make a column"):
        answer.to_polars()


@pytest.mark.parametrize(
    "table", [pd.DataFrame({"user": ["a"], 0: [7]}), [{"user": "a", 0: 7}]], ids=["pandas", "rows"]
)
def test_columns_that_are_named_by_numbers_keep_their_values(table: Any) -> None:
    answer = Plain(read_table(table), pl.DataFrame({"n": [1]}))

    assert answer.to_arrow().to_pydict() == {"user": ["a"], "0": [7], "n": [1]}


FEATURES = pl.DataFrame(
    {
        "n": pl.Series([BIG, None], dtype=pl.Int64),
        "x": pl.Series([0.1, None], dtype=pl.Float64),
        "is": pl.Series([True, None], dtype=pl.Boolean),
        "text": pl.Series(["é", None], dtype=pl.String),
        "at": pl.Series([dt.datetime(2020, 1, 1, 0, 0, 0, 1, tzinfo=dt.UTC), None], dtype=pl.Datetime("us", "UTC")),
        "money": pl.Series([decimal.Decimal("1.10"), None], dtype=pl.Decimal(38, 2)),
        "list": pl.Series([[1, None], None], dtype=pl.List(pl.Int64)),
        "map": pl.Series(
            [[{"key": "a", "value": 1}], None], dtype=pl.List(pl.Struct({"key": pl.String, "value": pl.Int64}))
        ),
    }
)


def awkward_pandas() -> pd.DataFrame:
    """Columns that no conversion keeps: of objects, of categories, of sparse integers; two of one name."""
    frame = pd.DataFrame(
        {
            "user": ["a", "b"],
            "mixed": pd.Series([1, "a"], dtype=object),
            "category": pd.Series(["x", None]).astype("category"),
            "big": pd.Series([BIG, None], dtype="Int64"),
            "day": pd.Series([dt.date(2020, 1, 1), None], dtype=object),
            "lists": pd.Series([[1, None], None], dtype=object),
            "sparse": pd.Series([0, 1], dtype="Sparse[int]"),
            "flag": pd.Series([True, None], dtype="boolean"),
        },
    )
    frame.index = pd.Index([7, 7], name="label")
    return pd.concat([frame, frame[["mixed"]]], axis=1)


def test_a_pandas_frame_comes_back_as_it_was_and_with_the_features_exactly() -> None:
    asked = awkward_pandas()
    before = asked.copy(deep=True)

    found = Plain(read_table(asked), FEATURES).to_pandas()

    pd.testing.assert_frame_equal(asked, before)
    pd.testing.assert_frame_equal(found.iloc[:, : asked.shape[1]], before)
    added = found.iloc[:, asked.shape[1] :]
    assert added.dtypes.astype(str).to_dict() | {"list": "", "map": "", "money": ""} == {
        "n": "Int64",
        "x": "Float64",
        "is": "boolean",
        "text": "string",
        "at": "datetime64[us, UTC]",
        "money": "",
        "list": "",
        "map": "",
    }
    assert added["n"].iloc[0] == BIG
    assert added.isna().to_numpy().tolist() == [[False] * 8, [True] * 8]
    assert (
        pl.from_arrow(pa.Table.from_pandas(added, preserve_index=False))
        .select(FEATURES.columns)
        .cast(dict(FEATURES.schema))
        .equals(FEATURES)
    )
    with pytest.raises(RequestError, match="several columns 'mixed'"):
        read_table(asked).column("mixed")


def test_every_kind_of_table_comes_back_as_its_kind() -> None:
    own = pl.DataFrame({"user": ["a", "b"], "big": pl.Series([BIG, None], dtype=pl.Int64)})
    expected = own.hstack(FEATURES)
    duck = duckdb.connect()
    duck.register("own", own.to_arrow())
    tables: list[tuple[Any, type]] = [
        (own, pl.DataFrame),
        (own.lazy(), pl.DataFrame),
        (own.to_dicts(), pl.DataFrame),
        (own.to_arrow(), pa.Table),
        (own.to_arrow().to_batches()[0], pa.Table),
        (own.to_arrow().to_reader(), pa.Table),
        (duck.sql("SELECT * FROM own"), pa.Table),
    ]
    for table, kind in tables:
        answer = Plain(read_table(table), FEATURES)
        found = answer.to_df()
        assert type(found) is kind
        assert pl.DataFrame(found).equals(expected)
        assert answer.to_polars().equals(expected)
        assert pl.DataFrame(answer.to_arrow()).equals(expected)
        assert answer.to_dict() == expected.to_dict(as_series=False)
        pandas = answer.to_pandas()
        assert pandas["big"].to_list() == [BIG, pd.NA]
        assert pandas["n"].to_list() == [BIG, pd.NA]


@pytest.mark.parametrize("table", [7, "user", {"user": ["a"]}, None, [1], [["a"]], pd.Series([1])])
def test_what_is_not_a_table_is_refused(table: object) -> None:
    with pytest.raises(RequestError, match=r"a table must|each row must be a dict"):
        read_table(table)
