"""Schemas come from a registry over HTTP: a small one inside the test, which can be down, late, or strict."""

import base64
import json
import logging
import re
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.schema_registry import Registry
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.pipelines.decoding.resolve import Incompatible, Unregistered
from unskew.pipelines.decoding.schema_registry import HOLD_S, HOLD_S_PER_S, SchemaRegistry
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.kafka.reader import SourceOptions

RECORD = {"type": "record", "name": "R", "fields": [{"name": "v", "type": "long"}]}


class Hurried:
    """A flag nobody sets, and on which waiting takes no time."""

    def __init__(self) -> None:
        self.waited_s = []
        self.set = False
        self.then = lambda _timeout: None

    def is_set(self):
        return self.set

    def wait(self, timeout):
        self.waited_s.append(timeout)
        self.then(timeout)
        return self.set


@pytest.fixture
def registry():
    found = Registry()
    yield found
    found.close()


def test_a_schema_is_asked_for_once_and_known_when_the_registry_is_gone(registry):
    registry.put(7, RECORD)
    client = SchemaRegistry(f"http://{registry.address}", Hurried())

    assert client.writer(7) == RECORD
    registry.failures = 1_000
    assert client.writer(7) == RECORD
    assert registry.asked == ["/schemas/ids/7"]


def test_an_unknown_schema_is_waited_for_until_the_registry_answers_again(registry, caplog):
    registry.put(7, RECORD)
    registry.failures = 4
    hurried = Hurried()

    with caplog.at_level(logging.WARNING):
        assert SchemaRegistry(f"http://{registry.address}", hurried).writer(7) == RECORD

    assert hurried.waited_s == [0.25, 0.5, 1.0, 2.0]
    assert sum("waiting for it" in each.message for each in caplog.records) == 4


def test_a_registry_that_stays_away_ends_the_run_with_what_to_do():
    hurried = Hurried()
    client = SchemaRegistry("http://someone:secret@127.0.0.1:9", hurried, timeout_s=0.5, wait_s=5)

    with pytest.raises(StoreUnavailable, match=r"does not return schema 7.*nothing is lost") as refused:
        client.writer(7)
    assert "secret" not in str(refused.value)
    assert sum(hurried.waited_s) >= 5


def test_being_told_to_stop_ends_the_waiting(registry):
    registry.failures = 1_000
    hurried = Hurried()
    hurried.set = True

    with pytest.raises(StoreUnavailable):
        SchemaRegistry(f"http://{registry.address}", hurried).writer(7)
    assert hurried.waited_s == []


def test_an_id_that_the_registry_does_not_have_is_incompatible(registry):
    with pytest.raises(Incompatible, match="has no such schema"):
        SchemaRegistry(f"http://{registry.address}", Hurried()).writer(9)


def test_a_registry_that_learns_of_an_id_a_little_later_is_asked_again_within_what_unknown_ids_may_take(registry):
    now = [0.0]
    hurried = Hurried()
    client = SchemaRegistry(f"http://{registry.address}", hurried, monotonic=lambda: now[0])

    def registered_at_the_second_pause(_timeout):
        if len(hurried.waited_s) == 2:
            registry.put(7, RECORD)

    hurried.then = registered_at_the_second_pause
    assert client.writer(7) == RECORD
    assert hurried.waited_s == [0.25, 0.5]
    # A flood of ids that are unknown for good waits no longer than what is left, however many they are.
    for schema_id in range(100, 140):
        with pytest.raises(Unregistered):
            client.writer(schema_id)
    assert sum(hurried.waited_s) <= HOLD_S
    now[0] = 60.0
    with pytest.raises(Unregistered):
        client.writer(200)
    assert HOLD_S < sum(hurried.waited_s) <= HOLD_S + 60 * HOLD_S_PER_S


def test_an_id_that_an_earlier_run_read_is_waited_for_as_if_the_registry_did_not_answer(registry):
    hurried = Hurried()
    client = SchemaRegistry(f"http://{registry.address}", hurried, wait_s=5)

    with pytest.raises(StoreUnavailable, match=r"does not return schema 7.*nothing is lost"):
        client.writer(7, expected=True)
    assert sum(hurried.waited_s) >= 5
    registry.put(7, RECORD)
    assert client.writer(7, expected=True) == RECORD


def test_schemas_that_are_no_avro_records_are_incompatible(registry):
    registry.put(1, {"type": "object"}, schemaType="JSON")
    registry.put(2, "string")
    registry.put(3, {"type": "record", "name": "R", "fields": [{"name": "v", "type": "money"}]})
    client = SchemaRegistry(f"http://{registry.address}", Hurried())

    for schema_id, reason in ((1, "a schema of JSON"), (2, "not a record"), (3, "money")):
        with pytest.raises(Incompatible, match=reason):
            client.writer(schema_id)


def test_a_schema_that_refers_to_others_comes_with_them_inside(registry):
    money = {"type": "record", "name": "shop.Money", "fields": [{"name": "cents", "type": "long"}]}
    registry.put(
        7,
        {"type": "record", "name": "R", "fields": [{"name": "price", "type": "shop.Money"}]},
        references=[{"name": "shop.Money", "subject": "money", "version": 2}],
    )
    registry.answers["/subjects/money/versions/2"] = {
        "subject": "money",
        "version": 2,
        "id": 3,
        "schema": json.dumps(money),
    }
    found = SchemaRegistry(f"http://{registry.address}", Hurried()).writer(7)

    assert found["fields"][0]["type"]["fields"] == money["fields"]


def test_user_and_password_stand_in_the_url_and_are_not_shown(registry):
    registry.put(7, RECORD)
    registry.login = "Basic " + base64.b64encode(b"some one:se:cret").decode()
    client = SchemaRegistry(f"http://some%20one:se%3Acret@{registry.address}", Hurried())

    assert client.writer(7) == RECORD
    assert client.shown == f"http://{registry.address}"
    with pytest.raises(StoreUnavailable, match="refuses to return schema 7"):
        SchemaRegistry(f"http://{registry.address}", Hurried()).writer(7)


def test_what_is_no_url_is_refused_at_once():
    with pytest.raises(RequestError, match="http://host:8081"):
        SchemaRegistry("registry", Hurried())


@pytest.mark.parametrize(
    "url",
    [
        "u:hidden@h:8081",
        "http//u:hidden@h",
        "http://u:hid/den@h:8081",
        "http://h:8081?apikey=hidden",
        "http://u:hidden#@h",
        "http://h:hidden",
    ],
)
def test_an_address_that_is_not_understood_is_refused_without_saying_it(url):
    with pytest.raises(RequestError) as raised:
        SchemaRegistry(url, threading.Event())
    assert "hid" not in str(raised.value)
    assert "http://host:8081" in str(raised.value)


def test_no_secret_shows_in_a_deployment():
    secret = {
        "redis_url": "redis://u:hidden@h",
        "schema_registry": "http://u:hidden@h",
        "config": {"sasl.password": "hidden"},
    }
    folders = {name: Path() for name in ("log", "archive", "dead_letters", "state")}

    assert "hidden" not in repr(Deployment(bootstrap="b", idle="none", **folders, **secret))


def test_no_secret_shows_in_the_options_of_a_source():
    options = SourceOptions(
        bootstrap="b",
        group="g",
        idle="none",
        stop=threading.Event(),
        config={"sasl.password": "hidden"},
    )

    assert "hidden" not in repr(options)


@pytest.mark.parametrize("user_info", ["some%20one:se%3Acret", "u:pa%73s", "u:p"])
def test_a_registry_that_repeats_user_and_password_is_not_quoted(registry, caplog, user_info):
    told = f"{user_info} {unquote(user_info)}: put things right"
    registry.failures, registry.told = 1_000, told
    hurried = Hurried()

    with pytest.raises(StoreUnavailable) as refused:
        SchemaRegistry(f"http://{user_info}@{registry.address}", hurried, wait_s=1).writer(7)

    for text in (str(refused.value), caplog.text):
        assert "put things right" in text
        for secret in {*user_info.split(":"), *map(unquote, user_info.split(":"))}:
            assert not re.search(rf"\b{re.escape(secret)}\b", text)
