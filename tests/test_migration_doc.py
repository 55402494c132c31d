"""The example of docs/migration.md runs: the view that comes after Feast's has the values that the page says."""

import re
from pathlib import Path

import unskew

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text("utf-8")


def test_the_view_that_comes_after_feasts_is_tested_as_the_page_shows():
    names: dict[str, object] = {}

    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(block, names)

    assert isinstance(names["driver_stats"], unskew.FeatureView)
    assert "assert_features" in names


def test_what_the_page_names_as_ours_is_public():
    table = PAGE.partition("## Concepts")[2].partition("\n## ")[0]
    ours = "\n".join(row.split(" | ")[1] for row in table.splitlines() if row.startswith("| "))

    named = set(re.findall(r"`([A-Z]\w+)", ours))
    assert {"Entity", "Stream", "Table", "FeatureView", "OnDemand", "Service"} == named
    assert named <= set(unskew.__all__)
