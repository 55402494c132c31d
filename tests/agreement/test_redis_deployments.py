"""A reader gets the same values from every deployment of Redis, even if slots move or a master dies during the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.recovery.test_state_folder import Calling
from tests.support.pipeline import Bench, Outcome, history, plan
from tests.support.servers.valkey import Cluster, Sentinel, Valkey, cluster, replica_of, wait_until  # noqa: F401 - a fixture
from unskew.pipelines.run import run
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.cluster_slots import slot_of
from unskew.sinks.redis.keyspace import clock_key

RECORDS = history(400, seed=23)


def read(outcome: Outcome, reader: OnlineReader | None = None) -> list[Any]:
    """Every value of every entity, what it is the value of, and which entities there are."""
    reader = reader or OnlineReader(outcome.deployment.redis_url, outcome.deployment.prefix)
    found: list[Any] = []
    for view in outcome.plan.views.values():
        keys = sorted(reader.keys(view.name))
        names = [f"{view.name}:{feature.name}" for feature in view.features]
        rows = [{"user": record.user, "item": record.item} for record in RECORDS]
        read = reader.read(names, rows)
        found += [keys, read.to_dict(), read.metadata[view.name].to_dict(as_series=False)]
    reader.close()
    return found


def run_with(
    bench: Bench, topic: str, redis_url: str, at_step: int, action: Callable[[], None], once: Callable[[], bool]
) -> Outcome:
    outcome = Outcome(plan(topic), bench.deployment(redis_url=redis_url, poll_records=20))
    run(outcome.plan, outcome.deployment, stop=Calling(at_step, action, once))  # type: ignore[arg-type]
    return outcome


def test_a_cluster_whose_slots_move_meanwhile_serves_what_one_server_does(bench: Bench, cluster: Cluster) -> None:  # noqa: F811
    topic = bench.produce(RECORDS)
    one = bench.run(topic)
    moves: list[tuple[int, Valkey]] = []

    def slots() -> set[int]:
        keys = [*cluster.nodes[0].client.keys("test-run1:by_*"), clock_key("test-run1", "main").encode()]
        return {slot_of(key.decode()) for key in keys}

    def move() -> None:
        for slot in sorted(slots()):
            home = cluster.owner_of(slot)
            moves.append((slot, home))
            cluster.move(slot, next(node for node in cluster.masters if node is not home))

    several = run_with(bench, topic, cluster.url, 30, move, lambda: len(slots()) > 1)

    assert several.deployment.prefix == "test-run1"
    assert len(moves) > 1
    assert read(several) == read(one)
    for slot, home in moves:
        cluster.move(slot, home)


def test_a_master_that_dies_during_a_run_is_followed_by_its_replica_for_writer_and_reader(
    bench: Bench, tmp_path: Path
) -> None:
    topic = bench.produce(RECORDS)
    one = bench.run(topic)
    with (
        Valkey(tmp_path / "master") as master,
        replica_of(master, tmp_path / "replica") as replica,
        Sentinel(tmp_path / "sentinel", master) as sentinel,
    ):
        reader = OnlineReader(sentinel.url, "test-run1")

        def die() -> None:
            assert set(reader.views()) == {"by_user", "by_item"}
            master.kill()

        def is_served() -> bool:
            return all(master.client.keys(key) for key in ("test-run1:by_user*", "test-run1:registry"))

        followed = run_with(bench, topic, sentinel.url, 30, die, is_served)

        assert sentinel.master_port() == replica.port
        assert followed.deployment.prefix == "test-run1"
        assert wait_until(lambda: read(followed, reader), "the new master is there") == read(one)
