"""What an audit compared and found."""

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

    ``feature``: or another column of the log's rows; None where log or Redis know an entity that has no event at all,
    ``found`` and ``expected`` are None then.
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
    """So that values which differ look different: 1, 1.0, True and '1'."""
    return value.isoformat() if isinstance(value, dt.datetime) else repr(value)


@dataclass(kw_only=True)
class ViewAudit:
    """What was compared of one view.

    ``samples``: (entity, instant) pairs, of them ``on_arrivals`` and ``on_hops`` at such an instant exactly, ``beside``
    one microsecond from one, the others anywhere; ``non_empty``: with some event in some window. ``rows``: samples whose
    row in the log was compared with its instant, cause and event too. ``entities``: read from Redis and compared,
    ``entities_present`` of them with a row there; ``provisional``: not compared, because Redis may not have held all of
    their instant yet; ``ahead``: not compared, because log and archive had not published up to there. ``events``: in the
    recount; 0 means that there was nothing to compare. ``engines``: who evaluated the SQL and other expressions.
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
    """What was compared, and the first difference, None where there is none."""

    views: list[ViewAudit] = field(default_factory=list)
    difference: Difference | None = None


def first_difference(where: Where, view: str, key: Key, t_us: int, found: Values, expected: Values) -> Difference:
    """Name the first column in which two rows that are not identical differ."""
    name = next(name for name in expected if not identical({name: found[name]}, {name: expected[name]}))
    return Difference(
        where=where, view=view, entity=key, instant_us=t_us, feature=name, found=found[name], expected=expected[name]
    )


def stray(where: Where, view: str, key: Key, t_us: int) -> Difference:
    """A row of an entity that has no event."""
    return Difference(where=where, view=view, entity=key, instant_us=t_us, feature=None, found=None, expected=None)
