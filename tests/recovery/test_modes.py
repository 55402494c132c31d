"""Runs in every mode follow runs in every other one, stopped or broken off at any moment, and lose nothing."""

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.recovery.test_decisions import _check_log, _live
from tests.recovery.test_state_folder import BrokenOff
from tests.support.pipeline import Bench, Outcome, Record, plan
from unskew.pipelines.run import run

MODES = list(itertools.product(("wall", "none"), ("now", None), ("stopped", "broken off")))
TURNS = [1, 2, 3, 5, 10, 40, 150]
"""After so many turns of partitions a run is ended; a run with an end may come to it before that."""


class Ended:
    """A stop flag that stops, or breaks off, when it has been asked ``n`` times."""

    def __init__(self, n: int, how: str) -> None:
        self._left = n
        self._how = how

    def is_set(self) -> bool:
        self._left -= 1
        if self._left <= 0 and self._how == "broken off":
            raise BrokenOff
        return self._left <= 0


def walk(n: int) -> Iterator[int]:
    """Numbers below ``n``, in which each follows each: the sequence of Fredricksen and Maiorana, for pairs."""
    yield from (0, 0)
    for a in range(n):
        yield from () if a == 0 else (a,)
        for b in range(a + 1, n):
            yield from (a, b)
    yield 0


def records(chance: random.Random, n_partitions: int) -> Sequence[Record]:
    """A few records of the last two seconds, some of them late."""
    now_ms = time.time_ns() // 1_000_000
    users = [chance.randrange(9) for _ in range(chance.randrange(12))]
    stamps = sorted(now_ms - chance.randrange(2_000) for _ in users)
    return [
        Record(
            partition=user % n_partitions,
            stamp_ms=stamp_ms,
            user=f"user {user}",
            item=chance.randrange(5),
            amount=chance.choice([0.1, 1e-30, -3.5, None]),
            gift=bool(chance.getrandbits(1)),
            at=(stamp_ms - chance.choice([0, 0, 300, 4_000])) * 1000,
        )
        for user, stamp_ms in zip(users, stamps, strict=True)
    ]


@pytest.mark.long
@pytest.mark.parametrize(("n_partitions", "modes"), [(1, MODES[::2]), (2, MODES)], ids=["one", "two"])
def test_every_mode_follows_every_other_one(bench: Bench, n_partitions: int, modes: Sequence[Any]) -> None:
    chance = random.Random(n_partitions)
    topic = bench.produce([], n_partitions)
    outcome = Outcome(_live(plan(topic), 50_000), bench.deployment())
    told: list[Any] = []
    n_records = 0
    for number in walk(len(modes)):
        fresh = records(chance, n_partitions)
        bench.append(topic, fresh)
        n_records += len(fresh)
        idle, ends, how = modes[number]
        options = {"idle": idle, "ends": ends, "epoch_s": chance.choice([0.0, 0.03]), "poll_records": 5}
        told.append((*modes[number], turns := chance.choice(TURNS)))
        try:
            run(outcome.plan, replace(outcome.deployment, **options), stop=Ended(turns, how))  # type: ignore[arg-type]
        except BrokenOff:
            pass
        except Exception as error:
            raise AssertionError(f"the last of these could not go on: {told[-4:]}") from error

    run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert outcome.archive().height == n_records
    _check_log(outcome)


def test_every_pair_of_modes_occurs_in_the_walk() -> None:
    assert set(itertools.pairwise(walk(len(MODES)))) == set(itertools.product(range(len(MODES)), repeat=2))
