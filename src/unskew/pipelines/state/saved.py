"""What a recovery store holds, read without the pipeline.

Bytewax reads its store only for a flow. So a flow without items is resumed from a copy of the store, which holds little
more than offsets, positions and the names of the files of the state.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import RecoveryConfig
from bytewax.testing import run_main
from typing_extensions import override

from unskew.features.errors import LayoutError, StoreUnavailable, UnskewError
from unskew.pipelines.state.changelog import REMEDY
from unskew.pipelines.state.folder import RECOVERY

FLOW, SHARDS, TABLES = "unskew", "aggregate", "parquet"
# Sink partitions must never change between runs; each holds the tables whose keys fall to it.
SINK_PARTITIONS = [f"{index:02d}" for index in range(16)]


def input_of(topic: str) -> str:
    """Return the name of the flow's step that reads a topic.

    Saved offsets are found by these names, so they contain nothing that may be renamed. Bytewax reserves the dot, and a
    topic's name cannot contain a plus sign.
    """
    return f"{topic.replace('.', '+')}_poll"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The last durable epoch.

    ``shards``: as from ``Shard.to_snapshot``. ``places``: by topic and partition, as from the partition's snapshot.
    ``tables``: the positions of tables, by name.
    """

    shards: Sequence[Mapping[str, Any]]
    places: Mapping[str, Mapping[int, Mapping[str, Any]]]
    tables: Mapping[str, Mapping[str, Any]]


def read_saved(recovery: Path, n_partitions: Mapping[str, int], copies: Path | None = None) -> Saved:
    """Read a store that no process has open. ``n_partitions``: by topic, how many partitions to look for.

    ``copies``: the folder in which the copy is made; None for the system's folder of temporary files.

    Raises ``LayoutError`` if it is damaged.
    """
    shards: list[dict[str, Any]] = []
    places: dict[str, dict[int, dict[str, Any]]] = {topic: {} for topic in n_partitions}
    tables: dict[str, Any] = {}

    def keep(saved: dict[str, Any] | None) -> _KeptShard:
        assert saved is not None
        shards.append(saved)
        return _KeptShard(saved)

    flow = Dataflow(FLOW)
    sources = {topic: _Places(range(n), places[topic]) for topic, n in n_partitions.items()} or {"": _Places((), {})}
    nothing: Any = op.merge("routed", *(op.input(input_of(topic), flow, source) for topic, source in sources.items()))
    op.output(TABLES, op.stateful_batch(SHARDS, nothing, keep), _Tables(tables))
    with tempfile.TemporaryDirectory(dir=copies) as folder:
        copy = Path(folder) / RECOVERY
        shutil.copytree(recovery, copy)
        try:
            run_main(flow, recovery_config=RecoveryConfig(copy))
        # A panic of Bytewax's runtime is no ``Exception``.
        except BaseException as error:
            found = failure_of_store("; ".join(map(str, causes_of(error))), recovery)
            raise error if found is None else found from error
    return Saved(shards=shards, places=places, tables=tables)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    cause = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


# What Bytewax says when its recovery store, a file of SQLite, fails.
_STORE_FAILS = re.compile(r"SqliteFailure|recovery partition|recovery DB|database file")
_LOCKED = re.compile(r"DatabaseBusy|DatabaseLocked")
_PASSES = re.compile(r"DiskFull|SystemIoFailure|DatabaseBusy|DatabaseLocked|ReadOnly|PermissionDenied")


def failure_of_store(said: str, recovery: Path) -> UnskewError | None:
    """Return the error that stands for a failure of the recovery store; None if it was something else."""
    if not _STORE_FAILS.search(said):
        return None
    reason = found[1] if (found := re.search(r'Some\("([^"]*)"\)', said)) else said.partition("; ")[0]
    if _PASSES.search(said):
        remedy = "see to the disk"
        if _LOCKED.search(said):
            remedy = "another process, which may stand still, is writing it: end that one"
        return StoreUnavailable(
            f"the recovery store {recovery} cannot be written ({reason}); {remedy} and start again: the run continues from its "
            "last durable epoch"
        )
    return LayoutError(f"the recovery store {recovery} is damaged ({reason}); {REMEDY}")


class _KeptShard(StatefulBatchLogic[Any, Any, dict[str, Any]]):
    """A shard's saved state, unread."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self._saved = saved

    @override
    def on_batch(self, values: list[Any]) -> tuple[Iterable[Any], bool]:
        return [], StatefulBatchLogic.RETAIN

    @override
    def snapshot(self) -> dict[str, Any]:
        return self._saved


class _Nothing(StatefulSourcePartition[Any, Any]):
    """A partition that has ended."""

    def __init__(self, saved: Any) -> None:
        self._saved = saved

    @override
    def next_batch(self) -> list[Any]:
        raise StopIteration

    @override
    def snapshot(self) -> Any:
        return self._saved


class _Places(FixedPartitionedSource[Any, Any]):
    """The saved places of a topic's partitions."""

    def __init__(self, partitions: Sequence[int], found: dict[int, dict[str, Any]]) -> None:
        self._partitions = partitions
        self._found = found

    @override
    def list_parts(self) -> list[str]:
        return [f"p{partition}" for partition in self._partitions]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> _Nothing:
        if resume_state is not None:
            self._found[int(for_part.removeprefix("p"))] = resume_state
        return _Nothing(resume_state)


class _Nowhere(StatefulSinkPartition[Any, Any]):
    def __init__(self, saved: Any) -> None:
        self._saved = saved

    @override
    def write_batch(self, values: list[Any]) -> None:
        """Take nothing."""

    @override
    def snapshot(self) -> Any:
        return self._saved


class _Tables(FixedPartitionedSink[Any, Any]):
    """The saved positions of tables."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    @override
    def list_parts(self) -> list[str]:
        return SINK_PARTITIONS

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> _Nowhere:
        self._found.update(resume_state or {})
        return _Nowhere(resume_state)
