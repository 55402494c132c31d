"""The output of ``unskew describe --live``."""

from typing import TYPE_CHECKING, Any

from unskew.cli.screen import Screen, lines, say_json, styled
from unskew.features.ledger import windows_of
from unskew.features.time import format_duration, format_instant, rough_duration
from unskew.features.updates import LATE_BOUNDS_US
from unskew.features.view import View

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from unskew.features.ledger import Ledger
    from unskew.serving.live import LiveView


def show(redis_url: str, prefix: str, pipeline: str, *, as_json: bool) -> None:
    """Print the state of a pipeline's views, as a table for each or as one JSON object."""
    from unskew.serving.live import read_live

    live = read_live(redis_url, prefix, pipeline)
    if as_json:
        found = {"pipeline": pipeline, "late_bounds_us": LATE_BOUNDS_US, "views": [_plain(one) for one in live]}
        say_json(found, indent=2)
        return

    console = Screen()
    for one in live:
        table = late_table(one.view, one.ledger)
        table.title = lines([*_heading(one), str(table.title)])
        console.print(table)
        console.print()


def late_table(view: View, ledger: "Ledger") -> "Table":
    """Return the late events of each window as a table, with the repeats above it."""
    from rich.table import Table

    table = Table(title_justify="left", title_style="", header_style="bold")
    table.title = f"too late for a window: {sum(window.events for window in ledger.windows):,} times" + (
        f"; repeats dropped: {ledger.duplicates:,}" if ledger.duplicates else ""
    )
    table.add_column("window", overflow="fold")
    bounds = [f"<= {format_duration(bound)}" for bound in LATE_BOUNDS_US]
    for column in ("events", "worst by", *bounds, f"> {format_duration(LATE_BOUNDS_US[-1])}"):
        table.add_column(column, justify="right")
    for window, late in zip(windows_of(view), ledger.windows, strict=False):
        counts = (f"{count:,}" if count else "-" for count in late.histogram)
        worst = rough_duration(late.worst_us) if late.events else "-"
        table.add_row(window.text, f"{late.events:,}", worst, *counts)
    return table


def _heading(one: "LiveView") -> "tuple[str | Text, ...]":
    clock = "no clock yet" if one.clock_us is None else f"clock {format_instant(one.clock_us)}"
    lag = "" if one.lag_us is None else f", {rough_duration(one.lag_us)} behind the present"
    since = "-" if one.since_us is None else format_instant(one.since_us)
    shards = f"{len(one.shards)} shard{'s' if len(one.shards) != 1 else ''}"
    for word, names in (("waiting", one.waiting), ("ended without a clock", one.ended)):
        shards += f", {word}: {' '.join(names)}" if names else ""
    return styled(one.view.id, "bold"), f"{clock}{lag}", f"since {since}, {shards}"


def _plain(one: "LiveView") -> dict[str, Any]:
    windows = zip(windows_of(one.view), one.ledger.windows, strict=False)
    return {
        "view": one.view.id,
        "clock_us": one.clock_us,
        "lag_us": one.lag_us,
        "since_us": one.since_us,
        "shards": one.shards,
        "waiting": one.waiting,
        "ended": one.ended,
        "duplicates": one.ledger.duplicates,
        "late": [
            {"window": window.text, "events": late.events, "worst_us": late.worst_us, "histogram": late.histogram}
            for window, late in windows
        ],
    }
