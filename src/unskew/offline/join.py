"""The point-in-time join: for each label, the values that were valid at its instant."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.nearest import nearest
from unskew.features.references import Asked, by_view, key_columns, resolve
from unskew.features.time import day_of, duration_us, format_instant
from unskew.features.view import Scalar, View, ViewFeature
from unskew.features.warming import is_warming
from unskew.offline.log_reader import ViewLog
from unskew.offline.lookup import last_rows, number_entities

Ints = npt.NDArray[np.int64]

_INSTANT = pl.Datetime("us", "UTC")
_NEVER = np.iinfo(np.int64).min


def historical_features(
    log_root: Path,
    views: Mapping[str, View],
    labels: pl.DataFrame,
    features: Sequence[str],
    *,
    timestamp: str = "event_timestamp",
    inclusive: bool = True,
    max_age: str | dt.timedelta | None = None,
    full_feature_names: bool = False,
    with_status: bool = False,
) -> pl.DataFrame:
    """Add to each label row the values of ``view:feature`` references at its instant, as they were served then.

    ``labels``: the key columns of every requested view, and the column ``timestamp``: a Datetime of any unit and zone,
    UTC if it has no zone. The result has one row for every label row, in their order, with all columns of ``labels``
    and a column for each feature, named after it, or ``view__feature`` with ``full_feature_names``. An entity that was
    never seen, or has no events in any window, has empty values: 0 for count and sum, the default for others, or null
    without a default.

    ``inclusive``: whether values that became available at exactly that instant count; pass False for labels that are
    events themselves. ``max_age``: a row that last changed longer before its label than this reads as nulls and
    defaults. ``with_status``: adds a column ``{feature column}__status`` beside each feature: ``present``; ``default``
    (nothing is known of the entity); ``expired`` (older than ``max_age``); ``warming`` (the window begins before the
    first event that the pipeline saw).

    Raises ``RequestError`` for an unknown view or feature, missing or unusable columns, and a label later than the log
    is complete; ``LayoutError`` for a log with missing files or of another definition.
    """
    asked = resolve(features, views, full_feature_names=full_feature_names)
    bounds = _bounds(labels, timestamp, inclusive=inclusive)
    max_age_us = None if max_age is None else duration_us(max_age)
    columns: dict[str, pl.Series] = {}
    for ones in by_view(asked).values():
        log = ViewLog(log_root, ones[0].view)
        keys = key_columns(log.view, labels)
        _refuse_later(log, labels, timestamp, bounds)
        found = _join(log, keys, bounds, [one.feature for one in ones])
        expired = np.zeros(len(bounds), np.bool_)
        if max_age_us is not None:
            # This order of comparison does not overflow if no row was found.
            expired = (found.instants != _NEVER) & (found.instants < bounds - max_age_us)
        for one in ones:
            columns[one.column] = _read(one, found, expired)
            if with_status:
                columns[f"{one.column}__status"] = _status(one, log, found, expired, bounds)
    if taken := [column for column in columns if column in labels.columns]:
        raise RequestError(
            f"a feature would replace the label column {taken[0]!r}; rename that, or ask with full_feature_names=True"
        )
    order = [name for one in asked for name in (one.column, f"{one.column}__status") if name in columns]
    return labels.with_columns(columns[name].alias(name) for name in order)


def joined(log: ViewLog, keys: pl.DataFrame, instants_us: Ints) -> pl.DataFrame:
    """Return every feature of a view as stored, without defaults, at ``instants_us`` (int64 [rows of ``keys``]).

    Instants past the log's ``complete_to`` are answered from the rows that are there.
    """
    found = _join(log, key_columns(log.view, keys), instants_us, list(log.view.features))
    seen = pl.Series(found.instants != _NEVER)
    return pl.DataFrame([_or_empty(found.values[feature.name], feature.empty, seen) for feature in log.view.features])


@dataclass(frozen=True)
class _Found:
    """The stored feature values for every label, and the instant of their row, ``_NEVER`` if there is none."""

    values: Mapping[str, pl.Series]
    instants: Ints


def _join(log: ViewLog, keys: pl.DataFrame, bounds: Ints, features: Sequence[ViewFeature]) -> _Found:
    """Find the last row of every key with ``available_at`` <= bound, from all days that can hold one.

    The search goes from the newest rows back, and each label is looked up until it is found, so that old rows may not
    be read at all.
    """
    names = [feature.name for feature in features]
    key_names = list(log.view.entity.keys)
    unknown = pl.DataFrame(schema={feature.name: feature.dtype.polars for feature in features})
    found: list[pl.DataFrame] = []
    labels: list[Ints] = []
    instants = np.full(len(bounds), _NEVER, np.int64)
    remaining = np.arange(len(bounds))
    if len(bounds):
        upto = day_of(int(bounds.max()))
        seed = 0
        wanted = number_entities(_ids(keys, seed))
        for chunk in log.newest_first([*key_names, "available_at", *names], upto=upto):
            logged, when = chunk.select(key_names), chunk["available_at"].to_physical().to_numpy()
            while True:
                rows = last_rows(wanted, remaining, bounds, _ids(logged, seed), when)
                hit = rows >= 0
                if _same_keys(logged, rows[hit], keys, remaining[hit]):
                    break
                # Two keys share a 64-bit hash; another seed separates them.
                seed += 1
                wanted = number_entities(_ids(keys, seed))
            labels.append(remaining[hit])
            found.append(chunk.select(names)[rows[hit]])
            instants[remaining[hit]] = when[rows[hit]]
            remaining = remaining[~hit]
            if not len(remaining):
                break
    found.append(unknown.clear(len(remaining)))
    labels.append(remaining)
    return _Found(_in_order(found, labels), instants)


def _in_order(pieces: Sequence[pl.DataFrame], labels: Sequence[Ints]) -> dict[str, pl.Series]:
    """Return the rows of all pieces in the order of their labels."""
    where = np.concatenate(labels)
    order = np.empty(len(where), np.int64)
    order[where] = np.arange(len(where))
    rows = pl.concat(pieces, rechunk=True)
    return (rows if (order[1:] > order[:-1]).all() else rows[order]).to_dict()


def _ids(keys: pl.DataFrame, seed: int) -> npt.NDArray[np.uint64]:
    """Return a number for every key: a single integer itself, otherwise a hash, which keys may rarely share."""
    if keys.width == 1 and keys.dtypes[0] == pl.Int64:
        return keys.to_series().to_numpy().view(np.uint64)
    return keys.hash_rows(seed=seed).to_numpy()


def _same_keys(logged: pl.DataFrame, rows: Ints, keys: pl.DataFrame, labels: Ints) -> bool:
    """Return whether the found rows have the requested keys.

    That is sufficient: an entity's group holds all of its rows, so if the last row of the group is its own, that row is
    its last.
    """
    if keys.width == 1 and keys.dtypes[0] == pl.Int64:
        return True
    return logged[rows].equals(keys[labels])


def _read(asked: Asked, found: _Found, expired: npt.NDArray[np.bool_]) -> pl.Series:
    """Return the values of the answer: stored values or empty values, with the default in place of null."""
    feature = asked.feature
    read = _or_empty(found.values[feature.name], feature.empty, pl.Series(found.instants != _NEVER))
    if expired.any():
        read = read.to_frame().select(pl.when(pl.lit(pl.Series(~expired))).then(pl.col(feature.name))).to_series()
    if feature.default is not None:
        read = read.fill_null(pl.lit(feature.default, read.dtype))
    return read.alias(asked.column)


def _or_empty(values: pl.Series, empty: Scalar | None, seen: pl.Series) -> pl.Series:
    if empty is None or seen.all():
        return values
    filled = pl.when(pl.lit(seen)).then(pl.col(values.name)).otherwise(pl.lit(empty, values.dtype))
    return values.to_frame().select(filled.alias(values.name)).to_series()


def _status(asked: Asked, log: ViewLog, found: _Found, expired: npt.NDArray[np.bool_], bounds: Ints) -> pl.Series:
    status = np.where(found.instants == _NEVER, "default", "present").astype(object)
    status[expired] = "expired"
    if log.since_us is None:
        status[:] = "warming"
    else:
        status[is_warming(log.view, [asked.feature], bounds, log.since_us)] = "warming"
    return pl.Series(status.tolist(), dtype=pl.String)


def _bounds(labels: pl.DataFrame, timestamp: str, *, inclusive: bool) -> Ints:
    """Return the last microsecond that counts for each label."""
    if timestamp not in labels.columns:
        raise RequestError(
            f"the labels have no column {timestamp!r}; {nearest(timestamp, labels.columns, 'their columns are')}; "
            "name the column that holds the instant with timestamp="
        )
    column = labels[timestamp]
    dtype = column.dtype
    if not isinstance(dtype, pl.Datetime):
        if not len(column):
            return np.empty(0, np.int64)
        raise RequestError(f"{timestamp!r} is {dtype}, not an instant; convert it to a Datetime")
    if column.null_count():
        raise RequestError(
            f"{timestamp!r} is null in row {int(column.is_null().arg_max() or 0)}; every label needs an instant"
        )
    physical = column.to_physical().to_numpy()
    if dtype.time_unit == "ns":
        return physical // 1_000 if inclusive else -(-physical // 1_000) - 1
    micros = physical * 1_000 if dtype.time_unit == "ms" else physical
    return micros if inclusive else micros - 1


def _refuse_later(log: ViewLog, labels: pl.DataFrame, timestamp: str, bounds: Ints) -> None:
    """Refuse labels past ``complete_to``: their answers could still change, so they cannot be training rows."""
    if not len(bounds):
        return
    complete_to = log.complete_to_us
    view = f"{log.view.name}@{log.view.version}"
    if log.coverage is not None and log.coverage.waiting:
        raise RequestError(
            f"the log of {view} under {log.root} is not complete to any instant yet: no clock has come from shard "
            f"{', '.join(log.coverage.waiting)}; wait until every partition has had a record or has ended"
        )
    if complete_to is None:
        raise RequestError(f"the log of {view} under {log.root} is not complete to any instant yet; run the pipeline")
    later = bounds > complete_to
    if later.any():
        row = int(later.argmax())
        raise RequestError(
            f"label row {row} ({_keys_text(log.view, labels, row)}, {timestamp} {labels[timestamp][row]}) is later "
            f"than the log of {view} is complete: {format_instant(complete_to)}; leave out such labels "
            f"({int(later.sum())}), or wait"
        )


def _keys_text(view: View, labels: pl.DataFrame, row: int) -> str:
    return ", ".join(f"{name} {labels[name][row]!r}" for name in view.entity.keys)
