"""Each command that the documentation or a help text shows exists, and takes the options that are shown with it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.support.commands import options_of
from unskew.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "decisions").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "src" / "unskew" / "templates").rglob("*.md"),
    ]
)
# A line of its own: a command with all of its words, perhaps after variables or a prompt.
LINE = re.compile(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*unskew ([a-z].*)$")
# In a sentence there may be only some of them.
INLINE = re.compile(r"`unskew ([a-z][^`]*)`")
# What explains a command beside it.
BESIDE = re.compile(r"\s{2,}(?!-)")
# What else a shell reads in a line.
SHELL = frozenset("|;&<>()")


def texts() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        yield str(page.relative_to(ROOT)), page.read_text("utf-8")
    for path, command in commands():
        yield f"{path} --help", command.help or ""


def commands(group: click.Group = main, path: str = "unskew") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def shown(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the words after ``unskew`` of each command, and whether these are all of its words."""
    joined = re.sub(r"\\\\?\n\s*", " ", text)
    is_fenced = False
    for line in joined.splitlines():
        is_fenced ^= line.lstrip().startswith("```")
        if (found := LINE.match(line)) and (is_fenced or line.startswith("    ")):
            yield BESIDE.split(found[1])[0], True
    for found in INLINE.finditer(re.sub(r"\n\s*", " ", text)):
        yield found[1], False


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words name, and the words after it."""
    command: click.Command = main
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0]) if words else None
        if found is None:
            break
        command, words = found, words[1:]
    return command, words


def words_of(text: str) -> list[str]:
    """Return the words of a command as a shell splits them, up to a comment, a pipe, or another command."""
    read = shlex.shlex(text, posix=True, punctuation_chars=True)
    read.whitespace_split = True
    words = []
    for word in read:
        if SHELL.issuperset(word):
            break
        words.append(word)
    return [word for word in words if word != "..."]


def faults_of(text: str, *, is_whole: bool) -> list[str]:
    words = words_of(text)
    command, rest = command_of(words)
    if isinstance(command, click.Group) and (is_whole or (rest and not rest[0].startswith("-"))):
        return [f"there is no command 'unskew {text}'"]
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    known = options_of(command) | {text for one in command.params for text in one.secondary_opts} | {"--help", "-h"}
    # A short option may have its value in the same word.
    return [f"'unskew {text}' takes no {one}" for one in sorted(given) if one not in known and one[:2] not in known]


PLACES = dict(texts())


@pytest.mark.parametrize("place", PLACES)
def test_commands_that_are_shown_take_the_options_that_are_shown(place: str) -> None:
    assert [fault for text, is_whole in shown(PLACES[place]) for fault in faults_of(text, is_whole=is_whole)] == []


def test_what_is_wrong_is_found() -> None:
    text = "    unskew get a --jsn\n\n    unskew retian --log x\n\nUse `unskew log tail --follw`, not `unskew log`.\n"

    found = [fault for each, is_whole in shown(text) for fault in faults_of(each, is_whole=is_whole)]

    assert found == [
        "'unskew get a --jsn' takes no --jsn",
        "there is no command 'unskew retian --log x'",
        "'unskew log tail --follw' takes no --follw",
    ]


def test_many_commands_are_found() -> None:
    assert sum(is_whole for text in PLACES.values() for _, is_whole in shown(text)) > 100
