"""Avro encoding by columns: a million records in seconds rather than half a minute.

It supports only the types of the demo's schemas: long (with or without a logical type), double, enum, nullable double,
and decimals of up to eight bytes. The bytes equal those of ``fastavro.schemaless_writer``, after Confluent's five-byte
frame.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

FRAME = b"\x00\x00\x00\x00\x01"
_LONGEST_VARINT = 10

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def encode(frame: pl.DataFrame, schema: Mapping[str, Any]) -> list[bytes]:
    """Return one framed message per row.

    ``frame``: the schema's fields; times and decimals are integers in the field's unit, enums are symbols.
    ``schema``: a parsed record schema. An empty frame gives an empty list.
    """
    if frame.is_empty():
        return []
    head = np.broadcast_to(np.frombuffer(FRAME, np.uint8), (frame.height, len(FRAME)))
    blocks: list[Bytes] = [head]
    masks: list[Mask] = [np.ones(head.shape, np.bool_)]
    for field in schema["fields"]:
        for block, mask in _field(frame[field["name"]], field["type"]):
            blocks.append(block)
            masks.append(mask)
    used = np.concatenate(masks, axis=1)
    # Row-major selection puts the used bytes of each row one after the other, which gives exactly the records.
    flat = np.concatenate(blocks, axis=1)[used].tobytes()
    ends = np.cumsum(used.sum(axis=1)).tolist()
    return [flat[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _field(column: pl.Series, avro: Any) -> list[tuple[Bytes, Mask]]:
    if isinstance(avro, list):
        valid = column.is_not_null().to_numpy()
        value, used = _double(column.fill_null(0.0))
        return [_varint(valid.astype(np.int64)), (value, used & valid[:, None])]
    kind = avro if isinstance(avro, str) else avro["type"]
    if kind == "double":
        return [_double(column)]
    if kind == "enum":
        codes = column.cast(pl.Enum(avro["symbols"])).to_physical()
        return [_varint(codes.cast(pl.Int64).to_numpy())]
    if kind == "bytes":
        return _decimal(column.cast(pl.Int64).to_numpy())
    return [_varint(column.cast(pl.Int64).to_numpy())]


def _double(column: pl.Series) -> tuple[Bytes, Mask]:
    values = np.ascontiguousarray(column.to_numpy(), dtype="<f8")
    block = values.view(np.uint8).reshape(-1, 8)
    return block, np.ones(block.shape, np.bool_)


def _decimal(values: npt.NDArray[np.int64]) -> list[tuple[Bytes, Mask]]:
    """Return the shortest two's complement form, the highest byte first, preceded by its length."""
    block = np.ascontiguousarray(values, dtype=">i8").view(np.uint8).reshape(-1, 8)
    n_bytes = np.full(len(values), 8, np.int64)
    for fewer in range(7, 0, -1):
        limit = 1 << (8 * fewer - 1)
        n_bytes[(values >= -limit) & (values < limit)] = fewer
    return [_varint(n_bytes), (block, np.arange(8) >= 8 - n_bytes[:, None])]


def _varint(values: npt.NDArray[np.int64]) -> tuple[Bytes, Mask]:
    """Encode with zig-zag, then seven bits a byte, lowest first; the top bit means that another byte follows."""
    rest = ((values << 1) ^ (values >> 63)).view(np.uint64)
    block = np.zeros((len(values), _LONGEST_VARINT), np.uint8)
    used = np.zeros(block.shape, np.bool_)
    used[:, 0] = True
    for byte in range(_LONGEST_VARINT):
        used[:, byte] |= rest != 0
        block[:, byte] = rest & np.uint64(0x7F)
        rest = rest >> np.uint64(7)
        more = rest != 0
        block[more, byte] |= np.uint8(0x80)
        if not more.any():
            return block[:, : byte + 1], used[:, : byte + 1]
    return block, used
