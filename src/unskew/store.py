"""``FeatureStore``: the same features for serving and for training, with the method names that people know."""

import datetime as dt
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np
import polars as pl
import redis
from typing_extensions import override

from unskew import settings
from unskew.features.definitions import vocabulary
from unskew.features.definitions.load import load
from unskew.features.errors import LayoutError, RequestError
from unskew.features.extras import needed
from unskew.features.frames import Given, Table, read_table
from unskew.features.keys import encode_keys
from unskew.features.local import local_path
from unskew.features.on_demand import OnDemandView
from unskew.features.on_request import with_read
from unskew.features.plan import Plan, ViewPlan
from unskew.features.references import is_service, key_columns, named_views, requested_us, resolve, texts
from unskew.features.registry import Published
from unskew.features.service import Service
from unskew.features.time import MAX_INSTANT_US
from unskew.features.versions import Versions
from unskew.features.view import View
from unskew.features.warming import Statuses
from unskew.offline.bar import shown
from unskew.offline.catalogue import catalogue
from unskew.offline.history import EntityHistory, entity_history, entity_row
from unskew.offline.join import Historical, Outside, Progress, historical_features, instants_of
from unskew.offline.log_reader import RebuiltLog, ViewLog
from unskew.offline.logged import all_logged, with_logged
from unskew.offline.manifest import (
    JoinRule,
    LogPosition,
    Manifest,
    PartitionPosition,
    Source,
    TablePart,
    clock_us,
    columns_of,
    position,
)
from unskew.offline.training_set import HistoricalFeatures, Origin
from unskew.offline.version_spans import Spans, check_spans, each_version
from unskew.serving.online import OnlineFeatures, OnlineReader
from unskew.serving.sample import SERVED, Sampler
from unskew.sinks.objects import table_path
from unskew.sinks.wall import wall_us

Features = Sequence[str] | str | vocabulary.Service | Service
Expect = Manifest | str | os.PathLike[str]
Definitions = Plan | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class FeatureStore:
    """Reads what the pipeline wrote: current values from Redis, and values at any covered instant from the log.

    ``definitions``: a compiled ``Plan``, or definition files and folders; by default the features that the registry in
    Redis describes, which the store follows as it changes. ``redis_url``: a URL or a client of redis-py. ``log``: the
    folder of the Parquet log. ``archive``: the folder of the event archive. Both may be in an object store
    (``s3://bucket/log``, ``gs://``, ``az://``), whose credentials the usual variables of the environment hold. Online
    reads need only ``redis_url``, historical reads only ``log``, which holds the definitions with which it was written,
    or the definitions and ``archive``; the store connects at the first use. ``prefix``, ``pipeline``: as `unskew run`
    has them, by default "unskew" and "main". ``FeatureStore()`` alone takes all of these from the environment, by the
    names that the commands know: ``UNSKEW_DEFINITIONS``, ``UNSKEW_REDIS_URL``, ``UNSKEW_LOG``, ``UNSKEW_ARCHIVE``,
    ``UNSKEW_PREFIX``, ``UNSKEW_PIPELINE``.

    A store is a context manager, which closes its connections. It can be pickled, for workers of Spark, Ray or torch,
    if it was given a URL: each then makes connections of its own.
    ``max_lag``: how far the pipeline's clock may be behind the present before the status is ``lagging``, for example
    ``"5min"``; with None it never is.
    ``timeout``: how long an online read waits for a connection or for a reply before it tries again; after three tries
    it raises ``StoreUnavailable``. What the URL says (``socket_timeout``) goes before it, and a client of redis-py
    keeps its own.
    ``cache``: for how long an online read may be answered again from this process's memory, for example ``"1s"``, if
    the same features of the same entities are asked for. Such an answer is the one of the instant at which it was read:
    its ``as_of``, status and ``now`` say so. It is never older than this; a registry that changed may be noticed as
    much later.
    ``sample``: a folder for a small sample of what online reads return, for `unskew audit --served`: at most one row in
    a second and 64 MiB; True for the folder ``_served`` of ``log``, False for none.
    """

    def __init__(
        self,
        definitions: Definitions | None = None,
        *,
        redis_url: "str | redis.Redis | redis.RedisCluster | None" = None,
        log: str | os.PathLike[str] | None = None,
        archive: str | os.PathLike[str] | None = None,
        prefix: str | None = None,
        pipeline: str | Sequence[str] | None = None,
        max_lag: str | dt.timedelta | None = None,
        timeout: str | dt.timedelta = "250ms",
        cache: str | dt.timedelta | None = None,
        now_us: Callable[[], int] = wall_us,
        sample: str | os.PathLike[str] | bool = False,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        if definitions is None and redis_url is None and log is None and archive is None:
            given = settings.of_environment()
            definitions, redis_url, log, archive = given.definitions or None, given.redis_url, given.log, given.archive
            prefix = given.prefix if prefix is None else prefix
            pipeline = given.pipeline if pipeline is None else pipeline
        self._redis_url = redis_url
        self._plan = None if definitions is None else _compiled(definitions)
        self._pinned = None if self._plan is None else Published.of(self._plan)
        self._log = None if log is None else table_path(log, "log")
        self._archive = None if archive is None else table_path(archive, "archive")
        self._reader = None
        if redis_url is not None:
            self._reader = OnlineReader(
                redis_url,
                "unskew" if prefix is None else prefix,
                "main" if pipeline is None else pipeline,
                views=self._pinned,
                max_lag_us=None if max_lag is None else requested_us(max_lag, "max_lag"),
                now_us=now_us,
                sampler=_sampler(sample, self._log),
                timeout_s=requested_us(timeout, "timeout") / 1e6,
                cache_s=None if cache is None else requested_us(cache, "cache") / 1e6,
            )

    def get_online_features(
        self,
        features: Features,
        entity_rows: Table,
        *,
        full_feature_names: bool = False,
        with_status: bool = False,
        now: dt.datetime | str | None = None,
        expect: Expect | None = None,
    ) -> OnlineFeatures:
        """Return the current values of ``view:feature`` references, one row for each entity row.

        ``view@2:feature`` names a version, ``view:feature`` means the one that serves. A service, or its name, in place
        of the list means its features, in its order and in the versions that it has pinned.

        ``entity_rows``: a list of dicts, a frame of Polars or pandas, an Arrow table, or a DuckDB relation. The answer
        has ``to_dict()``, ``to_df()`` and, for each view, ``metadata`` with ``as_of`` and status. Columns are named
        after the feature, or ``view__feature`` with ``full_feature_names``. ``with_status``: adds a column
        ``{feature column}__status`` beside each feature. ``expect``: what the model was trained with: a ``Manifest``,
        the path of its file, or its ``features_digest``. Raises ``OtherFeatures`` if the features, in their order, are
        of other versions, types, definitions or defaults; otherwise ``RequestError`` and ``StoreUnavailable``, see
        ``OnlineReader.read``.

        On-demand features take their inputs from further columns of ``entity_rows``. ``now``: the instant that ``now``
        is in their expressions, by default the one at which the values were read; ``now`` of the answer has it.
        """
        return _as_expected(
            expect,
            self._online().read(
                _named(features),
                entity_rows,
                full_feature_names=full_feature_names,
                with_status=with_status,
                now=now,
            ),
        )

    async def get_online_features_async(
        self,
        features: Features,
        entity_rows: Table,
        *,
        full_feature_names: bool = False,
        with_status: bool = False,
        now: dt.datetime | str | None = None,
        expect: Expect | None = None,
    ) -> OnlineFeatures:
        """Return what ``get_online_features`` returns, without blocking the event loop.

        Reads of one event loop share a connection to Redis; those of a cluster, or over TLS, are made in threads.
        """
        return _as_expected(
            expect,
            await self._online().read_async(
                _named(features),
                entity_rows,
                full_feature_names=full_feature_names,
                with_status=with_status,
                now=now,
            ),
        )

    def _online(self) -> OnlineReader:
        if self._reader is None:
            raise RequestError(
                "online features are read from Redis: give FeatureStore a redis_url, or set UNSKEW_REDIS_URL"
            )
        return self._reader

    @needed("a training set")
    def get_historical_features(
        self,
        entity_df: Table,
        features: Features,
        *,
        timestamp: str = "event_timestamp",
        inclusive: bool = False,
        outside: Outside = "error",
        max_age: str | dt.timedelta | None = None,
        full_feature_names: bool = False,
        with_status: bool = False,
        source: Source = "log",
        versions: Spans | None = None,
        as_served: bool = False,
        progress: Progress | bool = False,
    ) -> HistoricalFeatures:
        """Return the values of ``view:feature`` references at each label row's instant, exactly as served then.

        ``view@2:feature`` names a version; the log also answers for versions that are defined nowhere any more. The
        name of a service means its features, as for ``get_online_features``; services are known from definitions or
        from the registry in Redis.

        ``entity_df``: key columns, the column ``timestamp`` and any other columns, all of which are kept as they are: a
        frame of Polars or pandas, an Arrow table, a DuckDB relation, or a list of dicts. ``inclusive``: whether values
        that became available at exactly that instant count; by default they do not, so that a label that is itself an
        event does not see itself. ``outside``: "error" refuses labels earlier than the first event that the pipeline
        saw and labels later than the log is complete; "null" gives them nulls. ``max_age``: a row that last changed
        longer ago than this reads as nulls and defaults. ``with_status``: adds a column ``{feature}__status`` beside
        each feature; ``summary`` of the answer counts them in any case. ``progress``: True shows a bar while the log is
        read; a function is called with what is read, the rows read so far, and all rows.

        ``versions``: the versions that answer for a view together, for example ``{"user_purchases": [1, 2]}``, for
        features that are requested without a version. Each label is answered by the highest of them whose history (the
        instant ``since`` of its log) begins at or before the label's instant, by the lowest if none does; the column
        ``user_purchases__version`` says by which. The feature must have the same type in all of them.

        ``source``: "log" reads what was served. "events" computes the values from the archived events, with the kernel
        of the stream, for the labels' entities: also of views and features that no pipeline has ever computed, as if
        one had done so since the archive begins. "both" does both, and raises ``LayoutError`` if they differ.

        On-demand features, known from definitions or from the registry in Redis, take their inputs from columns of the
        labels, and ``now`` in their expressions is the label's instant.

        ``as_served``: compares the labels with the wall clock at which each row was written, in place of the instant
        from which its values were valid: about what a reader got, lag included. What a backfill wrote later was not
        served. A clock that was set back makes it wrong by as much.

        The answer also has a ``manifest``, from which ``reproduce`` makes the same training set again, ``split``,
        ``to_parquet``, and a summary where it is shown.

        Raises ``RequestError`` for unknown names and for labels outside of the log; ``LayoutError`` for a log of other
        definitions. See ``offline.join.historical_features``.
        """
        if source not in {"log", "events", "both"}:
            raise RequestError(f'source is "log", "events" or "both", not {source!r}')
        if versions is not None and source != "log":
            raise RequestError(
                "versions are spanned in the log alone, which knows from when on each could answer; leave out source (--source), or request "
                "view@1:feature and view@2:feature side by side"
            )
        if as_served and source != "log":
            raise RequestError(
                "only a log knows when values were written: leave out as_served (--as-served), or source (--source)"
            )
        rule = JoinRule(
            timestamp=timestamp,
            inclusive=inclusive,
            outside=outside,
            max_age_us=None if max_age is None else requested_us(max_age, "max_age"),
            full_feature_names=full_feature_names,
            with_status=with_status,
            on="written_at" if as_served else "available_at",
        )
        features = _named(features)
        on_demand = self._on_demand()
        if is_service(features):
            if versions:
                raise RequestError(f"the service {features} has pinned its versions; leave out versions")
            service = self._published().service(features)
            views, features = self._published().views_of(service), service.references
            rule = msgspec.structs.replace(rule, service=service.name)
        else:
            of_views = with_read(texts(features), on_demand)
            rule = msgspec.structs.replace(rule, versions=_checked(of_views, versions))
            views = self._named(named_views(each_version(of_views, rule.versions)))
        known = Published(views=views, on_demand=on_demand)
        return self._trained(read_table(entity_df), known, features, source, rule, progress=progress)

    @needed("a training set")
    def reproduce(
        self,
        entity_df: Table,
        manifest: "Manifest | str | os.PathLike[str]",
        *,
        progress: Progress | bool = False,
    ) -> HistoricalFeatures:
        """Return the training set of a manifest again, to the last bit.

        ``entity_df``: the labels that it was made with. ``manifest``: of an earlier answer, or the path of its file.
        The views are read by the definitions in the manifest, at the position that it names, so nothing that was
        written since then counts; compaction does not matter. From a log, nothing but the log is needed; from events,
        the archive and definitions whose state fingerprint is the same.

        Raises ``RequestError`` for a file that is not a manifest, and for other labels; ``LayoutError`` for another
        definition, for a log or archive that does not hold the position any more, and if the values are other ones all
        the same.
        """
        if isinstance(manifest, Manifest):
            name, wanted = "the manifest", manifest
        else:
            path = local_path(manifest, "the manifest")
            name, wanted = str(path), Manifest.read(path)
        labels = read_table(entity_df)
        if difference := wanted.labels.difference(TablePart.of(labels.n_rows, columns_of(labels))):
            raise RequestError(
                f"these are not the labels of {name}: {difference}; give the table that it was made with"
            )
        found = self._trained(
            labels,
            Published(
                views=Versions(part.view(name) for part in wanted.views), on_demand=wanted.on_demand_features(name)
            ),
            [f"{part.named}:{part.feature}" for part in wanted.features],
            wanted.source,
            wanted.join,
            progress=progress,
            again=wanted,
        )
        if difference := wanted.output.difference(found.manifest.output):
            raise LayoutError(
                f"the training set is not that of {name}: {difference}. Since then the log or the archive was changed: old days were "
                "removed, an entity was erased, or files were exchanged"
            )
        return found

    def features(self) -> pl.DataFrame:
        """Return what exists: a row for each feature, with its reference, type, window, description and owner.

        These are the features of the definitions, else of the registry in Redis, else of the log.
        """
        if self._pinned is None and self._reader is None and self._log is not None:
            return catalogue(all_logged(self._log))
        known = self._published()
        return catalogue(known.views, known.on_demand.values())

    def services(self) -> dict[str, Service]:
        """Return the services of the definitions, else of the registry in Redis, by name."""
        return dict(self._published().services)

    @needed("the history of an entity")
    def history(
        self,
        view: str,
        entity_key: object,
        *,
        source: Literal["log", "events"] = "log",
        progress: Progress | bool = False,
    ) -> EntityHistory:
        """Return every row of a view's log about one entity, in the order of time; ``plot`` of it draws its features.

        ``entity_key``: the key; for a key of several columns, a mapping or a sequence of all of them. ``source``: "log"
        has what was served, "events" computes what a log would hold from the archived events. The whole log, or all
        events of the stream, are read.

        Raises ``RequestError`` for an unknown view and a key that does not fit it; ``LayoutError`` as the join does.
        """
        if source not in {"log", "events"}:
            raise RequestError(f'source is "log" or "events", not {source!r}')
        found = self._named([view]).find(view)
        with shown(progress) as report:
            if source == "events":
                labels = read_table([entity_row(found, entity_key)])
                reference = f"{found.id}:{found.features[0].name}"
                rebuilt = self._rebuilt(labels, Versions([found]), [reference], None, None, report)
                return entity_history(rebuilt.log(found), entity_key, report)
            if self._log is None:
                raise RequestError("the history is read from the log: give its folder as log (--log)")
            return entity_history(ViewLog(self._log, found), entity_key, report)

    def _trained(
        self,
        labels: Given,
        known: Published,
        features: Sequence[str],
        source: Source,
        rule: JoinRule,
        *,
        progress: Progress | bool,
        again: Manifest | None = None,
    ) -> HistoricalFeatures:
        """Return the training set that the arguments describe; ``again``: at the positions of that manifest."""
        read = partial(
            historical_features,
            views=known.views,
            on_demand=known.on_demand,
            labels=labels,
            features=features,
            timestamp=rule.timestamp,
            inclusive=rule.inclusive,
            outside=rule.outside,
            max_age=None if rule.max_age_us is None else dt.timedelta(microseconds=rule.max_age_us),
            full_feature_names=rule.full_feature_names,
            with_status=rule.with_status,
            as_served=rule.on == "written_at",
            versions=rule.versions,
        )
        if source != "events" and self._log is None:
            raise RequestError("historical features are read from the log: give its folder as log (--log)")
        with shown(progress) as report:
            rebuilt = None
            if source != "log":
                of_views = with_read(features, known.on_demand)
                rebuilt = self._rebuilt(labels, known.views, of_views, rule.timestamp, again, report)
            if source == "events":
                assert rebuilt is not None
                found = read(rebuilt.log, progress=report)
            else:
                assert self._log is not None
                found = read(self._log if again is None else _earlier(self._log, again), progress=report)
        uncompared: dict[str, int] = {}
        if source == "both":
            assert rebuilt is not None
            uncompared = _refuse_difference(found, read(rebuilt.log))
        logs = {view_id: LogPosition.of(span.coverage) for view_id, span in found.spans.items()}
        origin = Origin(
            source,
            rule,
            logs={} if source == "events" else logs,
            archive={} if rebuilt is None else rebuilt.positions,
            uncompared=uncompared,
        )
        return HistoricalFeatures(labels, found.columns, found, origin)

    def _rebuilt(
        self,
        labels: Given,
        views: Versions[View],
        features: Sequence[str],
        timestamp: str | None,
        again: Manifest | None,
        progress: Progress,
    ) -> "_Rebuilt":
        """Return the rebuilt logs of the requested views, for the labels' entities.

        ``timestamp``: the column of the labels' instants; None for all that is archived.
        """
        from unskew.pipelines.history.archive import Reached  # noqa: PLC0415 - imports what only pipelines need
        from unskew.pipelines.history.training import rebuilt_for  # noqa: PLC0415 - the same

        if self._plan is None:
            raise RequestError("features are computed from events by their definitions: give the definitions")
        if self._archive is None:
            raise RequestError(
                "features are computed from the archived events: give their folder as archive (--archive)"
            )
        asked = {one.view.id: one.view for one in resolve(features, views, full_feature_names=True)}
        defined = [_defined(self._plan, view) for view in asked.values()]
        keys = {
            view.id: encode_keys(key_columns(view.published, labels).drop_nulls().unique(), view.entity)
            for view in defined
        }
        until_us = MAX_INSTANT_US
        if timestamp is not None:
            instants = instants_of(labels, timestamp)
            until_us = int(instants.max()) if len(instants) else 0
        ends = None
        if again is not None:
            ends = {
                topic: {
                    partition: Reached(offset=part.offset, clock_us=clock_us(part), ended=part.ended)
                    for partition, part in parts.items()
                }
                for topic, parts in again.archive.items()
            }
        rebuilt = rebuilt_for(self._archive, defined, keys, until_us, ends, progress)

        def log_of(view: View) -> RebuiltLog:
            one = rebuilt.views[view.id]
            return RebuiltLog(
                view=view,
                title=f"the rebuild of {view.id} from {self._archive}",
                rows=one.rows,
                since_us=one.since_us,
                first_since_us=one.first_since_us,
                complete_to_us=one.complete_to_us,
            )

        return _Rebuilt(
            log_of,
            {
                topic: {
                    partition: position(reached.offset, reached.clock_us, ended=reached.ended)
                    for partition, reached in end.items()
                }
                for topic, end in rebuilt.ends.items()
            },
        )

    def _published(self) -> Published:
        if self._pinned is not None:
            return self._pinned
        if self._reader is None:
            raise RequestError("give FeatureStore the definitions, or a redis_url under which they are published")
        return self._reader.published()

    def _on_demand(self) -> Mapping[str, OnDemandView]:
        return {} if self._pinned is None and self._reader is None else self._published().on_demand

    def _named(self, names: Sequence[str]) -> Versions[View]:
        """Return the views for requests of the past: a log also holds versions that are defined nowhere any more."""
        known = None if self._pinned is None and self._reader is None else self._published().views
        if self._log is None:
            return self._published().views if known is None else known
        return with_logged(self._log, names, known)

    def close(self) -> None:
        """Close the connections; the store holds nothing else."""
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @override
    def __repr__(self) -> str:
        given = {
            "definitions": None if self._plan is None else ", ".join(self._plan.views),
            "redis": self._reader,
            "log": self._log,
            "archive": self._archive,
        }
        return f"FeatureStore({'; '.join(f'{name}: {value}' for name, value in given.items() if value is not None)})"

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._redis_url, redis.Redis | redis.RedisCluster):
            raise TypeError("a FeatureStore with a client of redis-py cannot be pickled: give it the URL in its place")
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]


@dataclass(frozen=True)
class _Rebuilt:
    """The logs of views as rebuilt from events, and the positions in the archive up to which events were read."""

    log: Callable[[View], RebuiltLog]
    positions: Mapping[str, Mapping[int, PartitionPosition]]


def _defined(plan: Plan, view: View) -> ViewPlan:
    """Return the plan of a view; raises ``LayoutError`` if the definitions are not those of this view."""
    if view.id not in plan.views:
        raise LayoutError(f"the definitions have no {view.id}, from whose events the training set was made; add it")
    found = plan.views[view.id]
    if found.published.state_fingerprint != view.state_fingerprint:
        raise LayoutError(
            f"the training set was made with another definition of {view.id} (state fingerprint {view.state_fingerprint}, now "
            f"{found.published.state_fingerprint}); give the definitions of then"
        )
    return found


def _earlier(log_root: Path, manifest: Manifest) -> Callable[[View], ViewLog]:
    """Return a function that opens a view's log at the position of a manifest."""
    positions = {part.id: part.log for part in manifest.views}

    def opened(view: View) -> ViewLog:
        position = positions[view.id]
        return ViewLog(log_root, view, at=None if position is None else position.coverage())

    return opened


def _checked(features: Sequence[str], versions: Spans | None) -> dict[str, tuple[int, ...]]:
    """Return the versions of a request. Raises ``RequestError``."""
    if versions is None:
        return {}
    check_spans(features, versions)
    return {name: tuple(numbers) for name, numbers in versions.items()}


def _sampler(sample: object, log: Path | None) -> Sampler | None:
    if sample is False:
        return None
    if isinstance(sample, str | os.PathLike):
        return Sampler(local_path(sample, "sample"))
    if sample is True:
        if log is None:
            raise RequestError("sample=True writes into the folder of the log: give log=, or a folder with sample=")
        return Sampler(log / SERVED)
    raise RequestError(f"sample is a folder, True or False, not {sample!r}")


def _as_expected(expect: Expect | None, found: OnlineFeatures) -> OnlineFeatures:
    """Return what was read. Raises ``OtherFeatures`` if these are not the features that are expected."""
    match expect:
        case None:
            return found
        case Manifest():
            found.require(expect.expected())
        case str() if _DIGEST.fullmatch(expect):
            found.require(expect)
        case str() | os.PathLike():
            path = local_path(expect, "expect")
            found.require(Manifest.read(path).expected(str(path)))
        case _:
            raise RequestError(f"expect is a manifest, its path, or its features_digest, not {expect!r:.80}")
    return found


def _named(features: Features) -> Sequence[str] | str:
    """Return references, or the name of a service."""
    return features.name if isinstance(features, Service | vocabulary.Service) else features


def _compiled(definitions: Definitions) -> Plan:
    if isinstance(definitions, Plan):
        return definitions
    if isinstance(definitions, str | os.PathLike):
        return load(Path(definitions))
    return load(*(Path(path) for path in definitions))


_GAPS = (Statuses.before_log, Statuses.after_log, Statuses.warming)


def _refuse_difference(log: Historical, events: Historical) -> dict[str, int]:
    """Raise ``LayoutError`` if an answer from the log is not the one from events, bit for bit.

    Labels for which log and archive do not reach equally far back or ahead cannot be compared; returns, by column, how
    many these are.
    """
    uncompared: dict[str, int] = {}
    logged, rebuilt = log.columns, events.columns
    for name in logged.columns:
        column = name if name in log.statuses else name.removesuffix("__status")
        one_s, other_s = log.statuses[column], events.statuses[column]
        gap = (one_s != other_s) & (np.isin(one_s, _GAPS) | np.isin(other_s, _GAPS))
        if n_gaps := int(gap.sum()):
            uncompared[column] = n_gaps
        pairs = zip(logged[name].to_list(), rebuilt[name].to_list(), gap.tolist(), strict=True)
        differing = [
            row
            for row, (one, other, left_out) in enumerate(pairs)
            if not left_out and (one != other or repr(one) != repr(other))
        ]
        if differing:
            row = differing[0]
            raise LayoutError(
                f"{name}: {len(differing)} of {len(logged)} labels have another value in the log than the archived events give; the "
                f"first is row {row}: {logged[name][row]!r} in the log, {rebuilt[name][row]!r} from events. Run unskew audit, which "
                "says for which instants the archive holds everything"
            )
    return uncompared
