"""Windows resolved to whole tiles, and the instant at which a window begins."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from unskew.features.definitions import Calendar, Sliding, Tumbling, Window
from unskew.features.errors import DefinitionError
from unskew.features.plan import WindowPlan
from unskew.features.time import DAY_US, day_boundaries, default_hop_us, duration_us, format_duration, round_hop_us

# Tile numbers inside a window fit 20 bits with room in the kernel's rings; a finer hop buys no one anything.
MAX_SPAN = 1_048_576
MAX_EXTENT_US = 36_600 * DAY_US


class WindowShape(Protocol):
    """What is needed to place a window in time; ``WindowPlan`` and ``RegisteredWindow`` both have it."""

    @property
    def kind(self) -> Literal["sliding", "tumbling", "calendar"]: ...
    @property
    def hop_us(self) -> int: ...
    @property
    def extent_us(self) -> int: ...
    @property
    def tz(self) -> str | None: ...


def plan_window(window: Window) -> WindowPlan:
    """Resolve durations, default hop and local days.

    A calendar's ``hop_us`` and ``extent_us`` are a nominal day; its real ones stand in ``boundaries``.
    Raises ``DefinitionError`` with half a sentence that says what is wrong and what to do.
    """
    match window:
        case Sliding():
            return _sliding(window)
        case Tumbling():
            if window.closed:
                raise DefinitionError("Tumbling covers the running period; leave closed out")
            extent_us = _extent_us(window.extent)
            text = f"tumbling({format_duration(extent_us)})"
            return WindowPlan(kind="tumbling", text=text, hop_us=extent_us, span=0, extent_us=extent_us)
        case Calendar():
            if window.unit != "day":
                raise DefinitionError(
                    f"Calendar({window.unit!r}) is not known; Calendar covers the running local 'day'"
                )
            boundaries = day_boundaries(window.tz)
            text = f"calendar(day,{window.tz})"
            return WindowPlan(
                kind="calendar", text=text, hop_us=DAY_US, span=0, extent_us=DAY_US, tz=window.tz, boundaries=boundaries
            )
        case _:
            raise DefinitionError(f"{window!r} is no window; use Sliding, Tumbling or Calendar")


def _extent_us(extent: object) -> int:
    extent_us = duration_us(extent)  # type: ignore[arg-type]  # it refuses what it does not know
    if not 0 < extent_us <= MAX_EXTENT_US:
        raise DefinitionError(
            f"the window {format_duration(extent_us)} is not between 1us and {format_duration(MAX_EXTENT_US)}"
        )
    return extent_us


def _sliding(window: Sliding) -> WindowPlan:
    extent_us = _extent_us(window.extent)
    extent = format_duration(extent_us)
    hop_us = default_hop_us(extent_us) if window.hop is None else duration_us(window.hop)
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
    text = f"sliding({extent},hop={hop})"
    return WindowPlan(kind="sliding", text=text, hop_us=hop_us, span=span, extent_us=extent_us)


def _near_divisor_us(extent_us: int, hop_us: int) -> int:
    """Give a round divisor of the window no longer than the hop asked for; else the nearest found in parts of the window."""
    if (hop := round_hop_us(extent_us, hop_us)) is not None:
        return hop
    n_parts = max(1, -(-extent_us // hop_us)) if hop_us > 0 else 1
    return next((extent_us // n for n in range(n_parts, n_parts + 100_000) if extent_us % n == 0), extent_us)


def old_edge_us(window: WindowShape, instants: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give the earliest effective time that each window covers at its instant, in microseconds; same shape as ``instants``.

    Exact for any instant of fixed windows, and between MIN_INSTANT_US and MAX_INSTANT_US for calendars.
    """
    if window.kind == "calendar":
        assert window.tz is not None
        boundaries = day_boundaries(window.tz)
        return boundaries[np.searchsorted(boundaries, instants, side="right") - 1]
    behind_us = window.extent_us if window.kind == "sliding" else 0
    return instants // window.hop_us * window.hop_us - behind_us
