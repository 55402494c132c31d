"""The bytes of what a shard remembers of ids: changing them is a decision, and needs a new layout number."""

import hashlib
import json
import struct
import zlib
from dataclasses import replace

import polars as pl

from tests.support.plans import Wanted, sliding, view
from unskew.features.kernel.repeats import Repeats

_PLAIN = view(Wanted("n", "count", sliding(5, 1)))
VIEW = replace(_PLAIN, stream=replace(_PLAIN.stream, event_id="id", dedupe_within_us=10))
DIGEST = "304e00b8799daec15cc1b673a27fc24bcd2953e7a3573ced978905e698c8ef41"
HEADER = {
    "view": "view@1",
    "shard": "h0",
    "fingerprint": "0" * 64,
    "dropped": 1,
    "arrays": [
        ["key_offsets", "<i8", [3]],
        ["key_bytes", "|u1", [6]],
        ["entity", "<i4", [3]],
        ["at", "<i8", [3]],
        ["id_offsets", "<i8", [4]],
        ["id_bytes", "|u1", [7]],
    ],
}


def test_the_layout_is_as_documented_and_its_bytes_stand() -> None:
    events = pl.DataFrame(
        {
            "key": ["bob", "ada", "bob", "bob"],
            "event_id": ["one", "one", "one", "2"],
            "arrival": [-1, 0, 1, 2],
        }
    )
    repeats = Repeats(VIEW, "h0")
    repeats.drop(events, 3)
    data = repeats.to_bytes()
    magic, layout, length = struct.unpack_from("<8sII", data)

    assert (magic, layout) == (b"unskew\0R", 1)
    assert json.loads(data[16 : 16 + length]) == HEADER
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    assert hashlib.sha256(data).hexdigest() == DIGEST
