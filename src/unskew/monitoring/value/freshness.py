"""Whether streaming is worth it: how often the value at a request differs from the one some time before.

Both are answers of the same point-in-time join, at the request's instant and at one that is earlier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.frames import read_table
from unskew.features.time import DAY_US, HOUR_US, MINUTE_US
from unskew.features.types import Type
from unskew.features.view import View
from unskew.features.warming import Statuses
from unskew.offline.join import AnyLog, Historical, Progress, historical_features

NOW = "now"
AGES: Mapping[str, int] = {"5 min": 5 * MINUTE_US, "1 h": HOUR_US, "1 d": DAY_US}
_NUMBERS = ("int64", "float64", "decimal")

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Aged:
    """The features of requests as they were ``NOW`` and at each of ``AGES`` before, by feature column.

    ``known``: of each age, which requests lie within the log then; the others have no values.
    """

    frames: Mapping[str, pl.DataFrame]
    known: Mapping[str, Mapping[str, Flags]]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How a feature at requests differs from what it was some time before.

    ``n``: requests that were compared; ``n_differing`` of them have another value. ``mean_change``: the mean absolute
    difference of these, as far as both values are numbers; None without any.
    """

    n: int
    n_differing: int
    mean_change: float | None

    @property
    def share(self) -> float | None:
        """The share of requests whose value differs; None if none was compared."""
        return self.n_differing / self.n if self.n else None


def aged(
    logs: Mapping[str, AnyLog],
    requests: pl.DataFrame,
    references: Sequence[str],
    timestamp: str,
    progress: Progress = lambda _view, _done, _all: None,
) -> Aged:
    """Join the features of ``references`` (``view@version:feature``) to requests, now and at each age.

    ``logs``: by view id. ``requests``: the key columns of all views, and ``timestamp``.
    """
    views = {log.view.id: log.view for log in logs.values()}
    frames: dict[str, pl.DataFrame] = {}
    known: dict[str, dict[str, Flags]] = {}
    for age, age_us in {NOW: 0, **AGES}.items():
        found = _joined(logs, views, _earlier(requests, timestamp, age_us), references, timestamp, progress)
        frames[age] = found.columns
        known[age] = {column: status > Statuses.after_log for column, status in found.statuses.items()}
    return Aged(frames=frames, known=known)


def _earlier(requests: pl.DataFrame, timestamp: str, age_us: int) -> pl.DataFrame:
    at = pl.col(timestamp)
    return requests.with_columns(at - pl.duration(microseconds=age_us)) if age_us else requests


def _joined(
    logs: Mapping[str, AnyLog],
    views: Mapping[str, View],
    requests: pl.DataFrame,
    references: Sequence[str],
    timestamp: str,
    progress: Progress,
) -> Historical:
    return historical_features(
        lambda view: logs[view.id],
        views,
        read_table(requests),
        references,
        timestamp=timestamp,
        outside="null",
        full_feature_names=True,
        progress=progress,
    )


def differences(found: Aged, column: str, dtype: Type) -> dict[str, Differences]:
    """Return, for each age, how a feature differs from then; ``column``: its column in ``found``."""
    return {age: _compared(found, column, dtype, age) for age in AGES}


def _compared(found: Aged, column: str, dtype: Type, age: str) -> Differences:
    both = pl.Series(found.known[NOW][column] & found.known[age][column])
    new, old = (found.frames[each][column].filter(both) for each in (NOW, age))
    differs = new.ne_missing(old)
    mean: float | None = None
    if dtype.nesting is None and dtype.scalar in _NUMBERS:
        change = (new.cast(pl.Float64) - old.cast(pl.Float64)).abs().filter(differs).drop_nulls()
        mean = float(change.mean()) if len(change) else None  # type: ignore[arg-type]  # a mean of floats
    return Differences(n=len(new), n_differing=int(differs.sum()), mean_change=mean)
