"""Comparisons of the log beyond its values: the entities, and the instant, cause and event of each row."""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import polars as pl

from unskew.features.time import format_instant, instant_us
from unskew.monitoring.outcome import N_EXAMPLES, AuditReport, Difference, ViewAudit, stray
from unskew.monitoring.reach import NamedEvents, Reach
from unskew.monitoring.recount import Key, Row
from unskew.offline.log_reader import ViewLog

_INSTANT = pl.Datetime("us", "UTC")
_ORIGIN = ("event_time", "partition", "offset", "cause")

Origin = dict[str, object]


def named_events(log: ViewLog, events: pl.DataFrame) -> NamedEvents:
    """Look up all events that the covered rows of the log name."""
    held = events.group_by(pl.col("_partition").alias("partition")).agg(
        _first=pl.col("_offset").min(), _from=pl.col("_arrival").sort_by("_offset").first().dt.timestamp("us") + 1
    )
    known = events.select(pl.col("_partition").alias("partition"), pl.col("_offset").alias("offset"))
    first: dict[int, int] = {}
    archive_from_us: int | None = None
    lacking, example = 0, ""
    for chunk in log.newest_first(["partition", "offset", "available_at", "shard"]):
        named = _covered(log, chunk).drop_nulls(["partition", "offset"])
        for partition, offset in named.group_by("partition").agg(pl.col("offset").min()).iter_rows():
            first[partition] = min(offset, first.get(partition, offset))
        missing = named.join(known, on=["partition", "offset"], how="anti").join(held, on="partition", how="left")
        removed = missing.filter(pl.col("offset") < pl.col("_first"))
        if len(removed):
            archive_from_us = max(int(removed["_from"].max()), archive_from_us or 0)  # type: ignore[arg-type]
        wrong = missing.filter((pl.col("offset") >= pl.col("_first")).fill_null(value=True))
        if len(wrong):
            lacking += len(wrong)
            partition, offset, at, *_ = wrong.row(0)
            example = f"partition {partition}, offset {offset} ({format_instant(at)})"
    view = log.view
    return NamedEvents(
        first=first,
        archive_from_us=archive_from_us,
        lacking=f"the archive lacks {lacking} events from which {view.id} was computed, first {example}: it is not this "
        "log's archive, or files are missing"
        if lacking
        else None,
    )


def compare_origins(log: ViewLog, reach: Reach, result: ViewAudit, report: AuditReport) -> None:
    """Check, for every row of the log, that its entity has events and that the view aggregates the event it names.

    Rows of instants that are not known are left out, and so are rows past the coverage that was read when the log was
    opened.
    """
    recount = reach.recount
    keys = list(recount.view.entity.keys)
    archived = recount.events.select(
        *(pl.col(name).alias(f"_own_{name}") for name in keys),
        pl.col("_partition").alias("partition"),
        pl.col("_offset").alias("offset"),
        "_arrival",
        "_event_time",
    )
    at = pl.col("available_at").to_physical()
    from_event = pl.col("cause") == "event"
    of_hop = (pl.col("cause") == "hop").fill_null(value=False)
    place = ("partition", "offset")
    is_placed = pl.all_horizontal(pl.col(*place).is_not_null())
    without_event = pl.all_horizontal(pl.col("event_time", *place).is_null())
    is_faulty = ~((from_event & is_placed) | (of_hop & without_event)).fill_null(value=False)
    is_event = from_event.fill_null(value=False)
    half_placed = (pl.when(pl.col(name).is_null()).then(pl.lit(name)) for name in place)
    column = pl.when(is_event & ~without_event).then(pl.coalesce(*half_placed)).otherwise(pl.lit("cause"))
    same_event_time = pl.col("event_time").eq_missing(pl.col("_event_time"))
    same = pl.all_horizontal(at == pl.col("_arrival").to_physical(), *(pl.col(k) == pl.col(f"_own_{k}") for k in keys))
    for chunk in log.newest_first([*keys, "available_at", "shard", *_ORIGIN]):
        rows = _streamed(_covered(log, chunk)).filter(at >= reach.first_us)
        unknown = rows.filter(at >= reach.strays_from_us).join(recount.entities, on=keys, how="anti")
        if len(unknown):
            report.add(stray("log", result.view, *_place(unknown.row(0, named=True), keys)), len(unknown))
        # The rows of strays need no second difference.
        rows = rows.join(recount.entities, on=keys, how="semi")
        faulty = rows.filter(is_faulty).with_columns(_column=column)
        joined = rows.filter(is_event & ~is_faulty).join(archived, on=["partition", "offset"], how="left")
        wrong = joined.filter(~(same & same_event_time).fill_null(value=False)).with_columns(
            _column=pl.when(same.fill_null(value=False)).then(pl.lit("event_time")).otherwise(pl.lit("offset"))
        )
        _add_faults(faulty, reach, result, report)
        _add_faults(wrong, reach, result, report)


def _add_faults(faulty: pl.DataFrame, reach: Reach, result: ViewAudit, report: AuditReport) -> None:
    """Add rows whose origin is at fault, by column; only the first ones are held against a recount of their own."""
    keys = list(reach.recount.view.entity.keys)
    if reach.recount.inner is not None:
        # A session of which the beginning is not known may have closed otherwise.
        known = [_is_known(reach, *_place(row, keys)) for row in faulty.iter_rows(named=True)]
        faulty = faulty.filter(pl.Series(known, dtype=pl.Boolean))
    for (column,), rows in faulty.group_by("_column", maintain_order=True):
        n_counted = len(rows) - N_EXAMPLES
        for number, row in enumerate(rows.head(N_EXAMPLES).iter_rows(named=True), start=1):
            key, t_us = _place(row, keys)
            found = _origin(row)
            difference = _row_difference(reach, result, key, t_us, found)
            difference = difference or _unlike(result, key, t_us, str(column), found, {})
            report.add(difference, 1 + n_counted if number == N_EXAMPLES else 1)


def compare_rows(
    log: ViewLog, reach: Reach, drawn: Sequence[tuple[Key, int]], result: ViewAudit, report: AuditReport
) -> None:
    """Check, for each entity and instant, that the last row by then has the recount's instant, cause and event."""
    recount = reach.recount
    keys = list(recount.view.entity.keys)
    wanted = pl.DataFrame([key for key, _ in drawn], schema=recount.entities.schema, orient="row").with_columns(
        pl.Series("_t", [t_us for _, t_us in drawn], pl.Int64).cast(_INSTANT),
        pl.int_range(pl.len()).alias("_number"),
    )
    entities = wanted.select(keys).unique()
    pieces = [
        _streamed(chunk.join(entities, on=keys, how="semi"))
        for chunk in log.newest_first([*keys, "available_at", *_ORIGIN], upto=wanted["_t"].max().date())  # type: ignore[union-attr]
    ]
    rows = pl.concat(pieces) if pieces else None
    stood: list[Origin] = [dict.fromkeys(("available_at", *_ORIGIN))] * len(drawn)
    if rows is not None:
        latest = wanted.sort("_t").join_asof(
            rows.sort("available_at"), left_on="_t", right_on="available_at", by=keys, coalesce=False,
            check_sortedness=False,
        )  # fmt: skip
        for row in latest.iter_rows(named=True):
            stood[row["_number"]] = _origin(row)
    for (key, t_us), found in zip(drawn, stood, strict=True):
        expected = _expected_row(reach, key, t_us)
        if expected is None:
            continue
        result.rows += 1
        difference = _unlike_row(result, key, t_us, found, expected)
        if difference is not None:
            report.add(difference)


def _is_known(reach: Reach, key: Key, t_us: int) -> bool:
    after_us = reach.rows_known_after_us(key)
    return after_us is not None and after_us < t_us


def _row_difference(reach: Reach, result: ViewAudit, key: Key, t_us: int, found: Origin) -> Difference | None:
    expected = _expected_row(reach, key, t_us)
    return None if expected is None else _unlike_row(result, key, t_us, found, expected)


def _expected_row(reach: Reach, key: Key, t_us: int) -> Origin | None:
    """Return the columns of the row that must stand at ``t_us``, all None if there must be none; None if unknown."""
    after_us = reach.rows_known_after_us(key)
    if after_us is None:
        return None
    row = reach.recount.last_row(key, t_us, after_us)
    # If it is not known what was before, the last change may lie there.
    return None if row is None and (reach.is_cut or not reach.is_whole(key)) else _expected(row)


def _unlike_row(result: ViewAudit, key: Key, t_us: int, found: Origin, expected: Origin) -> Difference | None:
    differing = [name for name, value in expected.items() if found[name] != value]
    return _unlike(result, key, t_us, differing[0], found, expected) if differing else None


def _unlike(result: ViewAudit, key: Key, t_us: int, column: str, found: Origin, expected: Origin) -> Difference:
    return Difference(
        where="log",
        view=result.view,
        entity=key,
        instant_us=t_us,
        feature=column,
        found=found[column],
        expected=expected.get(column),
    )


def _streamed(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with the cause that the stream would have given them, in place of the one that says: backfilled."""
    cause = pl.when(pl.col("partition").is_null()).then(pl.lit("hop")).otherwise(pl.lit("event"))
    return rows.with_columns(
        pl.when(pl.col("cause") == "backfill").then(cause).otherwise(pl.col("cause")).alias("cause")
    )


def _covered(log: ViewLog, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that coverage includes; others may be newer than the archive of the comparison."""
    if log.coverage is None:
        return rows.clear()
    complete = {
        shard: np.iinfo(np.int64).min if covered.complete_to_us is None else covered.complete_to_us
        for shard, covered in log.coverage.shards.items()
    }
    upto = pl.col("shard").replace_strict(complete, default=log.complete_to_us, return_dtype=pl.Int64)
    return rows.filter(pl.col("available_at").to_physical() <= upto)


def _place(row: Origin, keys: list[str]) -> tuple[Key, int]:
    at = row["available_at"]
    assert isinstance(at, dt.datetime)
    return tuple(row[name] for name in keys), instant_us(at)  # type: ignore[misc]  # keys are int or str


def _origin(row: Origin) -> Origin:
    found = {name: row[name] for name in ("available_at", *_ORIGIN)}
    return {name: format_instant(value) if isinstance(value, dt.datetime) else value for name, value in found.items()}


def _expected(row: Row | None) -> Origin:
    if row is None:
        return dict.fromkeys(("available_at", *_ORIGIN))
    return {
        "available_at": format_instant(row.instant_us),
        "event_time": None if row.event_time_us is None else format_instant(row.event_time_us),
        "partition": row.partition,
        "offset": row.offset,
        "cause": row.cause,
    }
