"""docs/features.md says something of everything that there is, and its examples compile."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import unskew
from unskew import Feature, FeatureView, Sliding, compile
from unskew.features.definitions.documents import definition_of
from unskew.features.definitions.vocabulary import Definition, Window
from unskew.features.types import SCALARS
from unskew.features.view import AggregationName, CalendarUnit

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text("utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def table(first_column: str) -> list[dict[str, str]]:
    """Rows of the table whose first column is called so, by column."""
    lines = PAGE[PAGE.index(f"\n| {first_column} |") + 1 :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(len(row) == len(rows[0]) for row in rows[2:])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def code(cell: str) -> str:
    return cell.strip("`")


def everything_defined() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(text, found)
    return found


def definitions() -> list[Definition]:
    return [each for each in everything_defined().values() if isinstance(each, Definition)]


def test_every_aggregation_has_a_line():
    assert [code(row["aggregation"]) for row in table("aggregation")] == list(get_args(AggregationName))


def test_every_window_has_a_line_and_may_be_written_in_both_languages():
    examples = {row["window"]: (code(row["Python"]), code(row["YAML"])) for row in table("window")}
    kinds = {
        type(eval(python, {name: getattr(unskew, name) for name in unskew.__all__})) for python, _ in examples.values()
    }

    assert kinds == set(Window.__subclasses__())
    for name, (python, yaml_text) in examples.items():
        document = {
            "name": "v",
            "entity": "user",
            "source": "orders",
            "aggregation": {"function": "count", "window": yaml.safe_load(yaml_text)},
        }
        by_yaml = compile(definitions(), definition_of(document)).views["v"].windows[0]
        window = eval(python, {name: getattr(unskew, name) for name in unskew.__all__})
        by_python = compile(view(Feature("v", unskew.agg.count(), window))).views["v"].windows[0]
        assert by_yaml.text == by_python.text, name


def test_every_calendar_unit_has_a_line():
    assert [code(row["calendar unit"]) for row in table("calendar unit")] == list(get_args(CalendarUnit))


def test_every_value_type_has_a_line():
    assert [code(row["type"]) for row in table("type")] == [*SCALARS, "decimal", "list", "map"]


def view(feature: Feature) -> FeatureView:
    known = everything_defined()
    return FeatureView("v", entity=known["user"], stream=known["orders"], features=[feature])


@pytest.mark.parametrize("row", table("aggregation"), ids=lambda row: code(row["aggregation"]))
def test_an_aggregations_line_says_its_type_and_its_empty_value(row):
    wanted = eval(code(row["Python"]), {"agg": unskew.agg})
    (feature,) = compile(view(Feature("x", wanted, Sliding("30d", hop="1d")))).views["v"].features
    (value,) = compile(view(Feature("x", wanted, Sliding("30d", hop="1d")))).views["v"].values or (None,)
    said = [each.replace("of v", str(value.dtype) if value else "") for each in row["type"].split("; ")]

    assert feature.function == code(row["aggregation"])
    assert str(feature.dtype) in said
    assert ("null" if feature.published.empty is None else format(feature.published.empty)) in {
        row["empty"],
        row["empty"] + ".0",
    }


def test_every_example_compiles():
    documents = [document for language, text in BLOCKS if language == "yaml" for document in yaml.safe_load_all(text)]
    plan = compile(definitions(), map(definition_of, documents))

    assert {language for language, _ in BLOCKS} == {"python", "yaml"}
    of_topics = {"spending", "shops", "returns", "habits", "habits_by_yaml", "breadth", "baskets@1", "baskets@2"}
    of_topics |= {"user_logins", "store"}
    assert set(plan.of_topics.views) == of_topics
    assert set(plan.of_tables.views) == {"line_returns", "session_lengths"}
    assert plan.views["baskets"].version == 1
    assert set(plan.on_demand) == {"checkout", "nearby"}
    assert plan.views["habits"].sessions is not None


def test_bounds_that_the_page_names_are_those_of_the_code():
    from unskew.features.definitions import aggregations
    from unskew.features.definitions.windows import MAX_EXTENT_US, MAX_SPAN

    assert f"{MAX_SPAN:,} hops" in PAGE
    assert f"{MAX_EXTENT_US // 86_400_000_000:,} days" in PAGE
    assert f"`n` is 1 to {aggregations.MAX_ITEMS}, edges 1 to {aggregations.MAX_ITEMS - 1}" in PAGE
    assert f"({aggregations.DEFAULT_KEYS} if left out, {aggregations.MAX_ITEMS // 2} at most)" in PAGE
