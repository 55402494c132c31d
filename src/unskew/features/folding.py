"""Rows for people, at the width of their terminal: columns fold as wholes, and nothing is broken inside a word.

A table that is too wide goes on below: the next columns, with the key columns again. If that does not fit either, or if
it would take more lines, each row is a record of ``name: value``. What stands between two spaces is never broken or
cut; a single value that is wider than the terminal is written whole, on a line of its own.

In a file or a pipe, a row is one line of cells with tabs between them, whatever it is long, below a line with the
columns' names: ``cut`` and ``sort`` read it. No cell holds a tab or a newline, because both are escaped.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from unskew.features.printing import printable

GAP = 2
"""The cells between two columns."""
READABLE = 30
"""The width from which on sentences are read easily; a column of them is not made narrower."""
HEADING = 12
"""The width below which a column's name is not broken at its spaces."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: ``wraps`` says that its cells are sentences or lists, which may go on in the next line at a space."""

    name: str
    right: bool = False
    wraps: bool = False


def number(name: str) -> Column:
    """Return a column of numbers."""
    return Column(name=name, right=True)


def prose(name: str) -> Column:
    """Return a column of sentences, expressions or lists."""
    return Column(name=name, wraps=True)


class Rows:
    """A table for a console of Rich, which must print it with ``crop=False``, as ``Screen`` does.

    ``keys``: the number of first columns that say which row it is. ``heading``: lines above the table; they are all
    that is printed of a table without rows.
    """

    def __init__(self, *columns: Column | str, keys: int = 1, heading: Iterable[str | Text] = ()) -> None:
        """Make a table without rows."""
        made = [Column(name=one) if isinstance(one, str) else one for one in columns]
        self._columns = [replace(one, name=printable(one.name)) for one in made]
        self._keys = keys
        self._heading = [_text(one) for one in heading]
        self._rows: list[list[Text]] = []
        self._sections: set[int] = set()

    def add(self, *cells: str | Text) -> None:
        """Add a row."""
        self._rows.append([_text(cell) for cell in cells])

    def section(self) -> None:
        """Begin another section: a line is drawn below the last row."""
        self._sections.add(len(self._rows) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table at the width of the console."""
        if not console.is_terminal:
            yield from self._lines()
            return
        width = options.max_width
        for line in self._heading:
            yield from wrapped(line, width)
        if not self._rows:
            return
        blocks = self._blocks(width)
        if blocks is None or (len(blocks) > 1 and self._height(blocks) > self._record_height()):
            yield from self._records(width)
            return
        for number, block in enumerate(blocks):
            if number:
                yield Text()
            yield self._table(block, width)

    def _lines(self) -> Iterator[Segment]:
        for line in self._heading:
            yield Segment(f"{line.plain}\n")
        if not self._rows:
            return
        names = [column.name for column in self._columns]
        for cells in ([names] if any(names) else []) + [[cell.plain for cell in row] for row in self._rows]:
            yield Segment("\t".join(cells) + "\n")

    def _blocks(self, width: int) -> list[list[int]] | None:
        """Return the columns of each block; None if a column does not fit beside the keys."""
        keys = list(range(min(self._keys, len(self._columns))))
        least = [self._least(at) for at in range(len(self._columns))]
        blocks: list[list[int]] = [keys]
        for at in range(len(keys), len(self._columns)):
            if _total(least[one] for one in [*blocks[-1], at]) > width and len(blocks[-1]) > len(keys):
                blocks.append(keys)
            blocks[-1] = [*blocks[-1], at]
        fits = all(_total(least[one] for one in block) <= width for block in blocks)
        return blocks if fits else None

    def _cells(self, at: int) -> list[Text]:
        return [row[at] for row in self._rows]

    def _least(self, at: int) -> int:
        """Return the width that a column needs so that nothing in it is broken."""
        column = self._columns[at]
        cells = [cell.cell_len for cell in self._cells(at)]
        if column.wraps:
            words = (cell_len(word) for cell in self._cells(at) for word in cell.plain.split(" "))
            cells = [min(READABLE, max(cells, default=0)), *words]
        name = [min(HEADING, cell_len(column.name)), *(cell_len(word) for word in column.name.split(" "))]
        return max([1, *cells, *name])

    def _most(self, at: int) -> int:
        """Return the width at which every cell of a column is one line."""
        return max([self._least(at), *(cell.cell_len for cell in self._cells(at))])

    def _table(self, block: Sequence[int], width: int) -> Table:
        widths = {at: self._least(at) for at in block}
        spare = width - _total(widths.values())
        for at in block:
            more = min(spare, self._most(at) - widths[at])
            widths[at] += more
            spare -= more
        table = Table(
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            # The box has one cell between columns.
            padding=(0, GAP - 1, 0, 0),
            header_style="bold",
            show_header=any(column.name for column in self._columns),
        )
        for at in block:
            column = self._columns[at]
            heading = _lines(Text(column.name), widths[at])
            justify: JustifyMethod = "right" if column.right else "left"
            table.add_column(heading, justify=justify, width=widths[at], no_wrap=True, overflow="crop")
        for number, row in enumerate(self._rows):
            cells = (_lines(row[at], widths[at]) for at in block)
            table.add_row(*cells, end_section=number in self._sections)
        return table

    def _height(self, blocks: Sequence[Sequence[int]]) -> int:
        return len(blocks) * (len(self._rows) + 3)

    def _record_height(self) -> int:
        return sum(1 + sum(bool(cell) for cell in row) for row in self._rows)

    def _records(self, width: int) -> Iterator[Text]:
        for number, row in enumerate(self._rows):
            if number:
                yield Text()
            for column, cell in zip(self._columns, row, strict=True):
                if not cell:
                    continue
                name = Text(f"{column.name}: " if column.name else "", style="bold")
                if name.cell_len + cell.cell_len <= width:
                    yield _whole(name + cell)
                    continue
                yield from wrapped(name, width)
                words = cell.plain.split(" ") if column.wraps else [cell.plain]
                indent = 2 if max(map(cell_len, words)) <= width - 2 else 0
                parts = wrapped(cell, width - indent) if column.wraps else [_whole(cell)]
                yield from (_whole(Text(" " * indent) + part) for part in parts)


def _text(one: str | Text) -> Text:
    return Text(printable(one)) if isinstance(one, str) else one


def _lines(text: Text, width: int) -> Text:
    """Return a text with the ends of its lines, so that Rich need not wrap it."""
    # Rich justifies no text whose overflow it is to ignore.
    return Text("\n", no_wrap=True, overflow="crop").join(wrapped(text, width))


def _whole(text: Text) -> Text:
    """Return a text that Rich neither wraps nor cuts."""
    text.no_wrap, text.overflow = True, "ignore"
    return text


def wrapped(text: Text, width: int) -> Iterator[Text]:
    """Yield a text as lines at most ``width`` cells wide, broken at spaces alone: a word that is wider stays whole."""
    # Rich breaks words that are too wide, or else wraps nothing.
    for line in text.split("\n", allow_blank=True):
        breaks: list[int] = []
        begin = 0
        for found in re.finditer("[^ ]+", line.plain):
            # Of the whole, because a mark may combine with the space before it.
            if cell_len(line.plain[begin : found.end()]) > width and line.plain[begin : found.start()].strip():
                begin = found.start()
                breaks.append(begin)
        for part in line.divide(breaks):
            part.rstrip()
            yield _whole(part)


def _total(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + GAP * max(0, len(found) - 1)
