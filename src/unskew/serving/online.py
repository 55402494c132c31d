"""The online reader: current values and the instants for which they are valid, read from Redis alone."""

import datetime as dt
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import quote

import polars as pl
from typing_extensions import override

from unskew.features.errors import LayoutError, NothingPublished, RequestError
from unskew.features.frames import Answer, Given, Table, read_table
from unskew.features.keys import encode_keys
from unskew.features.on_request import Wanted, requested_instant, wanted
from unskew.features.references import is_service, key_columns, key_names, texts
from unskew.features.registry import Published, parse
from unskew.features.time import format_instant, moment_of
from unskew.features.types import Type
from unskew.features.versions import Versions
from unskew.features.view import KeyType, View
from unskew.serving.cached import Cache, Read
from unskew.serving.clocks import UNKNOWN
from unskew.serving.computing import Computing, Together
from unskew.serving.lines import Commands, Lines
from unskew.serving.request import STATUS, Expected, How, Pipelines, Request, ViewAnswer
from unskew.serving.sample import Sampler
from unskew.serving.shared import SharedLines
from unskew.serving.together import Found, Reading, Reads
from unskew.sinks.redis.keyspace import registry_key, revision_key, value_key, value_keys_pattern
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.texts import column_of, objects_of
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.wire import command
from unskew.sinks.redis.words import listed_shards, shards_field
from unskew.sinks.wall import wall_us

Status = Literal["present", "default", "warming", "lagging", "no_key"]

_INSTANT = pl.Datetime("us", "UTC")
_MOST_TRIES = 8
"""How often a read begins again because views or shards changed under it."""
_MOST_REQUESTS = 256
_PAST_INT64 = 2**63
_PLAIN: Mapping[KeyType, type] = {"int64": int, "string": str}
_UNRESERVED = re.compile("[A-Za-z0-9_.~-]*").fullmatch


class OnlineFeatures(Answer):
    """The answer to one request: one row for each entity row, in its order."""

    def __init__(self, answered: "Answered") -> None:
        self.given = answered.rows
        self._now_us = answered.now_us
        self._request = answered.request
        self._answers = answered.answers

    @cached_property
    def columns(self) -> pl.DataFrame:  # type: ignore[override]
        """A column for each feature, row for row."""
        columns = []
        for name, dtype, values, status in self._by_feature():
            columns.append(column_of(name, values, dtype))
            if status is not None:
                columns.append(pl.Series(f"{name}{STATUS}", status, pl.String))
        return pl.DataFrame(columns)

    @cached_property
    def metadata(self) -> Mapping[str, pl.DataFrame]:
        """For each view, as the request names it (``view`` or ``view@version``), a frame.

        - ``as_of`` Datetime UTC: the instant for which the values are valid; null if the pipeline has published no
          clock;
        - ``status``: ``lagging`` (the clock is further behind the present than allowed), else ``warming`` (the window
          of a requested feature, or of a feature from which it is derived, begins before the pipeline's first event),
          else ``default`` if every requested value is that of an entity without events, else ``present``; ``no_key``
          for a row that lacks a part of the entity's key, whose values and ``as_of`` are null;
        - ``provisional``: whether more events may still arrive at or before ``as_of``.
        """
        return {
            view.named: pl.DataFrame(
                [
                    _instants("as_of", answer.placed.as_of),
                    pl.Series("status", answer.status, pl.String),
                    pl.Series("provisional", answer.placed.provisional, pl.Boolean),
                ]
            )
            # On-demand features come after all views.
            for view, answer in zip(self._request.views, self._answers, strict=False)
        }

    @property
    def now(self) -> dt.datetime:
        """The instant that ``now`` is in on-demand features: that of the request, else the one of reading."""
        return moment_of(self._now_us)

    @cached_property
    def compared_at(self) -> Mapping[str, pl.Series]:
        """For each view, named so, when the pipeline's last comparison of all rows with its state began.

        Datetime UTC, null before one. A row that is absent and not provisional is exact unless somebody removed it from
        Redis after that.
        """
        return {
            view.named: _instants("compared_at", answer.placed.compared)
            for view, answer in zip(self._request.views, self._answers, strict=False)
        }

    def to_dict(self) -> dict[str, list[Any]]:
        """Return column name -> values, the table's own columns first."""
        found = {name: self.given.values(name) for name in self.given.names}
        for name, dtype, values, status in self._by_feature():
            found[name] = objects_of(values, dtype)
            if status is not None:
                found[f"{name}{STATUS}"] = list(status)
        return found

    def _by_feature(self) -> Iterator[tuple[str, Type, Sequence[Any], list[str] | None]]:
        """Yield the column, the type, the values and, if asked for, the status of each feature."""
        for (name, dtype), (view, number) in zip(self._request.columns, self._request.places, strict=True):
            answer = self._answers[view]
            yield name, dtype, answer.values[number], answer.status_of_each[number] if answer.status_of_each else None

    @override
    def __repr__(self) -> str:
        summary = [f"{self.given.n_rows:,} rows, {len(self._request.asked)} features"]
        for view, answer in zip(self._request.views, self._answers, strict=False):
            counts = ", ".join(f"{count:,} {status}" for status, count in Counter(answer.status).most_common())
            instants = [as_of for as_of in answer.placed.as_of if as_of != UNKNOWN]
            since = f", as of {format_instant(min(instants))}" if instants else ""
            until = f" to {format_instant(max(instants))}" if instants and max(instants) > min(instants) else ""
            summary.append(f"{view.named}: {counts or 'no rows'}{since}{until}")
        return "\n".join([*summary, repr(self.frame)])

    def require(self, expected: Expected) -> None:
        """Raise ``OtherFeatures`` if these are not the expected features, in their order."""
        self._request.require(expected)


class Answered(NamedTuple):
    """What a read found: the rows that were asked with, and for each view of the request its values.

    The answers of on-demand features, one for each, come after those of all views.
    ``read_us``: the instant at which the values were read, by this machine's clock. ``now_us``: the instant that
    ``now`` is in on-demand features, the same unless the request said another.
    """

    rows: Given
    request: Request
    answers: Sequence[ViewAnswer]
    read_us: int
    now_us: int


_Result = TypeVar("_Result")
Asking = Generator[tuple[Commands, ...] | Reading | Computing, Any, _Result]
"""Yields what is to be sent to Redis, read or evaluated, and is sent the replies, what was found, or the values."""


class _Known:
    """What a reader knows of Redis: the views, their shards, and the requests that it has compiled for them.

    It is never changed in meaning: when the registry or the shards change, the reader begins with another one.
    """

    def __init__(
        self,
        revision: bytes | None,
        text: bytes,
        published: Published,
        shards: Mapping[str, Sequence[str]],
        found: dict[tuple[tuple[str, ...] | str, bool], Wanted] | None = None,
    ) -> None:
        # What references mean outlasts another list of shards: expressions take long to check.
        self.found = {} if found is None else found
        self.revision = revision
        self.text = text
        self.published = published
        self.shards = shards
        self.requests: dict[tuple[tuple[str, ...] | str, How], Request] = {}

    def look_up(self, features: tuple[str, ...] | str, how: How) -> Wanted:
        """Return what references mean. Raises as ``on_request.wanted`` does."""
        place = features, how.full_feature_names
        if place not in self.found:
            found = wanted(features, self.published, full_feature_names=how.full_feature_names)
            if len(self.found) >= _MOST_REQUESTS:
                self.found.pop(next(iter(self.found)), None)
            self.found[place] = found
            return found
        return self.found[place]


class OnlineReader:
    """Reads current features; needs only Redis.

    ``client``: a client of redis-py or a URL, for one server, sentinels or a cluster. ``pipeline``: the pipeline or
    pipelines that maintain the views. ``views``: the view versions to read, with services if any; by default what
    the published registry has, which the reader follows as it changes. ``max_lag_us``: how far a clock may be
    behind the present before the status is ``lagging``; with None it never is. ``sampler``: keeps a small sample of
    what is returned; None keeps nothing. ``timeout_s``: how long a connection or a reply is waited for, where a URL
    does not say it; a read is tried three times. ``cache_s``: for how long an answer is given again to the same
    request, see ``Cache``; with None it never is.
    """

    def __init__(
        self,
        client: Client | str,
        prefix: str = "unskew",
        pipeline: str | Sequence[str] = "main",
        *,
        views: Mapping[str, View] | Published | None = None,
        max_lag_us: int | None = None,
        now_us: Callable[[], int] = wall_us,
        sampler: Sampler | None = None,
        timeout_s: float | None = None,
        cache_s: float | None = None,
    ) -> None:
        if timeout_s is not None and timeout_s <= 0:
            raise RequestError("timeout: it must be longer than 0; give for example 250ms")
        self._cache = None if cache_s is None else Cache(cache_s)
        self._sampler = sampler
        self._server = Server(client, timeout_s=timeout_s)
        self._lines = Lines(self._server)
        self._shared = SharedLines(self._server, self._lines)
        self._together = Together()
        self._reads = Reads(
            lambda one: self.asked_async(self._read(one)),
            self._shared.are_waiting,
            has_servers=self._server.is_cluster,
        )
        self._prefix = prefix
        self._pipelines = Pipelines(prefix, [pipeline] if isinstance(pipeline, str) else list(pipeline))
        if views is not None and not isinstance(views, Published):
            views = Published(views=Versions.of(views))
        self._pinned = views
        self._known = None if self._pinned is None else _Known(None, b"", self._pinned, {})
        self._max_lag_us = max_lag_us
        self._now_us = now_us
        self._revision = Commands()
        if self._pinned is None:
            revision = revision_key(prefix).encode()
            self._revision.add(revision, command(b"GET", revision))

    @override
    def __str__(self) -> str:
        return str(self._server)

    def views(self) -> Versions[View]:
        """Return the views that can be read."""
        return self.published().views

    def published(self) -> Published:
        """Return the views and services that can be read."""
        return self._asked(self.look_again()).published

    def read(
        self,
        features: Sequence[str] | str,
        entity_rows: Table,
        *,
        full_feature_names: bool = False,
        with_status: bool = False,
        now: dt.datetime | str | None = None,
    ) -> OnlineFeatures:
        """Read ``view:feature`` and ``view@version:feature`` references, or a service, for every entity row.

        ``entity_rows``: a list of dicts, a frame or an Arrow table, with the key columns of every requested view;
        other columns are passed through. Entities that were never seen, or whose windows are all empty, get empty
        values and defaults. Takes one round trip, whatever the number of views and rows, and three to a cluster; more
        for the first read of some references, and after views or shards have changed. ``with_status``: adds a column
        ``{feature column}__status`` beside each feature, which says of it alone what ``metadata`` says of all.

        On-demand features take their inputs from further columns of ``entity_rows``. What they read of views is read
        too, so ``metadata`` has these views and speaks of these features, which are not returned. ``now``: the instant
        that ``now`` is in their expressions; by default the one at which the values were read. The status of one is
        the first that one of the features of views has that it reads: no_key, lagging, warming, default, present.

        Raises ``RequestError`` for an unknown name, with the nearest known one; ``StoreUnavailable`` if Redis cannot be
        reached.
        """
        asking = self.asking(
            features, read_table(entity_rows), full_feature_names=full_feature_names, with_status=with_status, now=now
        )
        return OnlineFeatures(self._asked(asking))

    async def read_async(
        self,
        features: Sequence[str] | str,
        entity_rows: Table,
        *,
        full_feature_names: bool = False,
        with_status: bool = False,
        now: dt.datetime | str | None = None,
    ) -> OnlineFeatures:
        """Read as ``read`` does, without blocking the event loop; reads of one loop share a connection."""
        asking = self.asking(
            features, read_table(entity_rows), full_feature_names=full_feature_names, with_status=with_status, now=now
        )
        return OnlineFeatures(await self.asked_async(asking))

    def asking(
        self,
        features: Sequence[str] | str,
        rows: Given,
        *,
        full_feature_names: bool = False,
        with_status: bool = False,
        as_json: bool = False,
        now: dt.datetime | str | None = None,
    ) -> "Asking[Answered]":
        """Yield the commands to send, whose replies must be sent back, and return the answer. Raises as ``read`` does.

        ``as_json``: the values are their texts in JSON, see ``sinks.redis.texts``.
        """
        if not isinstance(with_status, bool):
            raise RequestError(f"with_status is True or False, not {with_status!r}")
        named = features if type(features) is list or is_service(features) else texts(features)
        given_us = None if now is None else requested_instant(now)
        how = How(full_feature_names, with_status, as_json)
        for _ in range(_MOST_TRIES):
            known, request = yield from self._compiled(named, how)
            if not rows.n_rows and not rows.names:
                # Without rows there are no columns either.
                empty = {name: pl.String for one in request.views for name in one.view.entity.keys}
                empty |= dict.fromkeys(request.inputs_read, pl.String)
                rows = read_table(pl.DataFrame(schema=empty))
            keys = _keys(request, rows)
            inputs = {} if request.on_request is None else request.inputs(rows)
            reading = Reading(known, request, keys)
            # What is kept is of the keys of one read alone.
            found = (yield reading) if self._cache is None else None
            if found is None:
                found = yield from self._read(reading)
            if found is None:
                continue
            answers, read_us = found
            now_us = read_us if given_us is None else given_us
            if self._sampler is not None:
                self._sampler.offer(request, answers)
            if request.on_request is not None:
                computing = request.computing(inputs, answers, rows.n_rows, now_us)
                answers += request.computed((yield computing), answers, rows.n_rows)
            return Answered(rows, request, answers, read_us, now_us)
        raise RequestError(
            "the views or their shards changed with every attempt to read them; several pipelines seem to publish them in turn"
        )

    def _read(self, reading: Reading) -> "Asking[Found | None]":
        """Return what there is for the keys of a read; None if its request must be compiled again."""
        known, request, keys = reading
        read = None if self._cache is None else self._cache.get(request, keys)
        if read is None:
            began_s = 0.0 if self._cache is None else self._cache.now_s()
            steps = self._revision, request.before, request.rows(keys), request.after
            # Some on-demand features read inputs alone.
            revision, before, values, after = (yield steps) if any(step.data for step in steps) else ([], [], [], [])
            # Without a revision in Redis, nothing says that the registry is the same.
            is_known = not revision or (revision[0] is not None and revision[0] == known.revision)
            if not is_known and (yield from self.look_again(known)) is not known:
                return None
            clocks = request.clocks(before, after)
            if clocks.are_outdated:
                listed = {view.view.id: its.listed for view, its in zip(request.views, clocks.of_views, strict=True)}
                self._relist(known, listed)
                return None
            read = Read(values, clocks.of_views, self._now_us())
            if self._cache is not None:
                self._cache.put(request, keys, began_s, read)
        oldest_us = None if self._max_lag_us is None else read.read_us - self._max_lag_us
        return Found(request.read(keys, read.rows, read.clocks, oldest_us), read.read_us)

    def keys(self, view: str) -> pl.Series:
        """Return the canonical keys of all entities that have a row, as String, in no particular order.

        Scans the whole key space in many small steps: keys that appear or disappear meanwhile may be included or not.
        """
        view_id = self.views().find(view).id
        around = len(value_key(self._prefix, view_id, ""))
        found = set()
        # The URL may allow one connection alone.
        self._lines.give_back()
        with self._server.reaching() as client:
            for name in client.scan_iter(match=value_keys_pattern(self._prefix, view_id), count=10_000):
                text = name.decode(errors="replace") if isinstance(name, bytes) else name
                found.add(text[around - 1 : -1])
        return pl.Series("key", list(found), pl.String)

    def close(self) -> None:
        """Close the connections."""
        self._shared.close()
        self._lines.give_back()
        self._server.close()

    def _asked(self, asking: "Asking[_Result]") -> _Result:
        """Return what comes of asking."""
        try:
            step = next(asking)
            found: Any
            while True:
                if isinstance(step, Reading):
                    found = None
                elif isinstance(step, Computing):
                    found = step.done()
                else:
                    found = self._lines.ask(*step)
                step = asking.send(found)
        except StopIteration as end:
            result: _Result = end.value
            return result

    async def asked_async(self, asking: "Asking[_Result]") -> _Result:
        """Return what comes of asking, without blocking the event loop."""
        try:
            step = next(asking)
            found: Any
            while True:
                if isinstance(step, Reading):
                    joint = self._reads.joined(step)
                    found = None if joint is None else await joint
                elif isinstance(step, Computing):
                    found = await self._together.done(step)
                else:
                    found = await self._shared.ask(*step)
                step = asking.send(found)
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _compiled(self, features: Sequence[str] | str, how: How) -> "Asking[tuple[_Known, Request]]":
        """Return a request as it is compiled for what is known, and that."""
        known = self._known or (yield from self.look_again())
        place = (features if isinstance(features, str) else tuple(features)), how
        try:
            request = known.requests.get(place)
        except TypeError:
            request = None
        if request is None and not isinstance(features, str):
            # Nobody has asked for these yet, or they are not a list of texts, each once.
            place = tuple(texts(features)), how
            request = known.requests.get(place)
        if request is None:
            try:
                found = known.look_up(*place)
            except (RequestError, LayoutError):
                # The registry may have changed since it was read.
                known = yield from self.look_again(known)
                found = known.look_up(*place)
            unlisted = {one.view.id for one in found.of_views} - known.shards.keys()
            if unlisted:
                known = self._relist(known, (yield from self._listed(sorted(unlisted))))
            # Others may have compiled it meanwhile.
            request = known.requests.get(place) or Request(found, self._pipelines, known.shards, how)
            if len(known.requests) >= _MOST_REQUESTS:
                known.requests.pop(next(iter(known.requests)), None)
            known.requests[place] = request
        return known, request

    def look_again(self, known: _Known | None = None) -> "Asking[_Known]":
        """Return what the registry says now; the same as is known if it says the same."""
        known = known or self._known
        if self._pinned is not None:
            assert known is not None
            return known
        key = registry_key(self._prefix)
        # The revision first: if the registry is replaced meanwhile, it is read again the next time.
        read = Commands()
        read.add(key.encode(), command(b"GET", key.encode()))
        (revision,), (text,) = yield self._revision, read
        if text is None:
            raise NothingPublished(
                f"nothing is published under {key}; start `unskew run`, or give the prefix with which it runs"
            )
        # Others may have looked meanwhile.
        for one in (known, self._known):
            if one is not None and one.text == text:
                one.revision = revision
                self._known = one
                return one
        found = self._known = _Known(revision, text, parse(text, key), {} if known is None else known.shards)
        return found

    def _listed(self, view_ids: Sequence[str]) -> "Asking[Mapping[str, Sequence[str]]]":
        """Return the shards of these views as pipelines list them; none for a view that no pipeline has listed."""
        read = Commands()
        fields = [shards_field(view_id).encode() for view_id in view_ids]
        for key in self._pipelines.clock_keys:
            read.add(key.encode(), command(b"HMGET", key.encode(), *fields))
        (replies,) = yield (read,)
        return listed_shards(view_ids, replies)

    def _relist(self, known: _Known, listed: Mapping[str, Sequence[str]]) -> _Known:
        """Return what is known, with these shards of views; requests that were compiled for others are forgotten."""
        shards = {**known.shards, **listed}
        if self._known is not None and self._known.found is known.found and self._known.shards == shards:
            return self._known
        found = self._known = _Known(known.revision, known.text, known.published, shards, known.found)
        return found


def _keys(request: Request, rows: Given) -> list[list[str | None]]:
    """Return the canonical keys of each view's rows; None for a row that lacks a part. Raises ``RequestError``."""
    if not request.names.keys().isdisjoint(rows.names):
        name, reference = next((name, its) for name, its in request.names.items() if name in rows.names)
        raise RequestError(
            f"{reference} would replace the column {name!r} of the entity rows; rename it, or set full_feature_names"
        )
    if len(request.views) == 1:
        return [_keys_of(request.views[0].view, rows)]
    found: dict[object, list[str | None]] = {}
    keys = []
    for view in request.views:
        entity = view.view.entity
        its = entity.name, entity.keys, entity.types
        if its not in found:
            found[its] = _keys_of(view.view, rows)
        keys.append(found[its])
    return keys


def _keys_of(view: View, rows: Given) -> list[str | None]:
    names = key_names(view, rows)
    if rows.of_objects and set(names).issubset(rows.names):
        columns = list(map(_plain_parts, map(rows.values, names), view.entity.types))
        if None not in columns:
            parts = cast("list[list[str | None]]", columns)
            return parts[0] if len(parts) == 1 else list(map("|".join, zip(*columns, strict=True)))
    return encode_keys(key_columns(view, rows), view.entity).to_list()


def _plain_parts(values: Sequence[Any], kind: KeyType) -> list[str] | None:
    """Return what plain integers or texts are in keys; None if there is any other value, which takes longer to read."""
    if {*map(type, values)} != {_PLAIN[kind]}:
        return None
    if kind == "int64":
        return list(map(str, values)) if min(values) >= -_PAST_INT64 and max(values) < _PAST_INT64 else None
    # Nearly all texts consist of these characters, and what they are quoted to is the same.
    if _UNRESERVED("".join(values)):
        return list(values)
    try:
        return [quote(value, safe="") for value in values]
    except UnicodeEncodeError:
        return None


def _instants(name: str, instants_us: Iterable[int]) -> pl.Series:
    return pl.Series(name, [None if us == UNKNOWN else us for us in instants_us], pl.Int64).cast(_INSTANT)
