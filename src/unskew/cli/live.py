"""The output of ``unskew describe --live``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unskew.cli.screen import Screen, say_json, styled
from unskew.features.folding import Rows, number
from unskew.features.ledger import windows_of
from unskew.features.time import MINUTE_US, format_duration, format_instant, rough_duration
from unskew.features.updates import LATE_BOUNDS_US
from unskew.features.view import View

if TYPE_CHECKING:
    from rich.text import Text

    from unskew.features.ledger import Ledger
    from unskew.serving.live import LiveView


BEHIND_US = MINUTE_US
"""A pipeline that reads live topics is less than this behind the present: seconds of settling and of an epoch."""


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
        for line in _heading(one):
            console.print(line)
        console.print(late_table(one.view, one.ledger))
        console.print()
    behind = [one.lag_us for one in live if one.lag_us is not None]
    if behind and min(behind) > BEHIND_US:
        console.print(
            f"Every view is {rough_duration(min(behind))} or more behind the present. If unskew run reads live topics "
            f"(--idle wall) as pipeline {pipeline!r}, it has stopped or waits: look at its output, or start it."
        )


def late_table(view: View, ledger: "Ledger") -> "Rows":
    """Return the late events of the windows that have any as a table, with their sum and the repeats above it."""
    found = [(window, late) for window, late in zip(windows_of(view), ledger.windows, strict=False) if late.events]
    said = ["late events: not known, because no shard has reported any count yet"]
    if ledger.windows:
        said = ["no event was too late for a window"]
    if found:
        said = [f"too late for a window: {sum(late.events for _, late in found):,} times"]
    if ledger.duplicates:
        said.append(f"repeats dropped: {ledger.duplicates:,}")
    bounds = [format_duration(bound) for bound in LATE_BOUNDS_US]
    names = [f"up to {bounds[0]} late", *(f"to {bound}" for bound in bounds[1:]), f"over {bounds[-1]}"]
    met = [at for at in range(len(names)) if any(late.histogram[at] for _, late in found)]
    table = Rows("window", *map(number, ("late events", "latest by", *(names[at] for at in met))), heading=said)
    for window, late in found:
        counts = (f"{late.histogram[at]:,}" for at in met)
        table.add(window.text, f"{late.events:,}", rough_duration(late.worst_us), *counts)
    return table


def _heading(one: "LiveView") -> "Iterator[str | Text]":
    yield styled(one.view.id, "bold")
    if one.clock_us is not None and one.lag_us is not None:
        yield f"complete to {format_instant(one.clock_us)}, {rough_duration(one.lag_us)} behind the present"
    else:
        yield "complete to: not known, because not every shard has read a record or announced a clock yet"
    if one.since_us is not None:
        yield f"counts every event since {format_instant(one.since_us)}"
    else:
        yield "counts every event since: not known, because no event has come yet"
    shards = f"{len(one.shards)} shard{'s' if len(one.shards) != 1 else ''}"
    for word, names in (("waiting for a clock", one.waiting), ("ended without a clock", one.ended)):
        shards += f", {word}: {' '.join(names)}" if names else ""
    yield shards


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
