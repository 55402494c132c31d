"""The audit: compares the log's join, Redis and a recount of the raw events at the same instants, bit for bit."""

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import LayoutError, RequestError
from unskew.features.keys import decode_keys, encode_keys
from unskew.features.plan import Plan, ViewPlan
from unskew.features.time import format_instant
from unskew.features.view import View
from unskew.monitoring.log_rows import compare_origins, compare_rows, named_events
from unskew.monitoring.outcome import AuditReport, ViewAudit, stray
from unskew.monitoring.reach import NamedEvents, Reach, seen
from unskew.monitoring.recount import Key, Recount, Values, identical
from unskew.offline.join import joined
from unskew.offline.log_reader import RebuiltLog, ViewLog
from unskew.pipelines.history.archive import META, columns_of, scanned
from unskew.pipelines.history.training import rebuilt_for
from unskew.serving.online import OnlineReader
from unskew.serving.sample import read_served
from unskew.sinks.tables.imported import read_imported
from unskew.sinks.tables.layout import Coverage, published_files, read_coverage, view_root
from unskew.sinks.tables.reading import answer_of_table

Progress = Callable[[str, int, int], None]
Ints = npt.NDArray[np.int64]

_BATCH = 2_000
_DRAWS = 50
# How many samples of each view also have their log row compared: finding that row takes several recounts.
_ROWS = 250


@dataclass(frozen=True, kw_only=True)
class _Online:
    """The content of Redis for one view, entity by entity; read before the archive, so that the archive can catch up.

    The last ``n_strange`` rows have keys that the archive did not know then. ``illegible``: keys that no entity has.
    """

    values: pl.DataFrame
    as_of: pl.Series
    provisional: pl.Series
    n_strange: int
    illegible: list[str]


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
    since_us: int | None = None,
    served_root: Path | None = None,
    progress: Progress = lambda _step, _done, _total: None,
) -> AuditReport:
    """Compare, and report every difference by view and feature.

    ``samples``: the number of (entity, instant) pairs over all views together, drawn with ``seed``: mostly instants at
    which an event arrived or left a window, and their neighbours; none later than the log is complete.
    ``redis_source``: a URL; if given, every entity of the archive is read from Redis too, also those whose key is gone,
    and compared as of the instant that the reader reports. ``patience_s``: how long log and archive of a running
    pipeline may take to publish up to that instant.

    ``since_us``: the first instant that is drawn, and of what was served; None for all. ``served_root``: the folder of
    a sample of what readers were given. At most as many of its rows as there are samples are compared: what was served
    with the log, and log and a rebuild with the recount, at the same instants.

    Log and archive of a running pipeline may grow meanwhile: the log's coverage is read before the archive, and nothing
    later is compared. Every row of the log and every key in Redis must belong to an entity that the archive knows, and
    every row must name its event. If days of the archive were removed, values that rest on them are left out, and the
    report says which.

    A view that cannot be compared does not hide the differences of others: its error is among the refusals then. If
    there are no differences, raises ``RequestError`` if there is nothing to compare, also for a single view that has
    events, or if the archive lacks events from which the log was computed; ``LayoutError`` for files that cannot be
    read.
    """
    report = AuditReport()
    ends_us: dict[str, int] = {}
    rng = random.Random(seed)  # noqa: S311  a sample, not a secret
    share = -(-samples // max(1, len(plan.views)))
    refused: list[RequestError | LayoutError] = []
    for view in plan.views.values():
        online = None
        settled: Coverage | None = None
        try:
            if redis_source is not None:
                settled = read_coverage(view_root(log_root, view.name, view.version))
                online = _read_online(redis_source, prefix, pipeline, view, archive_root, progress)
                _wait_for_log(log_root, view, online, patience_s)
            # Coverage first, then the archive: events that came in between are in the archive, and in no sample.
            log = ViewLog(log_root, view.published)
            if _is_without_events(log, archive_root, view, online):
                report.views.append(ViewAudit(view=view.id, events=0))
                continue
            events, named = _archive_of(log, archive_root, view, online, patience_s)
            known = seen(view, events, log.coverage, named)
            reach = Reach(Recount(view, known.events), known, named.archive_from_us)
            result = ViewAudit(
                view=view.id,
                events=reach.recount.n_events,
                engines=reach.recount.engines,
                dependent=reach.recount.dependent,
            )
            report.views.append(result)
            if log.complete_to_us is not None:
                ends_us[view.id] = log.complete_to_us
            _compare_log(log, reach, share, rng, result, report, progress, since_us)
            if served_root is not None:
                _compare_served(served_root, archive_root, log, reach, share, rng, since_us, result, report, progress)
            if online is not None:
                _compare_online(online, log, reach, result, _settled_us(view, events, settled), report, progress)
            result.unaudited += reach.unaudited(_covered_us(log))
        except (RequestError, LayoutError) as error:
            refused.append(error)
    # Views of one stream may lack the same thing.
    report.refusals = list(dict.fromkeys(str(error) for error in refused))
    if report.differences:
        return report
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise RequestError(report.refusals)
    _refuse_too_late(report, ends_us, since_us)
    _refuse_vacuous(report, ends_us, online=redis_source is not None)
    return report


def _compare_log(
    log: ViewLog,
    reach: Reach,
    n_samples: int,
    rng: random.Random,
    result: ViewAudit,
    report: AuditReport,
    progress: Progress,
    since_us: int | None = None,
) -> None:
    complete_to = log.complete_to_us
    if complete_to is None and reach.recount.view.stream.table is not None:
        # It has a schedule of its own, which may not have come yet.
        result.notes.append("nothing was compared: unskew materialize has not computed it to any instant yet")
        return
    if complete_to is None:
        raise RequestError(
            f"the log of {result.view} under {log.root} is not complete to any instant yet; run the pipeline"
        )
    recount = reach.recount
    drawn = _draw(reach, n_samples, rng, result, complete_to, since_us)
    if drawn:
        key_names = recount.view.entity.keys
        keys = pl.DataFrame([key for key, _ in drawn], schema=recount.entities.schema, orient="row").select(key_names)
        instants = np.array([t_us for _, t_us in drawn], np.int64)
        stored = joined(log, keys, instants)
        for number, ((key, t_us), found) in enumerate(zip(drawn, stored.iter_rows(named=True), strict=True)):
            if number % 100 == 0:
                progress(f"{result.view}: log", number, len(drawn))
            expected, empty = _known(reach, key, t_us)
            result.samples += 1
            result.non_empty += not identical(expected, empty)
            report.compare("log", result.view, key, t_us, found, expected)
        progress(f"{result.view}: log", len(drawn), len(drawn))
    compare_origins(log, reach, result, report)
    if drawn:
        compare_rows(log, reach, drawn[:_ROWS], result, report)


def _compare_served(
    served_root: Path,
    archive_root: Path,
    log: ViewLog,
    reach: Reach,
    n_samples: int,
    rng: random.Random,
    since_us: int | None,
    result: ViewAudit,
    report: AuditReport,
    progress: Progress,
) -> None:
    """Compare what readers were given with the log, and log and a rebuild with the recount, at the same instants."""
    view = reach.recount.view
    found, n_others = read_served(served_root, view.published, since_us)
    result.unknown += n_others
    covered = [one for one in found if one.as_of_us <= _covered_us(log)]
    result.ahead += len(found) - len(covered)
    rows = rng.sample(covered, min(n_samples, len(covered)))
    if not rows:
        return
    progress(f"{result.view}: served", 0, len(rows))
    texts = pl.Series("key", [one.key for one in rows], pl.String)
    keys = decode_keys(texts, view.entity)
    instants = np.array([one.as_of_us for one in rows], np.int64)
    logged = joined(log, keys, instants).rows(named=True)
    rebuilt = _rebuilt(archive_root, log, reach, texts, keys, instants)
    if rebuilt is None:
        result.notes.append("what was served is not held against a rebuild: the log and the archive begin apart")
    defaults = {feature.name: feature.default for feature in view.outputs}
    for number, (one, key) in enumerate(zip(rows, keys.iter_rows(), strict=True)):
        in_log = {name: defaults[name] if value is None else value for name, value in logged[number].items()}
        result.served += 1
        report.compare(
            "served", result.view, key, one.as_of_us, one.values, {name: in_log[name] for name in one.values}
        )
        if one.as_of_us < reach.first_us:
            continue
        expected, _ = _known(reach, key, one.as_of_us)
        report.compare("log", result.view, key, one.as_of_us, logged[number], expected)
        if rebuilt is not None and (again := rebuilt[number]) is not None:
            result.rebuilt += 1
            report.compare("rebuild", result.view, key, one.as_of_us, again, expected)
    progress(f"{result.view}: served", len(rows), len(rows))


def _rebuilt(
    archive_root: Path, log: ViewLog, reach: Reach, texts: pl.Series, keys: pl.DataFrame, instants: Ints
) -> list[Values | None] | None:
    """Return the values that a rebuild gives, None where it does not reach.

    Returns None if the view began later than the archive, or the archive was cut: then it knows more, or less.
    """
    view = reach.recount.view
    one = rebuilt_for(archive_root, [view], {view.id: texts.unique()}, int(instants.max())).views[view.id]
    if reach.archive_from_us is not None or one.first_since_us != log.first_since_us or one.complete_to_us is None:
        return None
    again = RebuiltLog(
        view=view.published,
        title=f"the rebuild of {view.id}",
        rows=one.rows,
        since_us=one.since_us,
        first_since_us=one.first_since_us,
        complete_to_us=one.complete_to_us,
    )
    rows = joined(again, keys, instants).iter_rows(named=True)
    return [row if at <= one.complete_to_us else None for row, at in zip(rows, instants.tolist(), strict=True)]


def _known(reach: Reach, key: Key, t_us: int) -> tuple[Values, Values]:
    """Return those of an entity's values that are known, and what they are without events."""
    names = reach.known_features(key, t_us)
    empty = reach.recount.values((), 0)
    values = reach.recount.values(key, t_us) if names else {}
    return {name: values[name] for name in names}, {name: empty[name] for name in names}


def _draw(
    reach: Reach, n_samples: int, rng: random.Random, result: ViewAudit, last_us: int, since_us: int | None
) -> list[tuple[Key, int]]:
    """Draw entities and instants at which something is known; half of the entities weighted by their events."""
    recount = reach.recount
    first_us = reach.first_sampled_us
    if first_us is not None and since_us is not None:
        first_us = max(first_us, since_us)
    n_events = recount.events_per_entity.to_list()
    if first_us is None or first_us > last_us or not n_events:
        return []
    keys = recount.entities.rows()
    drawn: list[tuple[Key, int]] = []
    by_events = rng.choices(range(len(keys)), weights=n_events, k=n_samples)
    for busy in by_events:
        entity = busy if rng.random() < 0.5 else rng.randrange(len(keys))
        key = keys[entity]
        t_us = _draw_instant(reach, key, n_events[entity], rng, result, first_us, last_us)
        if t_us is None:
            result.unknown += 1
        else:
            drawn.append((key, t_us))
    return drawn


def _draw_instant(
    reach: Reach, key: Key, n_events: int, rng: random.Random, result: ViewAudit, first_us: int, last_us: int
) -> int | None:
    kind = rng.choices(["arrival", "hop", "any"], weights=[45, 45, 10])[0]
    for _ in range(_DRAWS if kind != "any" else 0):
        arrival, changes = reach.recount.instants(key, rng.randrange(n_events))
        if kind == "hop" and not changes:
            continue
        step = rng.choice([0, 0, 0, -1, 1])
        t_us = (arrival if kind == "arrival" else rng.choice(changes)) + step
        if first_us <= t_us <= last_us and reach.known_features(key, t_us):
            result.beside += step != 0
            result.on_arrivals += step == 0 and kind == "arrival"
            result.on_hops += step == 0 and kind == "hop"
            return t_us
    t_us = rng.randint(first_us, last_us)
    return t_us if reach.known_features(key, t_us) else None


def _settled_us(view: ViewPlan, events: pl.DataFrame, coverage: Coverage | None) -> dict[Key, int]:
    """Return, for each entity of a partitioned view, how far the log was complete in all shards of its partition.

    The log publishes only what Redis has acknowledged. So a row that was read after this coverage and has not changed
    since an instant that it covers is exact there. A reader does not know the partitions, so it must call the row
    provisional.
    """
    settled: dict[int, int] = {}
    if coverage is None or not view.partitioned:
        return {}
    for name, shard in coverage.shards.items():
        partition = int(name.removeprefix("p").partition(".")[0])
        complete_to = -(2**63) if shard.complete_to_us is None else shard.complete_to_us
        settled[partition] = min(complete_to, settled.get(partition, complete_to))
    keys = list(view.entity.keys)
    places = (
        events.drop_nulls(keys).group_by(keys).agg(first=pl.col("_partition").min(), last=pl.col("_partition").max())
    )
    rows = places.filter(pl.col("first") == pl.col("last")).select(*keys, "first").iter_rows()
    return {tuple(key): settled[partition] for *key, partition in rows if partition in settled}


def _compare_online(
    online: _Online,
    log: ViewLog,
    reach: Reach,
    result: ViewAudit,
    settled_us: Mapping[Key, int],
    report: AuditReport,
    progress: Progress,
) -> None:
    recount = reach.recount
    covered, furthest = _covered_us(log), _furthest_us(log)
    key_names = list(recount.view.entity.keys)
    names = [output.name for output in recount.view.outputs]
    instants = online.as_of.to_physical().to_list()
    provisional = online.provisional.to_list()
    known = set(recount.entities.rows())
    first_strange = len(instants) - online.n_strange
    rows = online.values.select(*key_names, *(f"{recount.view.name}__{name}" for name in names)).iter_rows()
    for number, (row, as_of_us) in enumerate(zip(rows, instants, strict=True)):
        if number % _BATCH == 0:
            progress(f"{result.view}: Redis", number, len(instants))
        if as_of_us is None:
            raise RequestError(
                f"Redis has no clock of {result.view}; check that --pipeline and --prefix are those of `unskew run`"
            )
        key, found = row[: len(key_names)], dict(zip(names, row[len(key_names) :], strict=True))
        is_strange = number >= first_strange and key not in known and not reach.keeps_strays
        if is_strange and reach.strays_from_us <= as_of_us <= furthest:
            report.add(stray("redis", result.view, key, as_of_us))
            continue
        t_us, upto_us = as_of_us, covered
        expected, empty = _known(reach, key, t_us)
        if provisional[number]:
            upto_us = settled_us.get(key, -(2**63))
            if _is_same(found, empty) and reach.first_us <= upto_us < as_of_us:
                # Empty at some instant from here to ``as_of``; comparable only if nothing changes in between.
                t_us = upto_us
                expected, empty = _known(reach, key, t_us)
                if not identical(expected, empty) and recount.last_row(key, as_of_us, t_us):
                    upto_us = -(2**63)
        if not reach.first_us <= t_us <= upto_us:
            result.provisional += provisional[number]
            result.ahead += not provisional[number]
            continue
        if not expected:
            result.unknown += 1
            continue
        result.entities += 1
        result.entities_present += not _is_same(found, empty)
        report.compare("redis", result.view, key, t_us, found, expected)
    progress(f"{result.view}: Redis", len(instants), len(instants))
    for text in online.illegible:
        report.add(stray("redis", result.view, tuple(text.split("|")), covered))


def _is_same(found: Values, expected: Values) -> bool:
    """Return whether those values that are expected were found."""
    return identical({name: found[name] for name in expected}, expected)


def _read_online(
    source: str, prefix: str, pipeline: str, view: ViewPlan, archive_root: Path, progress: Progress
) -> _Online:
    reader = OnlineReader(source, prefix, pipeline, views={view.id: _without_defaults(view.published)})
    references = [f"{view.name}:{output.name}" for output in view.outputs]
    answers, judged = [], []
    try:
        keys = _archived_keys(archive_root, view)
        unknown = reader.keys(view.name)
        unknown = unknown.filter(~unknown.is_in(encode_keys(keys, view.entity).implode()))
        strange, illegible = _legible(unknown.to_list(), view)
        keys = pl.concat([keys, strange])
        for first in range(0, max(1, len(keys)), _BATCH):
            progress(f"{view.id}: reading Redis", first, len(keys))
            answer = reader.read(references, keys[first : first + _BATCH], full_feature_names=True)
            answers.append(answer.to_polars())
            judged.append(answer.metadata[view.name])
    finally:
        reader.close()
    metadata = pl.concat(judged)
    return _Online(
        values=pl.concat(answers),
        as_of=metadata["as_of"],
        provisional=metadata["provisional"],
        n_strange=len(strange),
        illegible=illegible,
    )


def _legible(keys: list[str], view: ViewPlan) -> tuple[pl.DataFrame, list[str]]:
    """Split keys into those that an entity can have, typed, and the others."""
    schema = view.entity.columns
    legible: list[Key] = []
    illegible = []
    for key in keys:
        parts = key.split("|")
        if len(parts) != len(schema) or not all(map(_is_part, parts, view.entity.types)):
            illegible.append(key)
            continue
        typed = zip(parts, view.entity.types, strict=True)
        legible.append(tuple(int(part) if kind == "int64" else unquote(part) for part, kind in typed))
    return pl.DataFrame(legible, schema=schema, orient="row"), illegible


def _is_part(part: str, kind: str) -> bool:
    if kind == "int64":
        return re.fullmatch(r"0|-?[1-9]\d{0,18}", part, re.ASCII) is not None and -(2**63) <= int(part) < 2**63
    return quote(unquote(part), safe="") == part


def _without_defaults(view: View) -> View:
    """Remove the defaults, which replace null at reading; the audit compares stored values."""
    features = tuple(msgspec.structs.replace(feature, default=None) for feature in view.features)
    return msgspec.structs.replace(view, features=features)


def _wait_for_log(log_root: Path, view: ViewPlan, online: _Online, patience_s: float) -> None:
    """Wait until a running pipeline has published what Redis already shows."""
    newest = online.as_of.filter(~online.provisional).to_physical().max()
    deadline = time.monotonic() + patience_s
    while newest is not None and _covered_us(ViewLog(log_root, view.published)) < int(newest):  # type: ignore[arg-type]
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)


def _covered_us(log: ViewLog) -> int:
    """Return the last instant that every shard has published."""
    complete_to = log.complete_to_us
    return -(2**63) if complete_to is None else complete_to


def _archive_of(
    log: ViewLog, archive_root: Path, view: ViewPlan, online: _Online | None, patience_s: float
) -> tuple[pl.DataFrame, NamedEvents]:
    """Return the raw events of the view's stream: the columns that the view reads, of every event that is archived.

    A running pipeline publishes its log and its archive one after the other, so the archive gets time to follow, also
    for the entities that only Redis knew.
    """
    columns = [*columns_of(view), *META]
    deadline = time.monotonic() + patience_s
    while True:
        root = archive_root / view.stream.topic
        missing: str | None = (
            f"there are no archived events of topic {view.stream.topic} under {archive_root}; "
            "give the folder that `unskew run --archive` writes to"
        )
        if published_files(root):
            events = answer_of_table(root, lambda paths: scanned(paths, view.stream, columns).collect())
            named = named_events(log, events)
            events = _counted(root, events, named)
            missing = named.lacking
            if missing is None and (time.monotonic() > deadline or not _are_strange(online, log, events, view)):
                return events, named
        if missing is not None and time.monotonic() > deadline:
            raise RequestError(missing)
        time.sleep(0.5)


def _counted(root: Path, events: pl.DataFrame, named: NamedEvents) -> pl.DataFrame:
    """Leave out imported events if the view did not use them, else events of the topic that they replace."""
    if any(offset < 0 for offset in named.first.values()):
        hand_overs = read_imported(root).partitions
        taken_over = pl.col("_partition").replace_strict(
            list(hand_overs), [one.offset for one in hand_overs.values()], default=0, return_dtype=pl.Int64
        )
        return events.filter((pl.col("_offset") < 0) | (pl.col("_offset") >= taken_over))
    return events.filter(pl.col("_offset") >= 0)


def _are_strange(online: _Online | None, log: ViewLog, events: pl.DataFrame, view: ViewPlan) -> bool:
    """Return whether Redis holds entities without events although some shard has published their instants."""
    if online is None or not online.n_strange:
        return False
    keys = list(view.entity.keys)
    strange = online.values.select(keys)[-online.n_strange :]
    published = online.as_of.to_physical()[-online.n_strange :] <= _furthest_us(log)
    known = events.select(pl.col(name).cast(kind) for name, kind in strange.schema.items())
    return len(strange.filter(published).join(known, on=keys, how="anti")) > 0


def _furthest_us(log: ViewLog) -> int:
    """Return the last instant that any shard has published."""
    shards = log.coverage.shards.values() if log.coverage is not None else ()
    return max((shard.complete_to_us for shard in shards if shard.complete_to_us is not None), default=-(2**63))


def _archived_keys(archive_root: Path, view: ViewPlan) -> pl.DataFrame:
    """Return the entities of all archived events, also of events that do not count."""
    root = archive_root / view.stream.topic
    schema = view.entity.columns
    if not published_files(root):
        return pl.DataFrame(schema=schema)
    keys = answer_of_table(
        root,
        lambda paths: (
            scanned(paths, view.stream, view.entity.keys).drop_nulls().unique().cast(pl.Schema(schema)).collect()
        ),
    )
    return keys.sort(view.entity.keys)


def _is_without_events(log: ViewLog, archive_root: Path, view: ViewPlan, online: _Online | None) -> bool:
    """Return whether archive, log and Redis all hold nothing of the view."""
    in_redis = online is not None and (len(online.values) > 0 or online.illegible)
    return not (in_redis or log.files or published_files(archive_root / view.stream.topic))


def _refuse_too_late(report: AuditReport, ends_us: Mapping[str, int], since_us: int | None) -> None:
    """Refuse a first instant after which the log of a view has nothing; ``ends_us``: to where the logs are complete."""
    for view in report.views:
        end_us = ends_us.get(view.view)
        if since_us is not None and end_us is not None and end_us < since_us:
            raise RequestError(
                f"--since {format_instant(since_us)}: the log of {view.view} is complete to {format_instant(end_us)}, so nothing of it "
                "lies after that instant; give an earlier one"
            )


def _refuse_vacuous(report: AuditReport, ends_us: Mapping[str, int], *, online: bool) -> None:
    """Refuse a report that compared nothing, as a whole or for one view with events; the archive may be too short."""
    if not sum(view.non_empty for view in report.views):
        short = [f"{view.view}: {one}" for view in report.views for one in view.unaudited]
        why = f"; not comparable: {'; '.join(short)}" if short else ""
        raise RequestError(f"nothing was compared: every sampled value was empty{why}")
    for view in report.views:
        if not view.events or any(one.from_us is None for one in view.unaudited):
            continue
        if not view.samples:
            end_us = ends_us.get(view.view)
            reach = "" if end_us is None else f", which is complete to {format_instant(end_us)}"
            raise RequestError(
                f"nothing of {view.view} was compared with its log{reach}: no instant that was drawn is known by then; let the "
                "pipeline go on, or give more --samples. A partition that stands still holds its shards back"
            )
        if online and not view.entities:
            raise RequestError(
                f"nothing of {view.view} in Redis was compared: {view.ahead} values are past what the log has "
                f"published, {view.provisional} provisional; wait for the next epoch"
            )
