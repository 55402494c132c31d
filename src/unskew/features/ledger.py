"""The ledger of late events: how many events of a view came too late for which window, and by how much."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from unskew.features.errors import LayoutError
from unskew.features.updates import LATE_BOUNDS_US, Updates

N_BUCKETS = len(LATE_BOUNDS_US) + 1


class LateEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Events that came after their tile had left one window.

    ``worst_us``: how long after at most, 0 where there are none. ``histogram``: how many were at most as long after as each of
    ``LATE_BOUNDS_US`` and longer than the bound before it; the last, those past all bounds.
    """

    events: int = 0
    worst_us: int = 0
    histogram: tuple[int, ...] = (0,) * N_BUCKETS

    def plus(self, other: "LateEvents") -> "LateEvents":
        """Of both together."""
        return LateEvents(
            events=self.events + other.events,
            worst_us=max(self.worst_us, other.worst_us),
            histogram=tuple(mine + its for mine, its in zip(self.histogram, other.histogram, strict=True)),
        )


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What did not count, since the state of a view began, in one shard or several: a window's late events, and repeats.

    ``windows``: in the order of the view's windows. ``duplicates``: events that repeated others and were dropped.
    """

    windows: tuple[LateEvents, ...] = ()
    duplicates: int = 0


NOTHING_LATE = Ledger()


def ledger_of(updates: Updates) -> Ledger:
    """What one shard's ledger says after a step."""
    found = zip(updates.late_total, updates.late_by_us, updates.late_histogram, strict=False)
    return Ledger(
        windows=tuple(
            LateEvents(events=events, worst_us=worst_us, histogram=histogram) for events, worst_us, histogram in found
        ),
        duplicates=updates.duplicates_total,
    )


def together(ledgers: Iterable[Ledger]) -> Ledger:
    """The ledger of a view whose shards have these; a shard that has none yet does not count."""
    windows: Sequence[LateEvents] = ()
    duplicates = 0
    for ledger in ledgers:
        duplicates += ledger.duplicates
        if len(ledger.windows) > len(windows):
            windows = [*windows, *(LateEvents() for _ in ledger.windows[len(windows) :])]
        windows = [
            one.plus(ledger.windows[index]) if index < len(ledger.windows) else one for index, one in enumerate(windows)
        ]
    return Ledger(windows=tuple(windows), duplicates=duplicates)


def written(ledger: Ledger) -> dict[str, Any]:
    """A ledger as JSON-able data: what ``read_ledger`` reads."""
    found: dict[str, Any] = msgspec.to_builtins(ledger)
    return found


def read_ledger(data: Any) -> Ledger:
    """A ledger from JSON text, or from data that JSON gave; ``LayoutError`` for what is none."""
    try:
        if isinstance(data, (str, bytes)):
            ledger = msgspec.json.decode(data, type=Ledger)
        else:
            ledger = msgspec.convert(data, Ledger)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LayoutError(f"a ledger of late events cannot be read ({error}); unskew run writes it anew") from error
    if any(len(window.histogram) != N_BUCKETS for window in ledger.windows):
        raise LayoutError(
            f"a ledger of late events has not {N_BUCKETS} bounds; read it with the version of unskew that wrote it"
        )
    return ledger
