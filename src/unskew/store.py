"""``FeatureStore``: the same features for serving and for training, with the method names that people know."""

import datetime as dt
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import redis

from unskew.features.definitions.load import load
from unskew.features.errors import LayoutError, RequestError
from unskew.features.frames import Answer, Given, Table, read_table
from unskew.features.keys import encode_keys
from unskew.features.plan import Plan
from unskew.features.references import by_view, key_columns, requested_us, resolve
from unskew.features.view import View
from unskew.features.warming import Statuses
from unskew.offline.join import Outside, historical_features, last_instant
from unskew.offline.log_reader import RebuiltLog
from unskew.serving.online import OnlineFeatures, OnlineReader
from unskew.sinks.objects import table_path
from unskew.sinks.wall import wall_us

Source = Literal["log", "events", "both"]
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
    folder of the Parquet log. ``archive``: the folder of the event archive. Both may be in an object store
    (``s3://bucket/log``, ``gs://``, ``az://``), whose credentials the usual variables of the environment hold. Online
    reads need only ``redis_url`` and historical reads only the definitions and ``log``, or ``archive``; the store
    connects at the first use.
    ``max_lag``: how far the pipeline's clock may be behind the present before the status is ``lagging``, for example
    ``"5min"``; with None it never is.
    """

    def __init__(
        self,
        definitions: Definitions | None = None,
        *,
        redis_url: "str | redis.Redis | redis.RedisCluster | None" = None,
        log: str | os.PathLike[str] | None = None,
        archive: str | os.PathLike[str] | None = None,
        prefix: str = "unskew",
        pipeline: str | Sequence[str] = "main",
        max_lag: str | dt.timedelta | None = None,
        now_us: Callable[[], int] = wall_us,
    ) -> None:
        self._plan = None if definitions is None else _compiled(definitions)
        self._pinned = None if self._plan is None else self._plan.published
        self._log = None if log is None else table_path(log, "log")
        self._archive = None if archive is None else table_path(archive, "archive")
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
        source: Source = "log",
    ) -> HistoricalFeatures:
        """Return the values of ``view:feature`` references at each label row's instant, exactly as served then.

        ``entity_df``: key columns, the column ``timestamp`` and any other columns, all of which are kept as they are: a
        frame of Polars or pandas, an Arrow table, a DuckDB relation, or a list of dicts. ``inclusive``: whether values
        that became available at exactly that instant count; by default they do not, so that a label that is itself an
        event does not see itself. ``outside``: "error" refuses labels earlier than the first event that the pipeline
        saw and labels later than the log is complete; "null" gives them nulls. ``max_age``: a row that last changed
        longer ago than this reads as nulls and defaults. ``with_status``: adds a column ``{feature}__status`` beside
        each feature; ``summary`` of the answer counts them in any case.

        ``source``: "log" reads what was served. "events" computes the values from the archived events, with the kernel
        of the stream, for the labels' entities: also of views and features that no pipeline has ever computed, as if
        one had done so since the archive begins. "both" does both, and raises ``LayoutError`` if they differ.

        Raises ``RequestError`` for unknown names and for labels outside of the log; ``LayoutError`` for a log of other
        definitions. See ``offline.join.historical_features``.
        """
        if source not in {"log", "events", "both"}:
            raise RequestError(f'source is "log", "events" or "both", not {source!r}')
        labels = read_table(entity_df)
        read = partial(
            historical_features,
            views=self._views(),
            labels=labels,
            features=features,
            timestamp=timestamp,
            inclusive=inclusive,
            outside=outside,
            max_age=max_age,
            full_feature_names=full_feature_names,
            with_status=with_status,
        )
        if source != "events" and self._log is None:
            raise RequestError("historical features are read from the log: give FeatureStore its folder")
        logs = None if source == "log" else self._rebuilt(labels, features, timestamp)
        found = read(self._log if logs is None or source == "both" else logs)  # type: ignore[arg-type]
        if source == "both":
            assert logs is not None
            _refuse_difference(found.columns, read(logs).columns)
        counts = np.array(list(found.counts.values()), np.int64)
        summary = pl.DataFrame({"feature": list(found.counts)}).hstack(
            pl.from_numpy(counts, schema=[status.name for status in Statuses])
        )
        return HistoricalFeatures(labels, found.columns, summary)

    def _rebuilt(self, labels: Given, features: Sequence[str], timestamp: str) -> Callable[[View], RebuiltLog]:
        """Return the rebuilt logs of the requested views, for the labels' entities."""
        from unskew.pipelines.history.training import rebuilt_for  # noqa: PLC0415 - imports what only pipelines need

        if self._plan is None:
            raise RequestError(
                "features are computed from events by their definitions: give FeatureStore the definitions"
            )
        if self._archive is None:
            raise RequestError("features are computed from the archived events: give FeatureStore the folder archive=")
        views = [self._plan.views[name] for name in by_view(resolve(features, self._views(), full_feature_names=True))]
        keys = {
            view.id: encode_keys(key_columns(view.published, labels).drop_nulls().unique(), view.entity)
            for view in views
        }
        found = rebuilt_for(self._archive, views, keys, last_instant(labels, timestamp))

        def log_of(view: View) -> RebuiltLog:
            one = found[view.id]
            return RebuiltLog(
                view=view,
                title=f"the rebuild of {view.id} from {self._archive}",
                rows=one.rows,
                since_us=one.since_us,
                first_since_us=one.first_since_us,
                complete_to_us=one.complete_to_us,
            )

        return log_of

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


def _compiled(definitions: Definitions) -> Plan:
    if isinstance(definitions, Plan):
        return definitions
    if isinstance(definitions, str | os.PathLike):
        return load(Path(definitions))
    return load(*(Path(path) for path in definitions))


def _refuse_difference(logged: pl.DataFrame, rebuilt: pl.DataFrame) -> None:
    """Raise ``LayoutError`` if an answer from the log is not the one from events, bit for bit."""
    for name in logged.columns:
        pairs = zip(logged[name].to_list(), rebuilt[name].to_list(), strict=True)
        differing = [row for row, (one, other) in enumerate(pairs) if one != other or repr(one) != repr(other)]
        if differing:
            row = differing[0]
            raise LayoutError(
                f"{name}: {len(differing)} of {len(logged)} labels have another value in the log than the archived events give; the "
                f"first is row {row}: {logged[name][row]!r} in the log, {rebuilt[name][row]!r} from events. Run unskew audit, which "
                "says for which instants the archive holds everything"
            )
