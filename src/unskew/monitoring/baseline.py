"""What later values are compared with: distributions that were kept once, and so fix the bins.

Two files are baselines. The manifest of a training set has the distributions of its labels' features: what the model
was trained on, in which an entity counts as often as it has labels. ``unskew baseline`` writes those of a population:
every entity that has a row counts once.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from unskew.features.errors import LayoutError, RequestError
from unskew.features.time import format_instant, moment_of
from unskew.features.view import View
from unskew.features.warming import is_warming
from unskew.monitoring.bins import Bins, Counts, as_read, counts_of, distribution_of
from unskew.monitoring.population import values_at
from unskew.offline.distribution import Distribution
from unskew.offline.log_reader import ViewLog
from unskew.offline.manifest import Manifest

FORMAT = 1
Kind = Literal["training", "population"]
_ENDINGS = (".json", ".manifest", ".baseline")


class BaselineFeature(msgspec.Struct, frozen=True, kw_only=True):
    """One feature: the distribution of its values as they are read, with defaults, and how many are null."""

    name: str
    type: str
    nulls: int
    distribution: Distribution


class PopulationFile(msgspec.Struct, frozen=True, kw_only=True):
    """The population of a view at an instant, as ``unskew baseline`` writes it.

    ``entities``: how many have a row. ``gone``: how many had one, and their windows have emptied since. ``warming``:
    features with a window that begins before the log, so that their values will still change as it fills.
    """

    format: int = FORMAT
    kind: Literal["population"] = "population"
    view: str
    state_fingerprint: str
    at: dt.datetime
    entities: int
    gone: int
    warming: tuple[str, ...] = ()
    features: tuple[BaselineFeature, ...]

    def to_json(self) -> bytes:
        """Return it as JSON, for a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The distributions of one file. ``name``: that of the file, without its endings; the label of its metrics.

    ``kind``: what they are of. ``fingerprints``: by view id, the state fingerprint of the definition that computed
    them. ``features``: by view id and feature.
    """

    name: str
    kind: Kind
    fingerprints: Mapping[str, str]
    features: Mapping[tuple[str, str], BaselineFeature]

    def of(self, view: View) -> dict[str, tuple[Bins, Counts]]:
        """Return the bins of a view's features, and what the baseline counted in each.

        Raises ``RequestError`` if the view was defined otherwise when the baseline was made.
        """
        if view.id not in self.fingerprints:
            return {}
        if self.fingerprints[view.id] != view.state_fingerprint:
            raise RequestError(
                f"baseline {self.name}: {view.id} was defined otherwise when it was made (state fingerprint "
                f"{self.fingerprints[view.id]}, now {view.state_fingerprint}), so its bins are of other values; make a "
                "new one with unskew baseline, or train again"
            )
        found = {}
        for (view_id, name), one in self.features.items():
            if view_id != view.id:
                continue
            feature = view.feature(name)
            if feature is None or feature.type != one.type:
                what = "has no such feature" if feature is None else f"has it as {feature.type}"
                raise RequestError(
                    f"baseline {self.name}: it has {view.id}:{name} as {one.type}, and the log {what}; make a new one "
                    "with unskew baseline, or train again"
                )
            try:
                bins = Bins.of(one.distribution, feature.dtype)
            except ValueError as error:
                raise RequestError(
                    f"baseline {self.name}: the distribution of {view.id}:{name} is not one of {feature.type}: {error}; "
                    "make a new one with unskew baseline, or train again"
                ) from error
            found[name] = bins, counts_of(one.distribution, one.nulls)
        return found


def read_baseline(path: Path) -> Baseline:
    """Read a file that ``unskew baseline`` wrote, or the manifest of a training set.

    Raises ``RequestError`` if it is neither, ``LayoutError`` if another version of unskew wrote it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path}: {error.strerror}; give a file of unskew baseline, or the manifest of a training set"
        ) from error
    name = path.name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    try:
        kind = msgspec.json.decode(data, type=_Kind)
        if kind.kind is None:
            return _of_manifest(name, Manifest.parse(data, str(path)))
        if kind.format != FORMAT:
            raise LayoutError(
                f"{path} has format {kind.format}, but this version reads {FORMAT}; use the version of unskew that "
                "wrote it"
            )
        return _of_population(name, msgspec.json.decode(data, type=PopulationFile))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise RequestError(
            f"{path} is not a baseline ({why}); give a file of unskew baseline, or the manifest of a training set"
        ) from error


class Baselines:
    """The baselines that paths name: files, and folders whose ``*.json`` are such files, also those of later.

    A folder may be empty. Names that begin with a dot are left out.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._read: dict[Path, tuple[tuple[int, int], Baseline]] = {}

    def __call__(self) -> list[Baseline]:
        """Return them as they are now; those of files that did not change are the same objects.

        Raises what ``read_baseline`` raises.
        """
        found: dict[Path, tuple[tuple[int, int], Baseline]] = {}
        for path in self._files():
            try:
                status = path.stat()
            except OSError:
                # Reading it says what is wrong.
                state = (0, 0)
            else:
                state = (status.st_mtime_ns, status.st_size)
            known = self._read.get(path)
            found[path] = known if known is not None and known[0] == state else (state, read_baseline(path))
        self._read = found
        return [one for _, one in found.values()]

    def _files(self) -> Iterator[Path]:
        for path in self._paths:
            if path.is_dir():
                yield from sorted(one for one in path.glob("*.json") if not one.name.startswith("."))
            else:
                yield path


def population_baseline(log: ViewLog, t_us: int) -> PopulationFile:
    """Return the population of a view at an instant, for a file.

    Raises ``RequestError`` if the log does not answer that instant, or has no entity then.
    """
    if log.complete_to_us is None or t_us > log.complete_to_us:
        upto = (
            "not complete to any instant yet"
            if log.complete_to_us is None
            else "complete to " + (format_instant(log.complete_to_us))
        )
        raise RequestError(f"{log.title} is {upto}, and {format_instant(t_us)} was asked for; give an earlier instant")
    if log.first_since_us is None or t_us < log.first_since_us:
        since = "no event" if log.first_since_us is None else f"its first event at {format_instant(log.first_since_us)}"
        raise RequestError(f"{log.title} has {since}, and {format_instant(t_us)} was asked for; give a later instant")
    values, n_gone = values_at(log, t_us)
    return PopulationFile(
        view=log.view.id,
        state_fingerprint=log.view.state_fingerprint,
        at=moment_of(t_us),
        entities=len(values),
        gone=n_gone,
        warming=_warming(log, t_us),
        features=tuple(
            BaselineFeature(
                name=feature.name,
                type=feature.type,
                nulls=as_read(feature, values[feature.name]).null_count(),
                distribution=distribution_of(feature, values[feature.name]),
            )
            for feature in log.view.features
        ),
    )


def _warming(log: ViewLog, t_us: int) -> tuple[str, ...]:
    """Return the features that are warming at an instant; a window that never begins is not one that fills."""
    since_us = t_us if log.since_us is None else log.since_us
    return tuple(
        feature.name
        for feature in log.view.features
        if all(window.kind != "lifetime" for window in log.view.windows_of(feature))
        and is_warming(log.view, [feature], np.array([t_us]), since_us).any()
    )


class _Kind(msgspec.Struct):
    format: int = 0
    kind: str | None = None


def _of_population(name: str, found: PopulationFile) -> Baseline:
    return Baseline(
        name=name,
        kind="population",
        fingerprints={found.view: found.state_fingerprint},
        features={(found.view, one.name): one for one in found.features},
    )


def _of_manifest(name: str, found: Manifest) -> Baseline:
    # A feature that is read under two names has the same values twice.
    features = {
        (part.view, part.feature): BaselineFeature(
            name=part.feature, type=part.type, nulls=part.nulls, distribution=part.distribution
        )
        for part in found.features
    }
    asked = {view for view, _ in features}
    return Baseline(
        name=name,
        kind="training",
        fingerprints={part.id: part.state_fingerprint for part in found.views if part.id in asked},
        features=features,
    )
