"""A request for features, compiled once: the commands that read it with a hole for the keys, and how replies are read.

In one round trip, where one server holds all keys, a request reads in this order, which ``ViewClocks`` needs: the
clocks of the views' shards, the rows, and how far values may have been sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from operator import itemgetter
from typing import Any, NamedTuple, cast

import numpy as np

from unskew.features.errors import LayoutError, OtherFeatures, RequestError
from unskew.features.frames import Given
from unskew.features.on_demand import is_reference
from unskew.features.on_request import Wanted
from unskew.features.references import Asked, by_view
from unskew.features.service import ServiceFeature, difference_of, digest_of
from unskew.features.types import Type
from unskew.features.view import View, ViewFeature
from unskew.features.warming import Statuses, is_warming
from unskew.serving.clocks import NEVER, NOWHERE, UNKNOWN, Placed, ViewClocks
from unskew.serving.computing import Computing
from unskew.serving.lines import Commands
from unskew.sinks.redis.keyspace import clock_key, sent_key, value_key
from unskew.sinks.redis.texts import JsonReader, Numbers, Reader, json_of, stored
from unskew.sinks.redis.wire import argument, command
from unskew.sinks.redis.words import Clocks, ReadWords, Replies, ShardWords

LAGGING = "lagging"
STATUS = "__status"
"""After the name of a feature's column: the name of the column with its status."""
# The name of a member of an enumeration is looked up in Python each time.
_NO_KEY, _WARMING = Statuses.no_key.name, Statuses.warming.name
_DEFAULT, _PRESENT = Statuses.default.name, Statuses.present.name
_AT = "_at"
_INSTANTS = Reader(Type("timestamp"))
_MOST_KNOWN = 64
_MOST_NAMED = 20
_FIRST = itemgetter(0)

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

    ``is_json``: its values are texts in JSON. ``absent``: the value of an entity without a row. ``null``: that of one
    whose row lacks it. ``empty``: that of an entity without events, None if it is null.
    """

    name: str
    dtype: Type
    reader: Reader | JsonReader
    is_json: bool
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
        return cls(
            name=feature.name, dtype=dtype, reader=reader, is_json=as_json, absent=absent, null=null, empty=empty
        )


@dataclass(slots=True)
class ViewAnswer:
    """The rows of one view, in the order of the request.

    ``keys``: canonical, None for a row that lacks a part of it. ``values``: of each column, as ``texts.column_of``
    takes them, or in JSON. ``is_present``: whether there is a row. ``status``: see ``OnlineFeatures``.
    ``status_of_each``: that of each column, if asked for. ``is_whole``: false if a value may be None.
    """

    keys: Sequence[str | None]
    values: Sequence[Sequence[Any]]
    status_of_each: Sequence[list[str]]
    placed: Placed
    status: list[str]
    is_present: list[bool]
    is_whole: bool = False

    def part(self, rows: slice) -> "ViewAnswer":
        """Return the answer for some of the rows."""
        return ViewAnswer(
            self.keys[rows],
            [its[rows] for its in self.values],
            [its[rows] for its in self.status_of_each],
            self.placed.part(rows),
            self.status[rows],
            self.is_present[rows],
            self.is_whole,
        )


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
        # What only on-demand features read stays in the types that these take.
        self.columns = [Column.of(one.feature, as_json=how.as_json and not is_reference(one.column)) for one in ones]
        fields = [_AT, *(one.feature.name for one in ones)]
        self._head = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields))
        self._tail = b"".join(argument(name.encode()) for name in fields)
        self._before_key = value_key(pipelines.prefix, self.view.id, "")[:-1].encode()
        self._pipelines = pipelines
        self._shards = tuple(shards)
        self._asked = ShardWords(self.view.id, shards) if shards else None
        # Instants are numbers in Redis, and texts in JSON.
        are_numbers = [
            Numbers.can_read(column.dtype) and not (column.is_json and column.dtype.scalar == "timestamp")
            for column in self.columns
        ]
        places = [0, *(1 + number for number, is_number in enumerate(are_numbers) if is_number)]
        dtypes = [Type("timestamp"), *(column.dtype for column in self.columns)]
        self._numbers = Numbers([dtypes[place] for place in places])
        self._all_are_numbers = all(are_numbers)
        self._numbers_of_row = itemgetter(*places) if len(places) > 1 else itemgetter(slice(1))
        place = count()
        self._number_places = [next(place) if is_number else None for is_number in are_numbers]
        self._all_stay_texts = self._all_are_numbers and all(column.is_json for column in self.columns)
        features = [one.feature for one in ones]
        self._warmth = _Warmth(self.view, features)
        self._warmths = [_Warmth(self.view, [feature]) for feature in features] if how.with_status else []
        self.before = self._of_words(pipelines.clock_keys, None if self._asked is None else self._asked.clock_fields)
        self.after = self._of_words(pipelines.mark_keys, None if self._asked is None else self._asked.mark_fields)

    def add_rows(self, keys: Iterable[str | None], commands: Commands) -> None:
        """Add the commands that read the rows of these entities; nothing for one without a key."""
        head, tail, before_key = self._head, self._tail, self._before_key
        names = [b"%b%b}" % (before_key, key.encode()) for key in keys if key is not None]
        commands.keys += names
        commands.data += [b"%b$%d\r\n%b\r\n%b" % (head, len(name), name, tail) for name in names]

    def clocks(self, clocks: Sequence[Any], marks: Sequence[Any]) -> ViewClocks:
        """Return what the replies to the commands before and after the rows say.

        Raises ``RequestError`` for a view that is no longer computed, and ``LayoutError`` as ``ShardWords.read`` does.
        """
        words = self._words(clocks, marks)
        if words.steady.is_retired:
            raise RequestError(
                f"{self.view.id} is no longer computed by the pipeline, so its values would be old; ask for the version that "
                "replaced it, leave the definitions out where the registry says what runs, or define the view again with a "
                "new version"
            )
        return ViewClocks(words, partitioned=self.view.partitioned)

    def _words(self, clocks: Sequence[Any], marks: Sequence[Any]) -> ReadWords:
        of_clocks = list(zip(self._pipelines.clock_keys, clocks, strict=True))
        of_marks = list(zip(self._pipelines.mark_keys, marks, strict=True))
        if self._asked is not None:
            return self._asked.read(of_clocks, of_marks)
        # No pipeline has listed the view's shards: those of which anything is said are its shards.
        whole = Clocks(*((key, _as_mapping(reply)) for key, reply in of_clocks))
        asked = ShardWords(self.view.id, whole.shards(self.view.id))
        return asked.read(_of_fields(of_clocks, asked.clock_fields), _of_fields(of_marks, asked.mark_fields))

    def is_outdated(self, clocks: ViewClocks) -> bool:
        """Return true if the shards are other ones than those that were asked about."""
        return clocks.listed != self._shards

    def read(
        self, keys: Sequence[str | None], rows: Sequence[Row], clocks: ViewClocks, oldest_clock_us: int | None
    ) -> ViewAnswer:
        """Return the values and what they are the values of.

        ``rows``: the replies, one for each key that is not None. ``oldest_clock_us``: a clock before this instant is
        too far behind the present; None if none is.

        Raises ``LayoutError`` for something that unskew did not write.
        """
        if has_missing := len(rows) < len(keys):
            replies = iter(rows)
            without: Row = [None] * (1 + len(self.columns))
            rows = [without if key is None else next(replies) for key in keys]
        instants, values, may_lack = self._found(rows)
        placed = clocks.place(keys, instants)
        defaults = self._default_rows(values, instants)
        status = _statuses(keys, placed, defaults, self._warmth, oldest_clock_us)
        status_of_each = []
        for column, its, warmth in zip(self.columns, values, self._warmths, strict=False):
            its_defaults = _default_among(range(len(keys)), its, column.empty, instants)
            status_of_each.append(_statuses(keys, placed, its_defaults, warmth, oldest_clock_us))
        is_whole = True
        if may_lack or has_missing:
            values = [
                _filled(its, column, keys, instants) if None in its else its
                for column, its in zip(self.columns, values, strict=True)
            ]
            is_whole = not any(None in its for its in values)
        is_present = [True] * len(keys) if UNKNOWN not in instants else [at != UNKNOWN for at in instants]
        return ViewAnswer(keys, values, status_of_each, placed, status, is_present, is_whole)

    def _found(self, rows: Sequence[Row]) -> tuple[Sequence[int], Sequence[Sequence[Any]], bool]:
        """Return the instants of rows and the values of each column; None for a null; whether there may be one."""
        at_texts, *texts = zip(*rows, strict=True) if rows else [()] * (1 + len(self.columns))
        of_numbers = rows if self._all_are_numbers else list(map(self._numbers_of_row, rows))
        read = self._numbers.read(of_numbers) if rows else None
        if read is None:
            values: Sequence[Sequence[Any]] = [
                self._values(column.name, column.reader, its) for column, its in zip(self.columns, texts, strict=True)
            ]
            return _known_instants(self._values(_AT, _INSTANTS, at_texts)), values, True
        if self._all_stay_texts:
            return _known_instants(list(map(_FIRST, read.rows))), texts, read.have_nulls
        instants, *numbers = zip(*read.rows, strict=True)
        values = [
            self._values(column.name, column.reader, its)
            if place is None
            else its
            if column.is_json
            else numbers[place]
            for column, its, place in zip(self.columns, texts, self._number_places, strict=True)
        ]
        return _known_instants(instants), values, read.have_nulls or not self._all_are_numbers

    def _default_rows(self, values: Sequence[Sequence[Any]], instants: Sequence[int]) -> Sequence[int]:
        """Return the rows of which all values are those of an entity without events."""
        left: Sequence[int] = range(len(instants))
        for column, its in zip(self.columns, values, strict=True):
            # Nearly all rows that have events differ in one of the first columns.
            if not (left := _default_among(left, its, column.empty, instants)):
                break
        return left

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


class _Clocks(NamedTuple):
    """What replies say of each view. ``are_outdated``: whether shards are others than those that were asked about."""

    before: Sequence[Any]
    after: Sequence[Any]
    of_views: Sequence[ViewClocks]
    are_outdated: bool


class Request:
    """References that are compiled for reading. ``asked``: the features, in their order.

    ``shards``: those of each view, by its id; none where no pipeline has listed them.
    """

    def __init__(
        self,
        wanted: Wanted,
        pipelines: Pipelines,
        shards: Mapping[str, Sequence[str]],
        how: How = How(),  # noqa: B008 - it is immutable
    ) -> None:
        self.asked = asked = wanted.asked
        self.on_request = wanted.on_request
        self._how = how
        of_views = by_view(wanted.of_views)
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
        self.columns = [(one.column, one.feature.dtype) for one in asked]
        """The name and the type of each feature's column."""
        self._n_pipelines = len(pipelines.clock_keys)
        self._known: _Clocks | None = None
        self.before, self.after = Commands(), Commands()
        for view in self.views:
            for ours, its in ((self.before, view.before), (self.after, view.after)):
                for key, data in zip(its.keys, its.data, strict=True):
                    ours.add(key, data)
        places = {
            one.column: (at, number) for at, ones in enumerate(of_views.values()) for number, one in enumerate(ones)
        }
        self._places = places
        if self.on_request is not None:
            for number, one in enumerate(self.on_request.demanded):
                places[one.column] = len(self.views) + number, 0
        self.places = [places[one.column] for one in asked]
        """For each feature, the number of its view, or of its answer after all views, and of its column there."""

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

    def clocks(self, before: Sequence[Any], after: Sequence[Any]) -> "_Clocks":
        """Return what the replies to the commands before and after the rows say of each view; see ``ViewRequest``."""
        # Other threads may read at the same time. Equal words say the same, and change less often than they are read.
        known = self._known
        if known is not None and known.before == before and known.after == after:
            return known
        n = self._n_pipelines
        of_views = [
            view.clocks(before[first : first + n], after[first : first + n])
            for view, first in zip(self.views, range(0, n * len(self.views), n), strict=True)
        ]
        are_outdated = any(view.is_outdated(its) for view, its in zip(self.views, of_views, strict=True))
        found = self._known = _Clocks(before, after, of_views, are_outdated)
        return found

    def read(
        self,
        keys: Sequence[Sequence[str | None]],
        rows: Sequence[Row],
        clocks: Sequence[ViewClocks],
        oldest_clock_us: int | None,
    ) -> list[ViewAnswer]:
        """Return each view's values and what they are the values of; see ``ViewRequest.read``."""
        if len(keys) == 1:
            return [self.views[0].read(keys[0], rows, clocks[0], oldest_clock_us)]
        answers, first = [], 0
        for view, its, said in zip(self.views, keys, clocks, strict=True):
            n_rows = len(its) - its.count(None)
            answers.append(view.read(its, rows[first : first + n_rows], said, oldest_clock_us))
            first += n_rows
        return answers

    @property
    def inputs_read(self) -> list[str]:
        """The columns that on-demand features read of the rows."""
        return [] if self.on_request is None else list(self.on_request.inputs)

    def inputs(self, rows: Given) -> dict[str, list[Any]]:
        """Return the inputs of on-demand features. Raises ``RequestError`` for one that is missing or does not fit."""
        assert self.on_request is not None
        return self.on_request.input_values(rows)

    def computing(
        self, inputs: Mapping[str, list[Any]], answers: Sequence[ViewAnswer], n_rows: int, now_us: int
    ) -> Computing:
        """Return what is to be evaluated once the views have answered."""
        on_request = self.on_request
        assert on_request is not None
        columns: dict[str, Sequence[Any]] = dict(inputs)
        dtypes = dict(on_request.inputs)
        for one in on_request.reads:
            view, number = self._places[one.column]
            columns[one.column], dtypes[one.column] = answers[view].values[number], one.feature.dtype
        return Computing(on_request, columns, dtypes, n_rows, now_us)

    def computed(self, values: Sequence[list[Any]], answers: Sequence[ViewAnswer], n_rows: int) -> list[ViewAnswer]:
        """Return the answers of on-demand features, whose ``values`` were evaluated, one for each.

        A status is the first that one of the features of views has that it reads; ``as_of`` is the earliest one.
        """
        assert self.on_request is not None
        return [self._of_one(number, its, answers, n_rows) for number, its in enumerate(values)]

    def _of_one(self, number: int, values: list[Any], answers: Sequence[ViewAnswer], n_rows: int) -> ViewAnswer:
        assert self.on_request is not None
        if self._how.as_json:
            dtype = self.on_request.dtypes[number]
            values = [None if value is None else json_of(value, dtype) for value in values]
        places = [self._places[one.column] for one in self.on_request.demanded[number].reads]
        views = [answers[view] for view in dict.fromkeys(view for view, _ in places)]
        status = [answers[view].status_of_each[column] for view, column in places] if self._how.with_status else []
        return ViewAnswer(
            keys=[],
            values=[values],
            status_of_each=[_first_status(status, n_rows)] if self._how.with_status else [],
            placed=_earliest([one.placed for one in views], n_rows),
            status=_first_status([one.status for one in views], n_rows),
            is_present=[all(one.is_present[row] for one in views) for row in range(n_rows)],
        )


_IN_ORDER = (Statuses.no_key.name, LAGGING, Statuses.warming.name, Statuses.default.name, Statuses.present.name)
_RANKS = {status: rank for rank, status in enumerate(_IN_ORDER)}


def _first_status(statuses: Sequence[Sequence[str]], n_rows: int) -> list[str]:
    """Return, for each row, the first status that anything has; ``present`` if there is nothing."""
    if not statuses:
        return [Statuses.present.name] * n_rows
    return [min(of_row, key=_RANKS.__getitem__) for of_row in zip(*statuses, strict=True)]


def _earliest(placed: Sequence[Placed], n_rows: int) -> Placed:
    """Return, for each row, the instants of the view whose ``as_of`` is the earliest."""
    if not placed:
        return Placed.of([NOWHERE] * n_rows)
    rows = zip(*(zip(*one, strict=True) for one in placed), strict=True)
    return Placed.of([min(of_row, key=itemgetter(0)) for of_row in rows])


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
    placed: Placed,
    defaults: Sequence[int],
    warmth: _Warmth,
    oldest_clock_us: int | None,
) -> list[str]:
    """Return the status of each row. ``defaults``: the rows whose values are those of an entity without events."""
    if not keys:
        return []
    earliest = min(placed.as_of)
    if earliest != UNKNOWN and (oldest_clock_us is None or min(placed.clock) >= oldest_clock_us):
        # Windows only move on: where the earliest instant is not warming none is, and where the latest is all are.
        if not warmth.is_warming(earliest, max(placed.since)):
            found = [_PRESENT] * len(keys)
            for row in defaults:
                found[row] = _DEFAULT
            return found
        if warmth.is_warming(max(placed.as_of), min(placed.since)):
            return [_WARMING] * len(keys)
    found = []
    are_default = set(defaults)
    rows = zip(keys, placed.as_of, placed.clock, placed.since, strict=True)
    for number, (key, as_of, clock, since) in enumerate(rows):
        if key is None:
            found.append(_NO_KEY)
        elif oldest_clock_us is not None and clock < oldest_clock_us:
            found.append(LAGGING)
        elif as_of == UNKNOWN or warmth.is_warming(as_of, since):
            found.append(_WARMING)
        else:
            found.append(_DEFAULT if number in are_default else _PRESENT)
    return found


def _known_instants(instants: Sequence[int | None]) -> Sequence[int]:
    if None not in instants:
        return cast("Sequence[int]", instants)
    return [UNKNOWN if at is None else at for at in instants]


def _default_among(rows: Sequence[int], values: Sequence[Any], empty: Any, instants: Sequence[int]) -> Sequence[int]:
    """Return those of the rows whose value in a column is that of an entity without events; one without a row has it.

    ``values``, ``instants``: of all rows.
    """
    if empty not in values and None not in values:
        return ()
    return [row for row in rows if values[row] == empty or (values[row] is None and instants[row] == UNKNOWN)]


def _filled(values: Sequence[Any], column: Column, keys: Sequence[str | None], instants: Sequence[int]) -> list[Any]:
    """Return a column's values with what stands for nulls: the empty value without a row, the default for either.

    A row without a key has none of them.
    """
    null, absent = column.null, column.absent
    return [
        value if value is not None else None if key is None else absent if at == UNKNOWN else null
        for value, key, at in zip(values, keys, instants, strict=True)
    ]


def _as_mapping(reply: Sequence[bytes] | Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return a reply to HGETALL as a mapping; in version 2 of the protocol, it is a list."""
    return reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))


def _of_fields(hashes: Iterable[tuple[str, Any]], fields: Sequence[str]) -> Replies:
    found = []
    for key, reply in hashes:
        words = _as_mapping(reply)
        found.append((key, [words.get(field.encode()) for field in fields]))
    return found
