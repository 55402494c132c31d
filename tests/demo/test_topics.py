"""What the demo produces: the same bytes every time, readable where it should be, with as many faults as it says."""

import hashlib
import io

import fastavro
import polars as pl
import pytest

from unskew.demo.encode import FRAME, encode
from unskew.demo.journey import schema, topics, transactions
from unskew.demo.topics import DAMAGES, Topic, damage, partition_of

N_LINES = 6_000


@pytest.fixture(scope="module")
def small() -> dict[str, Topic]:
    return topics(N_LINES)


def digest(topic: Topic, n_rows: int = 1_000) -> str:
    """Hash of every record, independent of how they are cut into chunks."""
    hashed = hashlib.sha256()
    for chunk in topic.chunks(n_rows):
        for record in zip(chunk.partition.tolist(), chunk.key, chunk.value, chunk.timestamp_ms.tolist(), strict=True):
            hashed.update(repr(record).encode())
    return hashed.hexdigest()


def read(message: bytes, name: str) -> dict[str, object]:
    """A message as fastavro reads it; an error where any byte is missing or left over."""
    assert message.startswith(FRAME)
    body = io.BytesIO(message[len(FRAME) :])
    record = fastavro.schemaless_reader(body, schema(name))
    assert not body.read()
    return record


def test_same_seed_gives_the_same_bytes_however_chunked(small):
    again = topics(N_LINES)

    assert {name: digest(topic, 137) for name, topic in again.items()} == {
        name: digest(topic) for name, topic in small.items()
    }


def test_another_seed_gives_other_page_views_and_the_same_transactions(small):
    other = topics(N_LINES, seed=1)

    assert digest(other["transactions"]) == digest(small["transactions"])
    assert digest(other["page_views"]) != digest(small["page_views"])


def test_end_offsets_count_what_each_partition_is_given(small):
    for topic in small.values():
        counts = dict.fromkeys(range(topic.n_partitions), 0)
        for chunk in topic.chunks():
            for partition in chunk.partition.tolist():
                counts[partition] += 1

        assert topic.end_offsets() == counts
        assert sum(counts.values()) == topic.n_records


def test_a_household_stays_in_its_partition(small):
    for topic in small.values():
        for chunk in topic.chunks():
            assert chunk.partition.tolist() == [partition_of(int(key), topic.n_partitions) for key in chunk.key]


def test_record_timestamps_never_fall(small):
    for topic in small.values():
        assert topic.frame["_timestamp_ms"].is_sorted()


@pytest.mark.parametrize(("topic", "name"), [("transactions", "transaction"), ("page_views", "page_view")])
def test_fastavro_reads_exactly_what_was_encoded(small, topic, name):
    frame = small[topic].frame.filter(pl.col("_damage").is_null()).tail(500)
    fields = [field["name"] for field in schema(name)["fields"]]
    times = pl.col("event_time").cast(pl.Datetime("us" if topic == "transactions" else "ms", "UTC"))
    expected = frame.select(fields).with_columns(times).to_dicts()

    assert [read(message, name) for message in encode(frame, schema(name))] == expected


def test_extreme_longs_are_encoded_as_fastavro_does():
    longs = [0, -1, 1, 63, 64, -64, -65, 2**31, -(2**31), 2**63 - 1, -(2**63)]
    one_long = {"type": "record", "name": "OneLong", "fields": [{"name": "x", "type": "long"}]}
    expected = []
    for x in longs:
        body = io.BytesIO()
        fastavro.schemaless_writer(body, one_long, {"x": x})
        expected.append(FRAME + body.getvalue())

    assert encode(pl.DataFrame({"x": longs}), one_long) == expected


def test_ten_records_of_each_damage_are_planted_and_unreadable(small):
    planted = small["page_views"].frame.filter(pl.col("_damage").is_not_null())

    assert dict(planted["_damage"].value_counts().iter_rows()) == dict.fromkeys(range(len(DAMAGES)), 10)
    assert small["page_views"].n_malformed == 50
    assert small["transactions"].n_malformed == 0


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_makes_every_view_unreadable(small, kind):
    sound = small["page_views"].frame.filter(pl.col("_damage").is_null()).head(200)
    for message in encode(sound, schema("page_view")):
        with pytest.raises((AssertionError, EOFError, IndexError, ValueError)):
            read(damage(message, kind), "page_view")


def test_some_views_come_late_and_some_come_twice(small):
    views = small["page_views"].frame.filter(pl.col("_damage").is_null())
    delay_ms = views["_timestamp_ms"] - views["event_time"]

    assert delay_ms.min() >= 0
    assert (delay_ms > 10_000).sum() > 0
    assert (delay_ms > 3_600_000).sum() > 0
    assert views["view_id"].is_duplicated().sum() > 0


def test_all_real_lines_are_there():
    lines = transactions()

    assert lines.height == 1_469_307
    assert lines["household_id"].n_unique() == 2_469


def test_no_lines_give_empty_topics():
    for topic in topics(0).values():
        assert topic.n_records == 0
        assert list(topic.chunks()) == []
        assert topic.end_offsets() == {0: 0, 1: 0, 2: 0, 3: 0}
