"""The marketplace's generated records: the same every time, added to real purchases, and as its README says."""

import io

import fastavro
import polars as pl
import pytest

from tests.support import market
from unskew.demo import journey
from unskew.demo.encode import FRAME, encode
from unskew.demo.topics import Topic, partition_of
from unskew.features.definitions.load import load

SCHEMAS = {
    "transactions": "transaction",
    "page_views": "page_view",
    "cart_events": "cart_event",
    "seller_responses": "seller_response",
}


@pytest.fixture(scope="module")
def lines() -> pl.DataFrame:
    return journey.transactions(6_000)


@pytest.fixture(scope="module")
def topics(lines: pl.DataFrame) -> dict[str, Topic]:
    return market.topics(lines)


def test_same_seed_gives_the_same_records_and_another_seed_others(lines, topics):
    again, other = market.topics(lines), market.topics(lines, seed=1)

    for name, topic in topics.items():
        assert again[name].frame.equals(topic.frame)
        assert not other[name].frame.equals(topic.frame)


def test_completed_purchases_are_the_real_lines_and_no_others(lines, topics):
    real = lines.filter(pl.col("quantity") > 0).select(
        "household_id", "basket_id", "product_id", "store_id", (pl.col("sales_value") * 100).round().cast(pl.Int64)
    )
    completed = topics["transactions"].frame.filter(pl.col("status") == "completed")

    found = completed.select("user_id", "order_id", "product_id", "seller_id", "amount")

    assert sorted(found.rows()) == sorted(real.rows())


def test_every_return_follows_its_purchase_by_a_day_to_two_months(topics):
    frame = topics["transactions"].frame
    bought = frame.filter(pl.col("status") == "completed").unique(["order_id", "product_id"], keep="first")
    returned = frame.filter(pl.col("status") == "returned")

    after = returned.join(bought, on=["order_id", "product_id"], how="left")

    days = (after["event_time"] - after["event_time_right"]) / 86_400_000_000
    assert returned.height > 100
    assert days.null_count() == 0
    assert 1 <= days.min() <= days.max() <= 60


def test_nothing_leaves_a_cart_that_was_not_put_in(topics):
    events = topics["cart_events"].frame.unique("cart_event_id").sort("event_time", "cart_event_id")

    in_cart = events.select(pl.col("quantity", "amount").cum_sum().over("user_id", "product_id"))

    assert in_cart.min().row(0) >= (0, 0)
    assert set(events["action"]) == {"add", "remove", "buy"}


def test_cart_events_come_at_most_eight_minutes_late_and_some_twice(topics):
    events = topics["cart_events"].frame

    once = events.unique("cart_event_id", keep="first", maintain_order=True)

    delays_ms = once["_timestamp_ms"] - once["event_time"]
    assert delays_ms.min() >= 0
    assert delays_ms.max() <= 8 * 60_000
    assert events.height > once.height


@pytest.mark.parametrize("name", SCHEMAS)
def test_records_are_as_fastavro_writes_them(topics, name):
    frame, schema = topics[name].frame.head(300), market.schema(SCHEMAS[name])
    plain = {
        **schema,
        "fields": [{**field, "type": _without_logical_type(field["type"])} for field in schema["fields"]],
    }

    for message, row in zip(encode(frame, schema), frame.to_dicts(), strict=True):
        record = {
            field["name"]: _two_s_complement(row[field["name"]]) if field["type"] == "bytes" else row[field["name"]]
            for field in plain["fields"]
        }
        body = io.BytesIO()
        fastavro.schemaless_writer(body, plain, record)
        assert message == FRAME + body.getvalue()


def _without_logical_type(avro):
    return avro["type"] if isinstance(avro, dict) and "logicalType" in avro else avro


def _two_s_complement(value: int) -> bytes:
    return value.to_bytes((value.bit_length() if value >= 0 else (~value).bit_length()) // 8 + 1, "big", signed=True)


def test_extreme_decimals_are_as_few_bytes_as_hold_them():
    values = [0, -1, 127, 128, -128, -129, 2**15, 2**23 - 1, 2**55, -(2**55) - 1, 2**63 - 1, -(2**63)]
    one = {
        "type": "record",
        "name": "One",
        "fields": [{"name": "x", "type": {"type": "bytes", "logicalType": "decimal"}}],
    }

    messages = encode(pl.DataFrame({"x": values}), one)

    assert [message[len(FRAME) + 1 :] for message in messages] == [_two_s_complement(value) for value in values]
    assert [message[len(FRAME)] // 2 for message in messages] == [len(_two_s_complement(value)) for value in values]


def test_records_of_one_key_are_in_one_partition(topics):
    for name, topic in topics.items():
        assert topic.key == ("seller_id" if name == "seller_responses" else "user_id")
        for chunk in topic.chunks():
            assert chunk.partition.tolist() == [partition_of(int(key), 4) for key in chunk.key]


def test_no_lines_give_empty_topics(lines):
    for topic in market.topics(lines.clear()).values():
        assert topic.n_records == 0
        assert list(topic.chunks()) == []


def test_streams_read_the_schemas_that_records_are_written_with():
    plan = load(market.HOME)

    assert set(plan.streams) == set(SCHEMAS)
    for stream, name in SCHEMAS.items():
        assert list(plan.streams[stream].columns) == [field["name"] for field in market.schema(name)["fields"]]
