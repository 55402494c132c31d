"""The ledger of late events: how many events of a view came too late for each window, and by how much."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from unskew.features.errors import LayoutError
from unskew.features.updates import LATE_BOUNDS_US, Updates
from unskew.features.view import View, ViewWindow

N_BUCKETS = len(LATE_BOUNDS_US) + 1


class LateEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Events that came after their tile had left one window.

    ``worst_us``: the longest delay, 0 without such events. ``histogram``: events by delay, one count for each upper
    bound in ``LATE_BOUNDS_US``, and a last one for delays past all bounds.
    """

    events: int = 0
    worst_us: int = 0
    histogram: tuple[int, ...] = (0,) * N_BUCKETS

    def plus(self, other: "LateEvents") -> "LateEvents":
        """Return the sum of both."""
        return LateEvents(
            events=self.events + other.events,
            worst_us=max(self.worst_us, other.worst_us),
            histogram=tuple(mine + its for mine, its in zip(self.histogram, other.histogram, strict=True)),
        )


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Events that did not count since the state of a view began, in one or several shards: late events and repeats.

    ``windows``: in the order of the view's windows. ``duplicates``: events that repeated others and were dropped.
    """

    windows: tuple[LateEvents, ...] = ()
    duplicates: int = 0


NOTHING_LATE = Ledger()


def ledger_of(updates: Updates) -> Ledger:
    """Return one shard's ledger after a step."""
    return _ledger(updates.late_by_us, updates.late_histogram, updates.duplicates_total)


@lru_cache(maxsize=1024)
def _ledger(late_by_us: tuple[int, ...], histograms: tuple[tuple[int, ...], ...], duplicates: int) -> Ledger:
    """Return a ledger; that of most steps is that of the step before."""
    found = zip(late_by_us, histograms, strict=False)
    windows = tuple(
        LateEvents(events=sum(histogram), worst_us=worst_us, histogram=histogram) for worst_us, histogram in found
    )
    return Ledger(windows=windows, duplicates=duplicates)


def together(ledgers: Iterable[Ledger]) -> Ledger:
    """Return the ledger of a view from those of its shards; a shard without a ledger yet does not count."""
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
    """Return a ledger as JSON-able data, which ``read_ledger`` reads."""
    found: dict[str, Any] = msgspec.to_builtins(ledger)
    return found


def read_ledger(data: Any) -> Ledger:
    """Read a ledger from JSON text or from decoded JSON; raise ``LayoutError`` if it is not a ledger."""
    try:
        if isinstance(data, (str, bytes)):
            ledger = msgspec.json.decode(data, type=Ledger)
        else:
            ledger = msgspec.convert(data, Ledger)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LayoutError(f"a ledger of late events cannot be read ({error}); unskew run writes it again") from error
    if any(len(window.histogram) != N_BUCKETS for window in ledger.windows):
        raise LayoutError(
            f"a ledger of late events does not have {N_BUCKETS} bounds; read it with the version of unskew that wrote it"
        )
    return ledger


def windows_of(view: View) -> tuple[ViewWindow, ...]:
    """Return the windows of a ledger, in its order: the view's, then that of the sessions that it aggregates."""
    return view.windows if view.sessions is None else (*view.windows, view.sessions.window)
