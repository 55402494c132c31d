"""The border at which text leaves a command: everything printed goes through here, and nothing of others is obeyed.

Records, keys, topics, file names and what Redis holds come from others. Their text is data: a terminal must not take it
for a command, and Rich must not take it for markup.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text
from typing_extensions import override

from unskew.features.folding import wrapped
from unskew.features.printing import printable, printable_json

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


_ANY_WIDTH = 1 << 16


class Screen(Console):
    """A console that prints strings as they are: no markup, and escapes for what a terminal would obey.

    In a terminal, lines are broken at spaces alone, and never inside a word; its width is ``COLUMNS`` or its own, and
    80 if it does not say. In a file or a pipe, lines stay whole. Only ``Text`` has styles; make it with ``styled``.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    @override
    def print(self, *objects: Any, **options: Any) -> None:
        options = {"crop": False, "soft_wrap": not self.is_terminal, **options}
        if not self.is_terminal:
            # Rich takes a file for a terminal of 80 columns.
            options.setdefault("width", _ANY_WIDTH)
        super().print(*map(self._broken, objects), **options)

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        # Rich makes every string that it lays out into text here.
        return super().render_str(printable(text), **options)

    def _broken(self, one: Any) -> Any:
        """Return text with the ends of its lines where they are in a terminal."""
        if not self.is_terminal or not isinstance(one, (str, Text)):
            return one
        line_end = Text("\n", no_wrap=True, overflow="ignore")
        return line_end.join(wrapped(styled(one) if isinstance(one, str) else one, self.width))


def styled(text: str, style: str = "") -> Text:
    """Return a string as text with a style."""
    return Text(printable(text), style=style)


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
        task = shown.add_task(printable(title), total=None)

        def report(phase: str, done: int, total: int) -> None:
            # An update cannot take a total back that was known.
            shown.tasks[0].total = total or None
            shown.update(task, description=printable(f"{title}: {phase}"), completed=done)

        yield report


def say(text: str, *, err: bool = False) -> None:
    """Print one line; in a terminal it goes on in the next one at a space."""
    screen = Screen(stderr=err)
    if screen.is_terminal:
        screen.print(text)
    else:
        click.echo(printable(text), err=err)


def say_lines(text: str) -> None:
    """Print the lines of a text on standard error."""
    for line in text.split("\n") if text else ():
        say(line, err=True)


def say_json(value: Any, *, indent: int | None = None, err: bool = False) -> None:
    """Print a value as JSON."""
    click.echo(printable_json(value, indent=indent), err=err)


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
