"""The marketplace's features, through a real broker, the pipeline and a real Redis, equal the recount, bit for bit."""

import datetime as dt
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from tests.support import market
from tests.support.pipeline import Outcome, bits, entities, expected_log, logged
from tests.support.training import training_rows
from unskew.cli import main
from unskew.demo import journey
from unskew.demo.embedded import EmbeddedBroker
from unskew.demo.topics import Topic, partition_of
from unskew.features.definitions.load import load
from unskew.features.plan import ViewPlan
from unskew.monitoring.recount import Recount
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.serving.online import OnlineReader

HOUSEHOLDS = [3, 23, 28]
N_PARTITIONS = 2
VIEWS = [
    "user_transactions",
    "user_purchase_count_30d",
    "user_page_views",
    "user_cart",
    "user_visits",
    "product_returns",
    "seller_response_times",
]


@dataclass
class Market(Outcome):
    """A year of a few users, run once; events by view."""

    def events(self, view: str) -> pl.DataFrame:
        """The archived events of the view's topic."""
        topic = self.plan.views[view].stream.topic
        files = sorted((self.deployment.archive / topic).glob("day=*/*.parquet"))
        return pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])

    def recount(self, view: str) -> Recount:
        return self._recounts[view]

    @cached_property
    def _recounts(self) -> dict[str, Recount]:
        return {name: Recount(view, self.events(name)) for name, view in self.plan.views.items()}

    def complete_to_by_key(self, view: str) -> dict[tuple[Any, ...], int]:
        """Per entity, the last closed instant of its shard."""
        plan, by_shard = self.plan.views[view], self.complete_to(view)
        keys = entities(plan, self.events(view))
        if not plan.partitioned:
            return dict.fromkeys(keys, by_shard["h0"])
        return {key: by_shard[f"p{partition_of(key[0], N_PARTITIONS)}.0"] for key in keys}


@pytest.fixture(scope="module")
def year(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    lines = journey.transactions().filter(pl.col("household_id").is_in(HOUSEHOLDS))
    topics = market.topics(lines, n_partitions=N_PARTITIONS)
    root = tmp_path_factory.mktemp("market")
    with EmbeddedBroker({name: topic.n_partitions for name, topic in topics.items()}) as broker:
        for topic in topics.values():
            _produce(broker, topic)
        deployment = Deployment(
            bootstrap=broker.bootstrap,
            redis_url=redis_server,
            log=root / "log",
            archive=root / "archive",
            dead_letters=root / "dead",
            state=root / "state",
            idle="none",
            ends="now",
            prefix="test-market",
            epoch_s=0.5,
            poll_records=200,
        )
        outcome = Market(load(market.HOME), deployment)
        outcome.status = run(outcome.plan, deployment, stop=threading.Event())
        yield outcome


def _produce(broker: EmbeddedBroker, topic: Topic) -> None:
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
    )
    for chunk in topic.chunks():
        for partition, key, value, stamp_ms in zip(
            chunk.partition.tolist(), chunk.key, chunk.value, chunk.timestamp_ms.tolist(), strict=True
        ):
            producer.produce(topic.name, value, key, partition, timestamp=stamp_ms)
    assert producer.flush(20) == 0


def _names(view: ViewPlan) -> list[str]:
    return [output.name for output in view.outputs]


@pytest.mark.parametrize("view", VIEWS)
def test_every_row_of_the_log_is_as_recounted(year: Market, view: str) -> None:
    definition = year.plan.views[view]

    rows = year.log(view)

    assert logged(definition, rows) == expected_log(definition, year.events(view), year.complete_to_by_key(view))
    # A view without rows would agree as well.
    assert rows.height > 50
    assert set(rows["cause"]) == {"event", "hop"}


@pytest.mark.parametrize("view", VIEWS)
def test_training_rows_are_as_recounted_at_their_instants(year: Market, view: str) -> None:
    definition, recount = year.plan.views[view], year.recount(view)
    complete_to = min(year.complete_to_by_key(view).values())
    rows = year.log(view).select(*definition.entity.keys, pl.col("available_at").dt.epoch("us"))
    # Right before its first event a view knows nothing, and a label there is refused.
    first = int(year.events(view)["_arrival"].dt.epoch("us").min())
    changes = rows.filter(pl.col("available_at").is_between(first, complete_to, closed="none")).sample(60, seed=5)
    labels = [((key,), instant + step) for key, instant in changes.iter_rows() for step in (-1, 0, 1)]
    (key_name,) = definition.entity.keys
    frame = pl.DataFrame({key_name: [key for (key,), _ in labels], "event_timestamp": [t for _, t in labels]})
    frame = frame.with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))

    joined = training_rows(year.deployment.log, year.plan.published, frame, [f"{view}:{n}" for n in _names(definition)])

    for (key, instant), *values in zip(labels, *(joined[name] for name in _names(definition)), strict=True):
        assert bits(values) == bits(recount.values(key, instant).values()), (key, instant)


@pytest.mark.parametrize("view", VIEWS)
def test_redis_holds_what_is_recounted_as_of_the_read(year: Market, view: str) -> None:
    definition, recount = year.plan.views[view], year.recount(view)
    keys = entities(definition, year.events(view))
    asked = pl.DataFrame(keys, schema=list(definition.entity.keys), orient="row")

    with closing(OnlineReader(year.deployment.redis_url, prefix=year.deployment.prefix)) as reader:
        found = reader.read([f"{view}:{name}" for name in _names(definition)], asked)

    as_of = found.metadata[view]["as_of"].dt.epoch("us").to_list()
    served = found.to_polars().select(_names(definition)).rows()
    assert [bits(row) for row in served] == [
        bits(recount.values(key, at).values()) for key, at in zip(keys, as_of, strict=True)
    ]


def test_a_cart_is_worth_what_is_in_it_and_nothing_after_the_checkout_or_half_an_hour_alone(year: Market) -> None:
    """Counted by product, from the events alone and not from sums over a window."""
    events = year.events("user_cart").unique("cart_event_id").sort("_arrival", "_offset")
    # Between a late record and the one it should have come before, a cart is not what its user sees.
    prompt = (pl.col("_arrival") - pl.col("_event_time")).dt.total_seconds() < 5
    log = year.log("user_cart").select("user_id", "available_at", "cart_value", "cart_items")
    n_bought = 0
    for user in HOUSEHOLDS:
        mine = events.filter(pl.col("user_id") == user)
        rows = log.filter(pl.col("user_id") == user)
        latest = rows["available_at"].max()
        gaps = mine["_event_time"].sort().diff().fill_null(dt.timedelta(days=1)) >= dt.timedelta(minutes=30)
        visit = mine.sort("_event_time").with_columns(gaps.cum_sum().alias("visit"))
        for _, cart in visit.group_by("visit", maintain_order=True):
            end = cart["_event_time"].max()
            if not cart.select(prompt.all()).item() or end + dt.timedelta(minutes=31) > latest:
                continue
            in_cart: dict[int, Decimal] = {}
            for product, amount in cart.select("product_id", "amount").iter_rows():
                in_cart[product] = in_cart.get(product, Decimal(0)) + amount
            held = rows.filter(pl.col("available_at") <= end + dt.timedelta(seconds=5)).tail(1)
            alone = rows.filter(pl.col("available_at") <= end + dt.timedelta(minutes=30, seconds=5)).tail(1)
            bought = cart["action"].cast(pl.String).to_list().count("buy") > 0
            n_bought += bought

            assert held["cart_value"].item() == sum(in_cart.values())
            assert alone.select("cart_value", "cart_items").row(0) == (0, 0)
    assert n_bought > 20


def test_a_return_rate_is_returns_per_purchase_of_the_last_ninety_days(year: Market) -> None:
    rows = year.log("product_returns")

    rates = rows.filter(pl.col("purchases_90d") > 0)
    assert (rates["return_rate_90d"] == rates["returns_90d"] / rates["purchases_90d"]).all()
    assert rates.filter(pl.col("return_rate_90d") > 0).height > 20
    nothing_bought = rows.filter(pl.col("purchases_90d") == 0)
    assert nothing_bought["return_rate_90d"].null_count() == nothing_bought.height > 0


def test_the_week_of_sellers_begins_on_monday_in_new_york(year: Market) -> None:
    """What a week's answers gave is gone at local midnight, also in the weeks in which clocks change."""
    ends = year.log("seller_response_times").filter(pl.col("cause") == "hop")
    local = ends["available_at"].dt.convert_time_zone("America/New_York")

    assert set(local.dt.weekday()) == {1}
    assert set(local.dt.time()) == {dt.time(0)}
    assert set(ends["available_at"].dt.hour()) == {4, 5}
    assert ends["avg_response_s_week"].null_count() == ends.height


def test_the_count_of_purchases_is_defined_by_the_yaml_that_its_readme_shows(year: Market) -> None:
    text = (market.HOME / "user_purchase_count_30d.yaml").read_text()

    view = year.plan.views["user_purchase_count_30d"]
    assert [(one.name, one.function, str(one.dtype)) for one in view.features] == [(view.name, "count", "int64")]
    assert view.features[0].published.description == "Number of purchases in the last 30 days"
    assert text in (market.HOME / "README.md").read_text()


def test_value_counts_rows_that_are_there_for_a_feature_alone_as_they_are_in_the_log(year: Market) -> None:
    root = year.deployment
    places = ["--log", str(root.log), "--archive", str(root.archive), "--definitions", str(market.HOME)]
    found = CliRunner().invoke(main, ["value", "--json", *places, "--events", "2000", "--runs", "2"])
    assert found.exit_code == 0, found.output

    views = {one["view"].partition("@")[0]: one for one in json.loads(found.stdout)["views"]}

    assert views.keys() == year.plan.views.keys()
    for name, its in views.items():
        plan = year.plan.views[name]
        rows = year.log(name).sort("available_at", "seq")
        assert its["rows"] == rows.height
        assert its["entities"] == rows.select(plan.entity.keys).n_unique()
        names = _names(plan)
        # Without any row, an entity has the values of empty windows.
        features = {feature.name: feature for feature in plan.published.features}
        before = dict.fromkeys(rows.select(plan.entity.keys).iter_rows(), bits([features[one].empty for one in names]))
        changed: list[list[str]] = []
        for row in rows.select(*plan.entity.keys, *names).iter_rows():
            key, values = row[: len(plan.entity.keys)], bits(row[len(plan.entity.keys) :])
            changed.append([one for one, old, new in zip(names, before[key], values, strict=True) if old != new])
            before[key] = values
        for feature in its["features"]:
            own = {feature["feature"], *feature["derived"]}
            assert feature["rows_alone"] == sum(bool(one) and own.issuperset(one) for one in changed), feature[
                "feature"
            ]
            assert feature["differs_from"]["1 d"]["requests"] > 0
            assert feature["kernel_time"] is not None or any("kernel time" in line for line in its["not_known"])
    times = [feature["kernel_time"] for its in views.values() for feature in its["features"]]
    assert any(times), [its["not_known"] for its in views.values()]
