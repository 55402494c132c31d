"""A request for features, compiled once: the commands that read it with a hole for the keys, and how replies are read.

In one round trip, where one server holds all keys, a request reads in this order, which ``ViewClocks`` needs: the
clocks of the views' shards, the rows, and how far values may have been sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np

from unskew.features.errors import LayoutError, OtherFeatures, RequestError
from unskew.features.references import Asked, by_view
from unskew.features.service import ServiceFeature, difference_of, digest_of
from unskew.features.types import Type
from unskew.features.view import View, ViewFeature
from unskew.features.warming import Statuses, is_warming
from unskew.serving.clocks import NEVER, UNKNOWN, Placed, ViewClocks
from unskew.serving.lines import Commands
from unskew.sinks.redis.keyspace import clock_key, sent_key, value_key
from unskew.sinks.redis.texts import JsonReader, Reader, json_of, stored
from unskew.sinks.redis.wire import argument, command
from unskew.sinks.redis.words import Clocks, ReadWords, Replies, ShardWords

LAGGING = "lagging"
STATUS = "__status"
"""After the name of a feature's column: the name of the column with its status."""
_NOWHERE = Placed(UNKNOWN, UNKNOWN, UNKNOWN, provisional=False, compared=UNKNOWN)
_AT = "_at"
_INSTANTS = Reader(Type("timestamp"))
_MOST_KNOWN = 64
_MOST_NAMED = 20

Expected = str | Sequence[ServiceFeature]
"""The digest of features, or the features themselves."""

Row = Sequence[bytes | None]


class Pipelines:
    """The keys of the words of pipelines, whose views a reader reads."""

    def __init__(self, prefix: str, names: Sequence[str]) -> None:
        self.prefix = prefix
        self.clock_keys = [clock_key(prefix, name) for name in names]
        self.mark_keys = [sent_key(prefix, name) for name in names]


class How(NamedTuple):
    """How features are asked for. ``as_json``: their values are texts in JSON."""

    full_feature_names: bool = False
    with_status: bool = False
    as_json: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """How one feature is read.

    ``absent``: the value of an entity without a row. ``null``: that of one whose row lacks it. ``empty``: that of an
    entity without events, None if it is null.
    """

    name: str
    dtype: Type
    reader: Reader | JsonReader
    absent: Any
    null: Any
    empty: Any

    @classmethod
    def of(cls, feature: ViewFeature, *, as_json: bool) -> "Column":
        """Return how a feature is read."""
        dtype = feature.dtype
        null, empty = stored(feature.default, dtype), stored(feature.empty, dtype)
        if as_json:
            null, empty = (None if value is None else json_of(value, dtype) for value in (null, empty))
        absent = null if empty is None else empty
        reader = JsonReader(dtype) if as_json else Reader(dtype)
        return cls(name=feature.name, dtype=dtype, reader=reader, absent=absent, null=null, empty=empty)


@dataclass(frozen=True)
class ViewAnswer:
    """The rows of one view, in the order of the request.

    ``keys``: canonical, None for a row that lacks a part of it. ``values``: of each column, as ``texts.column_of``
    takes them, or in JSON. ``is_present``: whether there is a row. ``status``: see ``OnlineFeatures``.
    ``status_of_each``: that of each column, if asked for.
    """

    keys: Sequence[str | None]
    values: Sequence[list[Any]]
    status_of_each: Sequence[list[str]]
    placed: Sequence[Placed]
    status: list[str]
    is_present: list[bool]


class ViewRequest:
    """What a request reads of one view version. ``shards``: of the view; none if no pipeline has listed them yet."""

    def __init__(
        self,
        named: str,
        ones: Sequence[Asked],
        pipelines: Pipelines,
        shards: Sequence[str],
        how: How,
    ) -> None:
        self.named = named
        self.view: View = ones[0].view
        self.columns = [Column.of(one.feature, as_json=how.as_json) for one in ones]
        fields = [_AT, *(one.feature.name for one in ones)]
        self._head = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields))
        self._tail = b"".join(argument(name.encode()) for name in fields)
        self._before_key = value_key(pipelines.prefix, self.view.id, "")[:-1].encode()
        self._pipelines = pipelines
        self._shards = tuple(shards)
        self._asked = ShardWords(self.view.id, shards) if shards else None
        features = [one.feature for one in ones]
        self._warmth = _Warmth(self.view, features)
        self._warmths = [_Warmth(self.view, [feature]) for feature in features] if how.with_status else []
        self.before = self._of_words(pipelines.clock_keys, None if self._asked is None else self._asked.clock_fields)
        self.after = self._of_words(pipelines.mark_keys, None if self._asked is None else self._asked.mark_fields)

    def add_rows(self, keys: Iterable[str | None], commands: Commands) -> None:
        """Add the commands that read the rows of these entities; nothing for one without a key."""
        head, tail, before_key = self._head, self._tail, self._before_key
        for key in keys:
            if key is not None:
                name = b"%b%b}" % (before_key, key.encode())
                commands.add(name, b"%b$%d\r\n%b\r\n%b" % (head, len(name), name, tail))

    def words(self, clocks: Sequence[Any], marks: Sequence[Any]) -> ReadWords:
        """Return what the replies to the commands before and after the rows say."""
        of_clocks = list(zip(self._pipelines.clock_keys, clocks, strict=True))
        of_marks = list(zip(self._pipelines.mark_keys, marks, strict=True))
        if self._asked is not None:
            return self._asked.read(of_clocks, of_marks)
        # No pipeline has listed the view's shards: those of which anything is said are its shards.
        whole = Clocks(*((key, _as_mapping(reply)) for key, reply in of_clocks))
        asked = ShardWords(self.view.id, whole.shards(self.view.id))
        return asked.read(_of_fields(of_clocks, asked.clock_fields), _of_fields(of_marks, asked.mark_fields))

    def is_outdated(self, words: ReadWords) -> bool:
        """Return true if the shards are other ones than those that were asked about."""
        return words.steady.listed != self._shards

    def read(
        self, keys: Sequence[str | None], rows: Sequence[Row], words: ReadWords, oldest_clock_us: int | None
    ) -> ViewAnswer:
        """Return the values and what they are the values of.

        ``rows``: the replies, one for each key that is not None. ``oldest_clock_us``: a clock before this instant is
        too far behind the present; None if none is.

        Raises ``LayoutError`` for something that unskew did not write.
        """
        if len(rows) < len(keys):
            replies = iter(rows)
            without: Row = [None] * (1 + len(self.columns))
            rows = [without if key is None else next(replies) for key in keys]
        at_texts, *texts = zip(*rows, strict=True) if rows else [()] * (1 + len(self.columns))
        instants = [UNKNOWN if at is None else at for at in self._values(_AT, _INSTANTS, at_texts)]
        is_default = [True] * len(rows)
        values, defaults = [], []
        for column, its_texts in zip(self.columns, texts, strict=True):
            # The flags are kept apart only where the status of each column is asked for.
            its = [True] * len(rows) if self._warmths else is_default
            values.append(self._read_column(column, its_texts, instants, its))
            defaults.append(its)
        if self._warmths:
            is_default = [all(flags) for flags in zip(*defaults, strict=True)]
        clocks = ViewClocks(words, partitioned=self.view.partitioned)
        placed = []
        for row, (key, at) in enumerate(zip(keys, instants, strict=True)):
            placed.append(_NOWHERE if key is None else clocks.place(key, at))
            if key is None:
                for of_column in values:
                    of_column[row] = None
        return ViewAnswer(
            keys,
            values,
            [
                _statuses(keys, placed, flags, warmth, oldest_clock_us)
                for flags, warmth in zip(defaults, self._warmths, strict=False)
            ],
            placed,
            _statuses(keys, placed, is_default, self._warmth, oldest_clock_us),
            [at != UNKNOWN for at in instants],
        )

    def _read_column(
        self, column: Column, texts: Sequence[bytes | None], instants: Sequence[int], is_default: list[bool]
    ) -> list[Any]:
        """Return a column's values; where one is not what an entity without events has, ``is_default`` becomes false.

        An entity without a row has the empty value. The default replaces either if it is null.
        """
        empty, null = column.empty, column.null
        found = self._values(column.name, column.reader, texts)
        for row, text in enumerate(texts):
            if text is None:
                is_present = instants[row] != UNKNOWN
                found[row] = null if is_present else column.absent
                if is_present and empty is not None:
                    is_default[row] = False
            elif empty is None or found[row] != empty:
                is_default[row] = False
        return found

    def _values(self, field: str, reader: Reader | JsonReader, texts: Sequence[bytes | None]) -> list[Any]:
        """Return the values of texts; None stays None."""
        there = texts if None not in texts else [text for text in texts if text is not None]
        try:
            values = reader.values(cast("Sequence[bytes]", there))
        except ValueError as error:
            raise LayoutError(
                f"Redis holds a value of {self.view.id}:{field} that unskew did not write: {error}; "
                "run `unskew rehydrate`, with --running if the pipeline runs, which writes every value again"
            ) from error
        if len(values) == len(texts):
            return values
        rest = iter(values)
        return [None if text is None else next(rest) for text in texts]

    @staticmethod
    def _of_words(keys: Sequence[str], fields: Sequence[str] | None) -> Commands:
        commands = Commands()
        for key in keys:
            name = key.encode()
            if fields is None:
                commands.add(name, command(b"HGETALL", name))
            else:
                commands.add(name, command(b"HMGET", name, *(one.encode() for one in fields)))
        return commands


class Request:
    """References that are compiled for reading. ``asked``: the features, in their order.

    ``shards``: those of each view, by its id; none where no pipeline has listed them.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        pipelines: Pipelines,
        shards: Mapping[str, Sequence[str]],
        how: How = How(),  # noqa: B008 - it is immutable
    ) -> None:
        self.asked = asked
        of_views = by_view(asked)
        self.views = [
            ViewRequest(named, ones, pipelines, shards[ones[0].view.id], how) for named, ones in of_views.items()
        ]
        self.names = {one.column: one.reference for one in asked}
        """The columns of an answer, each with the reference that it answers."""
        if how.with_status:
            for one in asked:
                if (status := f"{one.column}{STATUS}") in self.names:
                    raise RequestError(
                        f"the status of {one.reference} and {self.names[status]} would share the column {status!r}; ask for one of "
                        "them alone, or without with_status"
                    )
            self.names |= {f"{one.column}{STATUS}": f"the status of {one.reference}" for one in asked}
        self._n_pipelines = len(pipelines.clock_keys)
        self.before, self.after = Commands(), Commands()
        for view in self.views:
            for ours, its in ((self.before, view.before), (self.after, view.after)):
                for key, data in zip(its.keys, its.data, strict=True):
                    ours.add(key, data)
        places = {
            one.column: (at, number) for at, ones in enumerate(of_views.values()) for number, one in enumerate(ones)
        }
        self.places = [places[one.column] for one in asked]
        """For each feature, the number of its view and of its column there."""

    def require(self, expected: "Expected") -> None:
        """Raise ``OtherFeatures`` if the features are not those that are expected, in their order."""
        if expected == self.digest if isinstance(expected, str) else digest_of(expected) == self.digest:
            return
        if isinstance(expected, str):
            named = ", ".join(f"{one.view.id}:{one.feature.name}" for one in self.asked[:_MOST_NAMED])
            more = f" and {len(self.asked) - _MOST_NAMED} more" if len(self.asked) > _MOST_NAMED else ""
            what = f"they are {named}{more}, with the digest {self.digest}, and not those of {expected}"
        else:
            what = difference_of(expected, [one.pinned for one in self.asked]) or ""
        raise OtherFeatures(
            f"the features are not those that the request expects: {what}; ask for the features and versions that the model was "
            "trained with, in their order, or train it with these"
        )

    @cached_property
    def digest(self) -> str:
        """What identifies the features, see ``digest_of``."""
        return digest_of(one.pinned for one in self.asked)

    def rows(self, keys: Sequence[Sequence[str | None]]) -> Commands:
        """Return the commands that read the rows of each view's keys."""
        commands = Commands()
        for view, its in zip(self.views, keys, strict=True):
            view.add_rows(its, commands)
        return commands

    def words(self, before: Sequence[Any], after: Sequence[Any]) -> list[ReadWords]:
        """Return what the replies to the commands before and after the rows say of each view's shards.

        Raises ``RequestError`` for a view that is no longer computed.
        """
        n = self._n_pipelines
        found = []
        for at, view in enumerate(self.views):
            words = view.words(before[at * n : (at + 1) * n], after[at * n : (at + 1) * n])
            if words.steady.is_retired:
                raise RequestError(
                    f"{view.view.id} is no longer computed by the pipeline, so its values would be old; ask for the version that "
                    "replaced it, or define the view again with a new version"
                )
            found.append(words)
        return found

    def is_outdated(self, words: Sequence[ReadWords]) -> bool:
        """Return true if the shards of a view are other ones than those that were asked about."""
        return any(view.is_outdated(its) for view, its in zip(self.views, words, strict=True))

    def read(
        self,
        keys: Sequence[Sequence[str | None]],
        rows: Sequence[Row],
        words: Sequence[ReadWords],
        oldest_clock_us: int | None,
    ) -> list[ViewAnswer]:
        """Return each view's values and what they are the values of; see ``ViewRequest.read``."""
        answers, first = [], 0
        for view, its, said in zip(self.views, keys, words, strict=True):
            n_rows = len(its) - its.count(None)
            answers.append(view.read(its, rows[first : first + n_rows], said, oldest_clock_us))
            first += n_rows
        return answers


class _Warmth:
    """Which instants are warming for some features of a view, and the first arrivals of shards.

    The start of a window never goes back. So of each first arrival it is enough to know the latest instant that is
    warming and the earliest that is not.
    """

    def __init__(self, view: View, features: Sequence[ViewFeature]) -> None:
        self._view = view
        self._features = features
        self._bounds: dict[int, tuple[int, int]] = {}

    def is_warming(self, as_of: int, since: int) -> bool:
        latest, earliest = self._bounds.get(since, (UNKNOWN, NEVER))
        if as_of >= earliest:
            return False
        if as_of <= latest:
            return True
        found = bool(is_warming(self._view, self._features, np.array([as_of]), since)[0])
        if len(self._bounds) >= _MOST_KNOWN:
            self._bounds = {}
        self._bounds[since] = (as_of, earliest) if found else (latest, as_of)
        return found


def _statuses(
    keys: Sequence[str | None],
    placed: Sequence[Placed],
    is_default: Sequence[bool],
    warmth: _Warmth,
    oldest_clock_us: int | None,
) -> list[str]:
    found = []
    for key, its, default in zip(keys, placed, is_default, strict=True):
        if key is None:
            found.append(Statuses.no_key.name)
        elif oldest_clock_us is not None and its.clock < oldest_clock_us:
            found.append(LAGGING)
        elif its.as_of == UNKNOWN or warmth.is_warming(its.as_of, its.since):
            found.append(Statuses.warming.name)
        else:
            found.append(Statuses.default.name if default else Statuses.present.name)
    return found


def _as_mapping(reply: Sequence[bytes] | Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return a reply to HGETALL as a mapping; in version 2 of the protocol, it is a list."""
    return reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))


def _of_fields(hashes: Iterable[tuple[str, Any]], fields: Sequence[str]) -> Replies:
    found = []
    for key, reply in hashes:
        words = _as_mapping(reply)
        found.append((key, [words.get(field.encode()) for field in fields]))
    return found
