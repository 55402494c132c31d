"""What a command prints in a terminal, without one: Rich takes the variables' word for it."""

from typing import Any

from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from unskew.cli import main

WIDTHS = (80, 100, 140)


def in_terminal(columns: int, *arguments: Any, code: int = 0, **environment: str) -> str:
    """Return what a command prints in a terminal of so many columns, without styles."""
    shown = CliRunner(env={"FORCE_COLOR": "1", "COLUMNS": str(columns), **environment})
    result = shown.invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return Text.from_ansi(result.output).plain


def drawn(renderable: Any, columns: int) -> str:
    """Return how something looks in a terminal of so many columns."""
    console = Console(width=columns, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(renderable, crop=False)
    return captured.get()


def piped(renderable: Any) -> list[list[str]]:
    """Return the cells of a table as a pipe gets them, the columns' names first."""
    console = Console(force_terminal=False)
    with console.capture() as captured:
        console.print(renderable, crop=False)
    return cells(captured.get())


def cells(text: str) -> list[list[str]]:
    """Return the cells of the rows in piped text; lines without a tab are none."""
    return [line.split("\t") for line in text.splitlines() if "\t" in line]


def wider(text: str, columns: int) -> list[str]:
    """Return the lines that are wider than a terminal."""
    return [line for line in text.splitlines() if cell_len(line) > columns]


def broken(text: str, words: Any) -> list[str]:
    """Return the words that stand on no line as a whole."""
    lines = text.splitlines()
    return [word for word in map(str, words) if not any(word in line for line in lines)]
