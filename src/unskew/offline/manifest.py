"""The manifest of a training set: what it was made from, what it holds, and what is needed to make it again.

It is JSON, and it changes only with the training set itself: it holds no clock, no path and no name of a machine. So a
training set that is made again has the same manifest.
"""

import datetime as dt
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import polars as pl

from unskew.features.definitions.services import pinned_feature
from unskew.features.errors import LayoutError, RequestError
from unskew.features.frames import Given
from unskew.features.on_demand import OnDemandView
from unskew.features.registry import as_json, pin, typed, typed_on_demand
from unskew.features.service import ServiceFeature
from unskew.features.time import instant_us, moment_of
from unskew.features.types import Type
from unskew.features.versions import Versions
from unskew.features.view import View
from unskew.offline.content import checksum
from unskew.offline.distribution import Distribution
from unskew.sinks.tables.layout import Coverage, ShardCoverage

FORMAT = 1
_PARQUET = ".parquet"
Source = Literal["log", "events", "both"]


class JoinRule(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments that shaped a training set, besides its features; see ``FeatureStore.get_historical_features``.

    ``on``: the column of the log with which the labels' instants are compared, ``written_at`` with ``as_served``.
    ``max_age_us``: None without one. ``versions``: by the name of a view, the versions that answered for it together.
    ``service``: whose features they are; None if they were listed.
    """

    timestamp: str
    inclusive: bool
    outside: Literal["error", "null"]
    max_age_us: int | None
    full_feature_names: bool
    with_status: bool
    on: Literal["available_at", "written_at"] = "available_at"
    versions: dict[str, tuple[int, ...]] = {}
    service: str | None = None


class ShardPosition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a shard's log that was read: rows with ``seq`` below ``next``, complete to an instant."""

    next: int
    since: dt.datetime | None = None
    complete_to: dt.datetime | None = None
    ended: bool = False


class LogPosition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a view's log that was read, by shard; ``waiting``: shards without a clock, which have no rows yet."""

    shards: dict[str, ShardPosition]
    waiting: tuple[str, ...] = ()

    @classmethod
    def of(cls, coverage: Coverage | None) -> "LogPosition":
        """Return what a coverage says."""
        return cls(
            shards={
                name: ShardPosition(
                    next=shard.next_sequence,
                    since=_moment(shard.since_us),
                    complete_to=_moment(shard.complete_to_us),
                    ended=shard.ended,
                )
                for name, shard in (() if coverage is None else sorted(coverage.shards.items()))
            },
            waiting=() if coverage is None else coverage.waiting,
        )

    def coverage(self) -> Coverage:
        """Return the coverage that this is a position of."""
        return Coverage(
            shards={
                name: ShardCoverage(
                    since_us=_us(shard.since),
                    complete_to_us=_us(shard.complete_to),
                    next_sequence=shard.next,
                    ended=shard.ended,
                )
                for name, shard in self.shards.items()
            },
            waiting=self.waiting,
        )


class PartitionPosition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of an archived partition that was read: events below ``offset``, and the partition's clock then."""

    offset: int
    clock: dt.datetime | None = None
    ended: bool = False


class ViewPart(msgspec.Struct, frozen=True, kw_only=True):
    """A view version of which features were read, and what was known of its entities.

    ``definition``: the view as the registry publishes it. ``since``: the instant from which all events were seen;
    ``first_since``: before it nothing was. ``complete_to``: the last instant that can be answered. These are those of
    the log, or of the rebuild if the source is "events". ``log``: the position in its log, None if only events were
    read. ``unknown``: labels within that time for whose entity there was no row.
    """

    id: str
    state_fingerprint: str
    presentation_fingerprint: str
    since: dt.datetime | None
    first_since: dt.datetime | None
    complete_to: dt.datetime | None
    unknown: int
    log: LogPosition | None
    definition: View

    def view(self, name: str) -> View:
        """Return the view; ``name``: that of the manifest, for errors."""
        return typed(self.definition, f"the definition of {self.id} in {name}")


class FeaturePart(msgspec.Struct, frozen=True, kw_only=True):
    """One feature: the column that holds it, how many labels have each status, and the distribution of its values.

    ``view``: the id of the version that was read, of several the highest, or of the on-demand features. ``named``: the
    view as the request named it. ``statuses``: by name, all of them. ``nulls``, ``null_share``: labels without a value,
    and their part of all labels.
    """

    view: str
    feature: str
    named: str
    column: str
    type: str
    statuses: dict[str, int]
    nulls: int
    null_share: float
    distribution: Distribution


class ColumnPart(msgspec.Struct, frozen=True, kw_only=True):
    """A column's Polars type and checksum; both are None for one of Python objects."""

    type: str | None
    checksum: str | None


class TablePart(msgspec.Struct, frozen=True, kw_only=True):
    """A table's size, the checksums of its columns, in order, and one over all of them and their names."""

    rows: int
    checksum: str
    columns: dict[str, ColumnPart]

    @classmethod
    def of(cls, n_rows: int, columns: Mapping[str, pl.Series | None]) -> "TablePart":
        """Return the part of a table; a column is None if it holds Python objects."""
        parts = {name: _column(column) for name, column in columns.items()}
        digest = hashlib.sha256()
        for name, part in parts.items():
            digest.update(f"{name!r} {part.type} {part.checksum}\n".encode())
        return cls(rows=n_rows, checksum=digest.hexdigest(), columns=parts)

    def difference(self, other: "TablePart") -> str | None:
        """Return how another table, found in its place, differs from this one; None if it does not."""
        if other.rows != self.rows:
            return f"they have {other.rows:,} rows in place of {self.rows:,}"
        mine, theirs = list(self.columns), list(other.columns)
        if mine != theirs:
            return f"their columns are {', '.join(theirs)} in place of {', '.join(mine)}"
        for name, part in self.columns.items():
            found = other.columns[name]
            if found.type != part.type:
                return f"the column {name!r} is {found.type or 'of Python objects'} in place of {part.type}"
            if found != part:
                return f"the column {name!r} has other values"
        return None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that made a training set, and what it holds; see the module.

    ``archive``: by topic and partition, the events that were read; empty if only the log was. ``labels``: the table
    that came in; ``output``: the table that went out. ``features_digest``: what a model that is trained with it expects
    to be served, see ``service.digest_of``; empty in the manifest of an earlier version of unskew. ``on_demand``: the
    definitions of on-demand features that were computed, as the registry publishes them; ``views`` has what they read.
    """

    format: int
    source: Source
    join: JoinRule
    views: tuple[ViewPart, ...]
    archive: dict[str, dict[int, PartitionPosition]]
    features: tuple[FeaturePart, ...]
    labels: TablePart
    output: TablePart
    features_digest: str = ""
    on_demand: tuple[OnDemandView, ...] = ()

    @property
    def inputs(self) -> dict[str, Type]:
        """The types of the inputs of on-demand features."""
        return {name: Type.parse(text) for one in self.on_demand for name, text in one.inputs.items()}

    def on_demand_features(self, name: str) -> dict[str, OnDemandView]:
        """Return the definitions of on-demand features; ``name``: that of the manifest, for errors."""
        return {one.name: typed_on_demand(one, f"the definition of {one.id} in {name}") for one in self.on_demand}

    def expected(self, name: str = "the manifest") -> list[ServiceFeature]:
        """Return the features with all that was known of them, in their order; ``name``: for errors."""
        views = Versions(part.view(name) for part in self.views)
        on_demand = self.on_demand_features(name)
        found = []
        for part in self.features:
            if part.view.partition("@")[0] in on_demand:
                found.append(pinned_feature(f"{part.named}:{part.feature}", views, on_demand))
                continue
            view = views.get(part.view)
            feature = None if view is None else view.feature(part.feature)
            if view is None or feature is None:
                raise RequestError(f"{name} does not say what {part.view}:{part.feature} was; give one that is whole")
            found.append(pin(f"{part.named}:{part.feature}", view, feature))
        return found

    def to_json(self) -> bytes:
        """Return it as JSON, for a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def parse(data: bytes | str, name: str) -> "Manifest":
        """Read JSON. Raises ``RequestError`` if it is not a manifest, ``LayoutError`` if it is of another version."""
        try:
            if (found := msgspec.json.decode(data, type=_Format).format) != FORMAT:
                raise LayoutError(
                    f"{name} has format {found}, but this version reads {FORMAT}; use the version of unskew that wrote it"
                )
            return msgspec.json.decode(data, type=Manifest)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            why = str(error) or type(error).__name__
            raise RequestError(
                f"{name} is not a manifest of a training set ({why}); give the one beside its file"
            ) from error

    @staticmethod
    def read(path: Path) -> "Manifest":
        """Read the file at ``path``. Raises as ``parse`` does."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RequestError(f"{path}: {error.strerror}; give the manifest of a training set") from error
        return Manifest.parse(data, str(path))


class _Format(msgspec.Struct):
    format: int


def view_part(
    view: View,
    *,
    since_us: int | None,
    first_since_us: int | None,
    complete_to_us: int | None,
    unknown: int,
    log: LogPosition | None,
) -> ViewPart:
    """Return the part of a view."""
    return ViewPart(
        id=view.id,
        state_fingerprint=view.state_fingerprint,
        presentation_fingerprint=view.presentation_fingerprint,
        since=_moment(since_us),
        first_since=_moment(first_since_us),
        complete_to=_moment(complete_to_us),
        unknown=unknown,
        log=log,
        definition=as_json(view),
    )


def columns_of(given: Given) -> dict[str, pl.Series | None]:
    """Return the columns of a table by name; None for one that is not a column of one type."""
    found: dict[str, pl.Series | None] = {}
    for name in given.names:
        try:
            found[str(name)] = given.column(name)
        except RequestError:
            found[str(name)] = None
    return found


def manifest_path(path: Path) -> Path:
    """Return the place of the manifest beside a training set's file: ``out.manifest.json`` beside ``out.parquet``.

    Beside a file that is called otherwise it has the whole name: ``out.pq.manifest.json`` beside ``out.pq``.
    """
    return path.with_name(f"{path.stem if path.suffix == _PARQUET else path.name}.manifest.json")


def same_manifest(path: Path) -> Path | None:
    """Return the file that has the manifest that this one, which is not there yet, would have; None without one."""
    other = path.with_suffix("") if path.suffix == _PARQUET else path.with_name(f"{path.name}{_PARQUET}")
    return other if other.is_file() and not path.exists() and manifest_path(path).exists() else None


def _column(column: pl.Series | None) -> ColumnPart:
    if column is None:
        return ColumnPart(type=None, checksum=None)
    try:
        return ColumnPart(type=str(column.dtype), checksum=checksum(column))
    except TypeError:
        return ColumnPart(type=None, checksum=None)


def _moment(t_us: int | None) -> dt.datetime | None:
    return None if t_us is None else moment_of(t_us)


def _us(moment: dt.datetime | None) -> int | None:
    return None if moment is None else instant_us(moment)


def position(offset: int, clock_us: int | None, *, ended: bool) -> PartitionPosition:
    """Return the position of a partition."""
    return PartitionPosition(offset=offset, clock=_moment(clock_us), ended=ended)


def clock_us(part: PartitionPosition) -> int | None:
    """Return the partition's clock in microseconds."""
    return _us(part.clock)
