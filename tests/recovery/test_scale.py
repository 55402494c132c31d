"""The same history in one process, in a cluster of two, in processes with separate partitions, and with a change."""

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.recovery.harness import Ordeal
from tests.support.recovery.processes import APART, CLUSTER, ONE, Life, Site
from tests.support.recovery.scene import Scene, scene
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
