"""The point-in-time join: for each label, the values that were valid at its instant."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.frames import Given, read_table
from unskew.features.nearest import nearest
from unskew.features.on_demand import NOW, OnDemandView
from unskew.features.on_request import OnRequest, of_references, with_read
from unskew.features.references import Asked, Demanded, by_view, key_columns, requested_us, texts
from unskew.features.registry import Published
from unskew.features.showing import shown
from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, day_of, format_instant
from unskew.features.types import TIMESTAMP
from unskew.features.versions import Versions
from unskew.features.view import Scalar, View, ViewFeature, ViewWindow
from unskew.features.warming import Statuses, is_empty, is_warming
from unskew.offline.log_reader import RebuiltLog, ViewLog
from unskew.offline.version_spans import (
    Spans,
    answering,
    candidates,
    check_spans,
    newest_serving,
    of_version,
    refuse_lacking,
)
from unskew.sinks.tables.layout import Coverage

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]
Outside = Literal["error", "null"]
JoinColumn = Literal["available_at", "written_at"]
AnyLog = ViewLog | RebuiltLog
Progress = Callable[[str, int, int], None]
"""Called with what is read (a view's id), the rows that were read, and the rows that may have to be read."""

_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True, kw_only=True)
class LogSpan:
    """What a log that was read covers: as in ``Coverage``, which is None for a rebuilt one."""

    view: View
    since_us: int | None
    first_since_us: int | None
    complete_to_us: int | None
    coverage: Coverage | None

    @classmethod
    def of(cls, log: AnyLog) -> "LogSpan":
        """Return the span of a log, which need not stay in memory for it."""
        return cls(
            view=log.view,
            since_us=log.since_us,
            first_since_us=log.first_since_us,
            complete_to_us=log.complete_to_us,
            coverage=log.coverage,
        )


@dataclass(frozen=True)
class Historical:
    """The answer for labels. ``columns``: a column for each feature and, if asked for, one for its status.

    ``asked``: the features, also on-demand ones, in the order of their columns. ``statuses``: by feature column, the
    status of every label.
    ``unknown``: by view id, which labels have no row in the log although they lie within it. ``spans``: by view id,
    what the log that was read covers.
    """

    columns: pl.DataFrame
    asked: Sequence[Asked | Demanded]
    statuses: Mapping[str, Codes]
    unknown: Mapping[str, Flags]
    spans: Mapping[str, LogSpan]


def historical_features(
    log_root: Path | Callable[[View], AnyLog],
    views: Mapping[str, View],
    labels: Given,
    features: Sequence[str],
    *,
    timestamp: str = "event_timestamp",
    inclusive: bool = False,
    outside: Outside = "error",
    max_age: str | dt.timedelta | None = None,
    full_feature_names: bool = False,
    with_status: bool = False,
    versions: Spans | None = None,
    as_served: bool = False,
    on_demand: Mapping[str, OnDemandView] = {},
    progress: Progress = lambda _view, _done, _all: None,
) -> Historical:
    """Return the values of ``view:feature`` references at each label's instant, as they were served then.

    ``log_root``: the folder of the log, or a function that returns the log of a view. ``labels``: the key
    columns of every requested view, and the column ``timestamp``: a Datetime of any unit and zone, UTC if it has no
    zone; no other column is read. The result has one row for every label, in their order, with a column for each
    feature, named after it, or ``view__feature`` with ``full_feature_names``. An entity that was never seen, or has no
    events in any window, has empty values: 0 for count and sum, the default for others, or null without a default. A
    label without a key has nulls.

    ``inclusive``: whether values that became available at exactly that instant count; by default they do not, as labels
    are often events themselves and must not see themselves. ``outside``: what becomes of labels before the first event
    that the pipeline saw, and of those later than the log is complete: with "error" they are refused, with "null" they
    have nulls. ``max_age``: a row that last changed longer before its label than this reads as nulls and defaults.
    ``with_status``: adds a column ``{feature column}__status`` beside each feature: ``no_key``; ``before_log`` and
    ``after_log`` (outside of the log); ``warming`` (the window begins before the first event that the pipeline saw);
    ``expired`` (older than ``max_age``); ``default`` (the value of an entity without events); else ``present``.

    ``as_served``: labels are compared with ``written_at``, the wall clock at which a row was written, and so with about
    what a reader got; a row's age counts from there too. It needs a log that was written.

    ``versions``: by the name of a view, the versions that answer its bare name together, each label by the one that
    ``version_spans.answering`` says; a column ``{view}__version`` then says which one did.

    ``on_demand``: on-demand features by name, to which references may also lead. Their inputs are read from the labels'
    columns of these names, and ``now`` in their expressions is the label's instant. The status of one is the first that
    one of the features of views has that it reads; it is null where that is ``before_log`` or ``after_log``.

    Raises ``RequestError`` for an unknown view or feature, missing or unusable columns, and labels outside of the log;
    ``LayoutError`` for a log with missing files or of another definition.
    """
    if outside not in {"error", "null"}:
        raise RequestError(f'outside is "error" or "null", not {outside!r}')
    for name, flag in (("inclusive", inclusive), ("with_status", with_status), ("as_served", as_served)):
        if not isinstance(flag, bool):
            raise RequestError(f"{name} is True or False, not {flag!r}")
    of_views = with_read(texts(features), on_demand)
    check_spans(of_views, versions or {})
    spanned = candidates(Versions.of(views), versions or {})
    refuse_lacking(of_views, spanned)
    known = Published(views=newest_serving(Versions.of(views), spanned), on_demand=on_demand)
    request = of_references(features, known, full_feature_names=full_feature_names)
    asked, on_request = request.asked, request.on_request
    rule = _Rule(
        labels=labels,
        timestamp=timestamp,
        instants=_instants(labels, timestamp),
        inclusive=inclusive,
        outside=outside,
        max_age_us=None if max_age is None else requested_us(max_age, "max_age"),
        on="written_at" if as_served else "available_at",
    )
    columns: dict[str, pl.Series] = {}
    statuses: dict[str, Codes] = {}
    unknown: dict[str, Flags] = {}
    spans: dict[str, LogSpan] = {}
    for named, ones in by_view(request.of_views).items():
        wanted = [[of_version(one, view) for one in ones] for view in spanned.get(named, [ones[0].view])]
        logs = [
            ViewLog(log_root, them[0].view) if isinstance(log_root, Path) else log_root(them[0].view) for them in wanted
        ]
        spans |= {log.view.id: LogSpan.of(log) for log in logs}
        version = answering({log.view.version: log.since_us for log in logs}, rule.instants.whole)
        mine = [version == log.view.version for log in logs]
        parts = [_answer(log, them, rule, its, progress) for log, them, its in zip(logs, wanted, mine, strict=True)]
        rows = np.argsort(np.concatenate([np.flatnonzero(its) for its in mine]))
        for one in ones:
            column = pl.concat([part.values[one.column] for part in parts])
            columns[one.column] = column if len(parts) == 1 else column[rows]
            statuses[one.column] = np.concatenate([part.statuses[one.column] for part in parts])[rows]
        for log, part, its in zip(logs, parts, mine, strict=True):
            unknown[log.view.id] = np.zeros(labels.n_rows, np.bool_)
            unknown[log.view.id][its] = part.unknown
        if named in spanned:
            columns[f"{named}__version"] = pl.Series(version, dtype=pl.Int32)
    if on_request is not None:
        _compute(on_request, labels, rule.instants.whole, columns, statuses)
    if with_status:
        for column_name in (one.column for one in asked):
            columns[f"{column_name}__status"] = pl.Series(statuses[column_name]).replace_strict(
                list(Statuses), [each.name for each in Statuses], return_dtype=pl.String
            )
    if taken := [column for column in columns if column in labels.names]:
        raise RequestError(
            f"a feature would replace the label column {taken[0]!r}; rename that, or "
            "set full_feature_names (--full-feature-names), which gives columns view__feature"
        )
    names = [name for one in asked for name in (one.column, *([f"{one.column}__status"] if with_status else []))]
    names += [f"{named}__version" for named in spanned]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(
            f"two columns would be called {twice[0]!r}: a feature has the name of another one's status or version; ask for one of "
            "them alone"
        )
    frame = pl.DataFrame([columns[name].alias(name) for name in names])
    return Historical(frame, asked, {one.column: statuses[one.column] for one in asked}, unknown, spans)


def _compute(
    on_request: OnRequest,
    labels: Given,
    instants_us: Ints,
    columns: dict[str, pl.Series],
    statuses: dict[str, Codes],
) -> None:
    """Add the on-demand features; ``columns`` has those that they read, by their references."""
    now = pl.Series(NOW, instants_us, pl.Int64).cast(TIMESTAMP)
    read = {one.column: columns[one.column] for one in on_request.reads}
    found = on_request({**on_request.input_columns(labels), **read, NOW: now})
    for one, column in zip(on_request.demanded, found, strict=True):
        status = np.full(labels.n_rows, Statuses.present, np.int8)
        for read_one in one.reads:
            status = np.minimum(status, statuses[read_one.column])
        is_outside = (status == Statuses.before_log) | (status == Statuses.after_log)
        columns[one.column] = _without(column, is_outside)
        statuses[one.column] = status


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What is the same for every view of a request."""

    labels: Given
    timestamp: str
    instants: "_Instants"
    inclusive: bool
    outside: Outside
    max_age_us: int | None
    on: JoinColumn


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The answer of one log for the labels that are its own: by column, values and statuses; as in ``Historical``."""

    values: Mapping[str, pl.Series]
    statuses: Mapping[str, Codes]
    unknown: Flags


def _answer(log: AnyLog, ones: Sequence[Asked], rule: _Rule, mine: Flags, progress: Progress) -> _Part:
    """Return the answer of a log for those labels that are ``mine``."""
    bounds = rule.instants.upto(inclusive=rule.inclusive)
    keys = key_columns(log.view, rule.labels)
    status = np.full(rule.labels.n_rows, Statuses.present, np.int8)
    if mine.any():
        _mark_outside(status, log, rule.instants.whole, bounds)
        status[~mine] = Statuses.present
        if rule.outside == "error":
            _refuse_outside(status, log, rule.labels, rule.timestamp)
    if not mine.all():
        keys, bounds, status = keys.filter(pl.Series(mine)), bounds[mine], status[mine]
    without_key = keys.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
    status[without_key] = Statuses.no_key
    absent = status <= Statuses.after_log
    known_keys = keys.fill_null(0).fill_null("") if without_key.any() else keys
    # One may be asked for, and be read by an on-demand feature besides.
    features = {one.feature.name: one.feature for one in ones}
    found = _join(log, known_keys, bounds, list(features.values()), progress, rule.on)
    expired = np.zeros(len(bounds), np.bool_)
    if rule.max_age_us is not None:
        # This order of comparison does not overflow if no row was found.
        expired = (found.instants != _NEVER) & (found.instants < bounds - rule.max_age_us)
        status[expired & ~absent] = Statuses.expired
    with_warming = _WithWarming(log, bounds, status, absent)
    statuses: dict[str, Codes] = {}
    for one in ones:
        its_status = with_warming.of(one.feature)
        is_default = (found.instants == _NEVER) | is_empty(found.values[one.feature.name], one.feature)
        statuses[one.column] = np.where(
            is_default & (its_status == Statuses.present), np.int8(Statuses.default), its_status
        )
    return _Part(
        values={one.column: _read(one, found, expired, absent) for one in ones},
        statuses=statuses,
        unknown=(found.instants == _NEVER) & ~absent,
    )


def instants_of(labels: Given, timestamp: str) -> Ints:
    """Return the labels' instants in whole microseconds, rounded down. Raises ``RequestError`` as the join does."""
    return _instants(labels, timestamp).whole


def joined(log: AnyLog, keys: pl.DataFrame, instants_us: Ints) -> pl.DataFrame:
    """Return every feature of a view as stored, without defaults, at ``instants_us`` (int64 [rows of ``keys``]).

    Instants past the log's ``complete_to`` are answered from the rows that are there.
    """
    found = _join(log, key_columns(log.view, read_table(keys)), instants_us, list(log.view.features))
    seen = pl.Series(found.instants != _NEVER)
    return pl.DataFrame([_or_empty(found.values[feature.name], feature.empty, seen) for feature in log.view.features])


@dataclass(frozen=True)
class _Found:
    """The stored feature values for every label, and the instant of their row, ``_NEVER`` if there is none."""

    values: Mapping[str, pl.Series]
    instants: Ints


def _join(
    log: AnyLog,
    keys: pl.DataFrame,
    bounds: Ints,
    features: Sequence[ViewFeature],
    progress: Progress = lambda _view, _done, _all: None,
    on: JoinColumn = "available_at",
) -> _Found:
    """Find the last row of every key with ``on`` <= bound, from all days that can hold one.

    The search goes from the newest rows back, and each label is looked up until it is found, so that old rows may not
    be read at all. No row is written before its values are available, nor before an earlier row of its shard.
    """
    from unskew.offline.lookup import last_rows, number_entities  # noqa: PLC0415 - compiled: readers have no numba

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
        n_all, n_read = log.n_rows(upto=upto), 0
        for chunk in log.newest_first([*key_names, on, *names], upto=upto):
            logged, when = chunk.select(key_names), chunk[on].to_physical().to_numpy()
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
            n_read += chunk.height
            progress(log.view.id, n_read if len(remaining) else n_all, n_all)
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


def _read(asked: Asked, found: _Found, expired: Flags, absent: Flags) -> pl.Series:
    """Return the values of the answer: stored values or empty values, with the default in place of null.

    ``absent``: the labels that have neither.
    """
    feature = asked.feature
    read = _or_empty(found.values[feature.name], feature.empty, pl.Series(found.instants != _NEVER))
    read = _without(read, expired)
    if feature.default is not None:
        read = read.fill_null(pl.lit(feature.default, read.dtype))
    return _without(read, absent).alias(asked.column)


def _without(values: pl.Series, these: Flags) -> pl.Series:
    """Return the values with nulls in place of ``these``."""
    if not these.any():
        return values
    kept = pl.when(pl.lit(pl.Series(~these))).then(pl.col(values.name))
    return values.to_frame().select(kept.alias(values.name)).to_series()


def _or_empty(values: pl.Series, empty: Scalar | None, seen: pl.Series) -> pl.Series:
    if empty is None or seen.all():
        return values
    filled = pl.when(pl.lit(seen)).then(pl.col(values.name)).otherwise(pl.lit(empty, values.dtype))
    return values.to_frame().select(filled.alias(values.name)).to_series()


class _WithWarming:
    """The status of every label, for features of which several share their windows.

    ``status``: as it is for a feature that is not warming anywhere; that of ``absent`` labels stays.
    """

    def __init__(self, log: AnyLog, bounds: Ints, status: Codes, absent: Flags) -> None:
        self._log = log
        self._bounds = bounds
        self._status = status
        self._absent = absent
        self._by_windows: dict[frozenset[ViewWindow], Codes] = {}

    def of(self, feature: ViewFeature) -> Codes:
        windows = frozenset(self._log.view.windows_of(feature))
        if windows not in self._by_windows:
            since_us = self._log.since_us
            warming = since_us is None or is_warming(self._log.view, [feature], self._bounds, since_us)
            self._by_windows[windows] = np.where(warming & ~self._absent, np.int8(Statuses.warming), self._status)
        return self._by_windows[windows]


@dataclass(frozen=True)
class _Instants:
    """The labels' instants. ``whole``: in whole microseconds, rounded down; ``between``: which were later than that."""

    whole: Ints
    between: Flags

    def upto(self, *, inclusive: bool) -> Ints:
        """Return the last microsecond that counts for each label."""
        return self.whole if inclusive else self.whole - ~self.between


def _instants(labels: Given, timestamp: str) -> _Instants:
    if timestamp not in labels.names:
        raise RequestError(
            f"the labels have no column {timestamp!r}; {nearest(timestamp, labels.names, 'their columns are')}; "
            "name the column that holds the instant as timestamp (--timestamp)"
        )
    column = labels.column(timestamp)
    dtype = column.dtype
    if not isinstance(dtype, pl.Datetime):
        if not len(column):
            return _Instants(np.empty(0, np.int64), np.empty(0, np.bool_))
        if column.null_count() == len(column):
            raise RequestError(f"{timestamp!r} is null in every row; every label needs an instant")
        raise RequestError(f"{timestamp!r} is {dtype}, not an instant; {_as_instants(dtype)}")
    if column.null_count():
        raise RequestError(
            f"{timestamp!r} is null in row {int(column.is_null().arg_max() or 0)}; every label needs an instant"
        )
    physical = column.to_physical().to_numpy()
    per_us = 1_000 if dtype.time_unit == "ns" else 1
    us_per = 1_000 if dtype.time_unit == "ms" else 1
    beyond = (physical // per_us < MIN_INSTANT_US // us_per) | (physical // per_us > MAX_INSTANT_US // us_per)
    if beyond.any():
        row = int(beyond.argmax())
        raise RequestError(
            f"{timestamp!r} of row {row} is {physical[row]} {dtype.time_unit} since 1970, which is not between the years "
            "1900 and 2200; convert it from the unit that it really has"
        )
    whole = physical // per_us * us_per
    return _Instants(whole, physical % per_us != 0)


def _as_instants(dtype: pl.DataType) -> str:
    """Return how a column of another type becomes one of instants."""
    if dtype.is_numeric():
        return (
            "convert it from the unit that it counts since 1970, for example with pl.from_epoch(column, time_unit='ms') in "
            "Polars, pd.to_datetime(column, unit='ms', utc=True) in pandas, datetime.fromtimestamp(seconds, UTC) in rows"
        )
    if dtype == pl.String():
        return (
            "parse it, for example with column.str.to_datetime(time_zone='UTC') in Polars, pd.to_datetime(column, utc=True) in "
            "pandas, datetime.fromisoformat(text) in rows"
        )
    if dtype == pl.Date():
        return (
            "a day is 24 hours long: choose the hour, for example column.cast(pl.Datetime('us', 'UTC')) for its first"
        )
    return "convert it to a Datetime"


def _mark_outside(status: Codes, log: AnyLog, instants: Ints, bounds: Ints) -> None:
    """Mark the labels before anything was seen, and past ``complete_to``, whose answers could still change.

    Raises ``RequestError`` if the log is not complete to any instant.
    """
    if not len(bounds):
        return
    complete_to = log.complete_to_us
    if log.coverage is not None and log.coverage.waiting:
        raise RequestError(
            f"{log.title} is not complete to any instant yet: no clock has come from shard "
            f"{', '.join(log.coverage.waiting)}; wait until every partition has had a record or has ended"
        )
    if complete_to is None:
        raise RequestError(f"{log.title} is not complete to any instant yet; run the pipeline")
    status[bounds > complete_to] = Statuses.after_log
    if log.first_since_us is not None:
        status[instants < log.first_since_us] = Statuses.before_log


def _refuse_outside(status: Codes, log: AnyLog, labels: Given, timestamp: str) -> None:
    view = f"{log.view.name}@{log.view.version}"
    was_cut = log.coverage is not None and log.coverage.kept_from_us == log.first_since_us
    before = (
        "earlier than what the log of {} still holds" if was_cut else "earlier than the first event that {} has seen"
    )
    for each, text, bound in (
        (Statuses.after_log, f"later than the log of {view} is complete", log.complete_to_us),
        (Statuses.before_log, before.format(view), log.first_since_us),
    ):
        these = status == each
        if these.any() and bound is not None:
            row = int(these.argmax())
            instant = labels.column(timestamp)[row]
            raise RequestError(
                f"{int(these.sum())} of {len(these)} labels are {text}, {format_instant(bound)}; the first is row {row} "
                f"({_keys_text(log.view, labels, row)}, {timestamp} {shown(instant)}); leave them out"
                f'{", wait until the pipeline is there" if each == Statuses.after_log else ""}, or set outside to "null" (--outside null), '
                f"which gives them nulls and the status {each.name}"
            )


def _keys_text(view: View, labels: Given, row: int) -> str:
    return ", ".join(f"{name} {labels.column(name)[row]!r}" for name in view.entity.keys)
