"""Resolution of windows to whole tiles, and the instants at which windows begin."""

from typing import get_args

import numpy as np
import numpy.typing as npt

from unskew.features.definitions.agg import Duration
from unskew.features.definitions.vocabulary import Calendar, Lifetime, Session, Sliding, Tumbling, Window
from unskew.features.errors import DefinitionError
from unskew.features.time import (
    DAY_US,
    default_hop_us,
    duration_us,
    format_duration,
    round_hop_us,
    unit_boundaries,
)
from unskew.features.view import CalendarUnit, ViewWindow, WindowKind

# Tile numbers inside a window fit 20 bits, with room in the kernel's rings; a finer hop would have no use.
MAX_SPAN = 1_048_576
MAX_EXTENT_US = 36_600 * DAY_US

_NOMINAL_DAYS = {"day": 1, "week": 7, "month": 30, "quarter": 91, "year": 365}


def plan_window(window: Window) -> ViewWindow:
    """Resolve durations, default hop and local periods.

    Raises ``DefinitionError`` with half a sentence that says what is wrong and what to do.
    """
    match window:
        case Sliding():
            return _hopping("sliding", window.extent, window.hop)
        case Session():
            return _hopping("session", window.gap, window.hop)
        case Tumbling():
            extent_us = _extent_us(window.extent)
            if not isinstance(window.closed, bool):
                raise DefinitionError(f"closed={window.closed!r} is neither true nor false; write one of them")
            kind: WindowKind = "closed" if window.closed else "tumbling"
            text = f"tumbling({format_duration(extent_us)}{',closed' if window.closed else ''})"
            return ViewWindow(kind=kind, text=text, hop_us=extent_us, span=int(window.closed), extent_us=extent_us)
        case Calendar():
            return _calendar(window)
        case Lifetime():
            return ViewWindow(kind="lifetime", text="lifetime()", hop_us=0, span=0, extent_us=0)
        case _:
            raise DefinitionError(f"{window!r} is not a window; use Sliding, Tumbling, Calendar, Lifetime or Session")


def _calendar(window: Calendar) -> ViewWindow:
    if window.unit not in get_args(CalendarUnit):
        raise DefinitionError(f"Calendar({window.unit!r}) is not known; units are {', '.join(get_args(CalendarUnit))}")
    if not isinstance(window.tz, str):
        raise DefinitionError(
            f"{window.tz!r} is not a time zone; use a name of the IANA database, for example Europe/Berlin"
        )
    # It refuses an unknown time zone.
    unit_boundaries(window.unit, window.tz)
    nominal_us = _NOMINAL_DAYS[window.unit] * DAY_US
    return ViewWindow(
        kind="calendar",
        text=f"calendar({window.unit},{window.tz})",
        hop_us=nominal_us,
        span=0,
        extent_us=nominal_us,
        tz=window.tz,
        unit=window.unit,
    )


def _extent_us(extent: object) -> int:
    extent_us = duration_us(extent)  # type: ignore[arg-type]  # it refuses everything else
    if not 0 < extent_us <= MAX_EXTENT_US:
        raise DefinitionError(
            f"the window {format_duration(extent_us)} is not between 1us and {format_duration(MAX_EXTENT_US)}"
        )
    return extent_us


def _hopping(kind: WindowKind, length: Duration, step: Duration | None) -> ViewWindow:
    extent_us = _extent_us(length)
    extent = format_duration(extent_us)
    hop_us = default_hop_us(extent_us) if step is None else duration_us(step)
    if hop_us is None:
        raise DefinitionError(
            f"no whole second divides the window {extent}; declare a hop that does, for example hop={extent!r}"
        )
    hop = format_duration(hop_us)
    if not 0 < hop_us <= extent_us or extent_us % hop_us:
        suggestion = format_duration(_near_divisor_us(extent_us, hop_us))
        raise DefinitionError(
            f"hop {hop} does not divide the window {extent}; choose a divisor, for example {suggestion}"
        )
    span = extent_us // hop_us
    if span > MAX_SPAN:
        raise DefinitionError(
            f"hop {hop} cuts the window {extent} into {span} tiles, more than {MAX_SPAN}; "
            f"choose a hop of {format_duration(-(-extent_us // MAX_SPAN))} or more"
        )
    text = f"{kind}({extent},hop={hop})"
    return ViewWindow(kind=kind, text=text, hop_us=hop_us, span=span, extent_us=extent_us)


def _near_divisor_us(extent_us: int, hop_us: int) -> int:
    """Return a round divisor of the window that is at most as long as the requested hop.

    If there is none, return the longest other divisor of at most that length, or the window itself if none is found.
    """
    if (hop := round_hop_us(extent_us, hop_us)) is not None:
        return hop
    n_parts = max(1, -(-extent_us // hop_us)) if hop_us > 0 else 1
    return next((extent_us // n for n in range(n_parts, n_parts + 100_000) if extent_us % n == 0), extent_us)


def old_edge_us(window: ViewWindow, instants: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the earliest effective time that the window covers at each instant: microseconds, shaped as ``instants``.

    It is exact at any instant for fixed windows, and between MIN_INSTANT_US and MAX_INSTANT_US for calendars. For a
    session, it is the latest instant at which the session can have begun. A lifetime begins with the view: nothing from
    before that is missing in it, so its edge is the instant itself.
    """
    match window.kind:
        case "calendar":
            boundaries = unit_boundaries(window.unit or "day", window.tz or "UTC")
            return boundaries[np.searchsorted(boundaries, instants, side="right") - 1]
        case "lifetime":
            return instants
        case "tumbling":
            return instants // window.hop_us * window.hop_us
        case "sliding" | "closed" | "session":
            return instants // window.hop_us * window.hop_us - window.extent_us
