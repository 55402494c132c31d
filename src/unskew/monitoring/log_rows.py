"""Comparisons of the log beyond its values: the entities, and the instant, cause and event of each row."""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import polars as pl

from unskew.features.time import format_instant
from unskew.monitoring.outcome import Difference, ViewAudit, stray
from unskew.monitoring.recount import Key, Recount, Row
from unskew.offline.log_reader import ViewLog

_INSTANT = pl.Datetime("us", "UTC")
_ORIGIN = ("event_time", "partition", "offset", "cause")

Origin = dict[str, object]


def missing_events(log: ViewLog, events: pl.DataFrame) -> str | None:
    """Describe the events that the log names but the archive, from its beginning on, lacks; None if there are none."""
    # The row of a session names its last event, which came up to a gap and a hop before the row.
    window = None if log.view.sessions is None else log.view.sessions.window
    behind_us = 0 if window is None else window.extent_us + window.hop_us
    first_us = int(events["_arrival"].to_physical().min()) + behind_us if len(events) else 0  # type: ignore[arg-type]
    known = events.select(pl.col("_partition").alias("partition"), pl.col("_offset").alias("offset"))
    for chunk in log.newest_first(["partition", "offset", "available_at", "shard"]):
        named = _covered(log, chunk).drop_nulls().filter(pl.col("available_at").to_physical() >= first_us)
        missing = named.join(known, on=["partition", "offset"], how="anti")
        if len(missing):
            partition, offset, at, _ = missing.row(0)
            return (
                f"the archive lacks {len(missing)} events from which {log.view.name}@{log.view.version} was computed, "
                f"first partition {partition}, offset {offset} ({at}): it is not this log's archive, or files are "
                "missing"
            )
    return None


def compare_origins(log: ViewLog, recount: Recount, result: ViewAudit, first_us: int) -> Difference | None:
    """Check, for every row of the log, that its entity has events and that the view aggregates the event it names.

    Rows before ``first_us`` are left out, and so are rows past the coverage that was read when the log was opened.
    """
    keys = list(recount.view.entity.keys)
    archived = recount.events.select(
        *(pl.col(name).alias(f"_own_{name}") for name in keys),
        pl.col("_partition").alias("partition"),
        pl.col("_offset").alias("offset"),
        "_arrival",
        "_event_time",
    )
    for chunk in log.newest_first([*keys, "available_at", "shard", *_ORIGIN]):
        rows = _covered(log, chunk).filter(pl.col("available_at").to_physical() >= first_us)
        unknown = rows.join(recount.entities, on=keys, how="anti")
        if len(unknown):
            key, t_us = _place(unknown, keys)
            return stray("log", result.view, key, t_us)
        from_event = pl.col("cause") == "event"
        named = pl.col("partition").is_not_null() & pl.col("offset").is_not_null()
        no_event = pl.all_horizontal(pl.col("event_time", "partition", "offset").is_null())
        faulty = rows.filter(~((from_event & named) | ((pl.col("cause") == "hop") & no_event)).fill_null(value=False))
        if len(faulty):
            key, t_us = _place(faulty, keys)
            found = _origin(faulty.row(0, named=True))
            return _compare_row(recount, result, key, t_us, first_us, found) or _unlike(
                result, key, t_us, "cause", found, {}
            )
        joined = rows.filter(from_event).join(archived, on=["partition", "offset"], how="left")
        same = pl.all_horizontal(
            pl.col("available_at") == pl.col("_arrival"),
            pl.col("event_time").eq_missing(pl.col("_event_time")),
            *(pl.col(name) == pl.col(f"_own_{name}") for name in keys),
        )
        wrong = joined.filter(~same.fill_null(value=False))
        if len(wrong):
            key, t_us = _place(wrong, keys)
            found = _origin(wrong.row(0, named=True))
            return _compare_row(recount, result, key, t_us, first_us, found) or _unlike(
                result, key, t_us, "offset", found, {}
            )
    return None


def compare_rows(
    log: ViewLog, recount: Recount, drawn: Sequence[tuple[Key, int]], result: ViewAudit, first_us: int
) -> Difference | None:
    """Check, for each entity and instant, that the last row by then has the recount's instant, cause and event."""
    keys = list(recount.view.entity.keys)
    wanted = pl.DataFrame([key for key, _ in drawn], schema=recount.entities.schema, orient="row").with_columns(
        pl.Series("_t", [t_us for _, t_us in drawn], pl.Int64).cast(_INSTANT),
        pl.int_range(pl.len()).alias("_number"),
    )
    entities = wanted.select(keys).unique()
    pieces = [
        chunk.join(entities, on=keys, how="semi")
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
        difference = _compare_row(recount, result, key, t_us, first_us, found)
        if difference is not None:
            return difference
        result.rows += 1
    return None


def _compare_row(
    recount: Recount, result: ViewAudit, key: Key, t_us: int, first_us: int, found: Origin
) -> Difference | None:
    partial = first_us > recount.first_us
    row = recount.last_row(key, t_us, first_us if partial else first_us - 1)
    if row is None and partial:
        return None  # the last change may lie before the archive's beginning
    expected = _expected(row)
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


def _place(rows: pl.DataFrame, keys: list[str]) -> tuple[Key, int]:
    first = rows.select(*keys, pl.col("available_at").to_physical()).row(0)
    return first[:-1], first[-1]


def _origin(row: Origin) -> Origin:
    found = {name: row[name] for name in ("available_at", *_ORIGIN)}
    return {name: _text(value) if isinstance(value, dt.datetime) else value for name, value in found.items()}


def _text(instant: dt.datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


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
