"""The documentation: the glossary has every term, paths that pages name exist, and prose is narrow enough to read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = 120
WIDER = {"ARCHITECTURE.md", "CHANGELOG.md", "docs/decisions/0012-json.md"}
TERMS = {
    "arrival", "clock", "mark", "watermark", "settle", "hop", "tile", "closed instant", "effective time", "since",
    "warming", "provisional", "complete_to", "witness", "refill", "lease", "changelog", "journal", "dead letter",
    "late event", "state fingerprint", "presentation fingerprint", "shard", "hash shard", "epoch",
}  # fmt: skip
# A fence, an indented block after a blank line, a table row, or a line that is one link.
NO_PROSE = re.compile(r"\||    |\s*([-*] +)?\[[^]]*\]\([^)]*\)[.,;]?$|\s*<?https?://\S+$")
OURS = (
    r"(?:src/unskew|features|pipelines|sinks|offline|serving|monitoring|demo|cli|tests|docs|deploy|examples|benchmarks)"
)


PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    for page in ROOT.glob(pattern)
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_lines(page: Path) -> list[tuple[int, str]]:
    """Return the numbered lines outside fenced blocks."""
    found, fenced = [], False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            found.append((number, line))
    return found


def test_the_glossary_lists_every_term_once_with_its_meaning_and_its_place():
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for _, line in text_lines(ROOT / "docs" / "glossary.md")
        if line.startswith("|") and not line.startswith(("|---", "| term"))
    ]

    assert sorted(row[0] for row in rows) == sorted(TERMS)
    assert all(len(row) == 4 and all(row) for row in rows)


@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in WIDER], ids=name)
def test_no_line_of_prose_is_too_wide(page):
    wide = [number for number, line in text_lines(page) if len(line) > WIDTH and not NO_PROSE.match(line)]

    assert wide == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_links_and_named_files_exist(page):
    text = "\n".join(line for _, line in text_lines(page))
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    files = re.findall(rf"`({OURS}/[\w./-]+\.(?:py|md|json|yml|yaml|avsc))`", text)
    known = [ROOT, ROOT / "src" / "unskew", ROOT / "src" / "unskew" / "features"]

    assert [link for link in links if link and not (page.parent / link).exists()] == []
    assert [file for file in files if not any((folder / file).exists() for folder in known)] == []
