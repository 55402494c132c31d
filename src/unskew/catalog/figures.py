"""What was measured of features: the files of ``unskew monitor --report`` and ``unskew value --json``.

Files are read anew where they changed; what is not in them is not known.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from unskew.features.errors import RequestError

_MOST_BYTES = 1 << 26


class FeatureFigures(msgspec.Struct, frozen=True):
    """One feature as the monitor saw it, against one baseline or none; fields as in ``watch.FeatureLook``."""

    feature: str
    of: str
    n: int
    state: str
    missing: float | None = None
    baseline: str | None = None
    missing_before: float | None = None
    psi: float | None = None
    limit: float | None = None
    bins: list[str] = []
    counts: list[int] = []
    counts_before: list[int] = []

    def __post_init__(self) -> None:
        if len({len(self.bins), len(self.counts), len(self.counts_before)}) > 1:
            raise ValueError(f"the feature {self.feature!r} does not have a count for each bin")

    @property
    def is_over(self) -> bool:
        """Whether it is over its limit."""
        return self.state in {"drift", "missing"}


class LateFigures(msgspec.Struct, frozen=True):
    """The events that came too late for one window; fields as in ``watch.Late``."""

    window: str
    events: int
    worst_us: int


class ViewFigures(msgspec.Struct, frozen=True):
    """One view as the monitor saw it; fields as in ``watch.ViewLook``, ``over`` in words."""

    view: str
    entities: int
    gone: int
    features: list[FeatureFigures]
    complete_to_us: int | None = None
    event_age_us: int | None = None
    published_age_us: int | None = None
    compared: int = 0
    mismatches: int = 0
    repeats: int = 0
    late: list[LateFigures] = []
    over: list[str] = []


class _Report(msgspec.Struct, frozen=True):
    at_us: int
    views: list[ViewFigures]
    refused: list[str]


class Worth(msgspec.Struct, frozen=True):
    """What one feature costs and earns, as ``unskew value`` says it. None is not known."""

    feature: str
    sentence: str
    candidate_to_retire: bool
    row_share: float | None = None
    redis_bytes_per_entity: float | None = None


class _ViewWorth(msgspec.Struct, frozen=True):
    view: str
    features: list[Worth]


class _Values(msgspec.Struct, frozen=True):
    views: list[_ViewWorth]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that was measured. ``views``: by id. ``worth``: by ``view@version:feature``.

    ``at_us``: when the monitor looked, None if it did not. ``refused``: what it could not look at, in its words.
    """

    views: Mapping[str, ViewFigures] = field(default_factory=dict)
    worth: Mapping[str, Worth] = field(default_factory=dict)
    at_us: int | None = None
    refused: Sequence[str] = ()

    def of(self, view_id: str, feature: str) -> list[FeatureFigures]:
        """Return what the monitor saw of a feature: the population first, what is over its limit first."""
        view = self.views.get(view_id)
        found = [] if view is None else [one for one in view.features if one.feature == feature]
        return sorted(found, key=lambda one: (not one.is_over, one.of != "population"))


class FigureFiles:
    """Files of figures, and folders of such files (``*.json``), read again when anything in them has changed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._stamps: Mapping[Path, tuple[int, int, int]] = {}
        self._figures = Figures()

    def now(self) -> Figures:
        """Return what the files have now; the same object while none has changed. Raises ``RequestError``."""
        stamps = {file: stamp for path in self._paths for file, stamp in _stamps(path)}
        if stamps != self._stamps:
            self._figures = _read(stamps)
            self._stamps = stamps
        return self._figures


def _stamps(path: Path) -> Iterator[tuple[Path, tuple[int, int, int]]]:
    try:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            found = file.stat()
            yield file, (found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise RequestError(
            f"--figures {path}: {error.strerror or error}; give a file of unskew monitor --report or of unskew value --json, or a "
            "folder of them"
        ) from error


def _read(paths: Iterable[Path]) -> Figures:
    views: dict[str, ViewFigures] = {}
    worth: dict[str, Worth] = {}
    at_us: int | None = None
    refused: list[str] = []
    for path in paths:
        found = _report_or_values(path)
        if isinstance(found, _Report):
            # Of several reports, as of several logs, the oldest look says how old all of it may be.
            at_us = found.at_us if at_us is None else min(at_us, found.at_us)
            views |= {one.view: one for one in found.views}
            refused += found.refused
        else:
            worth |= {f"{view.view}:{one.feature}": one for view in found.views for one in view.features}
    return Figures(views=views, worth=worth, at_us=at_us, refused=refused)


def _report_or_values(path: Path) -> _Report | _Values:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise RequestError(f"--figures {path}: it has more than {_MOST_BYTES:,} bytes, and no report has")
            parsed: Any = msgspec.json.decode(file.read(_MOST_BYTES))
        if isinstance(parsed, dict) and "at_us" in parsed:
            return msgspec.convert(parsed, _Report)
        return msgspec.convert(parsed, _Values)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(
            f"--figures {path}: {error}; give a file of unskew monitor --report or of unskew value --json"
        ) from error
