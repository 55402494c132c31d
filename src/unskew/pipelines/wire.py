"""Confluent-framed Avro as bytes: a compiled check of each message, and one Avro container for all that pass it.

Joined messages are read in one piece, so a message that is too short or too long would shift its neighbours. No check of
what was decoded can rule that out: a payload may itself hold the bytes of a frame. So each message is walked, field by
field, before it is joined: what passes ends exactly where it should, and Polars reads it as fastavro does.
"""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import fastavro
import numba
import numpy as np
import numpy.typing as npt
import polars as pl

FRAME_BYTES = 5
"""Confluent's frame: a zero byte, then the schema's id, big-endian."""

_FRAME = "_frame"
_SYNC = b"\0" * 16

_BOOLEAN, _INT, _LONG, _FLOAT, _DOUBLE, _BYTES, _STRING, _ENUM, _FIXED = range(9)
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
}
_TIMESTAMP_SCALES = {"timestamp-millis": 1000, "timestamp-micros": 1}


class Wire:
    """How messages of one record schema lie on the wire.

    ``scales``: timestamp column -> microseconds per unit. ``ints``: 32-bit columns.
    ``columnar``: whether messages can be read in one piece: every field is a primitive, an enum, a fixed or a timestamp,
    or one of these with null.

    ``read`` gives timestamps as the numbers they are on the wire, and ints as Int64.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.scales: dict[str, int] = {}
        self.ints: set[str] = set()
        self.columnar = True
        self._symbols: dict[str, pl.Series] = {}
        self._booleans: list[str] = []
        steps: list[tuple[int, int, int]] = []
        fields: list[dict[str, Any]] = [
            {"name": _FRAME, "type": {"type": "fixed", "name": _FRAME, "size": FRAME_BYTES}}
        ]
        expanded: Any = fastavro.schema.expand_schema(dict(schema))
        for field in expanded["fields"]:
            null_at, avro = _without_null(field["type"])
            kind = _KINDS.get(avro["type"])
            if kind is None or null_at is None:
                self.columnar = False
                return
            steps.append((kind, null_at, self._note(field["name"], kind, avro)))
            read_as = _read_as(kind, avro, f"_fixed{len(fields)}")
            branches = {0: ["null", read_as], 1: [read_as, "null"]}
            fields.append({"name": field["name"], "type": branches.get(null_at, read_as)})
        self._steps = np.array(steps, np.int64).reshape(-1, 3)
        text = json.dumps({"type": "record", "name": "_message", "fields": fields}).encode()
        metadata = {b"avro.schema": text, b"avro.codec": b"null"}
        self._header = b"Obj\x01" + varint(len(metadata))
        for key, value in metadata.items():
            self._header += varint(len(key)) + key + varint(len(value)) + value
        self._header += b"\0" + _SYNC

    def _note(self, name: str, kind: int, avro: Mapping[str, Any]) -> int:
        """Take note of what reading has to make good, and give the size or count that the check needs."""
        if kind == _ENUM:
            self._symbols[name] = pl.Series(avro["symbols"], dtype=pl.String)
            return len(avro["symbols"])
        if kind == _FIXED:
            return int(avro["size"])
        if kind == _BOOLEAN:
            self._booleans.append(name)
        elif kind == _INT:
            self.ints.add(name)
        elif kind == _LONG and (scale := _TIMESTAMP_SCALES.get(avro.get("logicalType", ""))):
            self.scales[name] = scale
        return 0

    def check(self, values: Sequence[bytes], ids: Collection[int] | None) -> npt.NDArray[np.bool_]:
        """Whether each message is a record of the schema, whole and with nothing after it, under one of ``ids``.

        False also for what only looks odd (a boolean of 2, a number in more bytes than it can need): another reader
        must decide.
        """
        if not self.columnar:
            return np.zeros(len(values), np.bool_)
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        data = np.frombuffer(b"".join(values), np.uint8)
        found_ids = np.empty(len(values), np.int64)
        passed = np.empty(len(values), np.bool_)
        _check(data, lengths, self._steps, found_ids, passed)
        if ids is not None:
            passed &= np.isin(found_ids, np.fromiter(ids, np.int64))
        return passed

    def read(self, values: Sequence[bytes]) -> pl.DataFrame:
        """Columns of messages that all passed the check.

        Raises ``ValueError`` where rows or frames are not those of the messages, and whatever Polars raises.
        """
        size = sum(map(len, values))
        block = b"".join((self._header, varint(len(values)), varint(size), *values, _SYNC))
        frame = pl.read_avro(io.BytesIO(block))
        # Nearly always there is one schema id; a literal is compared without a Python object per message.
        same = frame.height == len(values) and frame.select((pl.col(_FRAME) == values[0][:FRAME_BYTES]).all()).item()
        frames = frame.drop_in_place(_FRAME)
        if not same and not frames.equals(pl.Series([value[:FRAME_BYTES] for value in values], dtype=pl.Binary)):
            raise ValueError("the rows are not those of the messages")
        return frame.with_columns(
            *(symbols.gather(frame[name]).alias(name) for name, symbols in self._symbols.items()),
            *(pl.col(name) == pl.lit(b"\x01") for name in self._booleans),
        )


def varint(number: int) -> bytes:
    """Avro's long of a number not below zero."""
    rest = number << 1
    octets = bytearray()
    while rest > 0x7F:
        octets.append(rest & 0x7F | 0x80)
        rest >>= 7
    octets.append(rest)
    return bytes(octets)


def _without_null(avro: Any) -> tuple[int | None, Mapping[str, Any]]:
    """Where a union has its null (-1: no union, None: a union that is not one type and null), and the type beside it."""
    null_at: int | None = -1
    if isinstance(avro, list):
        null_at = avro.index("null") if len(avro) == 2 and "null" in avro else None
        avro = next((branch for branch in avro if branch != "null"), "null")
    while isinstance(avro, Mapping) and isinstance(avro["type"], Mapping):
        avro = avro["type"]
    return null_at, avro if isinstance(avro, Mapping) else {"type": avro}


def _read_as(kind: int, avro: Mapping[str, Any], fixed_name: str) -> Any:
    """Give the type as which Polars reads a field: numbers as long, so that none is cut off or looked up in Rust."""
    if kind in {_INT, _LONG, _ENUM}:
        return "long"
    if kind in {_FIXED, _BOOLEAN}:
        return {"type": "fixed", "name": fixed_name, "size": 1 if kind == _BOOLEAN else avro["size"]}
    return avro["type"]


@numba.njit(cache=True, nogil=True)  # type: ignore[misc,unused-ignore]
def _check(
    data: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
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
            kind, null_at, size = steps[step, 0], steps[step, 1], steps[step, 2]
            if null_at >= 0:
                if at >= end or data[at] > 2 or data[at] & 1:
                    at = -1
                    break
                branch = data[at] >> 1
                at += 1
                if branch == null_at:
                    continue
            if kind == _BOOLEAN:
                at = at + 1 if at < end and data[at] <= 1 else -1
            elif kind == _FLOAT:
                at += 4
            elif kind == _DOUBLE:
                at += 8
            elif kind == _FIXED:
                at += size
            else:
                number, at = _long(data, at, end)
                if at < 0:
                    break
                if kind == _INT:
                    if number < -2147483648 or number > 2147483647:
                        at = -1
                elif kind == _ENUM:
                    if number < 0 or number >= size:
                        at = -1
                elif kind != _LONG:
                    # Not ``at + number > end``, which could overflow.
                    if number < 0 or number > end - at or (kind == _STRING and not _is_utf8(data, at, at + number)):
                        at = -1
                    else:
                        at += number
            if at < 0 or at > end:
                at = -1
                break
        passed[row] = at == end


@numba.njit(cache=True, nogil=True)  # type: ignore[misc,unused-ignore]
def _long(data: npt.NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Give a long and where it ends; -1 as the end where it has no end or more than 64 bits."""
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


@numba.njit(cache=True, nogil=True)  # type: ignore[misc,unused-ignore]
def _is_utf8(data: npt.NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether the bytes are UTF-8 as Unicode table 3-7 has it: no overlong forms, no surrogates, at most U+10FFFF."""
    while at < end:
        lead = data[at]
        at += 1
        if lead < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            n_more = 1
        elif 0xE0 <= lead <= 0xEF:
            n_more = 2
            if lead == 0xE0:
                low = 0xA0
            elif lead == 0xED:
                high = 0x9F
        elif 0xF0 <= lead <= 0xF4:
            n_more = 3
            if lead == 0xF0:
                low = 0x90
            elif lead == 0xF4:
                high = 0x8F
        else:
            return False
        if at + n_more > end or data[at] < low or data[at] > high:
            return False
        for more in range(1, n_more):
            if data[at + more] < 0x80 or data[at + more] > 0xBF:
                return False
        at += n_more
    return True
