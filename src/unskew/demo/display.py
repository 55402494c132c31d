"""The display while events stream: a live block in a terminal, a line every few seconds elsewhere."""

from collections import deque
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from unskew.demo.process import Progress
from unskew.features.time import SECOND_US, format_instant

LINE_EVERY_S = 5.0
RATES_OVER_S = 3.0
COMPILING = "compiling the kernel, once for each installation and processor"


class Display:
    """A context manager; ``show`` may be called at any rate."""

    def __init__(self, console: Console, n_total: int) -> None:
        """Prepare a display; ``n_total``: the number of all records."""
        self._console = console
        self._n_total = n_total
        self._started_s = monotonic()
        self._last_line_s = self._started_s
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=40),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("events", total=n_total)
        self._live: Live | None = None
        self._seen: deque[tuple[float, Progress]] = deque()

    def __enter__(self) -> Self:
        """Start the live block, if there is a terminal."""
        if self._console.is_terminal:
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

    def show(self, progress: Progress) -> None:
        """Show totals since the demo began; rates are averages over the last seconds."""
        now_s = monotonic()
        self._seen.append((now_s, progress))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > RATES_OVER_S:
            self._seen.popleft()
        if self._live is not None:
            self._bar.update(self._task, completed=progress.consumed)
            self._live.update(Group(self._bar, self._table(progress)))
        elif now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            self._console.print(self._line(progress), highlight=False, soft_wrap=True)

    def _table(self, progress: Progress) -> Table:
        if progress.compiling:
            return _compiling(Table.grid())
        table = Table.grid(padding=(0, 2))
        for _ in range(2):
            table.add_column(style="dim")
            table.add_column(justify="right")
        table.add_row("events/s", f"{self._rate('consumed'):,.0f}", "updates/s", f"{self._rate('updates'):,.0f}")
        table.add_row("events", f"{progress.consumed:,}", "log rows", f"{progress.rows:,}")
        table.add_row("clock", _clock(progress.clock_us), "lag", f"{progress.lag:,}")
        table.add_row("late", f"{progress.late:,}", "dead letters", f"{progress.dead:,}")
        return table

    def _line(self, progress: Progress) -> str:
        if progress.compiling:
            return f"{self._last_line_s - self._started_s:4.0f} s  {COMPILING}"
        share = progress.consumed / self._n_total if self._n_total else 1.0
        return (
            f"{self._last_line_s - self._started_s:4.0f} s {share:4.0%}  {progress.consumed:,} events, "
            f"{self._rate('consumed'):,.0f} events/s, {self._rate('updates'):,.0f} updates/s, "
            f"{progress.rows:,} log rows, clock {_clock(progress.clock_us)}, lag {progress.lag:,}, "
            f"late {progress.late:,}, dead letters {progress.dead:,}"
        )

    def _rate(self, name: str) -> float:
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        passed_s = last_s - first_s
        return float((getattr(last, name) - getattr(first, name)) / passed_s) if passed_s > 0 else 0.0


def _compiling(table: Table) -> Table:
    table.add_row(COMPILING)
    return table


def _clock(clock_us: int | None) -> str:
    return "none yet" if clock_us is None else format_instant(clock_us // SECOND_US * SECOND_US)
