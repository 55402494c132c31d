"""Current rows as bytes of the Redis protocol.

A row becomes

    DEL key                                        if the entity has no tile left, else
    HSET key feature value ... _at us [_until us]  if no field is null, or
    MULTI / HSET ... / HDEL key null fields / EXEC if at least one is, followed, if asked for, by
    PERSIST key                                    which removes an expiry, or
    PEXPIREAT key ms                               if the time of collection is still to come,

so a reader sees the fields of a row change together. The expiry is outside the transaction, because it only collects
garbage. Values have the texts that ``texts`` describes; a null field is absent.

Every reply to these commands is an integer, a status or an array of integers, as ``resp_replies`` expects.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import hiredis
import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.kernel.program import others_begin
from unskew.features.kernel.results import column
from unskew.features.kernel.row_words import CurrentWords, Ints
from unskew.features.kernel.shown_texts import ShownTexts, places_of
from unskew.features.plan import ViewPlan
from unskew.features.selecting import select
from unskew.features.text_buffers import Keys, not_null, read_only
from unskew.features.types import INT64, STRING
from unskew.features.updates import StepRows
from unskew.sinks.redis import resp_bytes
from unskew.sinks.redis.keyspace import value_key
from unskew.sinks.redis.texts import text_of
from unskew.sinks.redis.wire import argument, command

_NO_TEXTS = Keys(np.zeros(1, np.int64), np.empty(0, np.uint8))
_NO_SHOWN = ShownTexts(np.empty(0, np.int64), _NO_TEXTS)


@dataclass(frozen=True)
class Commands:
    """Bytes ready to send, and the number of replies to them."""

    data: bytes
    n_replies: int


def hset(key: str, values: Mapping[str, int | str]) -> Commands:
    """Return the command that sets fields of a hash."""
    arguments = ["HSET", key, *(str(part) for pair in values.items() for part in pair)]
    return Commands(command(*(part.encode() for part in arguments)), 1)


class RowEncoder:
    """An encoder of the commands that set the keys of one view to given current rows.

    A row's key in Redis is its entity's key between ``before_key`` and ``after_key``. ``expire_after_us``: keys expire
    this long after their last window empties; with None they never do.
    """

    def __init__(self, view: ViewPlan, prefix: str, expire_after_us: int | None = None) -> None:
        self.view = view
        self._expire_after_us = expire_after_us
        types = {output.name: output.dtype for output in view.outputs} | {"_at": INT64, "_until": INT64}
        self._fields = tuple(types)
        self.field_names = frozenset(name.encode() for name in types)
        # Integers are written directly, without an intermediate text; the texts of all floats are made in one call.
        of_scalars = {"float64": "float", "int64": "integer", "bool": "integer", "timestamp": "integer"}
        self._kinds = ["text" if t.nesting else of_scalars.get(t.scalar, "text") for t in types.values()]
        self._n_floats = self._kinds.count("float")
        self._scales = np.zeros(len(types), np.int64)
        self._texts = [
            text_of(pl.col(name), dtype).alias(name)
            for (name, dtype), kind in zip(types.items(), self._kinds, strict=True)
            if kind == "text" and dtype != STRING
        ]
        self.before_key, self.after_key = value_key(prefix, view.id, "\0").split("\0")
        self._around_key = _bytes((self.before_key + self.after_key).encode())
        self._n_before_key = len(self.before_key.encode())
        names = [argument(name.encode()) for name in self._fields]
        self._names = _bytes(b"".join(names))
        self._name_ends = np.cumsum([0, *map(len, names)])
        self._pieces = _bytes(resp_bytes.PIECES)
        self._piece_ends = np.array(resp_bytes.PIECE_ENDS)
        self._plain = _Plain.of(view)
        self._inputs = frozenset(name for one in view.derived for name in one.inputs)
        self._shown_places = places_of(view.features)
        # Reused, because the page faults of a new buffer of this size cost more than filling it.
        self._out = np.empty(0, np.uint8)

    def encode(self, rows: pl.DataFrame, now_us: int | None, *, persist: bool = False) -> Commands:
        """Return the commands for ``rows`` (``Updates.current``, each key at most once), in order; none for no rows.

        ``now_us``: the present; with None the commands leave expiries as they are. A row whose time of collection is
        past gets no expiry, because it would be deleted at once. ``persist``: remove the expiry of keys that have one
        and should not.
        """
        if not rows.height:
            return Commands(b"", 0)
        columns = {column.name: column for column in rows.get_columns()}
        if self._texts:
            columns |= {column.name: column for column in select(rows, self._texts).get_columns()}
        missing = np.zeros((len(self._fields), rows.height), np.bool_)
        sources = np.empty(len(self._fields), np.int64)
        numbers: list[npt.NDArray[np.int64]] = []
        floats: list[npt.NDArray[np.float64]] = []
        strings: list[pl.Series] = []
        for field, (name, kind) in enumerate(zip(self._fields, self._kinds, strict=True)):
            column = columns[name]
            if kind == "float":
                sources[field] = -1 - len(floats)
                values = column.to_numpy()
                # No stored value is NaN, so each NaN stands for a null; its text is never read.
                np.isnan(values, out=missing[field])
                floats.append(values)
            elif kind == "text":
                sources[field] = -1 - self._n_floats - len(strings)
                if column.null_count():
                    missing[field] = column.is_null().to_numpy()
                strings.append(column)
            else:
                sources[field] = len(numbers)
                numbers.append(_integers(column, missing[field]))
        texts = strings if not floats else [_float_texts(np.concatenate(floats)), *strings]
        return self._written(
            Keys.of(columns["key"]),
            _NO_TEXTS if not texts else Keys.of(texts[0] if len(texts) == 1 else pl.concat(texts)),
            sources,
            self._scales,
            np.stack(numbers),
            missing,
            columns["_gone"].to_numpy(),
            self._expiries_ms(rows.height, now_us, lambda: _with_nulls(columns["_empty_at"]), persist=persist),
        )

    def encode_words(self, rows: StepRows, now_us: int | None, *, persist: bool = False) -> Commands | None:
        """Return the commands that ``encode`` returns for the frame of ``rows``, which is not made.

        None for rows that are a frame already, or for a view with a derived feature that is a text or a decimal.
        """
        plain, held = self._plain, rows.words
        if plain is None or held is None:
            return None
        words: CurrentWords = held[1]
        n_rows, n_fields = rows.height, len(self._fields)
        firsts = np.ascontiguousarray(words.firsts)
        shown = words.texts or _NO_SHOWN
        numbers = np.empty((plain.n_numbers, n_rows), np.int64)
        floats = np.empty((plain.n_floats, n_rows), np.int64)
        places = np.empty((plain.n_texts, n_rows), np.int32)
        missing = np.empty((n_fields, n_rows), np.bool_)
        gone = np.empty(n_rows, np.bool_)
        resp_bytes.take_values(
            firsts,
            np.ascontiguousarray(words.words),
            shown.begins,
            plain.sources,
            plain.booleans,
            numbers,
            floats,
            places,
            missing,
            gone,
        )
        if self.view.derived:
            self._take_derived(words, shown, numbers, floats, missing)
        of_texts = [shown.gather(places.ravel())] if places.size else []
        if len(plain.nested):
            of_floats, nested = self._nested_texts(words, firsts, shown, floats)
            texts = [of_floats, *of_texts, nested]
        elif floats.size:
            texts = [Keys.of(_float_texts(floats.ravel().view(np.float64))), *of_texts]
        else:
            texts = of_texts
        return self._written(
            words.keys,
            _NO_TEXTS if not texts else texts[0] if len(texts) == 1 else Keys.joined(texts),
            plain.sources,
            plain.scales,
            numbers,
            missing,
            gone,
            self._expiries_ms(n_rows, now_us, lambda: (words.empty_at, ~words.has_empty_at), persist=persist),
        )

    def _take_derived(
        self,
        words: CurrentWords,
        shown: ShownTexts,
        numbers: Ints,
        floats: Ints,
        missing: npt.NDArray[np.bool_],
    ) -> None:
        """Write what is derived from other features as ``resp_bytes.take_values`` writes the features."""
        assert self._plain is not None
        present = words.present
        firsts, others = shown.from_one(self._shown_places, present, words.firsts, words.others)
        # They are single values, so nothing of them is among the other words.
        inputs = [
            column(feature, firsts[index], others, 0, None, present >> index & 1 != 0, shown)
            for index, feature in enumerate(self.view.features)
            if feature.name in self._inputs
        ]
        found = select(pl.DataFrame(inputs), [one.expr.alias(one.name) for one in self.view.derived])
        for field, values in enumerate(found.get_columns(), len(self.view.features)):
            source = self._plain.sources[field]
            missing[field] = False
            if source >= 0:
                numbers[source] = _integers(values, missing[field])
            else:
                found_floats = values.to_numpy()
                floats[-1 - source] = found_floats.view(np.int64)
                np.isnan(found_floats, out=missing[field])

    def _nested_texts(self, words: CurrentWords, firsts: Ints, shown: ShownTexts, floats: Ints) -> tuple[Keys, Keys]:
        """Return the texts of ``floats``, and the JSON of lists and maps, field by field, empty where there is none."""
        assert self._plain is not None
        fields = self._plain.nested
        present = np.ascontiguousarray(words.present)
        data, ends = read_only(shown.each.data), read_only(shown.each.offsets)
        held = fields, present, firsts, words.others, shown.begins, data, ends
        inner = np.empty(words.others.size, np.int64)
        n_inner, n_bytes = resp_bytes.look_into(*held, inner)
        of_floats = _NO_TEXTS
        if floats.size or n_inner:
            # Polars writes those of several fields in the time of one.
            all_floats = np.concatenate((floats.ravel(), inner[:n_inner]))
            of_floats = Keys.of(_float_texts(all_floats.view(np.float64)))
        of_inner = of_floats.part(floats.size, floats.size + n_inner)
        out = np.empty(n_bytes + of_inner.n_bytes, np.uint8)
        nested_ends = np.empty(len(fields) * len(present) + 1, np.int64)
        resp_bytes.write_nested(
            out,
            self._pieces,
            self._piece_ends,
            *held,
            read_only(of_inner.data),
            read_only(of_inner.offsets),
            nested_ends,
        )
        return of_floats.part(0, floats.size), Keys(nested_ends, out[: nested_ends[-1]])

    def _written(
        self,
        keys: Keys,
        texts: Keys,
        sources: Ints,
        scales: Ints,
        numbers: Ints,
        missing: npt.NDArray[np.bool_],
        gone: npt.NDArray[np.bool_],
        expires_ms: Ints,
    ) -> Commands:
        """Return the commands of rows; the arguments are those of ``resp_bytes.write_rows``."""
        out = self._buffer(keys, texts)
        n_bytes, n_replies = resp_bytes.write_rows(
            out,
            self._pieces,
            self._piece_ends,
            self._around_key,
            self._n_before_key,
            self._names,
            self._name_ends,
            sources,
            scales,
            read_only(keys.data),
            read_only(keys.offsets),
            read_only(texts.data),
            read_only(texts.offsets),
            numbers,
            missing,
            read_only(gone),
            read_only(expires_ms),
        )
        return Commands(out[:n_bytes].tobytes(), n_replies)

    def texts_of(self, rows: pl.DataFrame) -> list[dict[bytes, bytes]]:
        """Return the fields of the hash that each of ``rows`` is stored as; a row that is gone has none."""
        commands = self.encode(rows, None)
        reader = hiredis.Reader()
        reader.feed(commands.data)
        fields = []
        for _ in range(rows.height):
            # A row in a transaction comes after MULTI, and HDEL and EXEC follow it.
            while (command := reader.gets())[0] not in {b"HSET", b"DEL"}:
                pass
            fields.append(dict(zip(command[2::2], command[3::2], strict=True)))
        return fields

    def keys_of(self, rows: pl.DataFrame) -> list[str]:
        """Return the keys in Redis of ``rows``."""
        keys: list[str] = (self.before_key + rows["key"] + self.after_key).to_list()
        return keys

    def _expiries_ms(
        self,
        n_rows: int,
        now_us: int | None,
        empty_at: Callable[[], tuple[Ints, npt.NDArray[np.bool_]]],
        *,
        persist: bool,
    ) -> Ints:
        """Return when each key expires, in milliseconds; 0 to leave its expiry as it is, -1 to remove it.

        ``empty_at``: the instants, and where there is none.
        """
        if now_us is None:
            return np.zeros(n_rows, np.int64)
        if self._expire_after_us is None:
            return np.full(n_rows, -1 if persist else 0, np.int64)
        instants, missing = empty_at()
        expires_us = instants + self._expire_after_us
        return np.where(~missing & (expires_us > now_us), -(-expires_us // 1000), 0)

    def _buffer(self, keys: Keys, texts: Keys) -> npt.NDArray[np.uint8]:
        """Return a buffer with room for the longest commands that rows of these keys and texts can need."""
        n_rows, n_fields = len(keys.offsets) - 1, len(self._fields)
        # A key occurs in up to three commands, a field name in one: it is set or removed.
        of_a_row = (
            resp_bytes.MOST_AROUND_A_ROW
            + 3 * len(self._around_key)
            + len(self._names)
            + n_fields * (resp_bytes.MOST_AROUND_AN_ARGUMENT + resp_bytes.MOST_OF_A_NUMBER)
        )
        size = n_rows * of_a_row + 3 * keys.n_bytes + texts.n_bytes
        if len(self._out) < size:
            self._out = np.empty(size, np.uint8)
        return self._out


@dataclass(frozen=True)
class _Plain:
    """Where the fields of a view go to from the kernel's words, if each is a value in them or derived from some.

    ``sources``, ``scales``: see ``resp_bytes.write_rows``; of the text columns, floats come first, then texts, then
    lists and maps. ``booleans``: which features are truth values. ``n_numbers``, ``n_floats``, ``n_texts``: how many
    fields are of each kind. ``nested``: see ``resp_bytes.write_nested``.
    """

    sources: Ints
    scales: Ints
    booleans: npt.NDArray[np.bool_]
    n_numbers: int
    n_floats: int
    n_texts: int
    nested: Ints

    @classmethod
    def of(cls, view: ViewPlan) -> "_Plain | None":
        """Return None if a view has a derived feature that is a text or a decimal."""
        types = [output.dtype for output in view.outputs]
        if any(one.dtype.scalar == "string" or one.dtype.is_decimal for one in view.derived):
            return None
        # The last two are instants, beside the features and what is derived from them.
        kinds = np.array([*("nested" if dtype.nesting else dtype.scalar for dtype in types), "instant", "instant"])
        sources = np.zeros(len(kinds), np.int64)
        are_numbers = np.ones(len(kinds), np.bool_)
        n_columns = 0
        for kind in ("float64", "string", "nested"):
            of_kind = kinds == kind
            sources[of_kind] = -1 - n_columns - np.arange(of_kind.sum())
            n_columns += int(of_kind.sum())
            are_numbers &= ~of_kind
        sources[are_numbers] = np.arange(are_numbers.sum())
        return cls(
            sources,
            np.array([*(dtype.scale if dtype.is_decimal else 0 for dtype in types), 0, 0]),
            kinds[: len(view.features)] == "bool",
            int(are_numbers.sum()),
            int((kinds == "float64").sum()),
            int((kinds == "string").sum()),
            _nested_fields(view),
        )


def _nested_fields(view: ViewPlan) -> Ints:
    """Return the lists and maps of a view, as ``resp_bytes.write_nested`` takes them."""
    kinds = {
        "int64": resp_bytes.OF_INTEGERS,
        "timestamp": resp_bytes.OF_INTEGERS,
        "bool": resp_bytes.OF_BOOLEANS,
        "float64": resp_bytes.OF_FLOATS,
        "string": resp_bytes.OF_TEXTS,
        "decimal": resp_bytes.OF_DECIMALS,
    }
    found = [
        (index, begin, dtype.nesting == "map", kinds[dtype.scalar], dtype.scale if dtype.is_decimal else 0)
        for index, (dtype, begin) in enumerate(
            zip((feature.dtype for feature in view.features), others_begin(view.features), strict=True)
        )
        if dtype.nesting
    ]
    return np.array(found, np.int64).reshape(-1, 5)


def _float_texts(values: npt.NDArray[np.float64]) -> pl.Series:
    # Polars writes the shortest text that reads back as the same float.
    return pl.Series(values).cast(pl.String)


def _with_nulls(column: pl.Series) -> tuple[Ints, npt.NDArray[np.bool_]]:
    missing = np.zeros(len(column), np.bool_)
    return _integers(column, missing), missing


def _integers(column: pl.Series, missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return integers, booleans or timestamps as int64; nulls are marked in ``missing``, their values are arbitrary."""
    if column.dtype != pl.Int64:
        column = column.cast(pl.Int64)
    if not column.null_count():
        return column.to_numpy()
    array = column.to_arrow()
    _, values = array.buffers()
    first, last = array.offset, array.offset + len(array)
    np.logical_not(not_null(array), out=missing)
    return np.frombuffer(values, np.int64)[first:last]


def _bytes(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
