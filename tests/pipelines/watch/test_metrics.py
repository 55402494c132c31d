"""Metrics and health of a real pipeline, over HTTP."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

import unskew
from tests.support.pipeline import Bench, history, plan
from unskew.demo.embedded import EmbeddedBroker
from unskew.features.errors import RequestError
from unskew.features.rejection import KINDS
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.progress import DURATION_BOUNDS_S, Epochs
from unskew.pipelines.run import run
from unskew.pipelines.watch import endpoint
from unskew.pipelines.watch.running import Status

_OPEN = history(400, seed=11)
# Without marks a partition waits once its clock is past those of others, so all of them end at one instant.
RECORDS = [
    *_OPEN,
    *(
        replace(
            next(one for one in _OPEN if (one.partition, one.raw) == (partition, None)), stamp_ms=_OPEN[-1].stamp_ms
        )
        for partition in range(4)
    ),
]
PROCESS = ("process_", "python_")
LABELS = {"stream", "view", "topic", "partition", "store", "kind", "le", "version"}


@pytest.fixture
def bench(broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> Bench:
    return Bench(broker, redis_url, tmp_path)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> dict[str, Metric]:
    status, text = get(port, "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


def total(families: dict[str, Metric], name: str) -> float:
    """Of a counter, over all labels."""
    family = families[name.removesuffix("_total")]
    return sum(sample.value for sample in family.samples if sample.name == name)


def by(families: dict[str, Metric], name: str, *labels: str) -> dict[Any, float]:
    family = families[name.removesuffix("_total")]
    found = {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in family.samples
        if sample.name == name
    }
    return {key[0] if len(labels) == 1 else key: value for key, value in found.items()}


class Live:
    """A pipeline over a topic that does not end, in a thread of its own, with its metrics on."""

    def __init__(self, deployment: Deployment, topic: str) -> None:
        self.port = free_port()
        self.stop = threading.Event()
        self.statuses: list[Status] = []
        self.error: Exception | None = None
        self._deployment = replace(deployment, metrics=("127.0.0.1", self.port), ends=None)
        self._plan = plan(topic)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.statuses.append(run(self._plan, self._deployment, stop=self.stop))
        except Exception as error:  # noqa: BLE001 - the test's own thread shows it
            self.error = error

    def until(self, claim: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            if self.error is not None:
                raise self.error
            try:
                if claim():
                    return
            except (ConnectionError, KeyError):
                pass
            time.sleep(0.02)
        pytest.fail("it did not come to pass within 60 s")

    def end(self) -> Status:
        self.stop.set()
        self._thread.join(120)
        if self.error is not None:
            raise self.error
        return self.statuses[0]


@contextmanager
def live(bench: Bench, topic: str) -> Iterator[Live]:
    pipeline = Live(bench.deployment(), topic)
    pipeline._thread.start()
    try:
        yield pipeline
    finally:
        pipeline.stop.set()
        pipeline._thread.join(60)


def test_figures_over_http_are_those_that_the_run_reports(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    with live(bench, topic) as pipeline:
        pipeline.until(lambda: total(scrape(pipeline.port), "unskew_events_consumed_total") == len(RECORDS))
        before = scrape(pipeline.port)["unskew_epoch_seconds"].samples[-2].value
        # Two more epochs, so that what was read has reached every figure.
        pipeline.until(lambda: scrape(pipeline.port)["unskew_epoch_seconds"].samples[-2].value > before + 2)
        families = scrape(pipeline.port)
        status = pipeline.end()

    assert total(families, "unskew_events_consumed_total") == status.consumed
    assert total(families, "unskew_dead_letters_total") == status.dead == sum(status.dead_by_kind.values()) > 0
    assert total(families, "unskew_events_bumped_total") == status.bumped
    assert by(families, "unskew_events_late_total", "view") == status.late_by_view
    assert total(families, "unskew_updates_total") == status.updates > 0
    assert total(families, "unskew_log_rows_total") == status.rows > 0
    assert status.epochs >= before + 2
    assert 0 < status.longest_commit_s <= status.commit_s
    sent = total(families, "unskew_redis_rows_sent_total") + total(families, "unskew_redis_rows_conflated_total")
    assert sent == status.updates


def all_are_filled(entities: dict[str, float]) -> bool:
    return len(entities) == 2 and min(entities.values()) > 0


def test_state_clocks_and_partitions_are_told(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    newest = {partition: max(one.stamp_ms for one in RECORDS if one.partition == partition) for partition in range(4)}
    slowest = dict.fromkeys(("by_user@1", "by_item@1"), min(newest.values()) / 1000)
    with live(bench, topic) as pipeline:
        pipeline.until(lambda: by(scrape(pipeline.port), "unskew_view_clock_timestamp_seconds", "view") == slowest)
        pipeline.until(lambda: all_are_filled(by(scrape(pipeline.port), "unskew_state_entities", "view")))
        families = scrape(pipeline.port)
        status = pipeline.end()

    lags = by(families, "unskew_partition_lag_records", "topic", "partition")
    assert lags == {(topic, str(partition)): 0 for partition in range(4)}
    clocks = by(families, "unskew_partition_clock_timestamp_seconds", "partition")
    assert clocks == {str(partition): stamp_ms / 1000 for partition, stamp_ms in newest.items()}
    freshness = by(families, "unskew_view_freshness_seconds", "view")
    assert freshness.keys() == slowest.keys()
    assert all(abs(time.time() - clock_s - freshness[view]) < 60 for view, clock_s in slowest.items())
    assert min(by(families, "unskew_state_tiles", "view").values()) > 0
    assert families["unskew_build_info"].samples[0].labels == {"version": unskew.__version__}
    assert families["process_resident_memory_bytes"].samples[0].value > 0
    assert by(families, "unskew_store_retries_total", "store") == status.retries


def test_names_units_and_labels_are_as_prometheus_wants_them(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:50])
    with live(bench, topic) as pipeline:
        pipeline.until(lambda: scrape(pipeline.port)["unskew_ready"].samples[0].value == 1)
        families = scrape(pipeline.port)

    ours = [family for family in families.values() if not family.name.startswith(PROCESS)]
    assert len(ours) > 20
    for family in ours:
        assert re.fullmatch(r"unskew_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        samples = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert all(name.endswith("_total") for name in samples)
        else:
            assert not any(name.endswith("_total") for name in samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert "_ms" not in family.name
        assert "_us" not in family.name
        for sample in family.samples:
            assert set(sample.labels) <= LABELS
            assert "seconds" in family.name or "second" not in family.documentation
    assert {sample.labels["kind"] for sample in families["unskew_dead_letters"].samples} == set(KINDS)
    assert {sample.labels["view"] for sample in families["unskew_updates"].samples} == {"by_user@1", "by_item@1"}


def test_operations_explain_every_figure_with_its_labels_and_no_other(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:50])
    with live(bench, topic) as pipeline:
        pipeline.until(lambda: scrape(pipeline.port)["unskew_ready"].samples[0].value == 1)
        families = scrape(pipeline.port)

    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    told = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(unskew_\w+)` \| ([^|]*)\|", text, re.MULTILINE)
    }
    exposed = {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in families.values()
        if not family.name.startswith(PROCESS)
    }
    # No view of this pipeline drops repeats, so that figure has no sample.
    assert exposed.pop("unskew_events_repeated_total") == set()
    assert told.pop("unskew_events_repeated_total") == {"view"}
    assert told == {"unskew_build_info" if name == "unskew_build" else name: labels for name, labels in exposed.items()}


def test_health_and_readiness_are_told_with_reasons_and_other_paths_are_not_there(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:50])
    with live(bench, topic) as pipeline:
        pipeline.until(lambda: get(pipeline.port, "/health")[0] == 200)
        pipeline.until(lambda: get(pipeline.port, "/ready")[0] == 200)
        health, ready = json.loads(get(pipeline.port, "/health")[1]), json.loads(get(pipeline.port, "/ready")[1])
        elsewhere = get(pipeline.port, "/")
        posted = get(pipeline.port, "/health", "POST")

    assert health["ok"] is ready["ok"] is True
    assert ready["reasons"] == []
    assert ready["partitions"] == 4
    assert ready["epochs"] >= 1
    assert elsewhere[0] == 404
    assert "/metrics" in elsewhere[1]
    assert posted[0] == 405


def test_a_store_that_is_away_makes_it_unready_but_not_unwell(bench: Bench, redis_client: Any) -> None:
    topic = bench.produce(RECORDS[:200])
    with live(bench, topic) as pipeline:
        pipeline.until(lambda: get(pipeline.port, "/ready")[0] == 200)
        free = redis_client.config_get("maxmemory")["maxmemory"]
        redis_client.config_set("maxmemory", 1)
        try:
            bench.append(topic, RECORDS[200:])
            pipeline.until(lambda: get(pipeline.port, "/ready")[0] == 503)
            reasons = json.loads(get(pipeline.port, "/ready")[1])["reasons"]
            health = get(pipeline.port, "/health")[0]
            pipeline.until(lambda: by(scrape(pipeline.port), "unskew_store_retries_total", "store")["redis"] > 0)
            away = by(scrape(pipeline.port), "unskew_store_away_seconds", "store")
        finally:
            redis_client.config_set("maxmemory", free)
        pipeline.until(lambda: get(pipeline.port, "/ready")[0] == 200)
        pipeline.until(lambda: by(scrape(pipeline.port), "unskew_store_away_seconds", "store")["redis"] == 0)

    assert any(reason.startswith("redis has been away for") for reason in reasons)
    assert health == 200
    assert away["redis"] > 0
    assert away["disk"] == 0


def test_a_port_in_use_is_refused_with_what_to_do_and_nothing_is_written(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:20])
    deployment = bench.deployment()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=rf"metrics at 127.0.0.1:{port}: Address already in use; choose another"):
            run(plan(topic), replace(deployment, metrics=("127.0.0.1", port)), stop=threading.Event())

    assert not deployment.log.exists()


def test_nothing_listens_and_no_thread_is_left_after_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint._Handler, "timeout", 300.0)
    topic = bench.produce(RECORDS[:50])
    with live(bench, topic) as pipeline:
        pipeline.until(lambda: get(pipeline.port, "/ready")[0] == 200)
        # A client that asks nothing keeps nothing open.
        with socket.create_connection(("127.0.0.1", pipeline.port)):
            began_s = time.monotonic()
            pipeline.end()
            took_s = time.monotonic() - began_s

    assert took_s < 60
    assert "unskew-metrics" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        get(pipeline.port, "/health")


def test_without_being_asked_for_no_port_is_opened(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:20])
    names: set[str] = set()
    outcome = plan(topic)
    run(outcome, bench.deployment(), stop=threading.Event(), report=lambda _: names.update(_thread_names()))

    assert "progress" not in _thread_names()
    assert "unskew-metrics" not in names


def _thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def epochs_of(clock: Clock, steps: Sequence[tuple[str, float]]) -> Epochs:
    """Snapshots of so many seconds; ``wait`` is time outside of them."""
    epochs = Epochs(monotonic=clock, wall=clock)
    for what, seconds in steps:
        if what == "wait":
            clock.now_s += seconds
        else:
            with epochs.snapshot(what):  # type: ignore[arg-type]
                clock.now_s += seconds
    return epochs


def test_an_epoch_is_known_to_be_durable_when_shards_are_asked_for_the_next_one() -> None:
    clock = Clock()
    epochs = epochs_of(clock, [("shard", 1), ("shard", 1), ("sink", 2), ("wait", 5)])

    assert epochs.durable == 0
    with epochs.snapshot("shard"):
        pass
    assert epochs.durable == 1
    assert epochs.commits.sum_s == 4
    assert epochs.lengths.sum_s == 9
    assert epochs.durable_at_s == 109


def test_an_epoch_that_only_sinks_end_does_not_count_the_time_between_as_a_commit() -> None:
    epochs = epochs_of(Clock(), [("shard", 1), ("sink", 1), ("wait", 50), ("sink", 1), ("shard", 1)])

    assert epochs.commits.sum_s == 3


def test_durations_are_cumulative_counts_up_to_each_bound() -> None:
    epochs = epochs_of(Clock(), [("shard", 0.01), ("sink", 0.0), ("shard", 400), ("sink", 0), ("shard", 1)])

    counts = dict(epochs.commits.at_most())
    assert list(counts) == [*DURATION_BOUNDS_S, float("inf")]
    assert (counts[0.005], counts[0.025], counts[300.0], counts[float("inf")]) == (0, 1, 1, 2)
