"""The bytes of a shard's state: changing them is a decision, and needs a new layout number."""

import hashlib
import io
import json
import struct
import zlib

import numpy as np
import polars as pl
import pytest

from tests.support.plans import MINUTE, SECOND, Wanted, closed, lifetime, local_day, sessions, sliding, view
from unskew.features.errors import LayoutError
from unskew.features.evaluate import evaluate
from unskew.features.kernel import sealed as module
from unskew.features.kernel.sealed import seal, unseal
from unskew.features.plan import Parameters, ViewPlan
from unskew.features.shard_state import ShardState

START = 1_490_486_400 * SECOND
VIEW = view(
    Wanted("count", "count", sliding(5 * MINUTE, MINUTE)),
    Wanted("sum", "sum", sliding(5 * MINUTE, MINUTE), value="x"),
    Wanted("last", "last", local_day("Europe/Berlin"), value="n", of="int64"),
    Wanted("largest", "max", local_day("Europe/Berlin"), value="x", filter="n > 1"),
)
DIGEST = "a48fb1583394bab7a22e4c0e4b15b65c604f04cf1980a8419c54e9b10e9ee49a"
HEADER = (
    '{"view":"view@1","shard":"h0","fingerprint":"000000000000000000000000000000000000000000000000000'
    '0000000000000","clock":1490486470000000,"since":1490486400000000,"seq":2,"late_by":[0,0,0,0],"ar'
    'rays":[["key_offsets","<i8",[3]],["key_bytes","|u1",[9]],["values","<i8",[2,4]],["present","<i8"'
    ',[2]],["changed_at","<i8",[2]],["tile_entity","<i4",[10]],["tile_window","<i4",[10]],["tile_numb'
    'er","<i8",[10]],["tile_words","<i8",[10,6]],["touched","<i8",[1,5]],["late","<i8",[4,8]],["items'
    '","<i8",[0,8]],["text_lengths","<i4",[0]],["text_bytes","|u1",[0]]]}'
)
# Multisets, lists, maps and texts too.
RICH = view(
    Wanted("words", "count_distinct", sliding(5 * MINUTE, MINUTE), value="s", of="string"),
    Wanted("latest", "last_n", lifetime(), value="s", of="string", parameters=Parameters(n=2)),
    Wanted("by_word", "sum", closed(MINUTE), value="n", of="int64", by="s", parameters=Parameters(keys=2)),
    Wanted("middle", "quantile", local_day("UTC"), value="x", parameters=Parameters(q=0.5, bits=6)),
    columns={"s": pl.String()},
)
RICH_DIGEST = "faa3315a53841a606fc86ef97a5286f93ff948b54a545e14927a6f7e97d15cd3"
RICH_ARRAYS: list[list[object]] = [
    ["tile_words", "<i8", [9, 3]],
    ["items", "<i8", [10, 8]],
    ["text_lengths", "<i4", [3]],
    ["text_bytes", "|u1", [7]],
]
SESSIONS = view(
    Wanted("visits", "count", sliding(5 * MINUTE, MINUTE)),
    name="visits",
    columns={"length_s": pl.Float64()},
    sessions=sessions(2 * SECOND, SECOND, Wanted("spend", "sum", lifetime(), value="x")),
)
SESSIONS_DIGEST = "20522a9eeeb94d9577a8004222c97d4210ce00f2327c980cb6c3a6ed29c88611"


def _state(plan: ViewPlan = VIEW) -> ShardState:
    instant = pl.Datetime("us", "UTC")
    decoded = pl.DataFrame(
        {
            "user": ["ada", "bob|", "ada", "ada"],
            "x": [1.5, -2.25, None, 0.1],
            "n": [1, 2, 3, 4],
            "s": ["é", "", None, "other"],
            "_partition": pl.Series([0, 0, 1, 1], dtype=pl.Int32),
            "_offset": [0, 1, 0, 1],
            "_arrival": pl.Series([START, START + SECOND, START + 70 * SECOND, START + 70 * SECOND]).cast(instant),
            "_event_time": pl.Series([START - SECOND, START, START + 70 * SECOND, START + 60 * SECOND]).cast(instant),
        }
    )
    state = ShardState(plan, "h0")
    state.apply(evaluate(plan, decoded).events, START + 70 * SECOND)
    return state


def test_the_layout_is_as_documented_and_its_bytes_stand() -> None:
    data = _state().to_bytes()
    magic, layout, length = struct.unpack_from("<8sII", data)
    header = json.loads(data[16 : 16 + length])

    assert (magic, layout) == (b"unskew\0S", 2)
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    assert [name for name, _, _ in header["arrays"]] == [
        "key_offsets", "key_bytes", "values", "present", "changed_at",
        "tile_entity", "tile_window", "tile_number", "tile_words", "touched",
        "late", "items", "text_lengths", "text_bytes",
    ]  # fmt: skip
    assert json.dumps(header, separators=(",", ":")) == HEADER
    assert hashlib.sha256(data).hexdigest() == DIGEST


def test_multisets_lists_and_texts_are_bytes_too() -> None:
    data = _state(RICH).to_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    arrays = json.loads(data[16 : 16 + length])["arrays"]

    assert [
        array for array in arrays if array[0] in {"items", "text_lengths", "text_bytes", "tile_words"}
    ] == RICH_ARRAYS
    assert hashlib.sha256(data).hexdigest() == RICH_DIGEST


def test_a_view_over_sessions_seals_both_states() -> None:
    data = _state(SESSIONS).to_bytes()
    magic, layout, length = struct.unpack_from("<8sII", data)

    assert (magic, layout) == (b"unskew\0V", 1)
    assert [name for name, _, _ in json.loads(data[16 : 16 + length])["arrays"]] == ["state", "sessions"]
    assert hashlib.sha256(data).hexdigest() == SESSIONS_DIGEST


@pytest.mark.parametrize("plan", [VIEW, RICH, SESSIONS], ids=["sums", "multisets", "sessions"])
def test_bytes_restore_to_the_same_bytes(plan: ViewPlan) -> None:
    data = _state(plan).to_bytes()

    assert ShardState.from_bytes(plan, "h0", data).to_bytes() == data


@pytest.mark.parametrize("plan", [VIEW, RICH, SESSIONS], ids=["sums", "multisets", "sessions"])
@pytest.mark.parametrize("at_once", [1, 100])
def test_tiles_that_are_read_in_several_pieces_are_the_same(plan: ViewPlan, at_once: int, monkeypatch) -> None:
    data = _state(plan).to_bytes()
    monkeypatch.setattr(module, "_READ_AT_ONCE", at_once)
    restored = ShardState.from_bytes(plan, "h0", data)

    assert restored.to_bytes() == data
    assert restored.without(lambda keys: keys == "nobody").to_bytes() == data


def test_a_state_that_became_shorter_while_it_was_read_is_a_layout_error() -> None:
    file = io.BytesIO(seal(b"unskew\0T", 1, {}, {"words": np.arange(9)}))
    _, arrays, left = unseal(file, b"unskew\0T", 1, "a state", leave=["words"])
    assert not arrays
    assert [piece.tolist() for piece in left["words"]] == [[*range(9)]]
    file.truncate(100)

    with pytest.raises(LayoutError, match="a state: checksum"):
        list(left["words"])


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
