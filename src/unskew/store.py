"""``FeatureStore``: the same features for serving and for training, with the method names that people know."""

import datetime as dt
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import redis

from unskew.features.definitions.load import load
from unskew.features.errors import RequestError
from unskew.features.frames import Answer, Table, read_table
from unskew.features.local import local_path
from unskew.features.plan import Plan
from unskew.features.references import requested_us
from unskew.features.view import View
from unskew.features.warming import Statuses
from unskew.offline.join import Outside, historical_features
from unskew.serving.online import OnlineFeatures, OnlineReader
from unskew.sinks.wall import wall_us

Definitions = Plan | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class HistoricalFeatures(Answer):
    """A training set: one row for each label row, in the labels' order, with the values at the label's instant.

    ``summary``: a row for each feature, with the number of labels of each status: ``no_key``, ``before_log``,
    ``after_log``, ``warming``, ``expired``, ``default``, ``present``; see ``offline.join.historical_features``.
    """

    summary: pl.DataFrame


class FeatureStore:
    """Reads what the pipeline wrote: current values from Redis, and values at any covered instant from the log.

    ``definitions``: a compiled ``Plan``, or definition files and folders; by default the features that the registry in
    Redis describes, which the store follows as it changes. ``redis_url``: a URL or a client of redis-py. ``log``: the
    folder of the Parquet log. Online reads need only ``redis_url`` and historical reads only ``log`` and the
    definitions; the store connects at the first use. ``max_lag``: how far the pipeline's clock may be behind the
    present before the status is ``lagging``, for example ``"5min"``; with None it never is.
    """

    def __init__(
        self,
        definitions: Definitions | None = None,
        *,
        redis_url: "str | redis.Redis | redis.RedisCluster | None" = None,
        log: str | os.PathLike[str] | None = None,
        prefix: str = "unskew",
        pipeline: str | Sequence[str] = "main",
        max_lag: str | dt.timedelta | None = None,
        now_us: Callable[[], int] = wall_us,
    ) -> None:
        self._pinned = None if definitions is None else _registered(definitions)
        self._log = None if log is None else local_path(log, "log")
        self._reader = None
        if redis_url is not None:
            self._reader = OnlineReader(
                redis_url,
                prefix,
                pipeline,
                views=self._pinned,
                max_lag_us=None if max_lag is None else requested_us(max_lag, "max_lag"),
                now_us=now_us,
            )

    def get_online_features(
        self,
        features: Sequence[str],
        entity_rows: Table,
        *,
        full_feature_names: bool = False,
    ) -> OnlineFeatures:
        """Return the current values of ``view:feature`` references, one row for each entity row.

        ``entity_rows``: a list of dicts, a frame of Polars or pandas, an Arrow table, or a DuckDB relation. The answer
        has ``to_dict()``, ``to_df()`` and, for each view, ``metadata`` with ``as_of`` and status. Columns are named
        after the feature, or ``view__feature`` with ``full_feature_names``. Raises ``RequestError`` and
        ``StoreUnavailable``, see ``OnlineReader.read``.
        """
        if self._reader is None:
            raise RequestError("online features are read from Redis: give FeatureStore a redis_url")
        return self._reader.read(features, entity_rows, full_feature_names=full_feature_names)

    def get_historical_features(
        self,
        entity_df: Table,
        features: Sequence[str],
        *,
        timestamp: str = "event_timestamp",
        inclusive: bool = False,
        outside: Outside = "error",
        max_age: str | dt.timedelta | None = None,
        full_feature_names: bool = False,
        with_status: bool = False,
    ) -> HistoricalFeatures:
        """Return the values of ``view:feature`` references at each label row's instant, exactly as served then.

        ``entity_df``: key columns, the column ``timestamp`` and any other columns, all of which are kept as they are: a
        frame of Polars or pandas, an Arrow table, a DuckDB relation, or a list of dicts. ``inclusive``: whether values
        that became available at exactly that instant count; by default they do not, so that a label that is itself an
        event does not see itself. ``outside``: "error" refuses labels earlier than the first event that the pipeline
        saw and labels later than the log is complete; "null" gives them nulls. ``max_age``: a row that last changed
        longer ago than this reads as nulls and defaults. ``with_status``: adds a column ``{feature}__status`` beside
        each feature; ``summary`` of the answer counts them in any case. Raises ``RequestError`` for unknown names and
        for labels outside of the log; ``LayoutError`` for a log of other definitions. See
        ``offline.join.historical_features``.
        """
        if self._log is None:
            raise RequestError("historical features are read from the log: give FeatureStore its folder")
        labels = read_table(entity_df)
        found = historical_features(
            self._log,
            self._views(),
            labels,
            features,
            timestamp=timestamp,
            inclusive=inclusive,
            outside=outside,
            max_age=max_age,
            full_feature_names=full_feature_names,
            with_status=with_status,
        )
        counts = np.array(list(found.counts.values()), np.int64)
        summary = pl.DataFrame({"feature": list(found.counts)}).hstack(
            pl.from_numpy(counts, schema=[status.name for status in Statuses])
        )
        return HistoricalFeatures(labels, found.columns, summary)

    def _views(self) -> Mapping[str, View]:
        if self._pinned is not None:
            return self._pinned
        if self._reader is None:
            raise RequestError("give FeatureStore the definitions, or a redis_url under which they are published")
        return self._reader.views()

    def close(self) -> None:
        """Close the connections; the store holds nothing else."""
        if self._reader is not None:
            self._reader.close()


def _registered(definitions: Definitions) -> Mapping[str, View]:
    if isinstance(definitions, Plan):
        plan = definitions
    elif isinstance(definitions, str | os.PathLike):
        plan = load(Path(definitions))
    else:
        plan = load(*(Path(path) for path in definitions))
    return plan.published
