"""The outcome of an audit: what it compared, and the first difference."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from unskew.features.time import format_instant
from unskew.monitoring.recount import Key, Values, identical

Where = Literal["log", "redis"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two sides disagree: ``found`` in log or Redis, ``expected`` by the recount.

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
        entity = "|".join(str(part) for part in self.entity)
        at = f"{self.view} of {entity} at {format_instant(self.instant_us)}"
        place = "log" if self.where == "log" else "online store"
        if self.feature is None:
            return f"{at}: there is a row in the {place}, and no event of it in the archive"
        found, expected = _shown(self.found), _shown(self.expected)
        return f"{at}: {self.feature} is {found} in the {place}, and {expected} by the recount"


def _shown(value: object) -> str:
    """Return the value as text, so that different values look different: 1, 1.0, True and '1'."""
    return value.isoformat() if isinstance(value, dt.datetime) else repr(value)


@dataclass(kw_only=True)
class ViewAudit:
    """The counts of what was compared for one view.

    ``events``: events in the recount; 0 means that there was nothing to compare. ``samples``: (entity, instant) pairs.
    Of these, ``on_arrivals`` and ``on_hops`` lie exactly on such an instant, ``beside`` lie one microsecond from one,
    and the others anywhere; ``non_empty`` have some event in some window; and for ``rows`` the instant, cause and event
    of the log row were compared too. ``entities``: entities read from Redis and compared; ``entities_present`` of them
    had a row there. ``provisional``: not compared, because Redis may not have held all of their instant yet. ``ahead``:
    not compared, because log and archive had not published that far. ``engines``: the engine that evaluated each SQL
    text or other expression.
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
    provisional: int = 0
    ahead: int = 0
    engines: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class AuditReport:
    """The counts of all views, and the first difference, or None."""

    views: list[ViewAudit] = field(default_factory=list)
    difference: Difference | None = None


def first_difference(where: Where, view: str, key: Key, t_us: int, found: Values, expected: Values) -> Difference:
    """Name the first column in which two rows that are not identical differ."""
    name = next(name for name in expected if not identical({name: found[name]}, {name: expected[name]}))
    return Difference(
        where=where, view=view, entity=key, instant_us=t_us, feature=name, found=found[name], expected=expected[name]
    )


def stray(where: Where, view: str, key: Key, t_us: int) -> Difference:
    """Return the difference for a row of an entity that has no event."""
    return Difference(where=where, view=view, entity=key, instant_us=t_us, feature=None, found=None, expected=None)
