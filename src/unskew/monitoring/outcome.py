"""The outcome of an audit: what it compared, what it could not, and every difference."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from unskew.features.time import format_instant
from unskew.monitoring.recount import Key, Values, identical

Where = Literal["log", "redis", "served", "rebuild"]

N_EXAMPLES = 3
"""How many differences of one kind are kept; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A place where two sides disagree: ``found`` in log, Redis or a rebuild, ``expected`` by the recount.

    Of ``served``: ``found`` as a reader was given it, ``expected`` in the log.

    ``feature``: a feature, or another column of the log's rows. It is None if log or Redis know an entity without any
    event; then ``found`` and ``expected`` are None too.
    """

    where: Where
    view: str
    entity: Key
    instant_us: int
    feature: str | None
    found: object
    expected: object

    def __str__(self) -> str:
        parts = map(str, self.entity)
        entity = "|".join(part if part and part.isprintable() else repr(part) for part in parts)
        at = f"{self.view} of {entity} at {format_instant(self.instant_us)}"
        place = {"log": "log", "redis": "online store", "served": "sample of what was served", "rebuild": "rebuild"}[
            self.where
        ]
        if self.feature is None:
            return f"{at}: there is a row in the {place}, and no event of it in the archive"
        found, expected = _shown(self.found), _shown(self.expected)
        if self.where == "served":
            return f"{at}: {self.feature} was served as {found}, and is {expected} in the log"
        return f"{at}: {self.feature} is {found} in the {place}, and {expected} by the recount"


def _shown(value: object) -> str:
    """Return the value as text, so that different values look different: 1, 1.0, True and '1'."""
    return format_instant(value) if isinstance(value, dt.datetime) else repr(value)


@dataclass(kw_only=True)
class Differences:
    """All differences of one kind: in log or Redis, of one view and one feature; the first of them as examples."""

    where: Where
    view: str
    feature: str | None
    count: int = 0
    examples: list[Difference] = field(default_factory=list)

    def __str__(self) -> str:
        place = {"log": "log", "redis": "Redis", "served": "served sample", "rebuild": "rebuild"}[self.where]
        what = "rows of entities without events" if self.feature is None else self.feature
        return f"{self.view} {what} in the {place}: {self.count:,}"


@dataclass(frozen=True, kw_only=True)
class Unaudited:
    """Features that could not be compared, or not before ``from_us``, and the reason; None if at no instant."""

    features: tuple[str, ...]
    from_us: int | None
    why: str

    def __str__(self) -> str:
        names = ", ".join(self.features)
        return f"{names}{'' if self.from_us is None else f' before {format_instant(self.from_us)}'}: {self.why}"


@dataclass(kw_only=True)
class ViewAudit:
    """The counts of what was compared for one view.

    ``events``: events in the recount; 0 means that there was nothing to compare. ``samples``: (entity, instant) pairs.
    Of these, ``on_arrivals`` and ``on_hops`` lie exactly on such an instant, ``beside`` lie one microsecond from one,
    and the others anywhere; ``non_empty`` have some event in some window; and for ``rows`` the instant, cause and event
    of the log row were compared too. ``entities``: entities read from Redis and compared; ``entities_present`` of them
    had a row there. ``served``: rows of the sample of what readers were given that were compared with the log;
    ``rebuilt`` of them with a rebuild too. ``provisional``: not compared, because Redis may not have held all of their
    instant yet. ``ahead``: not compared, because log and archive had not published that far. ``unknown``: not compared,
    because events that their windows hold may lie before what is known, or because the row was served with another
    definition. ``engines``: the engine that evaluated each SQL text or other
    expression. ``dependent``: those that only the pipeline's own engine evaluates, each with the reason. ``unaudited``:
    what the archive is too short for. ``values``: how many values were compared, of all kinds.
    ``notes``: further comparisons that were left out, and why.
    """

    view: str
    events: int
    samples: int = 0
    on_arrivals: int = 0
    on_hops: int = 0
    beside: int = 0
    non_empty: int = 0
    rows: int = 0
    entities: int = 0
    entities_present: int = 0
    served: int = 0
    rebuilt: int = 0
    provisional: int = 0
    ahead: int = 0
    unknown: int = 0
    values: int = 0
    engines: Mapping[str, str] = field(default_factory=dict)
    dependent: Mapping[str, str] = field(default_factory=dict)
    unaudited: list[Unaudited] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class AuditReport:
    """The counts of all views, and all differences by kind. ``refusals``: why views could not be compared."""

    views: list[ViewAudit] = field(default_factory=list)
    differences: list[Differences] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    @property
    def values(self) -> int:
        """The number of values that were compared."""
        return sum(view.values for view in self.views)

    @property
    def per_million(self) -> float:
        """Differences in a million compared values; only 0 passes."""
        return 1e6 * sum(one.count for one in self.differences) / self.values if self.values else 0.0

    @property
    def difference(self) -> Difference | None:
        """The first difference that was found; None if there is none."""
        return self.differences[0].examples[0] if self.differences else None

    def add(self, difference: Difference, count: int = 1) -> None:
        """Add ``count`` differences of one kind, the first of which is given."""
        kind = (difference.where, difference.view, difference.feature)
        for one in self.differences:
            if (one.where, one.view, one.feature) == kind:
                break
        else:
            one = Differences(where=difference.where, view=difference.view, feature=difference.feature)
            self.differences.append(one)
        one.count += count
        if len(one.examples) < N_EXAMPLES:
            one.examples.append(difference)

    def compare(self, where: Where, view: str, key: Key, t_us: int, found: Values, expected: Values) -> bool:
        """Add a difference for each value of ``expected`` that is not found identical; return whether all are."""
        for one in self.views:
            if one.view == view:
                one.values += len(expected)
        differing = [name for name, value in expected.items() if not identical({name: found[name]}, {name: value})]
        for name in differing:
            self.add(
                Difference(
                    where=where,
                    view=view,
                    entity=key,
                    instant_us=t_us,
                    feature=name,
                    found=found[name],
                    expected=expected[name],
                )
            )
        return not differing


def stray(where: Where, view: str, key: Key, t_us: int) -> Difference:
    """Return the difference for a row of an entity that has no event."""
    return Difference(where=where, view=view, entity=key, instant_us=t_us, feature=None, found=None, expected=None)
