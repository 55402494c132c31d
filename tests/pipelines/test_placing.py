"""The partition of an imported row is the one in which the topic's producer puts the events of its key."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.pipelines.test_archive import events, write
from tests.support.plans import Wanted, sliding, view
from unskew.features.errors import RequestError
from unskew.pipelines.history.archive import Archive
from unskew.pipelines.history.placing import placing_of
from unskew.pipelines.kafka.partitioners import crc32, murmur2

# From Apache Kafka's UtilsTest.
HASHES = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def test_murmur2_is_that_of_kafka() -> None:
    assert murmur2(list(HASHES)).tolist() == [hashed & 0x7FFFFFFF for hashed in HASHES.values()]
    assert murmur2([]).tolist() == []


STREAM = replace(view(Wanted("n", "count", sliding(10, 1))).stream, partitioned_by=("user",))
KEYS = ["a", "bc", "user 17", "é", "longer than the others", ""]
WAYS: dict[str, Callable[[str], int]] = {
    "murmur2 of the key as text": lambda key: int(murmur2([key.encode()])[0]),
    "crc32 of the key as text": lambda key: int(crc32([key.encode()])[0]),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_way_is_found_from_the_events_of_the_topic(tmp_path: Path, way: str) -> None:
    for partition in range(4):
        keys = [key for number in range(40) if WAYS[way](key := f"user {number}") % 4 == partition]
        write(tmp_path, events(2, partition).with_columns(user=pl.Series((keys * 10)[:10])))
    archive = Archive.open(tmp_path, STREAM)

    placing = placing_of(archive, 4, None)

    assert placing.known
    assert way in placing.way
    placed = placing.place(pl.DataFrame({"user": [*KEYS, None]}))
    assert placed.to_list() == [*(WAYS[way](key) % 4 for key in KEYS), 0]


def test_a_way_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    for partition in range(4):
        write(tmp_path, events(2, partition))

    with pytest.raises(RequestError, match=r"and no known way .* --partition COLUMN"):
        placing_of(Archive.open(tmp_path, STREAM), 4, None)
