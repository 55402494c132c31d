"""A training set: one row for each label, with what it was made from, and ways to look at it, split it and keep it."""

import datetime as dt
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.frames import Answer, Given
from unskew.features.local import local_path
from unskew.features.on_demand import OnDemandView
from unskew.features.printing import counted, printable
from unskew.features.references import Asked, Demanded, requested_us
from unskew.features.registry import on_demand_as_json
from unskew.features.service import digest_of
from unskew.features.time import MAX_INSTANT_US, format_instant, instant_us
from unskew.features.warming import Statuses
from unskew.offline.distribution import distribution
from unskew.offline.join import Historical, instants_of
from unskew.offline.manifest import (
    FORMAT,
    FeaturePart,
    JoinRule,
    LogPosition,
    Manifest,
    PartitionPosition,
    Source,
    TablePart,
    columns_of,
    manifest_path,
    same_manifest,
    view_part,
)
from unskew.sinks import durable

Ints = npt.NDArray[np.int64]
Instant = dt.datetime | str

# What a status means for those who train, as the rest of the sentence "3 % of the labels ...".
_WARNINGS: Mapping[Statuses, str] = {
    Statuses.no_key: "lack a part of the entity's key: their values are null",
    Statuses.before_log: "lie before the view's history: their values are null",
    Statuses.after_log: "are later than the log is complete: their values are null",
    Statuses.warming: "have windows that begin before the view's history: their values may lack earlier events",
    Statuses.expired: "have values that are older than max_age: they read as null or as the default",
}
_OTHER_FORMATS = frozenset(
    {".arrow", ".csv", ".feather", ".json", ".jsonl", ".ndjson", ".orc", ".tsv", ".txt", ".xlsx"}
)


@dataclass(frozen=True)
class Origin:
    """What a training set was made from: the argument values, and the positions that were read.

    ``logs``: by view id, the position in its log; empty if only events were read. ``archive``: by topic and partition.
    ``uncompared``: by column, labels for which the log could not be compared with events, as asked.
    """

    source: Source
    rule: JoinRule
    logs: Mapping[str, LogPosition]
    archive: Mapping[str, Mapping[int, PartitionPosition]]
    uncompared: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HistoricalFeatures(Answer):
    """A training set: one row for each label row, in the labels' order, with the values at the label's instant.

    ``joined``: the answer of the join, for each label. ``origin``: what it was made from.
    """

    given: Given
    columns: pl.DataFrame
    joined: Historical
    origin: Origin

    @cached_property
    def summary(self) -> pl.DataFrame:
        """A row for each feature column, with the number of labels of each status.

        The statuses are ``no_key``, ``before_log``, ``after_log``, ``warming``, ``expired``, ``default``, ``present``;
        see ``offline.join.historical_features``.
        """
        counts = np.array([list(self._counts(name).values()) for name in self.joined.statuses], np.int64)
        return pl.DataFrame({"feature": list(self.joined.statuses)}).hstack(
            pl.from_numpy(counts, schema=[status.name for status in Statuses])
        )

    @cached_property
    def manifest(self) -> Manifest:
        """Everything that made this training set, and what it holds: counts, distributions and checksums.

        ``FeatureStore.reproduce`` makes the same training set from it. It is computed when it is first asked for.
        """
        labels = columns_of(self.given)
        output = {**labels, **self.columns.to_dict()}
        return Manifest(
            format=FORMAT,
            source=self.origin.source,
            join=self.origin.rule,
            views=tuple(
                view_part(
                    span.view,
                    since_us=span.since_us,
                    first_since_us=span.first_since_us,
                    complete_to_us=span.complete_to_us,
                    unknown=int(self.joined.unknown[view_id].sum()),
                    log=self.origin.logs.get(view_id),
                )
                for view_id, span in self.joined.spans.items()
            ),
            archive={topic: dict(sorted(parts.items())) for topic, parts in sorted(self.origin.archive.items())},
            features=tuple(map(self._feature_part, self.joined.asked)),
            labels=TablePart.of(self.given.n_rows, labels),
            output=TablePart.of(self.given.n_rows, output),
            on_demand=tuple(map(on_demand_as_json, self._on_demand())),
            features_digest=digest_of(one.pinned for one in self.joined.asked),
        )

    def _on_demand(self) -> list[OnDemandView]:
        return list({one.view.id: one.view for one in self.joined.asked if isinstance(one, Demanded)}.values())

    def _feature_part(self, asked: Asked | Demanded) -> FeaturePart:
        column = self.columns[asked.column]
        counts = self._counts(asked.column)
        return FeaturePart(
            view=asked.view.id,
            feature=asked.feature.name,
            named=asked.named,
            column=asked.column,
            type=asked.feature.type,
            statuses={status.name: counts[status] for status in Statuses},
            nulls=column.null_count(),
            null_share=column.null_count() / len(column) if len(column) else 0.0,
            distribution=distribution(column),
        )

    def _counts(self, column: str) -> dict[Statuses, int]:
        counted = np.bincount(self.joined.statuses[column], minlength=len(Statuses))
        return {status: int(counted[status]) for status in Statuses}

    @property
    def warnings(self) -> list[str]:
        """What a trainer should know about the labels and values, as sentences; empty if there is nothing."""
        found: list[str] = []
        n_rows = self.given.n_rows
        for status, meaning in _WARNINGS.items():
            by_count: dict[int, list[str]] = {}
            for one in self.joined.asked:
                if count := self._counts(one.column)[status]:
                    by_count.setdefault(count, []).append(one.column)
            for count, columns in by_count.items():
                where = "" if len(columns) == len(self.joined.asked) else f" ({_some(columns)})"
                found.append(f"{_share(count, n_rows)} of the labels {meaning}{where}")
        if uncompared := self.origin.uncompared:
            found.append(
                f"up to {_share(max(uncompared.values()), n_rows)} of the labels were not compared with events, because log and archive "
                f"do not reach equally far there ({_some(list(uncompared))})"
            )
        for view_id, flags in self.joined.unknown.items():
            if n_rows and (count := int(flags.sum())) * 2 > n_rows:
                found.append(
                    f"{_share(count, n_rows)} of the labels name entities of which {view_id} knows nothing at that instant; "
                    "check that their keys are those of the view"
                )
        if count := self._n_repeats():
            found.append(f"{_share(count, n_rows)} of the labels have the keys and the instant of an earlier one")
        empty = [one.column for one in self.joined.asked if n_rows and self.columns[one.column].null_count() == n_rows]
        if empty:
            found.append(f"all values are null: {_some(empty)}")
        return found

    def _n_repeats(self) -> int:
        """Return how many labels have the keys and the instant of an earlier one."""
        names = dict.fromkeys(key for span in self.joined.spans.values() for key in span.view.entity.keys)
        # Labels that differ in an input are different ones.
        names |= dict.fromkeys(name for one in self._on_demand() for name in one.inputs if name in self.given.names)
        places = pl.DataFrame([self.given.column(name) for name in (*names, self.origin.rule.timestamp)])
        return places.height - places.n_unique() if places.height else 0

    def split(
        self,
        by: Literal["time"] = "time",
        *,
        fractions: Sequence[float] | None = None,
        at: Instant | Iterable[Instant] | None = None,
        gap: str | dt.timedelta | None = None,
    ) -> "tuple[HistoricalFeatures, ...]":
        """Return parts that follow each other in time, the earliest first, each a training set with its own manifest.

        ``fractions``: of the labels, for each part, such as ``(0.7, 0.15, 0.15)``; labels of one instant are never
        divided, so a part may be a little larger or smaller. ``at``: in place of fractions, the instants at which the
        second part and those after it begin. ``gap``: labels less than this before such an instant are left out, at the
        end of the earlier part, so that what the label tells of the time after it (a purchase within 14 days) is known
        before the later part begins. Rows keep their order.

        Raises ``RequestError`` for arguments that do not make sense, and for a part without labels.
        """
        if by != "time":
            raise RequestError(f'a training set is split by="time", not {by!r}')
        if (fractions is None) == (at is None):
            raise RequestError('give either fractions, such as (0.8, 0.2), or at, such as "2026-03-01T00:00:00Z"')
        gap_us = 0 if gap is None else requested_us(gap, "gap")
        instants = instants_of(self.given, self.origin.rule.timestamp)
        cuts = _cuts(instants, fractions) if fractions is not None else _at([] if at is None else at)
        parts = []
        for number, (begin, end) in enumerate(zip([None, *cuts], [*cuts, None], strict=True)):
            within = np.ones(len(instants), np.bool_)
            if begin is not None:
                within &= instants >= begin
            if end is not None:
                within &= instants < end - gap_us
            if not within.any():
                bounds = " and ".join(
                    f"{word} {format_instant(bound)}"
                    for word, bound in (("from", begin), ("before", None if end is None else end - gap_us))
                    if bound is not None
                )
                raise RequestError(f"part {number} of the split would have no labels: there are none {bounds}")
            parts.append(self._taken(np.flatnonzero(within)))
        return tuple(parts)

    def _taken(self, rows: Ints) -> "HistoricalFeatures":
        joined = self.joined
        columns = self.columns[rows]
        return replace(
            self,
            given=self.given.taken(rows),
            columns=columns,
            joined=replace(
                joined,
                columns=columns,
                statuses={name: its[rows] for name, its in joined.statuses.items()},
                unknown={view: flags[rows] for view, flags in joined.unknown.items()},
            ),
        )

    def to_parquet(self, path: "str | Path", *, overwrite: bool = False) -> Path:
        """Write the training set as Parquet, and its manifest beside it; return the manifest's path.

        ``out.parquet`` gets ``out.manifest.json``, and ``out.pq`` gets ``out.pq.manifest.json``. Each file appears
        whole or not at all, the manifest last: a file without a manifest was left by a call that did not end. Raises
        ``RequestError`` if one of them is there already, unless ``overwrite``; ``StoreUnavailable`` if the disk fails.
        """
        target = writable(path, overwrite=overwrite)
        beside = manifest_path(target)
        manifest = self.manifest
        frame = self.frame
        if objects := [name for name, dtype in frame.schema.items() if dtype == pl.Object()]:
            raise RequestError(f"the column {objects[0]!r} holds Python objects, which Parquet cannot hold; drop it")
        temporary = target.with_name(f".{target.name}.tmp")
        with durable.disk(target.parent):
            try:
                with durable.new_file(temporary) as file:
                    frame.write_parquet(file, compression="zstd")
                    durable.flush(file)
                # An earlier manifest must not stand beside the new file.
                beside.unlink(missing_ok=True)
                durable.rename(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            durable.replace(beside, manifest.to_json())
        return beside

    def overview(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows of a table for people: a row for each feature, statuses and nulls as shares."""
        n_rows = self.given.n_rows
        counts = [self._counts(one.column) for one in self.joined.asked]
        shown = [status for status in Statuses if any(each[status] for each in counts)]
        rows = [
            [
                one.column,
                f"{one.view.id}:{one.feature.name}",
                one.feature.type,
                _share(self.columns[one.column].null_count(), n_rows),
                *(_share(each[status], n_rows) for status in shown),
            ]
            for one, each in zip(self.joined.asked, counts, strict=True)
        ]
        return ["column", "feature", "type", "null", *(status.name for status in shown)], rows

    def headline(self) -> list[str]:
        """Return the size of the training set, and what it was made from, as lines."""
        source = {"log": "the log", "events": "events", "both": "the log, compared with events"}[self.origin.source]
        lines = [f"{counted(self.given.n_rows, 'label')} x {counted(len(self.joined.asked), 'feature')}, from {source}"]
        for view_id, span in self.joined.spans.items():
            since, upto = (
                "-" if t_us is None else format_instant(t_us) for t_us in (span.first_since_us, span.complete_to_us)
            )
            unknown = int(self.joined.unknown[view_id].sum())
            lines.append(f"{view_id}: history from {since} to {upto}, {counted(unknown, 'label')} of unknown entities")
        return lines

    def __repr__(self) -> str:
        head, rows = self.overview()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if at < 3 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in [head, *rows]
        ]
        warned = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(
            map(printable, [f"HistoricalFeatures: {self.headline()[0]}", *self.headline()[1:], *table, *warned])
        )

    def _repr_html_(self) -> str:
        head, rows = self.overview()
        cells = [
            "".join(
                f'<{tag} style="text-align:{"left" if at < 3 else "right"}">{html.escape(printable(cell))}</{tag}>'
                for at, cell in enumerate(row)
            )
            for tag, row in [("th", head), *(("td", row) for row in rows)]
        ]
        title, *views = map(html.escape, map(printable, self.headline()))
        warned = "".join(f"<li>{html.escape(printable(warning))}</li>" for warning in self.warnings)
        return (
            f"<div><b>HistoricalFeatures</b>: {title}<br>{'<br>'.join(views)}"
            f"<table><thead><tr>{cells[0]}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in cells[1:])}</tbody></table>"
            f"{f'<b>Warnings</b><ul>{warned}</ul>' if warned else ''}</div>"
        )


def writable(path: "str | Path", *, overwrite: bool) -> Path:
    """Return the path of a training set's file that is to be written; raises ``RequestError`` if it cannot be."""
    target = local_path(path, "the output")
    if not target.parent.is_dir():
        raise RequestError(f"{target}: there is no folder {target.parent}; make it, or choose another place")
    if target.is_dir():
        raise RequestError(
            f"{target} is a folder; give the name of a file in it, such as {target / 'training.parquet'}"
        )
    if target.suffix.lower() in _OTHER_FORMATS:
        raise RequestError(
            f"{target}: a training set is written as Parquet; call it {target.with_suffix('.parquet').name}"
        )
    if (other := same_manifest(target)) is not None:
        raise RequestError(
            f"{target}: its manifest would be {manifest_path(target).name}, as that of {other.name} beside it; choose another name"
        )
    for there in (target, manifest_path(target)):
        if there.exists() and not overwrite:
            raise RequestError(f"{there} is there already; choose another name, or set overwrite (--overwrite)")
    return target


def _at(at: Instant | Iterable[Instant]) -> list[int]:
    """Return the instants of a split in microseconds."""
    cuts = []
    for one in at if isinstance(at, Iterable) and not isinstance(at, str) else [at]:
        try:
            cuts.append(instant_us(one))
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise RequestError(
                f"at: {one!r:.80} is not an instant; write it as in 2026-03-01T00:00:00Z, or give a datetime"
            ) from error
    if not cuts or any(later <= one for one, later in pairwise(cuts)):
        raise RequestError("at: give one instant or several, each later than the one before")
    return cuts


def _cuts(instants: Ints, fractions: Sequence[float]) -> list[int]:
    """Return the instants at which the parts after the first begin, so that the parts have these fractions."""
    given = np.array(fractions, np.float64)
    if given.ndim != 1 or len(given) < 2 or not (given > 0).all() or abs(float(given.sum()) - 1) > 1e-9:
        raise RequestError(f"fractions are positive and add up to 1, such as (0.8, 0.2), not {fractions!r:.80}")
    ordered = np.sort(instants)
    places = np.ceil(np.cumsum(given)[:-1] * len(ordered) - 1e-9).astype(np.int64)
    return [int(ordered[place]) if place < len(ordered) else MAX_INSTANT_US for place in places]


def _share(count: int, n_all: int) -> str:
    """Return a part as a percentage that is 0 or 100 only if it is exactly that."""
    if not count or not n_all:
        return "0 %"
    if count == n_all:
        return "100 %"
    percent = min(max(100 * count / n_all, 0.01), 99.99)
    return f"{percent:.2f} %" if percent < 1 or percent > 99 else f"{percent:.1f} %"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
