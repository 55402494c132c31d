"""Confluent-framed Avro as bytes: a compiled check of each message, and one Avro container for all that pass it.

Joined messages are read as one piece, so a message that is too short or too long would shift its neighbours. A check of
the decoded values cannot rule that out: a payload may itself contain the bytes of a frame. So each message is walked,
field by field, before it is joined: a message that passes ends exactly where it should, and Polars reads it as fastavro
does. Fields that nobody reads are walked too, and cut out before Polars sees the message.
"""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.definitions.avro_schema import AvroField, avro_fields
from unskew.features.jit import compiled, inlined
from unskew.features.selecting import framed
from unskew.features.text_buffers import is_utf8
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.poll import FRAME_BYTES

_FRAME = "_frame"
_SYNC = b"\0" * 16

_BOOLEAN, _INT, _LONG, _FLOAT, _DOUBLE, _BYTES, _STRING, _ENUM, _FIXED, _SKIPPED = range(10)
# More kinds, for types that are only walked.
_NULL, _ARRAY, _MAP, _RECORD, _UNION = range(10, 15)
_KINDS = {
    "boolean": _BOOLEAN,
    "int": _INT,
    "long": _LONG,
    "float": _FLOAT,
    "double": _DOUBLE,
    "bytes": _BYTES,
    "string": _STRING,
    "enum": _ENUM,
    "fixed": _FIXED,
    "null": _NULL,
    "array": _ARRAY,
    "map": _MAP,
    "record": _RECORD,
    "error": _RECORD,
}
RAW: Mapping[str, pl.DataType] = {
    "boolean": pl.Boolean(),
    "int": pl.Int64(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "bytes": pl.Binary(),
    "string": pl.String(),
    "enum": pl.String(),
    "fixed": pl.Binary(),
}
# Deeper than any schema nests, and deeper than a message of a recursive type needs to.
_DEEPEST = 1000


_TRUE = pl.Series([b"\x01"], dtype=pl.Binary)


class Wire:
    """The layout of the messages of one record schema on the wire.

    ``wanted``: the fields that become columns, and the columns' names; if None, all fields whose type has a column
    type. ``trapped``: true if the schema allows bytes that must not reach other readers: a type that contains itself
    can nest without end, and an array whose items take no bytes can claim any number of them. ``shape``: the columns
    that ``read`` returns, in the schema's order, with the types of what is on the wire: numbers of any logical type as
    Int64, decimals as Binary, enums as their symbols.
    """

    def __init__(self, schema: Mapping[str, Any], wanted: Mapping[str, str] | None = None) -> None:
        fields = avro_fields(schema)
        if wanted is None:
            wanted = {field.name: field.name for field in fields if field.dtype is not None}
        self.shape: dict[str, pl.DataType] = {}
        self._symbols: dict[str, pl.Series] = {}
        self._booleans: list[str] = []
        types = _Types()
        steps: list[tuple[int, int, int]] = []
        read_fields: list[dict[str, Any]] = [
            {"name": _FRAME, "type": {"type": "fixed", "name": _FRAME, "size": FRAME_BYTES}}
        ]
        for field in fields:
            name = wanted.get(field.name)
            node = types.node(field.avro)
            # Polars cannot read a union of one type; its branch number is cut off separately.
            if name is None:
                steps.append((_SKIPPED, -1, node))
                continue
            if field.null_at == -2:
                steps.append((_SKIPPED, -1, types.node(["null"], n_branches=1)))
            steps.append((_KINDS[field.kind], max(field.null_at, -1), len(field.symbols) or field.size))
            self.shape[name] = RAW[field.kind]
            if field.kind == "enum":
                self._symbols[name] = pl.Series(field.symbols, dtype=pl.String)
            if field.kind == "boolean":
                self._booleans.append(name)
            read_as = _read_as(field, f"_fixed{len(read_fields)}")
            branches = {0: ["null", read_as], 1: [read_as, "null"]}
            read_fields.append({"name": name, "type": branches.get(field.null_at, read_as)})
        self._steps = np.array(steps, np.int64).reshape(-1, 3)
        self._types = types.arrays()
        self.trapped = types.trapped
        loosely = _Types(loosely=True)
        loosely.node(fastavro.schema.expand_schema(dict(schema)))
        self._loosely = loosely.arrays()
        self._cuts = bool((self._steps[:, 0] == _SKIPPED).any())
        text = json.dumps({"type": "record", "name": "_message", "fields": read_fields}).encode()
        metadata = {b"avro.schema": text, b"avro.codec": b"null"}
        self._header = b"Obj\x01" + varint(len(metadata))
        for key, value in metadata.items():
            self._header += varint(len(key)) + key + varint(len(value)) + value
        self._header += b"\0" + _SYNC
        # The frame with which the last messages began, and a column of it.
        self._first = b"", pl.Series([b""], dtype=pl.Binary)

    def check(self, values: Blobs, ids: Collection[int] | None = None) -> npt.NDArray[np.bool_]:
        """Return, for each message, whether it is exactly one record of the schema, under one of ``ids``.

        None is not one. It is also false for a message that only looks odd (a boolean of 2, a number in more bytes than
        it needs): another reader must decide about that one.
        """
        found_ids = np.empty(len(values), np.int64)
        passed = np.empty(len(values), np.bool_)
        _check(values.data, values.lengths, self._steps, *self._types, found_ids, passed)
        if ids is not None:
            passed &= np.isin(found_ids, np.fromiter(ids, np.int64))
        return passed

    def is_record(self, value: bytes) -> bool:
        """Return true if a framed message is a record of the schema, however oddly written.

        fastavro takes an index below zero, of an enum's symbol or a union's branch, from the end, as Python does.
        """
        nodes, children, stack = self._loosely
        data = np.frombuffer(value, np.uint8)
        return bool(_walk(data, FRAME_BYTES, len(data), 0, nodes, children, stack) == len(data))

    def read(self, values: Blobs) -> pl.DataFrame:
        """Return columns of messages that all passed the check.

        Raises ``ValueError`` if rows or frames do not match the messages, and whatever Polars raises.
        """
        data = values.data
        if self._cuts:
            kept = np.empty(len(data), np.uint8)
            data = kept[: int(_cut(data, values.lengths, self._steps, *self._types, kept))]
        block = b"".join((self._header, varint(len(values)), varint(len(data)), data.data, _SYNC))
        frame = pl.read_avro(io.BytesIO(block))
        # There is nearly always one schema id; comparing with one needs no Python object per message.
        frames = frame.drop_in_place(_FRAME)
        first = values.data[:FRAME_BYTES].tobytes()
        if first != self._first[0]:
            self._first = first, pl.Series([first], dtype=pl.Binary)
        same = len(frames) == len(values) and (frames == self._first[1]).all()
        if not same and not frames.equals(
            pl.Series([(value or b"")[:FRAME_BYTES] for value in values], dtype=pl.Binary)
        ):
            raise ValueError("the rows do not match the messages")
        if not self._symbols and not self._booleans:
            return frame
        return framed([self._meant(column) for column in frame.get_columns()])

    def _meant(self, column: pl.Series) -> pl.Series:
        """Return the symbols of numbers, and flags of bytes; other columns as they are."""
        if column.name in self._symbols:
            # As the numbers with which Polars counts, because others are first compared with their greatest.
            return self._symbols[column.name][column.cast(pl.UInt32)].alias(column.name)
        return column == _TRUE if column.name in self._booleans else column


class _Types:
    """Types that are only walked, as numbered nodes: kind, size or first child, number of children.

    ``loosely``: a boolean may be any byte, and an int as long as a long.
    """

    def __init__(self, *, loosely: bool = False) -> None:
        self._simple = {_BOOLEAN: (_FIXED, 1), _INT: (_LONG, 0)} if loosely else {}
        self._nodes: list[tuple[int, int, int]] = []
        self._children: list[int] = []
        self._named: dict[str, int] = {}
        self._open: set[int] = set()
        self.trapped = False

    def node(self, avro: Any, n_branches: int | None = None) -> int:
        """Return the number of a type; its parts are numbered too."""
        if isinstance(avro, str) and avro in self._named:
            self.trapped |= self._named[avro] in self._open
            return self._named[avro]
        number = len(self._nodes)
        self._nodes.append((_NULL, 0, 0))
        if isinstance(avro, list):
            self._nodes[number] = (_UNION, *self._several(avro if n_branches is None else avro[:n_branches]))
            return number
        kind = avro["type"] if isinstance(avro, Mapping) else avro
        if isinstance(kind, (list, Mapping)):
            self._nodes.pop()
            return self.node(kind)
        if isinstance(avro, Mapping) and "name" in avro:
            self._named[avro["name"]] = number
        code = _KINDS[kind]
        if code == _RECORD:
            self._open.add(number)
            self._nodes[number] = (code, *self._several([field["type"] for field in avro["fields"]]))
            self._open.discard(number)
        elif code in {_ARRAY, _MAP}:
            self._nodes[number] = (code, self._items(avro), 0)
        elif code in {_ENUM, _FIXED}:
            self._nodes[number] = (code, len(avro["symbols"]) if code == _ENUM else int(avro["size"]), 0)
        else:
            self._nodes[number] = (*self._simple.get(code, (code, 0)), 0)
        return number

    def _items(self, avro: Any) -> int:
        if avro["type"] == "map":
            return self.node(avro["values"])
        items = self.node(avro["items"])
        if not self._is_empty(items):
            return items
        # Walked as nulls, all at once, because there may be any number of them.
        self.trapped = True
        self._nodes.append((_NULL, 0, 0))
        return len(self._nodes) - 1

    def _is_empty(self, node: int) -> bool:
        """Return true if a value of the type takes no bytes."""
        kind, size, n_parts = self._nodes[node]
        if kind == _RECORD and node not in self._open:
            return all(self._is_empty(part) for part in self._children[size : size + n_parts])
        return kind == _NULL or (kind == _FIXED and size == 0)

    def _several(self, parts: Sequence[Any]) -> tuple[int, int]:
        children = [self.node(part) for part in parts]
        first = len(self._children)
        self._children += children
        return first, len(children)

    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return nodes, their children, and room to walk them."""
        nodes = np.array(self._nodes, np.int64).reshape(-1, 3)
        return nodes, np.array(self._children, np.int64), np.empty((_DEEPEST, 2), np.int64)


def schema_ids_of(values: Blobs) -> npt.NDArray[np.int64]:
    """Return the schema id of each message; -1 if it has no frame."""
    data = values.data
    ids = np.full(len(values), -1, np.int64)
    framed = np.flatnonzero(values.sizes >= FRAME_BYTES)
    begins = values.edges[framed]
    numbers = np.zeros(len(framed), np.int64)
    for at in range(1, FRAME_BYTES):
        numbers = numbers << 8 | data[begins + at]
    ids[framed] = np.where(data[begins] == 0, numbers, -1)
    return ids


class Branches:
    """The choice that every message makes after some values: a branch of a union.

    ``before``: the types of these values, in order.
    """

    def __init__(self, before: Sequence[Any]) -> None:
        types = _Types(loosely=True)
        fields = [{"name": str(number), "type": avro} for number, avro in enumerate(before)]
        types.node({"type": "record", "name": "_before", "fields": fields})
        self._types = types.arrays()

    def cut(self, values: Blobs) -> tuple[npt.NDArray[np.int64], Blobs]:
        """Return the branch of each message, and the message without the number of its branch.

        The branch is -1, and the message as it was (empty if it is None), if it is not a record of the schema up to
        there.
        """
        lengths = values.lengths
        branches, begins, ends = np.empty((3, len(values)), np.int64)
        _branches(values.data, lengths, *self._types, branches, begins, ends)
        # Of each message what lies before the number, then what lies after it.
        places = np.stack((values.edges[:-1], values.edges[:-1] + ends), axis=1).ravel()
        parts = Blobs.cut(values.data, places, np.stack((begins, lengths - ends), axis=1).ravel())
        return branches, Blobs(parts.data, lengths - (ends - begins))


def varint(number: int) -> bytes:
    """Return Avro's long for a number that is not negative."""
    rest = number << 1
    octets = bytearray()
    while rest > 0x7F:
        octets.append(rest & 0x7F | 0x80)
        rest >>= 7
    octets.append(rest)
    return bytes(octets)


def _read_as(field: AvroField, fixed_name: str) -> Any:
    """Return the type as which Polars reads a field: numbers as long, so that Rust cuts off and looks up none."""
    if field.kind in {"int", "long", "enum"}:
        return "long"
    if field.kind in {"fixed", "boolean"}:
        return {"type": "fixed", "name": fixed_name, "size": 1 if field.kind == "boolean" else field.size}
    return field.kind


@compiled()
def _check(
    data: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    nodes: npt.NDArray[np.int64],
    children: npt.NDArray[np.int64],
    stack: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    passed: npt.NDArray[np.bool_],
) -> None:
    end = 0
    for row in range(len(lengths)):
        at = end
        end = at + lengths[row]
        ids[row] = -1
        passed[row] = False
        if lengths[row] < FRAME_BYTES or data[at] != 0:
            continue
        ids[row] = (
            np.int64(data[at + 1]) << 24
            | np.int64(data[at + 2]) << 16
            | np.int64(data[at + 3]) << 8
            | np.int64(data[at + 4])
        )
        at += FRAME_BYTES
        for step in range(len(steps)):
            at = _step(data, at, end, steps[step, 0], steps[step, 1], steps[step, 2], nodes, children, stack)
            if at < 0:
                break
        passed[row] = at == end


@compiled()
def _branches(
    data: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    nodes: npt.NDArray[np.int64],
    children: npt.NDArray[np.int64],
    stack: npt.NDArray[np.int64],
    branches: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
) -> None:
    """Note for each message the long that follows a value of the first node, and where in the message it lies."""
    end = 0
    for row in range(len(lengths)):
        begin = end
        end = begin + lengths[row]
        branches[row], begins[row], ends[row] = -1, 0, 0
        if lengths[row] < FRAME_BYTES or data[begin] != 0:
            continue
        # To numba, a literal 0 is a type of its own, for which everything would be compiled again.
        at = _walk(data, begin + FRAME_BYTES, end, np.int64(0), nodes, children, stack)  # type: ignore[arg-type]
        if at < 0:
            continue
        branch, after = _long(data, at, end)
        if after >= 0:
            branches[row], begins[row], ends[row] = branch, at - begin, after - begin


@compiled()
def _cut(
    data: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    nodes: npt.NDArray[np.int64],
    children: npt.NDArray[np.int64],
    stack: npt.NDArray[np.int64],
    kept: npt.NDArray[np.uint8],
) -> int:
    """Copy messages that passed the check, without skipped fields; return the number of bytes kept."""
    size = 0
    end = 0
    for row in range(len(lengths)):
        begin = end
        end = begin + lengths[row]
        at = begin + FRAME_BYTES
        for step in range(len(steps)):
            after = _step(data, at, end, steps[step, 0], steps[step, 1], steps[step, 2], nodes, children, stack)
            if steps[step, 0] == _SKIPPED:
                for place in range(begin, at):
                    kept[size + place - begin] = data[place]
                size += at - begin
                begin = after
            at = after
        for place in range(begin, end):
            kept[size + place - begin] = data[place]
        size += end - begin
    return size


@inlined()
def _step(
    data: npt.NDArray[np.uint8],
    at: int,
    end: int,
    kind: int,
    null_at: int,
    size: int,
    nodes: npt.NDArray[np.int64],
    children: npt.NDArray[np.int64],
    stack: npt.NDArray[np.int64],
) -> int:
    """Return where a field that begins at ``at`` ends; -1 if it does not end inside the message or is not valid."""
    if kind == _SKIPPED:
        return _walk(data, at, end, size, nodes, children, stack)
    if null_at >= 0:
        branch, at = _long(data, at, end)
        if at < 0 or branch < 0 or branch > 1:
            return -1
        if branch == null_at:
            return at
    return _primitive(data, at, end, kind, size)


@inlined()
def _primitive(data: npt.NDArray[np.uint8], at: int, end: int, kind: int, size: int) -> int:
    if kind == _BOOLEAN:
        return at + 1 if at < end and data[at] <= 1 else -1
    if kind == _FLOAT:
        at += 4
    elif kind == _DOUBLE:
        at += 8
    elif kind == _FIXED:
        at += size
    else:
        number, at = _long(data, at, end)
        if at < 0:
            return -1
        if kind == _INT:
            if number < -2147483648 or number > 2147483647:
                return -1
        elif kind == _ENUM:
            if number < 0 or number >= size:
                return -1
        elif kind != _LONG:
            # Not ``at + number > end``, which could overflow.
            if number < 0 or number > end - at or (kind == _STRING and not is_utf8(data, at, at + number)):
                return -1
            at += number
    return at if at <= end else -1


@compiled()
def _walk(
    data: npt.NDArray[np.uint8],
    at: int,
    end: int,
    node: int,
    nodes: npt.NDArray[np.int64],
    children: npt.NDArray[np.int64],
    stack: npt.NDArray[np.int64],
) -> int:
    """Return where a value of any type ends; -1 as for ``_step``.

    ``stack``: room for the enclosing types, each with its parts so far (a record) or its remaining items. The function
    is not recursive, because numba's cache returns recursive functions broken.
    """
    depth = 0
    while True:
        kind, size, n_parts = nodes[node, 0], nodes[node, 1], nodes[node, 2]
        if kind < _SKIPPED:
            at = _primitive(data, at, end, kind, size)
            if at < 0:
                return -1
        elif kind == _UNION:
            branch, at = _long(data, at, end)
            if at < 0 or branch < 0 or branch >= n_parts:
                return -1
            node = children[size + branch]
            continue
        elif kind != _NULL:
            if depth == len(stack):
                return -1
            stack[depth, 0], stack[depth, 1] = node, 0
            depth += 1
        # Go to the next value of the innermost type that still has one.
        while True:
            if depth == 0:
                return at
            outer = stack[depth - 1, 0]
            kind, size, n_parts = nodes[outer, 0], nodes[outer, 1], nodes[outer, 2]
            if kind == _RECORD:
                if stack[depth - 1, 1] < n_parts:
                    node = children[size + stack[depth - 1, 1]]
                    stack[depth - 1, 1] += 1
                    break
                depth -= 1
                continue
            if stack[depth - 1, 1] == 0:
                count, at = _long(data, at, end)
                if at >= 0 and count < 0:
                    # Such a block also gives its number of bytes, for readers that skip it.
                    _, at = _long(data, at, end)
                    count = -count
                if at < 0 or count < 0:
                    return -1
                if count == 0:
                    depth -= 1
                    continue
                if kind == _ARRAY and nodes[size, 0] == _NULL:
                    # The items take no bytes: there is nothing to walk, however many the block claims to have.
                    continue
                # Every other item has at least one byte.
                if count > end - at:
                    return -1
                stack[depth - 1, 1] = count
            stack[depth - 1, 1] -= 1
            # After its last item it is as before its first: the next block follows, perhaps the empty one.
            if kind == _MAP:
                at = _primitive(data, at, end, _STRING, 0)
                if at < 0:
                    return -1
            node = size
            break


@compiled()
def _long(data: npt.NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Return a long and where it ends; -1 as the end if it does not end or has more than 64 bits."""
    bits = np.uint64(0)
    for shift in range(0, 70, 7):
        if at >= end:
            return 0, -1
        octet = data[at]
        at += 1
        if shift == 63 and octet > 1:
            return 0, -1
        bits |= np.uint64(octet & 0x7F) << np.uint64(shift)
        if octet < 0x80:
            number = np.int64(bits >> np.uint64(1)) ^ -np.int64(bits & np.uint64(1))
            return number, at  # type: ignore[return-value,unused-ignore]
    return 0, -1
