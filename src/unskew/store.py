"""``FeatureStore``: the same features for serving and for training, under the names that people know."""

import datetime as dt
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import redis

from unskew.features.definitions.load import load
from unskew.features.errors import RequestError
from unskew.features.frames import Table, like, to_polars
from unskew.features.plan import Plan
from unskew.features.registry import RegisteredView, register
from unskew.features.time import duration_us
from unskew.offline.join import historical_features
from unskew.serving.online import OnlineFeatures, OnlineReader
from unskew.sinks.wall import wall_us

Definitions = Plan | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class HistoricalFeatures:
    """A training set: one row for each label row, in its order, with the values of its instant."""

    frame: pl.DataFrame
    asked_with: Table

    def to_df(self) -> Any:
        """A pandas frame with the same index where pandas labels came in, else a Polars frame."""
        return like(self.frame, self.asked_with)

    def to_polars(self) -> pl.DataFrame:
        return self.frame

    def to_dict(self) -> dict[str, list[Any]]:
        """Column name -> values."""
        return self.frame.to_dict(as_series=False)


class FeatureStore:
    """Reads what the pipeline wrote: current values from Redis, values of any covered instant from the log.

    ``definitions``: a compiled ``Plan``, or definition files and folders; without them, features are those that the
    registry in Redis describes, followed as it changes. ``redis_url``: a URL or a client of redis-py.
    ``log``: the folder of the Parquet log. Only what is used is needed, and nothing is connected before it is.
    ``max_lag``: how far the pipeline's clock may be behind the present before a status says ``lagging``, for example
    ``"5min"``; None never says so.
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
        self._log = None if log is None else Path(log)
        self._reader = None
        if redis_url is not None:
            self._reader = OnlineReader(
                redis_url,
                prefix,
                pipeline,
                views=self._pinned,
                max_lag_us=None if max_lag is None else duration_us(max_lag),
                now_us=now_us,
            )

    def get_online_features(
        self,
        features: Sequence[str],
        entity_rows: Table,
        *,
        full_feature_names: bool = False,
    ) -> OnlineFeatures:
        """Current values of ``view:feature`` references, one row for each entity row.

        ``entity_rows``: a list of dicts, or a Polars or pandas frame. The answer has ``to_dict()``, ``to_df()`` and, per
        view, ``metadata`` with ``as_of`` and status. Columns are called by feature, with ``full_feature_names``
        ``view__feature``. Raises ``RequestError`` and ``StoreUnavailable``, see ``OnlineReader.read``.
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
        inclusive: bool = True,
        max_age: str | dt.timedelta | None = None,
        full_feature_names: bool = False,
        with_status: bool = False,
    ) -> HistoricalFeatures:
        """Values of ``view:feature`` references at each label row's instant, exactly as they were served then.

        ``entity_df``: key columns, the column ``timestamp`` and whatever else, all of which are kept. ``inclusive``:
        whether what became available at the very instant counts; say False for labels that are themselves events.
        ``max_age``: a row that last changed longer ago reads as nulls and defaults. ``with_status``: a column
        ``{feature}__status`` beside each. Raises ``RequestError`` for what is unknown and for labels later than the log
        is complete; ``LayoutError`` for a log of other definitions. See ``offline.join.historical_features``.
        """
        if self._log is None:
            raise RequestError("historical features are read from the log: give FeatureStore its folder")
        frame = historical_features(
            self._log,
            self._views(),
            to_polars(entity_df),
            features,
            timestamp=timestamp,
            inclusive=inclusive,
            max_age=max_age,
            full_feature_names=full_feature_names,
            with_status=with_status,
        )
        return HistoricalFeatures(frame, entity_df)

    def _views(self) -> Mapping[str, RegisteredView]:
        if self._pinned is not None:
            return self._pinned
        if self._reader is None:
            raise RequestError("give FeatureStore the definitions, or a redis_url under which they are published")
        return self._reader.views()

    def close(self) -> None:
        """Give the connections back; nothing else is held."""
        if self._reader is not None:
            self._reader.close()


def _registered(definitions: Definitions) -> Mapping[str, RegisteredView]:
    if isinstance(definitions, Plan):
        plan = definitions
    elif isinstance(definitions, str | os.PathLike):
        plan = load(Path(definitions))
    else:
        plan = load(*(Path(path) for path in definitions))
    return {view.name: register(view) for view in plan.views.values()}
