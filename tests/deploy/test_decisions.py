"""The table of decisions names every page once, by its number and title."""

import re
from pathlib import Path

DECISIONS = Path(__file__).parents[2] / "docs" / "decisions"


def test_every_decision_is_in_the_table_with_its_title_and_what_was_decided():
    pages = [path for path in sorted(DECISIONS.glob("*.md")) if path.name != "README.md"]
    titles = [(path.name, *path.read_text().partition("\n")[0].removeprefix("# ").split(". ", 1)) for path in pages]
    rows = re.findall(r"^\| \[(\d+)\]\((\S+)\) \| (.+?) \| .+ \|$", (DECISIONS / "README.md").read_text(), re.MULTILINE)

    assert [(name, number, title) for number, name, title in rows] == titles
    assert [int(name[:4]) for name, _, _ in titles] == list(range(1, len(pages) + 1))
