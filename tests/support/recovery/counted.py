"""What every feature of the live scene must be at an instant: counted from the archive's rows, in plain Python.

Nothing of the package is imported here, and nothing is asked of it: what a window covers, which event is a repeat and
how floats are summed is said a second time, for the few features that the scene has.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import polars as pl

SECOND_US = 1_000_000
PER_ONE = 2**64
"""Floats are summed exactly, each at a resolution of 2^-64."""


@dataclass(frozen=True, order=True)
class Event:
    """Ordered as events count. ``effective``: the earlier of event time and arrival; instants in microseconds."""

    arrival: int
    partition: int
    offset: int
    effective: int
    units: int | None
    amount: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Event":
        """From an archived row, its instants as numbers."""
        amount = None if row["amount"] is None else row["amount"] + 0.0
        return cls(
            arrival=row["_arrival"],
            partition=row["_partition"],
            offset=row["_offset"],
            effective=min(row["_event_time"], row["_arrival"]),
            units=None if amount is None else round(Fraction(amount) * PER_ONE),
            amount=amount,
        )


@dataclass(frozen=True)
class Sliding:
    """Covers at ``t`` what was effective since ``extent_us`` before the last multiple of ``hop_us``."""

    extent_us: int
    hop_us: int

    def begins(self, t_us: int) -> int:
        return t_us // self.hop_us * self.hop_us - self.extent_us

    def leaves(self, effective_us: int) -> int:
        """The first instant at which what was effective then is not covered any more."""
        return (effective_us // self.hop_us + 1) * self.hop_us + self.extent_us


@dataclass(frozen=True)
class Tumbling:
    """Covers at ``t`` what was effective since the last multiple of ``extent_us``."""

    extent_us: int

    def begins(self, t_us: int) -> int:
        return t_us // self.extent_us * self.extent_us

    def leaves(self, effective_us: int) -> int:
        return (effective_us // self.extent_us + 1) * self.extent_us


@dataclass(frozen=True)
class Ever:
    """Covers all that has arrived."""


@dataclass(frozen=True)
class Running:
    """Covers the running session: it is over ``gap_us`` after the end of the hop in which its latest event lies."""

    gap_us: int
    hop_us: int


@dataclass(frozen=True)
class Counted:
    """One feature. ``what``: ``count``, ``sum`` or ``max``, the latter two of the amount."""

    what: str
    window: Sliding | Tumbling | Ever | Running


@dataclass(frozen=True)
class CountedView:
    """``stream``: the scene's name of it. ``key``: the column of the entity. ``repeats_within_us``: for how long an
    entity's event with the id of one that counts is none of its own; None: never.
    """

    stream: str
    key: str
    features: Mapping[str, Counted]
    id: str = ""
    repeats_within_us: int | None = None

    def entities(self, archive: pl.DataFrame) -> dict[Any, "Steps"]:
        """By key, all of what an entity's values are; ``archive``: the rows of the view's stream."""
        instants = [pl.col(name).dt.epoch("us") for name in ("_arrival", "_event_time")]
        rows = archive.with_columns(instants).sort("_arrival", "_partition", "_offset")
        events: dict[Any, list[Event]] = {}
        counted_at: dict[tuple[Any, Any], int] = {}
        for row in rows.iter_rows(named=True):
            if self.repeats_within_us is not None:
                # Of an entity, an id; measured from the event that counted last.
                name = (row[self.key], row[self.id])
                if name in counted_at and row["_arrival"] - counted_at[name] <= self.repeats_within_us:
                    continue
                counted_at[name] = row["_arrival"]
            events.setdefault(row[self.key], []).append(Event.of(row))
        return {key: Steps(list(self.features.values()), found) for key, found in events.items()}

    @property
    def nothing(self) -> tuple[Any, ...]:
        """The values of an entity without events."""
        return Steps(list(self.features.values()), []).at(0)


@dataclass
class Sitting:
    """One session: when it is over, and the arrivals of its events, in their order."""

    first: int
    latest: int
    arrivals: list[int]

    def over_us(self, window: Running) -> int:
        return (self.latest + 1) * window.hop_us + window.gap_us


@dataclass
class Steps:
    """The values of one entity, as a step function of time. ``events``: those that count, in order."""

    features: Sequence[Counted]
    events: Sequence[Event]
    instants: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._arrivals = [event.arrival for event in self.events]
        self._units_before = [0]
        for event in self.events:
            self._units_before.append(self._units_before[-1] + (event.units or 0))
        windows = {feature.window for feature in self.features}
        self._sittings = {window: list(self._sit(window)) for window in windows if isinstance(window, Running)}
        found = set(self._arrivals)
        for window in windows:
            if isinstance(window, Sliding | Tumbling):
                found.update(window.leaves(event.effective) for event in self.events)
        for window, sittings in self._sittings.items():
            found.update(sitting.over_us(window) for sitting in sittings)
        self.instants = sorted(found)
        self._known: dict[int, tuple[Any, ...]] = {}

    def at(self, t_us: int) -> tuple[Any, ...]:
        """The values at ``t_us``, with all that arrived at that instant."""
        number = bisect_right(self.instants, t_us)
        if number not in self._known:
            # Between two instants nothing changes.
            at_us = self.instants[number - 1] if number else t_us
            self._known[number] = tuple(self._value(feature, at_us) for feature in self.features)
        return self._known[number]

    def rows(self, complete_to_us: int, same: Callable[[Any, Any], bool]) -> list[tuple[int, tuple[Any, ...]]]:
        """Where the values change, up to and with an instant, and to what; ``same``: whether two are so bit for bit."""
        before, found = tuple(self._value(feature, 0) for feature in self.features), []
        for instant in self.instants:
            if instant > complete_to_us:
                break
            now = self.at(instant)
            if not same(before, now):
                found.append((instant, now))
                before = now
        return found

    def _value(self, feature: Counted, t_us: int) -> Any:
        n_arrived = bisect_right(self._arrivals, t_us)
        match feature.window:
            case Running():
                return self._running(feature.window, t_us)
            case Ever():
                if feature.what == "sum":
                    return self._units_before[n_arrived] / PER_ONE
                return _of(feature.what, self.events[:n_arrived]) if feature.what == "max" else n_arrived
        begins = feature.window.begins(t_us)
        # None is effective after it arrives.
        first = bisect_left(self._arrivals, begins)
        return _of(feature.what, [event for event in self.events[first:n_arrived] if event.effective >= begins])

    def _running(self, window: Running, t_us: int) -> int:
        """The number of events in the session that runs at ``t_us``."""
        begun = [sitting for sitting in self._sittings[window] if sitting.arrivals[0] <= t_us]
        if not begun:
            return 0
        n_joined = bisect_right(begun[-1].arrivals, t_us)
        # What made it last longer came before it would have been over.
        return 0 if t_us >= begun[-1].over_us(window) else n_joined

    def _sit(self, window: Running) -> Iterable[Sitting]:
        """All sessions, one after the other; an event that is too late joins none."""
        running: Sitting | None = None
        for event in self.events:
            hop = event.effective // window.hop_us
            if running is not None and event.arrival >= running.over_us(window):
                yield running
                running = None
            if running is None:
                if (hop + 1) * window.hop_us + window.gap_us > event.arrival:
                    running = Sitting(hop, hop, [event.arrival])
            elif hop >= running.first - window.gap_us // window.hop_us:
                running.first, running.latest = min(running.first, hop), max(running.latest, hop)
                running.arrivals.append(event.arrival)
        if running is not None:
            yield running


def _of(what: str, events: Sequence[Event]) -> Any:
    if what == "count":
        return len(events)
    if what == "sum":
        # Of two ints the quotient is rounded once, correctly.
        return sum(event.units for event in events if event.units is not None) / PER_ONE
    return max((event.amount for event in events if event.amount is not None), default=None)
