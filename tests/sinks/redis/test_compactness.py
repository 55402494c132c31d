"""What makes a hash in Redis large is found before it is: in the definitions, and in the servers' settings."""

import logging

import pytest

from tests.support.plans import DAY, Wanted, sliding, view
from tests.support.servers.valkey import Valkey
from tests.support.typed import ORDERS
from unskew.sinks.redis.compactness import long_features
from unskew.sinks.redis.writer import RedisWriter

SMALL = view(Wanted("n", "count", sliding(DAY, DAY)), name="small")


def test_texts_lists_and_maps_may_be_long_and_nothing_else():
    types = {feature.name: feature.type for feature in ORDERS.published.features}

    long = long_features(ORDERS.published)

    assert {types[name] for name in types if name not in long} <= {
        "int64", "float64", "bool", "timestamp", "decimal(38,2)", "decimal(38,0)",
    }  # fmt: skip
    assert {types[name].partition("[")[0] for name in long} == {"string", "list", "map"}


@pytest.mark.parametrize(
    ("settings", "level", "text"),
    [
        ({}, logging.INFO, "orders@1: values of "),
        ({"hash-max-listpack-entries": "3"}, logging.WARNING, "orders@1: Redis keeps a hash of "),
        ({"hash-max-listpack-value": "2"}, logging.WARNING, "orders@1: Redis keeps a hash of "),
    ],
)
def test_the_servers_settings_are_read_and_what_follows_is_said_once(tmp_path, caplog, settings, level, text):
    caplog.set_level(logging.INFO, "unskew.redis")
    with Valkey(tmp_path / "one", settings) as server:
        writer = RedisWriter(server.url, "unskew", "main")
        writer.report_large_hashes([SMALL.published, ORDERS.published])
        writer.close()

    assert [(record.levelno, record.getMessage()[: len(text)]) for record in caplog.records] == [(level, text)]


def test_a_server_that_does_not_show_its_settings_is_passed_over(tmp_path, caplog):
    with Valkey(tmp_path / "one") as server:
        server.ask("ACL", "SETUSER", "few", "on", ">word", "~*", "+@all", "-config")
        writer = RedisWriter(server.url.replace("://", "://few:word@"), "unskew", "main")
        writer.report_large_hashes([ORDERS.published])
        writer.close()

    assert not caplog.messages
