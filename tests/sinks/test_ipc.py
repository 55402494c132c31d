"""Frames as bytes of Arrow IPC."""

import datetime as dt
import io
import struct
from decimal import Decimal

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from unskew.sinks.ipc import from_ipc, to_ipc

INSTANT = pl.Datetime("us", "UTC")
NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_1234))[0]
COLUMNS = {
    "text": (pl.String(), ["", "a", "longer than what a view of a text holds", "é|%", "\0"]),
    "bytes": (pl.Binary(), [b"", b"\xff", b"longer than what a view of a text holds"]),
    "whole": (pl.Int64(), [0, -1, 2**63 - 1, -(2**63)]),
    "narrow": (pl.Int32(), [0, -1, 2**31 - 1]),
    "flag": (pl.Boolean(), [True, False]),
    "number": (pl.Float64(), [0.0, -0.0, 5e-324, float("inf"), NAN]),
    "money": (pl.Decimal(38, 2), [Decimal("0.00"), Decimal("-1.50"), Decimal("92233720368547758.07")]),
    "at": (INSTANT, [dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=dt.UTC)]),
    "list": (pl.List(pl.String()), [[], ["a"], [None, "b", "c"]]),
    "map": (
        pl.List(pl.Struct({"key": pl.String(), "value": pl.Float64()})),
        [[], [{"key": "k", "value": 1.5}], [{"key": "", "value": None}, {"key": "l", "value": -0.0}]],
    ),
    "nothing": (pl.String(), [None]),
}


@st.composite
def parts(draw: st.DrawFn) -> list[pl.DataFrame]:
    names = draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=1, unique=True))
    schema = {name: COLUMNS[name][0] for name in names}
    row = st.tuples(*(st.sampled_from([*COLUMNS[name][1], None]) for name in names))
    of_each = draw(st.lists(st.lists(row, min_size=1, max_size=20), min_size=1, max_size=5))
    return [pl.DataFrame(rows, schema=schema, orient="row") for rows in of_each]


def assert_same(one: pl.DataFrame, other: pl.DataFrame) -> None:
    assert one.schema == other.schema
    assert bits(one).equals(bits(other))


def bits(frame: pl.DataFrame) -> pl.DataFrame:
    """The same with floats as whole numbers, because one that is not a number has many forms."""
    return frame.with_columns(pl.col(pl.Float64).reinterpret(signed=True))


@given(parts())
def test_frames_are_read_as_they_were(frames: list[pl.DataFrame]) -> None:
    whole = pl.concat(frames)

    assert_same(from_ipc(to_ipc(frames)), whole)
    begin = 0
    for frame in frames:
        assert_same(from_ipc(to_ipc([whole[begin : begin + frame.height]])), frame)
        begin += frame.height


def test_a_part_of_a_frame_is_written_without_the_texts_of_the_rest() -> None:
    """As the rows of a shard are a part of those of all shards, and an entity is erased from its own alone."""
    texts = [f"number {number:03d}, of which nobody else knows" for number in range(300)]
    whole = pl.DataFrame({"text": texts, "bytes": [text.encode() for text in texts]})

    for name in whole.columns:
        for begin, end in ((0, 1), (30, 31), (1, 200), (299, 300)):
            data = to_ipc([whole.select(name)[begin:end]])
            found = [number for number, text in enumerate(texts) if text[:10].encode() in data]
            assert found == list(range(begin, end))


def test_what_earlier_versions_wrote_is_read() -> None:
    frame = pl.DataFrame({"n": [1, None], "text": ["a", "longer than what a view of a text holds"]})
    stream = io.BytesIO()
    frame.write_ipc_stream(stream, compression="lz4")

    assert from_ipc(frame.write_ipc(None).getvalue()).equals(frame)
    assert from_ipc(stream.getvalue()).equals(frame)
