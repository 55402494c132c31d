"""The bytes of a shard's state: changing them is a decision, and needs a new layout number."""

import hashlib
import json
import struct
import zlib

import polars as pl
import pytest

from tests.plans import MINUTE, SECOND, Wanted, local_day, sliding, view
from unskew.features.errors import LayoutError
from unskew.features.evaluate import evaluate
from unskew.features.kernel.shard import ShardState

START = 1_490_486_400 * SECOND
VIEW = view(
    Wanted("count", "count", sliding(5 * MINUTE, MINUTE)),
    Wanted("sum", "sum", sliding(5 * MINUTE, MINUTE), value="x"),
    Wanted("last", "last", local_day("Europe/Berlin"), value="n", of="int64"),
    Wanted("largest", "max", local_day("Europe/Berlin"), value="x", filter="n > 1"),
)
DIGEST = "a7f77dbd78e093f1abb5a9968675b650df67e2f973b58ee6af89cbe26382b6c2"
HEADER = (
    '{"view":"view@1","shard":"h0","fingerprint":"000000000000000000000000000000000000000000000000000'
    '0000000000000","clock":1490486470000000,"since":1490486400000000,"seq":2,"late":[0,0,0,0],"late_'
    'by":[0,0,0,0],"arrays":[["key_offsets","<i8",[3]],["key_bytes","|u1",[9]],["values","<i8",[2,4]]'
    ',["present","<i8",[2]],["changed_at","<i8",[2]],["tile_entity","<i4",[10]],["tile_window","<i4",'
    '[10]],["tile_number","<i8",[10]],["tile_words","<i8",[10,6]],["touched","<i8",[1,5]]]}'
)


def _state() -> ShardState:
    instant = pl.Datetime("us", "UTC")
    decoded = pl.DataFrame(
        {
            "user": ["ada", "bob|", "ada", "ada"],
            "x": [1.5, -2.25, None, 0.1],
            "n": [1, 2, 3, 4],
            "_partition": pl.Series([0, 0, 1, 1], dtype=pl.Int32),
            "_offset": [0, 1, 0, 1],
            "_arrival": pl.Series([START, START + SECOND, START + 70 * SECOND, START + 70 * SECOND]).cast(instant),
            "_event_time": pl.Series([START - SECOND, START, START + 70 * SECOND, START + 60 * SECOND]).cast(instant),
        }
    )
    state = ShardState(VIEW, "h0")
    state.apply(evaluate(VIEW, decoded).events, START + 70 * SECOND)
    return state


def test_the_layout_is_as_documented_and_its_bytes_stand() -> None:
    data = _state().to_bytes()
    magic, layout, length = struct.unpack_from("<8sII", data)
    header = json.loads(data[16 : 16 + length])

    assert (magic, layout) == (b"unskew\0S", 1)
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    assert [name for name, _, _ in header["arrays"]] == [
        "key_offsets", "key_bytes", "values", "present", "changed_at",
        "tile_entity", "tile_window", "tile_number", "tile_words", "touched",
    ]  # fmt: skip
    assert json.dumps(header, separators=(",", ":")) == HEADER
    assert hashlib.sha256(data).hexdigest() == DIGEST


def test_bytes_restore_to_the_same_bytes() -> None:
    data = _state().to_bytes()

    assert ShardState.from_bytes(VIEW, "h0", data).to_bytes() == data


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-40], "checksum"),
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "checksum"),
        (lambda data: b"pickled!" + data[8:], "not a state"),
        (lambda data: data[:8] + struct.pack("<I", 9) + data[12:], "layout 9"),
        (lambda _: b"", "not a state"),
    ],
)
def test_damaged_or_foreign_bytes_are_a_layout_error(damage, says) -> None:
    with pytest.raises(LayoutError, match=says):
        ShardState.from_bytes(VIEW, "h0", damage(_state().to_bytes()))
    with pytest.raises(LayoutError, match="shard h0 with another definition"):
        ShardState.from_bytes(VIEW, "h1", _state().to_bytes())
