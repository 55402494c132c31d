"""``assert_features``: what features must be at instants, and a failure that shows why they are not."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from unskew.features.definitions.windows import old_edge_us
from unskew.features.errors import RequestError, shown
from unskew.features.evaluate import evaluate
from unskew.features.frames import Table
from unskew.features.kernel.repeats import Repeats
from unskew.features.keys import encode_keys
from unskew.features.nearest import nearest
from unskew.features.on_demand import NOW, OnDemandView, is_reference
from unskew.features.plan import FeaturePlan, ViewPlan
from unskew.features.time import format_instant
from unskew.features.view import ViewWindow
from unskew.pipelines.history.archive import columns_of
from unskew.testing.given import Arrival
from unskew.testing.replayed import Definitions, Instant, Replay, Subject, checked_us, named, replayed

N_SHOWN = 10
"""Events that a failure shows, at most."""

Expected = Mapping[Any, Any]


def assert_features(
    view: Subject,
    events: Table | Mapping[str, Table],
    expected: Mapping[Any, Expected],
    *,
    entity: object = None,
    definitions: Definitions = (),
    inputs: Mapping[str, Any] | None = None,
    arrival: Arrival = None,
    skip_refused: bool = False,
) -> None:
    """Assert what a model would read at instants, had a pipeline seen these events.

    ``expected``: instant -> feature -> value, if ``entity`` is given or all events are about one entity; otherwise
    instant -> entity -> feature -> value. Features that it does not name may be anything. Values must be equal, floats
    exactly; ``pytest.approx(0.1)``, also inside lists and maps, is equal to what is near. A map may be a dict. A
    datetime without a zone is in UTC.

    The other arguments are those of ``values``. Raises ``AssertionError``, whose text shows every value that differs,
    and the events that were in its window.
    """
    __tracebackhide__ = True
    if not isinstance(expected, Mapping):
        raise RequestError(f"expected is a mapping from instants to values, not {shown(expected)}")
    if not expected:
        raise RequestError("expected has no instants, so nothing would be asserted")
    instants = list(expected)
    replay = replayed(view, events, instants, definitions, inputs, arrival=arrival, skip_refused=skip_refused)
    asked = [
        (instant, row, wanted)
        for instant in instants
        for row, wanted in _by_entity(replay, instant, expected[instant], entity)
    ]
    failures: list[str] = []
    each = replay.values([(instant, row) for instant, row, _ in asked])
    for (instant, row, wanted), found in zip(asked, each, strict=True):
        differing = {name: value for name, value in wanted.items() if not _is_equal(value, found[name])}
        if differing:
            failures.append(_failure(replay, instant, row, differing, found))
    if failures:
        raise AssertionError("\n".join(failures))


def _by_entity(
    replay: Replay, instant: Instant, wanted: object, entity: object
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the key of each entity with the values that it must have at an instant."""
    if not isinstance(wanted, Mapping) or not wanted:
        raise RequestError(f"at {instant}: give a mapping from features to values, not {shown(wanted)}")
    if entity is not None or not replay.views:
        (row,) = replay.rows(entity)
        yield row, _checked(replay, wanted)
        return
    if any(name in replay.names for name in wanted):
        keys = replay.keys()
        if len(keys) != 1:
            some = ", ".join(map(repr, keys[:5])) or "none"
            raise RequestError(
                f"at {instant}: the events are about {len(keys)} entities ({some}), so say of which one these values are: with "
                "entity=, or as {entity: {feature: value}}"
            )
        yield replay.row(keys[0]), _checked(replay, wanted)
        return
    for one, of_one in wanted.items():
        if not isinstance(of_one, Mapping):
            # A misspelled feature is likelier than an entity without features.
            _checked(replay, wanted)
        yield replay.row(one), _checked(replay, of_one)


def _checked(replay: Replay, wanted: Mapping[Any, Any]) -> Mapping[str, Any]:
    for name in wanted:
        if name not in replay.names:
            raise RequestError(
                f"{replay.subject.name} has no feature {name!r}; {nearest(str(name), replay.names, 'its features are')}"
            )
    return wanted


def _is_equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, dt.datetime) and expected.tzinfo is None:
        expected = expected.replace(tzinfo=dt.UTC)
    if isinstance(expected, float) and isinstance(found, float) and expected != expected and found != found:  # noqa: PLR0124
        return True
    if isinstance(expected, Mapping) and isinstance(found, list):
        # Readers get a map as a list of its entries.
        found = {entry["key"]: entry["value"] for entry in found}
    # On the left, so that pytest.approx is asked.
    return bool(expected == found)


def _failure(
    replay: Replay, instant: Instant, row: Mapping[str, Any], differing: Mapping[str, Any], found: Mapping[str, Any]
) -> str:
    """Return what a failure shows of one entity at one instant."""
    at_us = checked_us(instant)
    subject = replay.subject
    who = ", ".join(f"{name} {part!r}" for name, part in row.items())
    lines = [f"{subject.name}{f' of {who}' if who else ''} at {format_instant(at_us)}"]
    if isinstance(subject, OnDemandView):
        lines += _differences(differing, found, differing)
        features = [feature for feature in subject.features if feature.name in differing]
        read = list(dict.fromkeys(name for one in features for name in one.inputs))
        known = {NOW: format_instant(at_us), **replay.inputs}
        if references := [name for name in read if is_reference(name)]:
            (values,) = replay.read(references, [(instant, row)])
            known |= dict(zip(references, values, strict=True))
        lines += [f"    {name}: {known[name]!r}" for name in read if name in known]
        return "\n".join(lines)
    shown_events = _Shown(replay, subject, tuple(row.values()), at_us)
    for window, names in _by_window(subject, differing).items():
        lines += _differences(differing, found, names)
        lines += shown_events.lines(window, names)
    return "\n".join(lines)


def _differences(
    differing: Mapping[str, Any], found: Mapping[str, Any], names: Sequence[str] | Mapping[str, Any]
) -> list[str]:
    return [f"  {name}: expected {differing[name]!r}, found {found[name]!r}" for name in names]


def _by_window(view: ViewPlan, names: Mapping[str, Any]) -> dict[tuple[ViewWindow, ...], list[str]]:
    grouped: dict[tuple[ViewWindow, ...], list[str]] = {}
    published = view.published
    for name in names:
        feature = published.feature(name)
        assert feature is not None
        grouped.setdefault(published.windows_of(feature), []).append(name)
    return grouped


@dataclass(frozen=True)
class _Event:
    """One event of the entity, as it is shown."""

    number: int
    effective_us: int
    arrival_us: int
    text: str
    without: str


class _Shown:
    """The events of an entity that had arrived by an instant."""

    def __init__(self, replay: Replay, view: ViewPlan, key: Sequence[Any], at_us: int) -> None:
        self._view, self._at_us = view, at_us
        self._who = named(view.published, key)
        self._given = given = replay.events[view.stream.topic]
        (own,) = encode_keys(pl.DataFrame([dict(zip(view.entity.keys, key, strict=True))]), view.entity)
        mine = given.frame.filter(encode_keys(given.frame, view.entity) == own)
        self._later = mine.filter(pl.col("_arrival").to_physical() > at_us).height
        self._mine = mine.filter(pl.col("_arrival").to_physical() <= at_us)

    def lines(self, windows: Sequence[ViewWindow], names: Sequence[str]) -> list[str]:
        """Return the lines about features that share their windows."""
        sessions = self._view.published.sessions
        over = sessions.window if sessions is not None else None
        texts = ", ".join(window.text for window in windows)
        if over is not None:
            texts += f" over sessions of {over.text}"
        inside = [event for event in self._events(names) if over is not None or self._is_inside(event, windows)]
        n_counting = sum(not event.without for event in inside)
        n_events = f"{len(inside) or 'no'} event{'' if len(inside) == 1 else 's'}"
        counting = n_events if n_counting == len(inside) else f"{n_events}, of which {n_counting or 'none'} count"
        lines = [f"    {texts}: {counting}"]
        left_out = len(inside) - N_SHOWN
        if left_out > 0:
            lines.append(f"      … {left_out} earlier ones")
        lines += [f"      event {one.number}: {one.text}{one.without}" for one in inside[-N_SHOWN:]]
        others = []
        if before := self._mine.height - len(inside):
            others.append(f"{before} outside of the window")
        if self._later:
            others.append(f"{self._later} that had not arrived")
        if others:
            lines.append(f"      other events of {self._who}: {', '.join(others)}")
        return lines

    def _is_inside(self, event: _Event, windows: Sequence[ViewWindow]) -> bool:
        if _is_open(windows):
            return True
        instant = np.array([self._at_us], np.int64)
        for window in windows:
            past_us = self._at_us // window.hop_us * window.hop_us if window.kind == "closed" else self._at_us + 1
            if int(old_edge_us(window, instant)[0]) <= event.effective_us < past_us:
                return True
        return False

    def _events(self, names: Sequence[str]) -> list[_Event]:
        """Return all events that had arrived, in the order of their times; those that do not count say why."""
        view = self._view
        counted = evaluate(view, self._mine)
        passing = counted.events
        kept: pl.DataFrame | None = passing
        if passing.height and view.stream.dedupe_within_us is not None and view.sessions is None:
            kept = Repeats(view, "h0").drop(passing, self._at_us)
        assert kept is not None
        rejected = set(counted.rejected["_offset"].to_list())
        passed, unrepeated = set(passing["offset"].to_list()), set(kept["offset"].to_list())
        filters = self._filters(names, passing)
        columns = [name for name in columns_of(view) if name not in view.entity.keys and name != view.stream.event_time]
        found = []
        for row in self._mine.iter_rows(named=True):
            offset = row["_offset"]
            happened_us, arrival_us = (checked_us(row[name]) for name in ("_event_time", "_arrival"))
            text = format_instant(happened_us)
            if arrival_us != happened_us:
                text += f" (arrived {format_instant(arrival_us)})"
            if columns:
                text += f" {', '.join(f'{name}={row[name]!r}' for name in columns)}"
            why = ""
            if offset in rejected:
                why = " - refused by the view"
            elif offset not in passed:
                why = " - where is not true"
            elif offset not in unrepeated:
                why = " - repeats an earlier one"
            elif filters and not any(offset in passes for passes in filters.values()):
                why = f" - the filter of {', '.join(filters)} is not true"
            effective_us = min(happened_us, arrival_us)
            found.append(_Event(self._given.numbers[offset], effective_us, arrival_us, text, why))
        return sorted(found, key=lambda event: event.effective_us)

    def _filters(self, names: Sequence[str], passing: pl.DataFrame) -> dict[str, set[int]]:
        """Return, by feature, the offsets that pass its filter; empty if one of the features has none."""
        if self._view.sessions is not None:
            return {}
        plans: dict[str, FeaturePlan] = {one.name: one for one in self._view.features}
        found: dict[str, set[int]] = {}
        for name in names:
            if name not in plans or plans[name].filter < 0:
                return {}
            passes = passing.filter(pl.col(f"f{plans[name].filter}"))
            found[name] = set(passes["offset"].to_list())
        return found


def _is_open(windows: Sequence[ViewWindow]) -> bool:
    """Return whether no instant bounds the events of a window: they are a session, or all."""
    return any(window.kind in {"lifetime", "session"} for window in windows)
