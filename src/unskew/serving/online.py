"""The online reader: current values and the instants for which they are valid, read from Redis alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import redis

from unskew.features.errors import LayoutError, RequestError
from unskew.features.frames import Answer, Given, Table, read_table
from unskew.features.keys import encode_keys
from unskew.features.references import Asked, by_view, key_columns, resolve
from unskew.features.registry import parse
from unskew.features.types import Type
from unskew.features.versions import Versions
from unskew.features.view import Scalar, View
from unskew.features.warming import Statuses, is_empty, is_warming
from unskew.serving.clocks import UNKNOWN, Placed, ViewClocks
from unskew.serving.sample import Sampler
from unskew.sinks.redis.keyspace import clock_key, registry_key, sent_key, value_key, value_keys_pattern
from unskew.sinks.redis.server import Server, checked
from unskew.sinks.redis.texts import read_column
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Clocks, Marks
from unskew.sinks.wall import wall_us

Status = Literal["present", "default", "warming", "lagging", "no_key"]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_INSTANT = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class OnlineFeatures(Answer):
    """The answer to one request: one row for each entity row, in its order.

    ``metadata``: for each view, as the request names it (``view`` or ``view@version``), a frame with

    - ``as_of`` Datetime UTC: the instant for which the values are valid; null if the pipeline has published no clock;
    - ``status``: ``lagging`` (the clock is further behind the present than allowed), else ``warming`` (the window of a
      requested feature, or of a feature from which it is derived, begins before the pipeline's first event), else
      ``default`` if every requested value is that of an entity without events, else ``present``; ``no_key`` for a row
      that lacks a part of the entity's key, whose values and ``as_of`` are null;
    - ``provisional``: whether more events may still arrive at or before ``as_of``.

    ``compared_at``: for each view, named so, when the pipeline's last comparison of all rows with its state began, in
    Datetime UTC, null before one. A row that is absent and not provisional is exact unless somebody removed it from
    Redis after that.
    """

    metadata: Mapping[str, pl.DataFrame]
    compared_at: Mapping[str, pl.Series] = field(default_factory=dict)


class OnlineReader:
    """Reads current features; needs only Redis.

    ``client``: a client of redis-py or a URL, for one server, sentinels or a cluster. ``pipeline``: the pipeline or
    pipelines that maintain the views. ``views``: the view versions to read; by default those of the published registry,
    which the reader follows as it changes. ``max_lag_us``: how far a clock may be behind the present before the status
    is ``lagging``; with None it never is. ``sampler``: keeps a small sample of what is returned; None keeps nothing.
    """

    def __init__(
        self,
        client: Client | str,
        prefix: str = "unskew",
        pipeline: str | Sequence[str] = "main",
        *,
        views: Mapping[str, View] | None = None,
        max_lag_us: int | None = None,
        now_us: Callable[[], int] = wall_us,
        sampler: Sampler | None = None,
    ) -> None:
        self._sampler = sampler
        self._server = Server(client)
        self._prefix = prefix
        self._pipelines = [pipeline] if isinstance(pipeline, str) else list(pipeline)
        self._pinned = None if views is None else Versions.of(views)
        self._registry: tuple[bytes | str, Versions[View]] | None = None
        self._max_lag_us = max_lag_us
        self._now_us = now_us

    def views(self) -> Versions[View]:
        """Return the views that can be read."""
        if self._pinned is not None:
            return self._pinned
        key = registry_key(self._prefix)
        with self._server.reaching() as client:
            commands = client.pipeline(transaction=False)
            commands.get(key)
            (text,) = checked(commands.execute(raise_on_error=False), [key])
        return self._parsed(text)

    def read(self, features: Sequence[str], entity_rows: Table, *, full_feature_names: bool = False) -> OnlineFeatures:
        """Read ``view:feature`` and ``view@version:feature`` references for every entity row.

        ``entity_rows``: a list of dicts, a frame or an Arrow table, with the key columns of every requested view;
        other columns are passed through. Entities that were never seen, or whose windows are all empty, get empty
        values and defaults. Takes two round trips, whatever the number of views and rows; three to a cluster.

        Raises ``RequestError`` for an unknown name, with the nearest known one; ``StoreUnavailable`` if Redis cannot be
        reached.
        """
        rows = read_table(entity_rows)
        # Clocks first: see ViewClocks.
        clocks, views = self._clocks_and_views()
        asked = resolve(features, views, full_feature_names=full_feature_names)
        if not rows.n_rows and not rows.names:
            # Without rows there are no columns either.
            rows = read_table(pl.DataFrame(schema={name: pl.String for one in asked for name in one.view.entity.keys}))
        for one in asked:
            if one.column in rows.names:
                raise RequestError(
                    f"{one.reference} would replace the column {one.column!r} of the entity rows; "
                    "rename it, or ask with full_feature_names=True"
                )
        of_views = by_view(asked)
        for ones in of_views.values():
            if clocks.is_retired(ones[0].view.id):
                raise RequestError(
                    f"{ones[0].view.id} is no longer computed by the pipeline, so its values would be old; ask for the version that "
                    "replaced it, or define the view again with a new version"
                )
        keys = {name: _entity_keys(ones[0].view, rows) for name, ones in of_views.items()}
        found, marks = self._values_and_marks(of_views, keys)

        now_us = self._now_us()
        columns: dict[str, pl.Series] = {}
        metadata, compared_at = {}, {}
        for name, ones in of_views.items():
            texts = found[name]
            at = _changed_at(ones[0].view, [row[0] for row in texts])
            present = [row[0] is not None for row in texts]
            without_key = keys[name].is_null()
            is_default = np.ones(len(texts), np.bool_)
            for position, one in enumerate(ones, start=1):
                column, is_one_default = _column(one, [row[position] for row in texts], present)
                is_default &= is_one_default
                columns[one.column] = column.set(without_key, None) if without_key.any() else column
            placed = ViewClocks(ones[0].view, clocks, marks).place(keys[name].fill_null(""), at)
            metadata[name] = self._judge(ones, placed, is_default, now_us, without_key.to_numpy())
            compared_at[name] = _instants("compared_at", placed.compared)
        if self._sampler is not None:
            self._sampler.offer(of_views, keys, columns, metadata)
        return OnlineFeatures(rows, pl.DataFrame([columns[one.column] for one in asked]), metadata, compared_at)

    def keys(self, view: str) -> pl.Series:
        """Return the canonical keys of all entities that have a row, as String, in no particular order.

        Scans the whole key space in many small steps: keys that appear or disappear meanwhile may be included or not.
        """
        view_id = self.views().find(view).id
        around = len(value_key(self._prefix, view_id, ""))
        found = set()
        with self._server.reaching() as client:
            for name in client.scan_iter(match=value_keys_pattern(self._prefix, view_id), count=10_000):
                text = name.decode(errors="replace") if isinstance(name, bytes) else name
                found.add(text[around - 1 : -1])
        return pl.Series("key", list(found), pl.String)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _clocks_and_views(self) -> tuple[Clocks, Versions[View]]:
        keys = [clock_key(self._prefix, pipeline) for pipeline in self._pipelines]
        with self._server.reaching() as client:
            commands = client.pipeline(transaction=False)
            for key in keys:
                commands.hgetall(key)
            named = keys
            if self._pinned is None:
                named = [*keys, registry_key(self._prefix)]
                commands.get(named[-1])
            replies = checked(commands.execute(raise_on_error=False), named)
        clocks = Clocks(*zip(keys, replies, strict=False))
        return clocks, self._pinned if self._pinned is not None else self._parsed(replies[-1])

    def _parsed(self, text: bytes | str | None) -> Versions[View]:
        if text is None:
            raise RequestError(
                f"nothing is published under {registry_key(self._prefix)}; start `unskew run`, or give the prefix with "
                "which it runs"
            )
        if self._registry is None or self._registry[0] != text:
            self._registry = (text, parse(text, registry_key(self._prefix)))
        return self._registry[1]

    def _values_and_marks(
        self, of_views: Mapping[str, list[Asked]], keys: Mapping[str, pl.Series]
    ) -> tuple[dict[str, list[list[bytes | None]]], Marks]:
        """Return ``_at`` and the features of each view's rows as text or None, and the marks, read after them."""
        marks_keys = [sent_key(self._prefix, pipeline) for pipeline in self._pipelines]
        with self._server.reaching() as client:
            commands = client.pipeline(transaction=False)
            asked: list[str] = []
            for name, ones in of_views.items():
                fields = ["_at", *(one.feature.name for one in ones)]
                for key in keys[name].drop_nulls().to_list():
                    asked.append(value_key(self._prefix, ones[0].view.id, key))
                    commands.hmget(asked[-1], fields)
            # The marks follow the values. One server executes the commands of one connection in order; the nodes of a
            # cluster do not know of each other.
            marks = commands
            if isinstance(client, redis.RedisCluster):
                replies = commands.execute(raise_on_error=False)
                marks = client.pipeline(transaction=False)  # type: ignore[no-untyped-call]
            for sent in marks_keys:
                marks.hgetall(sent)
            replies = [*(replies if marks is not commands else ()), *marks.execute(raise_on_error=False)]
            replies = checked(replies, [*asked, *marks_keys])
        values = iter(replies)
        found: dict[str, list[list[bytes | None]]] = {}
        for name, ones in of_views.items():
            without: list[bytes | None] = [None] * (1 + len(ones))
            found[name] = [next(values) if has_key else without for has_key in keys[name].is_not_null().to_list()]
        return found, Marks(*zip(marks_keys, values, strict=True))

    def _judge(
        self, ones: list[Asked], placed: Placed, is_default: Flags, now_us: int, without_key: Flags
    ) -> pl.DataFrame:
        known = (placed.as_of != UNKNOWN) & ~without_key
        status = np.where(is_default, Statuses.default.name, Statuses.present.name).astype(object)
        as_of = np.where(known, placed.as_of, 0)
        warming = is_warming(ones[0].view, [one.feature for one in ones], as_of, placed.since)
        status[~known | warming] = Statuses.warming.name
        if self._max_lag_us is not None:
            # This order of comparison does not overflow with an unknown clock.
            status[placed.clock < now_us - self._max_lag_us] = "lagging"
        status[without_key] = Statuses.no_key.name
        return pl.DataFrame(
            [
                pl.Series("as_of", as_of, pl.Int64).cast(_INSTANT).set(pl.Series(~known), None),
                pl.Series("status", status.tolist(), pl.String),
                pl.Series("provisional", placed.provisional & ~without_key, pl.Boolean),
            ]
        )


def _instants(name: str, instants_us: Ints) -> pl.Series:
    known = instants_us != UNKNOWN
    return pl.Series(name, np.where(known, instants_us, 0), pl.Int64).cast(_INSTANT).set(pl.Series(~known), None)


def _entity_keys(view: View, rows: Given) -> pl.Series:
    """Return the canonical key of every row."""
    return encode_keys(key_columns(view, rows), view.entity)


def _column(asked: Asked, texts: list[bytes | None], present: list[bool]) -> tuple[pl.Series, Flags]:
    """Return typed values, and which are those of an entity without events.

    An entity without a row has the empty value. The default replaces either if it is null.
    """
    feature = asked.feature
    absent = feature.default if feature.empty is None else feature.empty
    instead = [feature.default if is_present else absent for is_present in present]
    column = _read(asked.view, feature.name, texts, feature.dtype, instead).alias(asked.column)
    lacking = np.array([text is None for text in texts], np.bool_)
    if feature.empty is None:
        return column, lacking
    return column, np.where(lacking, ~np.array(present, np.bool_), is_empty(column, feature))


def _changed_at(view: View, texts: list[bytes | None]) -> Ints:
    """Return ``_at`` of every row in microseconds, ``UNKNOWN`` without a row."""
    lacking = np.array([text is None for text in texts], np.bool_)
    read = _read(view, "_at", texts, Type("timestamp"), [None] * len(texts)).to_physical().fill_null(0)
    return np.where(lacking, UNKNOWN, read.to_numpy())


def _read(
    view: View, field: str, texts: list[bytes | None], dtype: Type, instead: Sequence[Scalar | None]
) -> pl.Series:
    try:
        return read_column(field, texts, dtype, instead)
    except ValueError as error:
        raise LayoutError(
            f"Redis holds a value of {view.id}:{field} that unskew did not write: {error}; "
            "run `unskew rehydrate`, with --running if the pipeline runs, which writes every value again"
        ) from error
