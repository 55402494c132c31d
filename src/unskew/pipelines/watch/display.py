"""The display while events stream: a live block in a terminal, a line now and then elsewhere."""

from collections import deque
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from unskew.features.printing import printable
from unskew.features.time import SECOND_US, format_instant

RATES_OVER_S = 3.0
COMPILING = "compiling the kernel, once for each installation and processor"


class Shown(Protocol):
    """What is shown of a pipeline; counts since it began, see ``Status``."""

    @property
    def consumed(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def late(self) -> int: ...
    @property
    def dead(self) -> int: ...
    @property
    def lag(self) -> int: ...
    @property
    def clock_us(self) -> int | None: ...
    @property
    def duplicates(self) -> Mapping[str, int]: ...
    @property
    def compiling(self) -> bool: ...
    @property
    def history(self) -> str | None: ...


class Display:
    """A context manager; ``show`` may be called at any rate."""

    def __init__(
        self, console: Console, n_total: int | None = None, *, every_s: float, is_live: bool | None = None
    ) -> None:
        """Prepare a display.

        ``n_total``: the number of all records; None if there is no end. ``every_s``: seconds between two lines.
        ``is_live``: whether there is a live block; by default if the console is a terminal.
        """
        self._console = console
        self._n_total = n_total
        self._every_s = every_s
        self._is_live = console.is_terminal if is_live is None else is_live
        self._started_s = monotonic()
        self._last_line_s = self._started_s
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            *([] if n_total is None else [BarColumn(bar_width=40), TaskProgressColumn()]),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("running" if n_total is None else "events", total=n_total)
        self._live: Live | None = None
        self._seen: deque[tuple[float, Shown]] = deque()
        self._waits_for = (False, False)

    def __enter__(self) -> Self:
        """Start the live block."""
        if self._is_live:
            self._live = Live(self._bar, console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live block; its last state stays visible."""
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def note(self, text: str) -> None:
        """Print a text that stays, above the live block."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def show(self, progress: Shown) -> None:
        """Show totals since the beginning; rates are averages over the last seconds."""
        now_s = monotonic()
        self._seen.append((now_s, progress))
        # A line has the rate since the last one.
        over_s = RATES_OVER_S if self._is_live else max(RATES_OVER_S, self._every_s)
        while len(self._seen) > 2 and now_s - self._seen[0][0] > over_s:
            self._seen.popleft()
        if self._live is not None:
            self._bar.update(self._task, completed=progress.consumed)
            self._live.update(Group(self._bar, self._table(progress)))
        elif not self._is_live and (self._begins_to_wait(progress) or now_s - self._last_line_s >= self._every_s):
            self._last_line_s = now_s
            self._console.print(self._line(progress), highlight=False, soft_wrap=True)

    def _begins_to_wait(self, progress: Shown) -> bool:
        """Return whether it is said here for the first time why no record is read."""
        before, self._waits_for = self._waits_for, (progress.compiling, progress.history is not None)
        return any(now and not then for now, then in zip(self._waits_for, before, strict=True))

    def _table(self, progress: Shown) -> Table:
        if (waits := _waits(progress)) is not None:
            table = Table.grid()
            table.add_row(Text(printable(waits)))
            return table
        table = Table.grid(padding=(0, 2))
        for _ in range(2):
            table.add_column(style="dim")
            table.add_column(justify="right")
        table.add_row("events/s", f"{self._rate('consumed'):,.0f}", "updates/s", f"{self._rate('updates'):,.0f}")
        table.add_row("events", f"{progress.consumed:,}", "log rows", f"{progress.rows:,}")
        table.add_row("clock", _clock(progress.clock_us), "lag", f"{progress.lag:,}")
        table.add_row("late", f"{progress.late:,}", "dead letters", f"{progress.dead:,}")
        if repeats := sum(progress.duplicates.values()):
            table.add_row("repeats dropped", f"{repeats:,}")
        return table

    def _line(self, progress: Shown) -> str:
        began = f"{self._last_line_s - self._started_s:4.0f} s"
        if (waits := _waits(progress)) is not None:
            return printable(f"{began}  {waits}")
        share = "" if self._n_total is None else f" {progress.consumed / self._n_total if self._n_total else 1.0:4.0%}"
        repeats = sum(progress.duplicates.values())
        return (
            f"{began}{share}  {progress.consumed:,} events, "
            f"{self._rate('consumed'):,.0f} events/s, {self._rate('updates'):,.0f} updates/s, "
            f"{progress.rows:,} log rows, clock {_clock(progress.clock_us)}, lag {progress.lag:,}, "
            f"late {progress.late:,}, dead letters {progress.dead:,}"
            + (f", repeats dropped {repeats:,}" if repeats else "")
        )

    def _rate(self, name: str) -> float:
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        passed_s = last_s - first_s
        # Counts begin again when a flow does.
        return max(0.0, (getattr(last, name) - getattr(first, name)) / passed_s) if passed_s > 0 else 0.0


def _waits(progress: Shown) -> str | None:
    """Return why no record is read; None if records are read."""
    return COMPILING if progress.compiling else progress.history


def _clock(clock_us: int | None) -> str:
    return "none yet" if clock_us is None else format_instant(clock_us // SECOND_US * SECOND_US)
