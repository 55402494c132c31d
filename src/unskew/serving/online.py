"""The online reader: current values, and what they are values of, from Redis alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import redis

from unskew.features.errors import LayoutError, RequestError
from unskew.features.frames import Table, like, to_polars
from unskew.features.keys import encode_keys
from unskew.features.plan import EntityPlan, Scalar
from unskew.features.references import Asked, by_view, find_view, key_columns, resolve
from unskew.features.registry import RegisteredView, parse
from unskew.features.types import ValueType
from unskew.features.warming import is_warming
from unskew.serving.clocks import UNKNOWN, Placed, ViewClocks
from unskew.sinks.redis.keyspace import clock_key, registry_key, sent_key, value_key, value_keys_pattern
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.texts import read_column
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Clocks, Marks

Status = Literal["present", "default", "warming", "lagging"]

_INSTANT = pl.Datetime("us", "UTC")


def present_us() -> int:
    """The wall clock, microseconds."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class OnlineFeatures:
    """The answer to one request: one row for each entity row, in its order.

    ``frame``: the columns given, then a column for each feature. ``metadata``: for each view, by name, a frame with

    - ``as_of`` Datetime UTC: the instant whose values these are; null where the pipeline has not said a clock yet;
    - ``status``: ``lagging`` (the clock is further behind the present than allowed), else ``warming`` (the window of a
      feature asked for, or of one it is derived from, begins before the pipeline's first event), else ``present``, or ``default`` for an entity without
      events in any window;
    - ``provisional``: whether more may still arrive at or before ``as_of``.
    """

    frame: pl.DataFrame
    metadata: Mapping[str, pl.DataFrame]
    asked_with: Table

    def to_dict(self) -> dict[str, list[Any]]:
        """Column name -> values, key columns first."""
        return self.frame.to_dict(as_series=False)

    def to_df(self) -> Any:
        """A pandas frame with the same index where pandas rows came in, else a Polars frame."""
        return like(self.frame, self.asked_with)

    def to_polars(self) -> pl.DataFrame:
        return self.frame


class OnlineReader:
    """Reads current features; needs nothing but Redis.

    ``client``: a client of redis-py or a URL, of one server, sentinels or a cluster. ``pipeline``: the pipeline, or the several, that keep the views. ``views``: the
    view versions to read; without them, those of the published registry, followed as it changes. ``max_lag_us``: how far
    a clock may be behind the present before a status says ``lagging``; None never says so.
    """

    def __init__(
        self,
        client: Client | str,
        prefix: str = "unskew",
        pipeline: str | Sequence[str] = "main",
        *,
        views: Mapping[str, RegisteredView] | None = None,
        max_lag_us: int | None = None,
        now_us: Callable[[], int] = present_us,
    ) -> None:
        self._server = Server(client)
        self._prefix = prefix
        self._pipelines = [pipeline] if isinstance(pipeline, str) else list(pipeline)
        self._pinned = views
        self._registry: tuple[bytes | str, Mapping[str, RegisteredView]] | None = None
        self._max_lag_us = max_lag_us
        self._now_us = now_us

    def views(self) -> Mapping[str, RegisteredView]:
        """The views that can be read, by name."""
        if self._pinned is not None:
            return self._pinned
        with self._server.reaching() as client:
            text = client.get(registry_key(self._prefix))
        return self._parsed(text)

    def read(self, features: Sequence[str], entity_rows: Table, *, full_feature_names: bool = False) -> OnlineFeatures:
        """Read ``view:feature`` references for every entity row.

        ``entity_rows``: a list of dicts, or a Polars or pandas frame, with the key columns of every view asked for;
        other columns are handed through. Entities that were never seen, or of which nothing is left, get empty values
        and defaults. Two round trips, whatever the number of views and rows; three to a cluster.

        Raises ``RequestError`` for what is unknown, with the nearest known; ``StoreUnavailable`` where Redis is.
        """
        rows = to_polars(entity_rows)
        # Clocks first: see ViewClocks.
        clocks, views = self._clocks_and_views()
        asked = resolve(features, views, full_feature_names=full_feature_names)
        if rows.width == 0:
            # No rows were given, so no columns either.
            rows = pl.DataFrame(schema={name: pl.String for one in asked for name in one.view.entity.keys})
        for one in asked:
            if one.column in rows.columns:
                raise RequestError(
                    f"{one.view.name}:{one.feature.name} would replace the column {one.column!r} of the entity rows; "
                    "rename it, or ask with full_feature_names=True"
                )
        of_views = by_view(asked)
        keys = {name: _entity_keys(ones[0].view, rows) for name, ones in of_views.items()}
        found, marks = self._values_and_marks(of_views, keys)

        now_us = self._now_us()
        columns: dict[str, pl.Series] = {}
        metadata = {}
        for name, ones in of_views.items():
            texts = found[name]
            at = _read(ones[0].view, "_at", [row[0] for row in texts], "int64", [UNKNOWN] * len(texts)).to_numpy()
            present = [row[0] is not None for row in texts]
            for position, one in enumerate(ones, start=1):
                columns[one.column] = _column(one, [row[position] for row in texts], present)
            placed = ViewClocks(ones[0].view, clocks, marks).place(keys[name], at)
            metadata[name] = self._judge(ones, placed, at, now_us)
        # Not with_columns: starting a query costs more than a small answer.
        frame = rows.hstack([columns[one.column] for one in asked])
        return OnlineFeatures(frame, metadata, entity_rows)

    def keys(self, view: str) -> pl.Series:
        """The canonical keys of all entities that have a row, String in no order.

        It walks the whole key space, in many small steps: what comes or goes meanwhile may be in it or not.
        """
        view_id = find_view(view, self.views()).id
        around = len(value_key(self._prefix, view_id, ""))
        found = set()
        with self._server.reaching() as client:
            for name in client.scan_iter(match=value_keys_pattern(self._prefix, view_id), count=10_000):
                text = name.decode(errors="replace") if isinstance(name, bytes) else name
                found.add(text[around - 1 : -1])
        return pl.Series("key", list(found), pl.String)

    def close(self) -> None:
        """Give the connections back."""
        self._server.close()

    def _clocks_and_views(self) -> tuple[Clocks, Mapping[str, RegisteredView]]:
        keys = [clock_key(self._prefix, pipeline) for pipeline in self._pipelines]
        with self._server.reaching() as client:
            commands = client.pipeline(transaction=False)
            for key in keys:
                commands.hgetall(key)
            if self._pinned is None:
                commands.get(registry_key(self._prefix))
            replies = commands.execute()
        clocks = Clocks(*zip(keys, replies, strict=False))
        return clocks, self._pinned if self._pinned is not None else self._parsed(replies[-1])

    def _parsed(self, text: bytes | str | None) -> Mapping[str, RegisteredView]:
        if text is None:
            raise RequestError(
                f"nothing is published under {registry_key(self._prefix)}; start `unskew run`, or give the prefix that "
                "it runs with"
            )
        if self._registry is None or self._registry[0] != text:
            self._registry = (text, parse(text))
        return self._registry[1]

    def _values_and_marks(
        self, of_views: Mapping[str, list[Asked]], keys: Mapping[str, pl.Series]
    ) -> tuple[dict[str, list[list[bytes | None]]], Marks]:
        """For every view and row ``_at`` and then each feature, as text, None where absent; and how far values had been sent by then."""
        marks_keys = [sent_key(self._prefix, pipeline) for pipeline in self._pipelines]
        with self._server.reaching() as client:
            commands = client.pipeline(transaction=False)
            for name, ones in of_views.items():
                fields = ["_at", *(one.feature.name for one in ones)]
                for key in keys[name].to_list():
                    commands.hmget(value_key(self._prefix, ones[0].view.id, key), fields)
            # After the values. A server does what one connection sends in that order; the nodes of a cluster know nothing of each other.
            marks = commands
            if isinstance(client, redis.RedisCluster):
                replies = commands.execute()
                marks = client.pipeline(transaction=False)  # type: ignore[no-untyped-call]
            for sent in marks_keys:
                marks.hgetall(sent)
            replies = [*(replies if marks is not commands else ()), *marks.execute()]
        values = iter(replies)
        found = {name: [next(values) for _ in range(len(keys[name]))] for name in of_views}
        return found, Marks(*zip(marks_keys, values, strict=True))

    def _judge(self, ones: list[Asked], placed: Placed, at: np.ndarray[Any, Any], now_us: int) -> pl.DataFrame:
        known = placed.as_of != UNKNOWN
        status = np.where(at == UNKNOWN, "default", "present").astype(object)
        as_of = np.where(known, placed.as_of, 0)
        warming = is_warming(ones[0].view, [one.feature for one in ones], as_of, placed.since)
        status[~known | warming] = "warming"
        if self._max_lag_us is not None:
            # Compared this way round, so that an unknown clock does not overflow.
            status[placed.clock < now_us - self._max_lag_us] = "lagging"
        return pl.DataFrame(
            [
                pl.Series("as_of", as_of, pl.Int64).cast(_INSTANT).set(pl.Series(~known), None),
                pl.Series("status", status.tolist(), pl.String),
                pl.Series("provisional", placed.provisional, pl.Boolean),
            ]
        )


def _entity_keys(view: RegisteredView, rows: pl.DataFrame) -> pl.Series:
    """The canonical key of every row."""
    entity = EntityPlan(name=view.entity.name, keys=view.entity.keys, types=view.entity.types)
    return encode_keys(key_columns(view, rows), entity)


def _column(asked: Asked, texts: list[bytes | None], present: list[bool]) -> pl.Series:
    """Typed values; of an entity without a row the empty one. The default stands where either is null."""
    feature = asked.feature
    absent = feature.default if feature.empty is None else feature.empty
    instead = [feature.default if is_present else absent for is_present in present]
    return _read(asked.view, feature.name, texts, feature.type, instead).alias(asked.column)


def _read(
    view: RegisteredView, field: str, texts: list[bytes | None], dtype: ValueType, instead: Sequence[Scalar | None]
) -> pl.Series:
    try:
        return read_column(field, texts, dtype, instead)
    except ValueError as error:
        raise LayoutError(
            f"Redis holds for {view.id}:{field} what unskew did not write: {error}; "
            "remove that key, or the field, and the next change of the entity writes it anew"
        ) from error
