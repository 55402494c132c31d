"""The documentation: the glossary has every term, named files and quoted messages exist, and prose is narrow enough."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = 120
TERMS = {
    "arrival", "clock", "mark", "watermark", "settle", "hop", "tally", "tile", "closed instant", "effective time", "since",
    "warming", "provisional", "complete_to", "witness", "refill", "lease", "changelog", "journal", "dead letter",
    "ignored record", "backfill", "rebuild", "seam", "seed", "manifest", "import", "hand-over", "table", "materialize",
    "diff", "Delta metadata", "erasure", "base row", "record", "revision", "promote", "value impact", "lineage",
    "population", "baseline", "PSI", "mismatch", "ranking", "wedge",
    "late event", "state fingerprint", "service", "on-demand feature", "input", "serving version", "presentation fingerprint", "shard", "hash shard", "epoch",
}  # fmt: skip
# A fence, an indented block after a blank line, a table row, or a line that is one link.
NO_PROSE = re.compile(r"\||    |\s*([-*] +)?\[[^]]*\]\([^)]*\)[.,;]?$|\s*<?https?://\S+$")
HOMES = ("*", "src/**/*", "tests/**/*", "docs/**/*", "examples/**/*", "benchmarks/*", "deploy/**/*")
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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_of_prose_is_too_wide(page):
    wide = [number for number, line in text_lines(page) if len(line) > WIDTH and not NO_PROSE.match(line)]

    assert wide == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_named_files_exist(page):
    text = "\n".join(line for _, line in text_lines(page))
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    files = set(re.findall(r"(?<![\w./-])((?:[\w-]+/)*[\w-]+\.(?:py|md|yml|avsc|xml))\b", text))
    # A tutorial names what its reader writes.
    files -= {*re.findall(r"Write `([^`]+)`:", text)}
    ours = [f"/{file.relative_to(ROOT)}" for pattern in HOMES for file in ROOT.glob(pattern)]

    assert [link for link in links if link and not (page.parent / link).exists()] == []
    assert [file for file in sorted(files) if not any(path.endswith(f"/{file}") for path in ours)] == []


def messages() -> str:
    """Return every string of the source, with ``...`` for each placeholder."""
    found = []
    for module in (ROOT / "src" / "unskew").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(one.value if isinstance(one, ast.Constant) else "..." for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_operations_explain_are_messages_of_the_code():
    section = (ROOT / "docs" / "operations.md").read_text("utf-8").split("\n## When something is wrong\n")[1]
    quoted = [
        part.strip()
        for row in section.splitlines()
        if row.startswith("| ")
        for span in re.findall(r"`([^`]+)`", row.split(" | ")[0])
        for part in span.split("...")
        if part.strip(" :;")
    ]
    known = messages()
    # The code may fill in the first two words: the name of a store or a file.
    starts = {part: [" ".join(part.split()[n:]) for n in range(min(3, len(part.split())))] for part in quoted}

    assert len(quoted) > 25
    assert [part for part, ends in starts.items() if not any(end in known for end in ends)] == []
