"""Drawings in SVG, of attributes alone: the policy of the pages permits no style of their own.

A drawing has no texts, which would shrink with it; the pages write them beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 800, 120
_MARGIN = 6


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A step function as it is drawn. ``path``: of the line; ``dots``: the places of events."""

    path: str
    dots: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bin: its share of the values now and before, in percent of the largest share of all bins."""

    label: str
    now: str
    before: str
    share: float
    share_before: float


def steps(
    instants_us: Sequence[int], values: Sequence[float | None], are_events: Sequence[bool], begin_us: int, end_us: int
) -> Steps:
    """Return the drawing of values that change at instants, ascending, from ``begin_us`` to ``end_us``.

    A value stands until the next one, the last one to the end; None is a gap. What begins earlier is drawn from the
    begin on.
    """
    known = [value for value in values if value is not None]
    least, most = (min(known), max(known)) if known else (0.0, 0.0)
    span = max(end_us - begin_us, 1)

    def x_of(instant_us: int) -> str:
        at = _MARGIN + (WIDTH - 2 * _MARGIN) * (min(max(instant_us, begin_us), end_us) - begin_us) / span
        return _short(at)

    def y_of(value: float) -> str:
        # The span of two floats may be infinite.
        share = 0.5 if most == least else (value / 2 - least / 2) / (most / 2 - least / 2)
        return _short(HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * share)

    path: list[str] = []
    dots: list[tuple[str, str]] = []
    is_gap = True
    ends = [*instants_us[1:], end_us]
    for instant_us, until_us, value, is_event in zip(instants_us, ends, values, are_events, strict=True):
        if value is None:
            is_gap = True
            continue
        x, y = x_of(instant_us), y_of(value)
        path.append(f"M{x} {y}" if is_gap else f"V{y}")
        path.append(f"H{x_of(until_us)}")
        if is_event and instant_us >= begin_us:
            dots.append((x, y))
        is_gap = False
    return Steps(path="".join(path), dots=dots)


def bars(labels: Sequence[str], counts: Sequence[int], counts_before: Sequence[int]) -> list[Bar]:
    """Return the bins that have values now or had some before, as shares of all."""
    n, n_before = max(sum(counts), 1), max(sum(counts_before), 1)
    shares = [
        (label, count / n, before / n_before)
        for label, count, before in zip(labels, counts, counts_before, strict=True)
        if count or before
    ]
    most = max((max(now, before) for _, now, before in shares), default=1.0)
    return [
        Bar(
            label=label,
            now=_short(100 * now / most),
            before=_short(100 * before / most),
            share=now,
            share_before=before,
        )
        for label, now, before in shares
    ]


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
