"""One pass over a view's log: which features changed in each row, a sample of instants, the last row of each entity.

A row of the log is there for some features alone if its values differ from the entity's row before in these features
and in no others. What is derived follows from what it is derived of, and causes no row by itself. So the rows that are
there for a feature alone are those that the log would not have without it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from unskew.features.time import DAY_US
from unskew.features.view import View
from unskew.offline.join import AnyLog, Progress
from unskew.sinks.redis.sizes import Sizes

_AT = "available_at"
_CAUSE = "cause"
_ORDER = "_order"
_CHANGED = "_changed"
_CHANCE = "_chance"


@dataclass(frozen=True, kw_only=True)
class LogRows:
    """What the rows of a view's log say.

    ``changed``: the number of rows by what changed in them since the entity's row before (for its first row: since the
    values of an entity without events), a bit for each feature of the view that is not derived. ``n_rows``,
    ``n_entities``: all of them. ``first_us``, ``last_us``: the bounds of the rows' instants, None without rows.
    ``requests``: the key columns and the instant ``event_timestamp`` of rows that were sampled among those that an
    event caused. ``sizes``: by feature, what its values take in Redis, on average over the entities that have any value
    at the end of the log.
    """

    view: View
    changed: Mapping[int, int]
    n_rows: int
    n_entities: int
    first_us: int | None
    last_us: int | None
    requests: pl.DataFrame
    sizes: Mapping[str, float]

    def alone(self, names: Collection[str]) -> int:
        """Return how many rows are there for these features alone."""
        mine = sum(1 << number for number, name in enumerate(_computed(self.view)) if name in names)
        return sum(n for changed, n in self.changed.items() if changed and not changed & ~mine)

    @property
    def rows_a_day(self) -> float | None:
        """The rows a day between the first and the last one; None if these lie less than a day apart."""
        if self.first_us is None or self.last_us is None or self.last_us - self.first_us < DAY_US:
            return None
        return self.n_rows * DAY_US / (self.last_us - self.first_us)


def log_rows(log: AnyLog, n_requests: int, progress: Progress = lambda _view, _done, _all: None) -> LogRows:
    """Read the log of a view once, newest rows first; memory holds a row of each entity besides a piece of the log.

    ``n_requests``: the size of the sample. Rows that stand for a past that was removed count as what was before.
    """
    reading = _Pass(log.view, n_requests, _kept_from_us(log))
    n_all, n_read = log.n_rows(), 0
    columns = [*log.view.entity.keys, _AT, _CAUSE, *(feature.name for feature in log.view.features)]
    for chunk in log.newest_first(columns):
        reading.add(chunk)
        n_read += chunk.height
        progress(log.view.id, n_read, n_all)
    return reading.result()


def _kept_from_us(log: AnyLog) -> int | None:
    return None if log.coverage is None else log.coverage.kept_from_us


class _Pass:
    """``_following``: of each entity the oldest row so far, whose row before has not been read yet."""

    def __init__(self, view: View, n_requests: int, kept_from_us: int | None) -> None:
        self._view = view
        self._keys = list(view.entity.keys)
        self._n_requests = n_requests
        self._kept_from_us = kept_from_us
        self._changed: Counter[int] = Counter()
        self._following = pl.DataFrame(
            schema={
                **view.entity.columns,
                _AT: pl.Datetime("us", "UTC"),
                **{feature.name: feature.dtype.polars for feature in view.features},
            }
        )
        self._requests = pl.DataFrame(
            schema={**view.entity.columns, "event_timestamp": pl.Datetime("us", "UTC"), _CHANCE: pl.UInt64()}
        )
        self._sizes = Sizes(view)
        self._first_us: int | None = None
        self._last_us: int | None = None

    def add(self, chunk: pl.DataFrame) -> None:
        """Take rows, all of which are older than the rows before of the same entities."""
        if not chunk.height:
            return
        own = chunk.select(self._following.columns)
        known = self._following.join(own, on=self._keys, how="semi")
        order = pl.lit(0, pl.UInt8).alias(_ORDER)
        rows = (
            pl.concat([own.with_columns(order), known.with_columns(order + 1)])
            .sort(*self._keys, _ORDER, _AT, maintain_order=True)
            .with_columns(_differs(self._keys).alias("_first"))
        )
        changed = rows.select("_first", _AT, self._bits([pl.col(name).shift(1) for name in _computed(self._view)]))
        self._count(changed.filter(~pl.col("_first")))
        self._sizes.add(self._last_of_new(rows))
        rest = self._following.join(own, on=self._keys, how="anti")
        self._following = pl.concat([rest, rows.filter("_first").select(self._following.columns)])
        self._sample(chunk)

    def _last_of_new(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the last row of each entity that was not met before: its row at the end of the log."""
        fresh = rows.join(self._following, on=self._keys, how="anti", maintain_order="left")
        return fresh.unique(self._keys, keep="last")

    def _bits(self, before: Sequence[pl.Expr]) -> pl.Expr:
        bits = [
            pl.col(name).ne_missing(other).cast(pl.UInt64) * pl.lit(1 << number, pl.UInt64)
            for number, (name, other) in enumerate(zip(_computed(self._view), before, strict=True))
        ]
        return pl.sum_horizontal(bits).alias(_CHANGED)

    def _count(self, rows: pl.DataFrame) -> None:
        if self._kept_from_us is not None:
            rows = rows.filter(pl.col(_AT).to_physical() >= self._kept_from_us)
        if not rows.height:
            return
        at = rows[_AT].to_physical()
        first, last = int(at.min()), int(at.max())  # type: ignore[arg-type]  # instants of rows
        self._first_us = first if self._first_us is None else min(first, self._first_us)
        self._last_us = last if self._last_us is None else max(last, self._last_us)
        for changed, n in rows.group_by(_CHANGED).len().iter_rows():
            self._changed[changed] += n

    def _sample(self, chunk: pl.DataFrame) -> None:
        """Keep the rows with the least hashes: which ones these are does not depend on the pieces."""
        asked = chunk.filter(pl.col(_CAUSE) == "event").select(
            *self._keys,
            pl.col(_AT).alias("event_timestamp"),
            pl.struct(*self._keys, _AT).hash(seed=0).alias(_CHANCE),
        )
        self._requests = pl.concat([self._requests, asked]).bottom_k(self._n_requests, by=_CHANCE)

    def result(self) -> LogRows:
        empty = [
            pl.lit(feature.empty, feature.dtype.polars)
            for feature in self._view.features
            if feature.function != "derived"
        ]
        self._count(self._following.select(_AT, self._bits(empty)))
        return LogRows(
            view=self._view,
            changed=dict(self._changed),
            n_rows=self._changed.total(),
            n_entities=self._following.height,
            first_us=self._first_us,
            last_us=self._last_us,
            requests=self._requests.sort(_CHANCE).drop(_CHANCE),
            sizes=self._sizes.means(),
        )


def _computed(view: View) -> list[str]:
    return [feature.name for feature in view.features if feature.function != "derived"]


def _differs(keys: Sequence[str]) -> pl.Expr:
    """Return whether a row has another entity than the row before."""
    return pl.any_horizontal(pl.lit(value=False), *(pl.col(key).ne_missing(pl.col(key).shift(1)) for key in keys)) | (
        pl.int_range(pl.len()) == 0
    )
