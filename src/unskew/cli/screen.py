"""The border at which text leaves a command: everything printed goes through here, and nothing of others is obeyed.

Records, keys, topics, file names and what Redis holds come from others. Their text is data: a terminal must not take it
for a command, and Rich must not take it for markup.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text
from typing_extensions import override

from unskew.features.printing import printable, printable_json

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

PIPE_WIDTH = 200
"""A file or a pager has room for whole lines."""


class Screen(Console):
    """A console that prints strings as they are: no markup, and escapes for what a terminal would obey.

    ``width``: the width where output goes to a file or a pipe. Only ``Text`` has styles; make it with ``styled``.
    """

    def __init__(self, *, stderr: bool = False, width: int = PIPE_WIDTH) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr, width=None if stream.isatty() else width, markup=False, emoji=False, highlight=False
        )

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        # Rich makes every string that it lays out into text here.
        return super().render_str(printable(text), **options)


def styled(text: str, style: str = "") -> Text:
    """Return a string as text with a style."""
    return Text(printable(text), style=style)


def lines(parts: Iterable[str | Text]) -> Text:
    """Return several lines as one text."""
    return Text("\n").join(styled(part) if isinstance(part, str) else part for part in parts)


def bar(*columns: "ProgressColumn") -> "Progress":
    """Return a progress bar of Rich on standard error: only a terminal shows it, and it goes when the work ends."""
    from rich.progress import Progress

    errors = Screen(stderr=True)
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


@contextmanager
def phases(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar; yield what sets it: a phase, and how many of how many rows (0 if not known)."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    with bar(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as shown:
        task = shown.add_task(printable(title))

        def report(phase: str, done: int, total: int) -> None:
            shown.update(task, description=printable(f"{title}: {phase}"), completed=done, total=total or None)

        yield report


def say(text: str, *, err: bool = False) -> None:
    """Print one line."""
    click.echo(printable(text), err=err)


def say_lines(text: str) -> None:
    """Print the lines of a text on standard error."""
    for line in text.split("\n") if text else ():
        say(line, err=True)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON."""
    click.echo(printable_json(value, indent=indent))


class Printable(logging.Formatter):
    """Formats log records as lines of which a terminal obeys nothing."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    @override
    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def escape_log_lines() -> None:
    """Escape the log lines that Python prints itself, because no logging is configured."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Printable())
