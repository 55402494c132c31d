"""What was measured of features: the files of ``unskew monitor --report`` and ``unskew value --json``.

Files are read anew where they changed; what is not in them is not known.
"""

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from unskew.features.errors import RequestError

_MOST_BYTES = 1 << 26
_Stamp = tuple[int, int, int]


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
    ``faults``: why files have no figures.
    """

    views: Mapping[str, ViewFigures] = field(default_factory=dict)
    worth: Mapping[str, Worth] = field(default_factory=dict)
    at_us: int | None = None
    refused: Sequence[str] = ()
    faults: Sequence[str] = ()

    def of(self, view_id: str, feature: str) -> list[FeatureFigures]:
        """Return what the monitor saw of a feature: the population first, what is over its limit first."""
        view = self.views.get(view_id)
        found = [] if view is None else [one for one in view.features if one.feature == feature]
        return sorted(found, key=lambda one: (not one.is_over, one.of != "population"))


class FigureFiles:
    """Files of figures, and folders of such files (``*.json``), each read again when it has changed.

    A file in a folder that has no figures, as one that is just being written, is among the ``faults``, and what it had
    before stays. So it is with a file that was named, once it had some.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        # A folder that is removed later was one all the same.
        self._paths = {path: path.is_dir() for path in paths}
        self._read: dict[Path, tuple[_Stamp, _Report | _Values]] = {}
        self._seen: object = None
        self._figures = Figures()

    def now(self) -> Figures:
        """Return what the files have now; the same object while none has changed.

        Raises ``RequestError`` for a file that was named and never had any figures.
        """
        stamps = {
            file: stamp for path, is_folder in self._paths.items() for file, stamp in _stamps(path, is_folder=is_folder)
        }
        if stamps == self._seen:
            return self._figures
        faults = []
        for file, stamp in stamps.items():
            fault = stamp if isinstance(stamp, str) else self._fault(file, stamp)
            if not fault:
                continue
            fault = f"--figures {file}: {fault}; give a file of unskew monitor --report or of unskew value --json, or a folder of them"
            if self._paths.get(file) is False and file not in self._read:
                raise RequestError(fault)
            faults.append(fault)
        for gone in self._read.keys() - stamps.keys():
            del self._read[gone]
        self._figures = _together((found for _, found in self._read.values()), faults)
        self._seen = stamps
        return self._figures

    def _fault(self, file: Path, stamp: _Stamp) -> str:
        """Read a file if it has changed; return why it has no figures, empty if it has."""
        if file in self._read and self._read[file][0] == stamp:
            return ""
        try:
            self._read[file] = stamp, _report_or_values(file)
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            return getattr(error, "strerror", None) or str(error)
        return ""


def _stamps(path: Path, *, is_folder: bool) -> Iterator[tuple[Path, _Stamp | str]]:
    """Yield the files of a path, each with what changes when it does, or with why it cannot be read."""
    for file in sorted(path.glob("*.json")) if is_folder else [path]:
        try:
            found = file.stat()
        except OSError as error:
            yield file, error.strerror or str(error)
            continue
        # A pipe would be waited for.
        is_file = stat.S_ISREG(found.st_mode)
        yield file, (found.st_ino, found.st_mtime_ns, found.st_size) if is_file else "it is not a file"


def _together(ones: Iterable[_Report | _Values], faults: Sequence[str]) -> Figures:
    views: dict[str, ViewFigures] = {}
    worth: dict[str, Worth] = {}
    at_us: int | None = None
    refused: list[str] = []
    for found in ones:
        if isinstance(found, _Report):
            # Of several reports, as of several logs, the oldest look says how old all of it may be.
            at_us = found.at_us if at_us is None else min(at_us, found.at_us)
            views |= {one.view: one for one in found.views}
            refused += found.refused
        else:
            worth |= {f"{view.view}:{one.feature}": one for view in found.views for one in view.features}
    return Figures(views=views, worth=worth, at_us=at_us, refused=refused, faults=faults)


def _report_or_values(path: Path) -> _Report | _Values:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes, and no report has")
    parsed: Any = msgspec.json.decode(data)
    if isinstance(parsed, dict) and "at_us" in parsed:
        return msgspec.convert(parsed, _Report)
    return msgspec.convert(parsed, _Values)
