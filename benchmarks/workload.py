"""The workload of the benchmarks: one schema of events, keys by Zipf's law, and a pipeline without its journal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unskew.pipelines import run as pipeline
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.state.journal import Fact, Journal

SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "amount", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}


def zipf(n: int, n_entities: int, random: np.random.Generator, exponent: float = 1.1) -> np.ndarray:
    """Return ``n`` entity numbers below ``n_entities``; small ones are frequent."""
    weights = np.arange(1, n_entities + 1, dtype=np.float64) ** -exponent
    return np.searchsorted(np.cumsum(weights) / weights.sum(), random.random(n))


def live_in(folder: Path, **options: Any) -> Deployment:
    """Return a deployment for a live topic whose folders all lie in ``folder``."""
    return Deployment(
        log=folder / "log",
        archive=folder / "archive",
        dead_letters=folder / "dead",
        state=folder / "state",
        idle="wall",
        **options,
    )


class Watched(Journal):
    """The normal journal; ``made`` lists all instances that were made."""

    made: ClassVar[list[Journal]] = []

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.made.append(self)


class Forgetful(Watched):
    """A journal that notes nothing and waits for nothing, as if the pipeline had none."""

    def note(self, fact: Fact) -> int:  # noqa: ARG002
        return 0

    def begin(self) -> None:
        pass

    def holds(self, ticket: int) -> bool:  # noqa: ARG002
        return True

    def ensure(self, ticket: int) -> None:
        pass

    def durable(self, *_: Any) -> None:
        pass


@contextmanager
def journal_of(kind: type[Watched]) -> Iterator[list[Journal]]:
    """Run pipelines of the body with this kind of journal; yield the instances that were made."""
    pipeline.Journal = kind  # type: ignore[misc]
    kind.made.clear()
    try:
        yield kind.made
    finally:
        pipeline.Journal = Journal  # type: ignore[misc]
