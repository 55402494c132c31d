"""The audit: for the same instants, the log's join, Redis and a recount over the raw events are identical bit for bit."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.plan import Plan, ViewPlan
from unskew.features.registry import RegisteredView, register
from unskew.features.time import format_instant
from unskew.monitoring.recount import Key, Recount, Values, identical
from unskew.offline.join import joined
from unskew.offline.log import ViewLog
from unskew.serving.online import OnlineReader
from unskew.sinks.layout import published_files

Where = Literal["log", "redis"]
Progress = Callable[[str, int, int], None]

_BATCH = 2_000
_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two sides disagree: ``found`` in log or Redis, ``expected`` by the recount."""

    where: Where
    view: str
    entity: Key
    instant_us: int
    feature: str
    found: object
    expected: object

    def __str__(self) -> str:
        entity = "|".join(str(part) for part in self.entity)
        return (
            f"{self.view} of {entity} at {format_instant(self.instant_us)}: {self.feature} is {self.found!r} in the "
            f"{'log' if self.where == 'log' else 'online store'}, and {self.expected!r} by the recount"
        )


@dataclass(kw_only=True)
class ViewAudit:
    """What was compared of one view.

    ``samples``: (entity, instant) pairs, of them ``on_arrivals`` and ``on_hops`` at such an instant exactly, ``beside``
    one microsecond from one, the others anywhere; ``non_empty``: with some event in some window. ``entities``: read from
    Redis and compared, ``entities_present`` of them with a row there; ``ahead``: left out, because Redis was past what log
    and archive had published. ``events``: in the recount. ``engines``: who evaluated the SQL and other expressions.
    """

    view: str
    events: int
    samples: int = 0
    on_arrivals: int = 0
    on_hops: int = 0
    beside: int = 0
    non_empty: int = 0
    entities: int = 0
    entities_present: int = 0
    ahead: int = 0
    engines: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class AuditReport:
    """What was compared, and the first difference, None where there is none."""

    views: list[ViewAudit] = field(default_factory=list)
    difference: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class _Online:
    """What Redis held of one view, entity by entity: read before the archive, so that the archive can catch up with it."""

    values: pl.DataFrame
    as_of: pl.Series


def audit(
    plan: Plan,
    log_root: Path,
    archive_root: Path,
    *,
    redis_source: str | None = None,
    prefix: str = "unskew",
    pipeline: str = "main",
    samples: int = 2_000,
    seed: int = 0,
    patience_s: float = 15.0,
    progress: Progress = lambda _step, _done, _total: None,
) -> AuditReport:
    """Compare, and stop at the first difference.

    ``samples``: (entity, instant) pairs over all views together, drawn with ``seed``: mostly instants at which an event
    arrived or left a window, and their neighbours; none later than the log is complete. ``redis_source``: a URL;
    then every entity of the archive is read there too, those whose key is gone included, and compared as of the instant
    that the reader states. ``patience_s``: how long log and archive of a running pipeline may take to publish up to there.

    Raises ``RequestError`` where there is nothing to compare, or the archive lacks events that the log was computed from.
    """
    report = AuditReport()
    rng = random.Random(seed)  # noqa: S311  a sample, no secret
    share = -(-samples // max(1, len(plan.views)))
    for view in plan.views.values():
        online = None
        if redis_source is not None:
            keys = _entities(_archived(archive_root, view, whole=False), view)
            online = _read_online(redis_source, prefix, pipeline, view, keys, progress)
            _wait_for_log(log_root, view, online, patience_s)
        events = _archived(archive_root, view, whole=True)
        log = ViewLog(log_root, register(view))
        _refuse_missing_events(log, events)
        recount = Recount(view, events)
        result = ViewAudit(view=view.id, events=recount.n_events, engines=recount.engines)
        report.views.append(result)
        report.difference = _compare_log(
            log, recount, share, rng, result, progress, first_us=_first_exact(log, events, view)
        )
        if report.difference is None and online is not None:
            report.difference = _compare_online(online, log, recount, result, progress)
        if report.difference is not None:
            return report
    _refuse_vacuous(report, online=redis_source is not None)
    return report


def _compare_log(
    log: ViewLog,
    recount: Recount,
    n_samples: int,
    rng: random.Random,
    result: ViewAudit,
    progress: Progress,
    *,
    first_us: int,
) -> Difference | None:
    complete_to = log.complete_to_us
    if complete_to is None:
        raise RequestError(
            f"the log of {result.view} under {log.root} is not complete to any instant yet; run the pipeline"
        )
    if not len(recount.entities):
        return None
    drawn = _draw(recount, n_samples, rng, result, first_us, complete_to)
    key_names = recount.view.entity.keys
    keys = pl.DataFrame([key for key, _ in drawn], schema=recount.entities.schema, orient="row").select(key_names)
    instants = np.array([t_us for _, t_us in drawn], np.int64)
    stored = joined(log, keys, instants)
    empty = recount.values((), 0)
    for number, ((key, t_us), found) in enumerate(zip(drawn, stored.iter_rows(named=True), strict=True)):
        if number % 100 == 0:
            progress(f"{result.view}: log", number, len(drawn))
        expected = recount.values(key, t_us)
        result.samples += 1
        result.non_empty += not identical(expected, empty)
        if not identical(found, expected):
            return _first_difference("log", result.view, key, t_us, found, expected)
    progress(f"{result.view}: log", len(drawn), len(drawn))
    return None


def _draw(
    recount: Recount, n_samples: int, rng: random.Random, result: ViewAudit, first_us: int, last_us: int
) -> list[tuple[Key, int]]:
    """Pairs of entity and instant in [first, last]: half of the entities by their events, half all alike."""
    n_events = recount.events_per_entity.to_list()
    keys = recount.entities.rows()
    if first_us > last_us:
        raise RequestError(
            f"{result.view}: the archive begins too late for the log: nothing can be recounted before {format_instant(first_us)}"
        )
    drawn: list[tuple[Key, int]] = []
    by_events = rng.choices(range(len(keys)), weights=n_events, k=n_samples)
    for busy in by_events:
        entity = busy if rng.random() < 0.5 else rng.randrange(len(keys))
        drawn.append(
            (keys[entity], _draw_instant(recount, keys[entity], n_events[entity], rng, result, first_us, last_us))
        )
    return drawn


def _draw_instant(
    recount: Recount, key: Key, n_events: int, rng: random.Random, result: ViewAudit, first_us: int, last_us: int
) -> int:
    kind = rng.choices(["arrival", "hop", "any"], weights=[45, 45, 10])[0]
    for _ in range(_DRAWS if kind != "any" else 0):
        arrival, leaves = recount.instants(key, rng.randrange(n_events))
        step = rng.choice([0, 0, 0, -1, 1])
        t_us = (arrival if kind == "arrival" else rng.choice(leaves)) + step
        if first_us <= t_us <= last_us:
            result.beside += step != 0
            result.on_arrivals += step == 0 and kind == "arrival"
            result.on_hops += step == 0 and kind == "hop"
            return t_us
    return rng.randint(first_us, last_us)


def _compare_online(
    online: _Online, log: ViewLog, recount: Recount, result: ViewAudit, progress: Progress
) -> Difference | None:
    covered = _covered_us(log)
    key_names = list(recount.view.entity.keys)
    names = [feature.name for feature in recount.view.features]
    empty = recount.values((), 0)
    instants = online.as_of.to_physical().to_list()
    rows = online.values.select(*key_names, *(f"{recount.view.name}__{name}" for name in names)).iter_rows()
    for number, (row, t_us) in enumerate(zip(rows, instants, strict=True)):
        if number % _BATCH == 0:
            progress(f"{result.view}: Redis", number, len(instants))
        if t_us is None:
            raise RequestError(
                f"Redis has no clock of {result.view}; is it the pipeline and the prefix that wrote there?"
            )
        if t_us > covered:
            result.ahead += 1
            continue
        key, found = row[: len(key_names)], dict(zip(names, row[len(key_names) :], strict=True))
        expected = recount.values(key, t_us)
        result.entities += 1
        result.entities_present += not identical(found, empty)
        if not identical(found, expected):
            return _first_difference("redis", result.view, key, t_us, found, expected)
    progress(f"{result.view}: Redis", len(instants), len(instants))
    return None


def _read_online(
    source: str, prefix: str, pipeline: str, view: ViewPlan, keys: pl.DataFrame, progress: Progress
) -> _Online:
    reader = OnlineReader(source, prefix, pipeline, views={view.name: _without_defaults(register(view))})
    references = [f"{view.name}:{feature.name}" for feature in view.features]
    values, as_of = [], []
    try:
        for first in range(0, max(1, len(keys)), _BATCH):
            progress(f"{view.id}: reading Redis", first, len(keys))
            answer = reader.read(references, keys[first : first + _BATCH], full_feature_names=True)
            values.append(answer.to_polars())
            as_of.append(answer.metadata[view.name]["as_of"])
    finally:
        reader.close()
    return _Online(values=pl.concat(values), as_of=pl.concat(as_of))


def _without_defaults(view: RegisteredView) -> RegisteredView:
    """Defaults stand in for null at reading; the audit compares what is stored."""
    features = tuple(msgspec.structs.replace(feature, default=None) for feature in view.features)
    return msgspec.structs.replace(view, features=features)


def _wait_for_log(log_root: Path, view: ViewPlan, online: _Online, patience_s: float) -> None:
    """Give a running pipeline time to publish what Redis already shows."""
    newest = online.as_of.to_physical().max()
    deadline = time.monotonic() + patience_s
    while newest is not None and _covered_us(ViewLog(log_root, register(view))) < int(newest):  # type: ignore[arg-type]
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)


def _covered_us(log: ViewLog) -> int:
    """The open instant of the shard that is furthest: what arrived by then may be published."""
    shards = log.coverage.shards.values() if log.coverage is not None else ()
    closed = [shard.complete_to_us for shard in shards if shard.complete_to_us is not None]
    return max(closed) + 1 if closed else -(2**63)


def _archived(archive_root: Path, view: ViewPlan, *, whole: bool) -> pl.DataFrame:
    """The raw events of the view's stream, of ``whole`` rows what the view reads, else its keys alone."""
    columns = list(view.entity.keys)
    if whole:
        expressions = [view.where, *view.filters, *view.values]
        roots = {name for one in expressions if one is not None for name in one.expr.meta.root_names()}
        columns += [*sorted(roots - set(columns)), "_partition", "_offset", "_arrival", "_event_time"]
    files = published_files(archive_root / view.stream.topic)
    if not files:
        raise RequestError(
            f"there are no archived events of topic {view.stream.topic} under {archive_root}; "
            "give the folder that `unskew run --archive` writes to"
        )
    return pl.scan_parquet([file.path for file in files], hive_partitioning=False).select(columns).collect()


def _entities(events: pl.DataFrame, view: ViewPlan) -> pl.DataFrame:
    return events.select(view.entity.keys).drop_nulls().unique(maintain_order=True)


def _first_exact(log: ViewLog, events: pl.DataFrame, view: ViewPlan) -> int:
    """The first instant whose windows the archive holds whole."""
    archived = int(events["_arrival"].to_physical().min())  # type: ignore[arg-type]
    shards = log.coverage.shards.values() if log.coverage is not None else ()
    since = min((shard.since_us for shard in shards if shard.since_us is not None), default=archived)
    if archived <= since:
        return archived
    return archived + max(window.extent_us + window.hop_us for window in view.windows)


def _refuse_missing_events(log: ViewLog, events: pl.DataFrame) -> None:
    """Every event that the log names must be in the archive, from the archive's beginning on."""
    first = events["_arrival"].min()
    known = events.select(pl.col("_partition").alias("partition"), pl.col("_offset").alias("offset"))
    for chunk in log.newest_first(["partition", "offset", "available_at"]):
        named = chunk.drop_nulls().filter(pl.col("available_at") >= first)
        missing = named.join(known, on=["partition", "offset"], how="anti")
        if len(missing):
            partition, offset, at = missing.row(0)
            raise RequestError(
                f"the archive lacks {len(missing)} events that {log.view.name}@{log.view.version} was computed from, "
                f"first partition {partition}, offset {offset} ({at}): it is not this log's archive, or files are missing"
            )


def _refuse_vacuous(report: AuditReport, *, online: bool) -> None:
    """Agreement about nothing is no agreement."""
    if not sum(view.non_empty for view in report.views):
        raise RequestError("nothing was compared: no sampled value was other than empty")
    if online and not sum(view.entities for view in report.views):
        raise RequestError(
            "nothing in Redis was compared: all of it is past what the log has published; wait for the next epoch"
        )


def _first_difference(where: Where, view: str, key: Key, t_us: int, found: Values, expected: Values) -> Difference:
    feature = next(name for name in expected if not identical({name: found[name]}, {name: expected[name]}))
    return Difference(
        where=where,
        view=view,
        entity=key,
        instant_us=t_us,
        feature=feature,
        found=found[feature],
        expected=expected[feature],
    )
