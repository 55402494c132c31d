"""Populations of a log whose pipeline is killed with ``kill -9``: those of a plain count, before and after."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.populations import Row, binned, naive, raw_rows, us
from tests.support.recovery.processes import ONE, Life, Site
from tests.support.recovery.scene import Feeder, scene
from unskew.features.errors import UnskewError
from unskew.monitoring.population import Histograms, histograms
from unskew.monitoring.watch import Look, Watch
from unskew.offline.log_reader import ViewLog
from unskew.offline.logged import with_logged

N_RECORDS, N_KILLS, N_INSTANTS = 480, 3, 50
NOW_US = 1_790_000_000_000_000
# By view, what the last row of an entity holds whose windows have emptied; a lifetime never empties.
EMPTY: dict[str, Row] = {
    "by_user": {"count_5s": 0, "sum_1m": 0.0, "max_10s": None, "items_1m": 0, "mean_today": None},
    "by_item": {"count_5s": 0, "sum_1m": 0.0, "max_10s": None, "items_1m": 0},
    "user_ever": {},
    "item_ever": {},
}
KEYS = {"by_user": "user", "user_ever": "user", "by_item": "item", "item_ever": "item"}


def until(claim: Callable[[], object], what: str, for_s: float = 240.0) -> None:
    deadline_s = time.monotonic() + for_s
    while not claim():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def view_log(root: Path, view: str) -> ViewLog:
    return ViewLog(root, with_logged(root, [view]).find(view))


def look(watch: Watch) -> Look | None:
    """A look, once the pipeline has made its log."""
    try:
        return watch.look(NOW_US)
    except UnskewError:
        return None


def is_gone(view: str) -> Callable[[Row], bool]:
    empty = EMPTY[view]
    return lambda row: bool(empty) and all(row[name] == value for name, value in empty.items())


def counted(root: Path, view: str, instants: np.ndarray) -> tuple[Histograms, list[list[list[int]]]]:
    """The histograms of a view, and the plain counts, by feature and instant."""
    log = view_log(root, view)
    chosen = binned(log, int(instants[-1]))
    found = histograms(log, [(feature, bins) for feature, bins, _ in chosen], instants)
    rows = raw_rows(root, view)
    lasts = [{row[KEYS[view]]: row for row in rows if us(row["available_at"]) <= t_us}.values() for t_us in instants]
    return found, [[naive(last, feature, bins, is_gone(view)) for last in lasts] for feature, bins, _ in chosen]


@pytest.mark.long
def test_histograms_of_a_pipeline_that_was_killed_are_those_of_a_plain_count(broker, redis_url, tmp_path):
    played = scene(tmp_path / "scene", N_RECORDS, seed=13)
    for topic, n_partitions in played.partitions.items():
        broker.create_topic(topic, n_partitions)
    site = Site(played, broker.bootstrap, redis_url, tmp_path / "site", "killed")
    feeder = Feeder(broker.bootstrap, played, per_s=1e4)
    feeder.start()
    random_ = random.Random(5)
    # It looks on all the time, also while the pipeline is dead.
    follower = Watch(site.log)
    before: dict[str, tuple[np.ndarray, list[list[list[int]]]]] = {}
    for _ in range(N_KILLS):
        feeder.allow(N_RECORDS // (N_KILLS + 1))
        life = Life.start(site, ONE)
        try:
            reached = {view: int(instants[-1]) for view, (instants, _) in before.items()}

            def has_published(life: Life = life, reached: dict[str, int] = reached) -> bool:
                """Whether every view is complete to a later instant than before the kill, or the life has ended."""
                found = look(follower)
                now = {} if found is None else {one.view.partition("@")[0]: one.complete_to_us for one in found.views}
                return life.ended or all((now.get(view) or -1) > reached.get(view, -1) for view in KEYS)

            until(has_published, "an epoch is published")
            assert not life.ended, life.failures()
            time.sleep(random_.uniform(0.0, 0.5))
        finally:
            life.destroy()
        look(follower)
        for view in KEYS:
            log = view_log(site.log, view)
            assert log.complete_to_us is not None
            assert log.first_since_us is not None
            instants = np.array(
                sorted(random_.randrange(log.first_since_us, log.complete_to_us + 1) for _ in range(N_INSTANTS))
            )
            found, plain = counted(site.log, view, instants)
            assert [counts.tolist() for counts in found.counts] == plain, view
            before[view] = instants, plain
    feeder.finish()
    last = Life.start(site, ONE)
    last.await_end()

    for view, (instants, plain) in before.items():
        # The bins are those of the same instant, so nothing but the counts could differ.
        again, recounted = counted(site.log, view, instants)
        assert [counts.tolist() for counts in again.counts] == plain == recounted, view
        log = view_log(site.log, view)
        assert log.complete_to_us is not None
        assert log.complete_to_us > instants[-1]
        later = np.array(
            sorted(random_.randrange(int(instants[-1]), log.complete_to_us + 1) for _ in range(N_INSTANTS))
        )
        found, plain_later = counted(site.log, view, later)
        assert [counts.tolist() for counts in found.counts] == plain_later, view
        assert found.entities.max() > 1
    assert follower.look(NOW_US) == Watch(site.log).look(NOW_US)
