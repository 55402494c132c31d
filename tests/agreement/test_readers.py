"""The SDK, its async twin, HTTP and ``unskew get --json`` answer the same request with the same."""

import asyncio
import datetime as dt
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from tests.serving.test_http import CLOCK, FEATURES, STAYS, Server, fill, in_json, serving
from tests.support.on_demand import REFERENCES, some_events, some_labels, write
from tests.support.plans import DAY, HOUR
from tests.support.servers.valkey import Valkey
from tests.support.typed import FULL, ORDERS
from tests.support.updates import closing, updates
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.versions import Versions
from unskew.sinks.redis.writer import RedisWriter
from unskew.store import OnlineFeatures


class Said(NamedTuple):
    """What one reader says of one row: the text of each value has all its bits."""

    values: list[str]
    views: dict[str, tuple[str | None, str, bool]]


class Asked(NamedTuple):
    """``named``: what ``unskew get`` calls the features. ``inputs``: the columns of the row that are no keys."""

    named: str
    features: list[str] | str
    row: dict[str, Any]
    inputs: tuple[str, ...] = ()
    now: dt.datetime | None = None


class Read(NamedTuple):
    url: str
    store: FeatureStore
    server: Server


def by_sdk(read: Read, asked: Asked) -> Said:
    return of_sdk(read.store.get_online_features(asked.features, [asked.row], full_feature_names=True, now=asked.now))


def by_async(read: Read, asked: Asked) -> Said:
    async def found() -> OnlineFeatures:
        return await read.store.get_online_features_async(
            asked.features, [asked.row], full_feature_names=True, now=asked.now
        )

    return of_sdk(asyncio.run(found()))


def of_sdk(answer: OnlineFeatures) -> Said:
    judged = {name: frame.row(0, named=True) for name, frame in answer.metadata.items()}
    return Said(
        [repr(in_json(value)) for value in answer.columns.row(0)],
        {name: (in_json(its["as_of"]), its["status"], its["provisional"]) for name, its in judged.items()},
    )


def by_http(read: Read, asked: Asked) -> Said:
    what = "feature_service" if isinstance(asked.features, str) else "features"
    body = {
        "entities": {name: [value] for name, value in asked.row.items()},
        what: asked.features,
        "full_feature_names": True,
        **({} if asked.now is None else {"now": asked.now.isoformat()}),
    }
    code, answer = read.server.post(body)
    assert code == 200, answer
    views = answer["metadata"]["views"]
    return Said(
        [repr(one["values"][0]) for one in answer["results"][len(asked.row) :]],
        {name: (its["as_of"][0], its["status"][0], its["provisional"][0]) for name, its in views.items()},
    )


def by_get(read: Read, asked: Asked) -> Said:
    words = ["get", asked.named, "--json", "--redis-url", read.url]
    words += [f"{name}={value}" for name, value in asked.row.items() if name not in asked.inputs]
    words += [f"--input={name}={asked.row[name]}" for name in asked.inputs]
    words += [] if asked.now is None else ["--now", asked.now.isoformat()]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, (words, shown.output)
    found = json.loads(shown.output)
    views = found["views"] if "views" in found else {asked.named.partition(":")[0]: found}
    return Said(
        [repr(as_over_http(value)) for value in found["features"].values()],
        {name: (as_over_http(its["as_of"]), its["status"], its["provisional"]) for name, its in views.items()},
    )


def as_over_http(value: Any) -> Any:
    """A value of ``unskew get --json``; over HTTP empty lists and maps are null."""
    if value in ([], {}):
        return None
    match value:
        case list():
            return [as_over_http(one) for one in value]
        case dict():
            return {name: as_over_http(one) for name, one in value.items()}
        case _:
            return value


def all_say(read: Read, asked: Asked) -> Said:
    """What all of them say."""
    said = by_sdk(read, asked)
    for other in (by_async, by_http, by_get):
        assert other(read, asked) == said, (other.__name__, asked)
    return said


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Read]:
    """Values of all types, also of an entity whose row has changed past the clock of its shard."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as redis:
        fill(redis.url)
        writer = RedisWriter(redis.url, "unskew", "main")
        writer.expect({ORDERS.id: ["h0"], STAYS.id: ["h0"]})
        moved = {"key": "moved", **FULL, "n": 7, "_at": CLOCK + 10}
        writer.add(updates(ORDERS, CLOCK + 1, [moved], since_us=CLOCK - 2 * DAY))
        writer.add(closing(STAYS, CLOCK, [{"key": "moved|1", "nights": 3, "_at": CLOCK}]))
        writer.flush(time.time_ns() // 1000)
        writer.close()
        with FeatureStore(redis_url=redis.url, timeout="30s") as store, serving(redis.url) as server:
            yield Read(redis.url, store, server)


@pytest.mark.parametrize("user", ["full", "empty", "bare", "moved", "nobody", "", "a=b|c ä"])
@pytest.mark.parametrize("named", ["orders", "orders@1"])
def test_values_of_every_type_are_the_same_from_every_reader(orders: Read, named: str, user: str) -> None:
    features = [reference.replace("orders", named) for reference in FEATURES]

    said = all_say(orders, Asked(named, features, {"user": user}))

    if user in {"full", "moved"}:
        wanted = {**FULL, "n": 7} if user == "moved" else FULL
        assert said.values == [repr(in_json(wanted[name.partition(":")[2]])) for name in FEATURES]
    _, status, provisional = said.views[named]
    # The row of an entity with nothing in any window holds what an entity without a row has.
    assert status == ("present" if user in {"full", "moved", "bare"} else "default")
    assert provisional is (user == "moved")
    for reference in features[:2]:
        assert all_say(orders, Asked(reference, [reference], {"user": user})).views == said.views


@pytest.mark.parametrize(("user", "hotel"), [("u7", 1), ("moved", 1), ("full", 1), ("nobody", -(2**63))])
def test_a_service_is_the_same_from_every_reader(orders: Read, user: str, hotel: int) -> None:
    said = all_say(orders, Asked("checkout", "checkout", {"user": user, "hotel": hotel}))

    assert list(said.views) == ["stays", "orders"]
    assert said.values == {"u7": ["7", "0"], "moved": ["3", "7"], "full": ["0", repr(FULL["n"])]}.get(user, ["0", "0"])


def test_values_whose_windows_began_before_anything_was_known_are_warming_for_every_reader(tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as redis:
        # A pipeline that began an hour ago.
        writer = RedisWriter(redis.url, "unskew", "main")
        writer.publish_registry(json.dumps(describe(Plan(streams={}, views=Versions([ORDERS])))))
        writer.expect({ORDERS.id: ["h0", "h1"]})
        for shard, user in (("h0", "full"), ("h1", "other")):
            rows = [{"key": user, **FULL, "_at": CLOCK - 5}]
            writer.add(closing(ORDERS, CLOCK, rows, since_us=CLOCK - HOUR, shard=shard))
        writer.flush(time.time_ns() // 1000)
        writer.close()
        with FeatureStore(redis_url=redis.url, timeout="30s") as store, serving(redis.url) as server:
            read = Read(redis.url, store, server)
            for user in ("full", "other", "nobody"):
                assert all_say(read, Asked("orders", FEATURES, {"user": user})).views["orders"][1] == "warming"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Read]:
    """On-demand features over views with other keys, and a service of both."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as redis:
        root: Path = tmp_path_factory.mktemp("shop")
        write(root, redis.url, some_events(3))
        with FeatureStore(redis_url=redis.url, timeout="30s") as store, serving(redis.url) as server:
            yield Read(redis.url, store, server)


def test_on_demand_features_and_their_service_are_the_same_from_every_reader(shop: Read) -> None:
    # At the command line a null key or input cannot be given, nor NaN in JSON.
    labels = [one for one in some_labels(4, 200) if None not in one.values() and one["lat"] == one["lat"]][:40]
    n_finite = 0
    for label in labels:
        now = label["event_timestamp"]
        row = {name: value for name, value in label.items() if name != "event_timestamp"}
        said = all_say(shop, Asked("checkout", REFERENCES, row, ("lat", "lon", "query", "amount"), now))
        n_finite += "None" not in said.values
        one = all_say(shop, Asked("checkout:share", ["checkout:share"], {"amount": row["amount"]}, ("amount",), now))
        assert one.values == [said.values[REFERENCES.index("checkout:share")]]
        keys_and_inputs = {name: row[name] for name in row if name != "query"}
        served = Asked("checkout_model", "checkout_model", keys_and_inputs, ("lat", "lon", "amount"), now)
        assert all_say(shop, served).values[0] == said.values[REFERENCES.index("checkout:distance_km")]
    assert (len(labels), n_finite > 5) == (40, True)
