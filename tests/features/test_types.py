import polars as pl
import pytest

from unskew import DefinitionError
from unskew.features.types import Type


@pytest.mark.parametrize(
    ("name", "dtype", "polars"),
    [
        ("int64", Type("int64"), pl.Int64()),
        ("timestamp", Type("timestamp"), pl.Datetime("us", "UTC")),
        ("decimal(38,0)", Type("decimal"), pl.Decimal(38, 0)),
        ("decimal(38,18)", Type("decimal", 18), pl.Decimal(38, 18)),
        ("list[string]", Type("string", nesting="list"), pl.List(pl.String())),
        (
            "map[decimal(38,2)]",
            Type("decimal", 2, "map"),
            pl.List(pl.Struct({"key": pl.String(), "value": pl.Decimal(38, 2)})),
        ),
    ],
)
def test_a_type_is_read_from_its_name_which_it_gives_back(name, dtype, polars):
    assert Type.parse(name) == dtype
    assert str(dtype) == name
    assert dtype.polars == polars


@pytest.mark.parametrize(
    "text",
    [
        *("", "integer", "int64 ", "decimal", "decimal(38,19)", "decimal(10,2)", "list", "list[]", "list[integer]"),
        *("list[int64", "int64]", "list[list[int64]]", "map[list[int64]]", None, 64, ["int64"]),
    ],
)
def test_what_is_not_a_type_is_refused_with_those_that_are(text):
    with pytest.raises(
        DefinitionError, match="is not a type; types are int64, float64, bool, string, timestamp, decimal"
    ):
        Type.parse(text)


def test_the_element_of_a_list_or_map_is_its_scalar_type():
    assert Type("decimal", 2, "map").element == Type("decimal", 2) == Type("decimal", 2).element
    assert Type("decimal", 2).in_a("list") == Type("decimal", 2, "list")
