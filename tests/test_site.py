"""The site of the documentation: its reference has what the program declares, and nobody else is asked for anything."""

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from unskew.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = ("docs/index.md", "docs/commands.md", "docs/settings.md")
ADDRESS = r"(?:https?:)?//[^\s\"')]+"


def declared() -> Iterator[tuple[str, click.Command]]:
    """Every command by its path, also those of groups."""
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", each) for below, each in command.commands.items())


def visible(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the reference alone: all of them take a minute, and ``make docs`` builds them."""
    folder = tmp_path_factory.mktemp("site")
    only = ["-D", f"include_patterns={','.join(PAGES)}", "-D", "suppress_warnings=myst.xref_missing"]
    command = [sys.executable, "-m", "sphinx", "-q", "-c", "docs/site", *only, ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_command_has_its_section_with_all_of_its_options(site):
    page = (site / "docs" / "commands.html").read_text("utf-8")
    sections = {
        visible(found[1]).removesuffix("¶"): visible(found[2])
        for found in re.finditer(r"<h[34]>(unskew .*?)</h[34]>(.*?)(?=<h[34]>|</article>)", page, re.DOTALL)
    }

    assert sorted(sections) == sorted(f"unskew {path}" for path, _ in declared())
    for path, command in declared():
        text = sections[f"unskew {path}"]
        for option in (one for one in command.params if isinstance(one, click.Option) and not one.hidden):
            assert all(flag in text for flag in option.opts), (path, option.opts)
            assert not isinstance(option.envvar, str) or option.envvar in text, (path, option.envvar)
        # Signs are as they were written: two hyphens stay two.
        assert [word for word in re.findall(r"--[a-z][a-z-]+", command.help or "") if word not in text] == []
        assert "\b" not in text


def test_every_variable_is_in_the_settings_with_the_commands_that_read_it(site):
    page = (site / "docs" / "settings.html").read_text("utf-8")
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)]
    shown = {visible(row[0]).strip(): sorted(visible(row[3]).strip().split(", ")) for row in rows if row}
    read: dict[str, list[str]] = {}
    for path, command in declared():
        for name in {one.envvar for one in command.params if isinstance(one.envvar, str)}:
            read.setdefault(name, []).append(path)

    assert shown == {name: sorted(by) for name, by in read.items()}
    assert len(read) > 20


def test_the_list_of_commands_names_each_one():
    table = (ROOT / "docs" / "commands.md").read_text("utf-8").partition("\n## ")[0]

    assert [name for name in COMMANDS if f"`unskew {name}" not in table] == []


def test_pages_ask_for_nothing_from_elsewhere(site):
    asked = [
        (path.name, found)
        for path in site.rglob("*")
        if path.suffix in {".html", ".css"}
        for found in re.findall(
            rf"<(?:script|img|iframe|source)[^>]+src=\"({ADDRESS})"
            rf"|<link[^>]+href=\"({ADDRESS})"
            rf"|@import[^;]*?({ADDRESS})"
            rf"|url\([\"']?({ADDRESS})",
            path.read_text("utf-8"),
        )
    ]

    assert len([*site.rglob("*.html")]) > len(PAGES)
    assert asked == []
