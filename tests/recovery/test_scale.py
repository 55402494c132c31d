"""The same history in one process, in a cluster of two, in processes with separate partitions, and with a change."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.recovery.harness import Ordeal
from tests.support.recovery.processes import APART, CLUSTER, ONE, Life, Site, Topology
from tests.support.recovery.scene import Feeder, Scene, scene
from unskew.cli import main
from unskew.demo.embedded import EmbeddedBroker


def _site(broker: EmbeddedBroker, redis_url: str, made: Scene, root: Path) -> Site:
    for topic, n_partitions in made.partitions.items():
        broker.create_topic(topic, n_partitions)
    return Site(made, broker.bootstrap, redis_url, root, f"scale-{root.name}")


def _await_records(life: Life, n_records: int, within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while life.consumed() < n_records:
        assert not life.ended, [life._errors(number) for number in range(len(life.outputs))]
        assert time.monotonic() < deadline_s, life.statuses()
        time.sleep(0.05)


def test_from_one_to_two_and_back_and_again_the_log_is_the_same_to_the_last_bit(
    broker: EmbeddedBroker, redis_url: str, tmp_path: Path
) -> None:
    made = scene(tmp_path / "scene", 480, seed=3)
    site = _site(broker, redis_url, made, tmp_path / "site")
    ordeal = Ordeal(site, [ONE, CLUSTER, ONE, CLUSTER], seed=3)

    with ordeal.watched() as feeder:
        for number in range(3):
            life = ordeal.start(number)
            feeder.allow(120)
            _await_records(life, 60)
            life.terminate()
        ordeal.come_to_the_end(ordeal.start(3), feeder)

    assert not ordeal.report.faults, str(ordeal.report)


def test_processes_with_partitions_of_their_own_write_what_one_writes(
    broker: EmbeddedBroker, redis_url: str, tmp_path: Path
) -> None:
    made = scene(tmp_path / "scene", 300, seed=4, across_partitions=False)
    site = _site(broker, redis_url, made, tmp_path / "site")
    ordeal = Ordeal(site, [APART], seed=4, reference=ONE)

    with ordeal.watched() as feeder:
        life = ordeal.start(0)
        feeder.allow(150)
        _await_records(life, 75)
        life.terminate()
        ordeal.come_to_the_end(ordeal.start(1), feeder)

    assert not ordeal.report.faults, str(ordeal.report)


@pytest.mark.long
def test_a_process_of_a_cluster_ends_with_an_error_when_another_one_is_killed(
    broker: EmbeddedBroker, redis_url: str, tmp_path: Path
) -> None:
    made = scene(tmp_path / "scene", 400, seed=6)
    site = _site(broker, redis_url, made, tmp_path / "site")
    feeder = Feeder(broker.bootstrap, made, per_s=100)
    life = Life.start(site, CLUSTER)
    killed, other = life.processes
    feeder.start()
    feeder.allow(300)
    try:
        _await_records(life, 60)
        # What is sent to a process that stands still is accepted, so that nothing is left to send when it dies, and
        # Bytewax does not notice that.
        killed.send_signal(signal.SIGSTOP)
        time.sleep(2)
        killed.kill()
        killed.wait()

        assert other.wait(60) == 1
        errors = life.outputs[1].with_suffix(".err").read_text()
        assert errors.splitlines()[-1].startswith("error: ")
        assert "of the cluster" in errors
        assert "start all of them again" in errors
        assert "Traceback" not in errors
    finally:
        life.destroy()
        feeder.stop()


@pytest.mark.long
def test_the_error_of_one_process_of_a_cluster_is_its_last_line_and_both_end(
    broker: EmbeddedBroker, redis_url: str, tmp_path: Path
) -> None:
    """The embedded broker has no append time, and this stream declares no ``settle``: the first record is an error."""
    made = scene(tmp_path / "scene", 40, seed=7)
    site = replace(_site(broker, redis_url, made, tmp_path / "site"), live=True)
    feeder = Feeder(broker.bootstrap, made, per_s=100)
    life = Life.start(site, CLUSTER)
    feeder.start()
    feeder.allow(40)
    try:
        assert [process.wait(120) for process in life.processes] == [1, 1]
        errors = [output.with_suffix(".err").read_text() for output in life.outputs]
        assert any("declare `settle` on stream 'purchases'" in text.splitlines()[-1] for text in errors), errors
        assert not any("Traceback" in text for text in errors)
        assert all(text.splitlines()[-1].startswith("error: ") for text in errors), errors
    finally:
        life.destroy()
        feeder.stop()


@pytest.mark.long
def test_a_process_whose_cluster_never_comes_stops_when_it_is_asked_to(
    broker: EmbeddedBroker, redis_url: str, tmp_path: Path
) -> None:
    made = scene(tmp_path / "scene", 10, seed=8)
    site = _site(broker, redis_url, made, tmp_path / "site")
    life = Life.start(site, Topology("the first of two", CLUSTER.processes[:1]))
    try:
        deadline_s = time.monotonic() + 60
        while not (site.state / "recovery").is_dir():
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        time.sleep(1)
        life.terminate(within_s=60)
    finally:
        life.destroy()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--partitions", "0,1"), "by_item, item_ever: not partitioned by the entity"),
        (("--partitions", "0,0"), "each once"),
        (("--partitions", "7"), "but not 7"),
        (("--cluster", "127.0.0.1"), "give host:port of every process"),
        (("--process", "1"), "give the addresses of all processes with --cluster"),
        (("--partitions", "0", "--cluster", "127.0.0.1:1,127.0.0.1:2"), "exclude each other"),
    ],
)
def test_what_cannot_be_divided_so_is_refused_in_a_sentence(
    broker: EmbeddedBroker, redis_url: str, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    made = scene(tmp_path / "scene", 10, seed=5, across_partitions="7" not in arguments)
    site = _site(broker, redis_url, made, tmp_path / "site")

    done = CliRunner().invoke(main, [*site.options, *arguments])

    assert done.exit_code == 1, done.output
    assert said in done.output
