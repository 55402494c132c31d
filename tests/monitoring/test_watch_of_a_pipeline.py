"""The monitor beside a pipeline that runs: what was served and is not in the log shows as soon as it is published."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.support.pipeline import Bench, history, plan
from unskew import FeatureStore
from unskew.features.errors import UnskewError
from unskew.monitoring.watch import ViewLook, Watch
from unskew.pipelines.run import run
from unskew.serving import sample

# Longer than the second in which a run reports its epochs.
EPOCH_S = 2.0
N_ITEMS = 5
REFERENCES = ["by_item:count_1m", "by_item:sum_1m"]
NOW_US = 1_790_000_000_000_000


def until(claim: Callable[[], object], for_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + for_s
    while not claim():
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def bench(broker, redis_url, tmp_path) -> Bench:
    return Bench(broker, redis_url, tmp_path)


@pytest.fixture
def running(bench) -> Iterator[tuple[Bench, str, FeatureStore, Watch, Callable[[], int]]]:
    """A pipeline over a topic that does not end; a store that samples what it reads; a monitor; durable epochs."""
    topic = bench.produce(history(200, seed=4))
    deployment = replace(bench.deployment(), ends=None, epoch_s=EPOCH_S)
    stop = threading.Event()
    epochs = [0]

    def report(status) -> None:
        epochs[0] = status.epochs

    thread = threading.Thread(target=run, args=(plan(topic), deployment), kwargs={"stop": stop, "report": report})
    thread.start()
    store = FeatureStore(plan(topic), redis_url=bench.redis_url, prefix=deployment.prefix, sample=bench.root / "served")
    watch = Watch(deployment.log, names=["by_item"], served_root=bench.root / "served")
    try:
        yield bench, topic, store, watch, lambda: epochs[0]
    finally:
        stop.set()
        thread.join(60)
        store.close()


def look(watch: Watch) -> ViewLook | None:
    """A look, once the pipeline has made its log."""
    try:
        found = watch.look(NOW_US)
    except UnskewError:
        return None
    return found.views[0] if found.views else None


@pytest.mark.long
def test_a_wrong_value_in_redis_shows_within_two_epochs(running, redis_client, monkeypatch):
    monkeypatch.setattr(sample, "EVERY_S", 0.0)
    bench, topic, store, watch, epochs = running
    items = [{"item": number} for number in range(N_ITEMS) if number != 3]

    def read(*entities: dict) -> int:
        """Read entities until all are exact, and so in the sample; return how many rows were sampled."""
        for entity in entities:
            until(
                lambda one=entity: (
                    not store.get_online_features(REFERENCES, [one]).metadata["by_item"]["provisional"][0]
                )
            )
        return len([line for path in (bench.root / "served").glob("*") for line in path.read_text().splitlines()])

    until(lambda: (found := look(watch)) is not None and found.complete_to_us is not None)
    n_right = read(*items)
    until(lambda: look(watch).compared > 0)
    assert look(watch).mismatches == 0

    # Later records, so that the log has yet to reach what is read now.
    bench.append(
        topic, [replace(one, stamp_ms=one.stamp_ms + 10**9, at=one.at + 10**12) for one in history(60, seed=4)]
    )
    (key,) = redis_client.scan_iter(match="*by_item@1:{1}")
    reached = look(watch).complete_to_us
    until(
        lambda: store.get_online_features(REFERENCES, items[:1]).metadata["by_item"]["as_of"].to_physical()[0] > reached
    )
    redis_client.hset(key, "sum_1m", "12345.5")
    n_all = read({"item": 1})
    before = epochs()
    until(lambda: look(watch).mismatches > 0)
    passed = epochs() - before

    assert n_all > n_right
    assert passed <= 2
    (example,) = look(watch).examples
    assert (example.feature, example.entity, example.found) == ("sum_1m", (1,), 12345.5)
