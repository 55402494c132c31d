import json
import time
from dataclasses import replace

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from tests.support.plans import DAY, HOUR, Wanted, sliding, view
from tests.support.typed import FULL, NAMES, ORDERS
from tests.support.updates import closing
from unskew import Service
from unskew.cli import main
from unskew.features.definitions.services import pinned
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.versions import Versions
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import record_shards

STAYS = view(
    Wanted("nights", "sum", sliding(DAY, HOUR), "n", of="int64"),
    Wanted("mean_price", "mean", sliding(DAY, HOUR), "x"),
    keys={"user": "string", "hotel": "int64"},
    name="stays",
)
GUESTS = view(Wanted("n", "count", sliding(DAY, HOUR)), name="guests")
CLOCK = 17_000 * DAY


@pytest.fixture
def get(redis_client, redis_url):
    writer = RedisWriter(redis_client, "shop", "nightly")
    plan = Plan(streams={}, views=Versions([STAYS, GUESTS]))
    trip = pinned(Service("trip", ["stays:nights", "guests:n"]), plan.published)
    writer.publish_registry(json.dumps(describe(replace(plan, services={"trip": trip}))))
    writer.add(closing(GUESTS, CLOCK, [{"key": "a%20b", "n": 5, "_at": CLOCK, "_until": CLOCK + HOUR}]))
    writer.add(closing(STAYS, CLOCK, [{"key": "a%20b|7", "nights": 2, "_at": CLOCK, "_until": CLOCK + HOUR}]))
    writer.flush(time.time_ns() // 1000)
    environment = {"UNSKEW_REDIS_URL": redis_url, "UNSKEW_PREFIX": "shop", "UNSKEW_PIPELINE": "nightly"}
    return lambda *arguments: CliRunner(env=environment).invoke(main, ["get", *arguments])


def test_get_shows_values_with_their_instant_and_status(get):
    shown = get("stays", "a b", "7")

    assert shown.exit_code == 0, shown.output
    for text in (
        "stays@1",
        "user a b, hotel 7",
        "as of 2016-07-18T00:00:00Z",
        "present",
        "nights",
        "2",
        "-",
    ):
        assert text in shown.output


def test_get_prints_json_for_programs(get):
    shown = get("stays:nights", "a b", "7", "--json")

    assert json.loads(shown.output) == {
        "view": "stays@1",
        "entity": {"user": "a b", "hotel": 7},
        "features": {"nights": 2},
        "as_of": "2016-07-18T00:00:00.000000Z",
        "status": "present",
        "provisional": False,
    }


@pytest.fixture
def get_order(redis_client, redis_url):
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"orders": ORDERS}))))
    writer.add(closing(ORDERS, CLOCK, [{"key": "a", **FULL, "_at": CLOCK, "_until": CLOCK + HOUR}]))
    writer.flush(time.time_ns() // 1000)
    return lambda *arguments: CliRunner(env={"UNSKEW_REDIS_URL": redis_url}).invoke(
        main, ["get", "orders", "a", *arguments]
    )


def test_get_shows_instants_decimals_lists_and_maps_as_people_read_them(get_order):
    shown = get_order()

    assert shown.exit_code == 0, shown.output
    for text in (
        "2017-07-14T02:40:00.000001Z",
        "-12.30",
        "[0.1, 1e+16, -5e-324]",
        '{"b": 1.20, "a": 0.00, "other": 3.00}',
        "lifetime",
    ):
        assert text in shown.output
    assert "\0" not in shown.output


def test_get_prints_every_type_as_json(get_order):
    found = json.loads(get_order("--json").output)["features"]

    assert list(found) == NAMES
    assert found["spend"] == "-12.30"
    assert found["since"] == "2017-07-14T02:40:00.000001Z"
    assert found["shops"] == FULL["shops"]
    assert found["n_by_shop"] == {pair["key"]: pair["value"] for pair in FULL["n_by_shop"]}
    assert found["spend_by_shop"] == {"b": "1.20", "a": "0.00", "other": "3.00"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["stay", "a b", "7"], "there is no 'stay'; did you mean 'stays'?"),
    (["stays:night", "a b", "7"], "did you mean 'nights'?"),
    (["stays", "a b"], "USER HOTEL: 2 expected, 1 given"),
    (["stays", "a b", "seven"], "hotel is a whole number, and 'seven' is not"),
    (["stays", "user=a b", "user=7"], "stays takes the keys user, hotel; give user=VALUE hotel=VALUE"),
    (["trips", "a b", "7"], "there is no 'trips'; did you mean 'trip'?"),
    (["trip", "a b", "7"], "trip takes the keys user, hotel; give user=VALUE hotel=VALUE"),
])  # fmt: skip
def test_get_says_what_is_wrong_without_a_traceback(get, arguments, message):
    shown = get(*arguments)

    assert shown.exit_code == 1
    assert message in shown.output
    assert "Traceback" not in shown.output


def test_get_without_a_server_says_so():
    shown = CliRunner().invoke(main, ["get", "stays", "a", "7", "--redis-url", "redis://127.0.0.1:1/0"])

    assert shown.exit_code == 1
    assert "error: Redis: " in shown.output


@pytest.mark.parametrize("keys", [["a b", "7"], ["user=a b", "hotel=7"], ["hotel=7", "user=a b"]])
def test_keys_are_given_in_order_or_by_name(get, keys):
    found = json.loads(get("stays:nights", *keys, "--json").output)

    assert (found["entity"], found["features"]) == ({"user": "a b", "hotel": 7}, {"nights": 2})


def test_get_reads_a_service_over_views_of_several_keys(get):
    found = json.loads(get("trip", "hotel=7", "user=a b", "--json").output)

    assert (found["service"], found["features"]) == ("trip", {"stays:nights": 2, "guests:n": 5})
    assert {name: its["status"] for name, its in found["views"].items()} == {"stays": "present", "guests": "present"}
    shown = get("trip", "hotel=7", "user=a b").output
    assert "stays:nights" in shown
    assert "stays as of 2016-07-18" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("", ["guests", "stays", "trip"]),
        ("g", ["guests", "guests:n", "guests@1", "guests@1:n"]),
        ("stays:", ["stays:mean_price", "stays:nights"]),
        ("stays@", ["stays@1", "stays@1:mean_price", "stays@1:nights"]),
        ("x", []),
    ],
)
@pytest.mark.usefixtures("get")
def test_a_shell_completes_what_is_published(redis_url, typed, found):
    there = ["get", "--redis-url", redis_url, "--prefix", "shop"]

    assert completed(there, typed) == found
    # Nobody answers there, and nothing is printed into what somebody types.
    assert completed(["get", "--redis-url", "redis://127.0.0.1:1/0"], typed) == []


def test_a_shell_completes_views_of_the_log(tmp_path):
    for one in (STAYS, GUESTS):
        record_shards(view_root(tmp_path, one.name, one.version), ["h0"], view=one)

    assert completed(["log", "tail", "--log", str(tmp_path)], "") == ["guests", "stays"]
    assert completed(["log", "tail", "--log", str(tmp_path)], "st") == ["stays", "stays@1"]
    assert completed(["log", "tail", "--log", str(tmp_path / "nowhere")], "st") == []


def completed(words, typed):
    found = ShellComplete(main, {}, "unskew", "_UNSKEW_COMPLETE").get_completions(words, typed)
    return [item.value for item in found]
