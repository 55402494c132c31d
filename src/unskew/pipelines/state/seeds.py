"""Seeds: shards that a backfill has computed, from which a flow continues that does not know them yet.

    state/backfill/{view}/{shard}.seed    u32: CRC-32, then a ``Seed`` as MessagePack

The state itself is beside those of all shards (``changelog.py``); a seed has its manifest, the position of the shard's
log, and how far each partition has been read. Seeds stay until the recovery store holds every shard of their view.
"""

import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from unskew.features.errors import LayoutError
from unskew.features.plan import ViewPlan
from unskew.sinks import durable

BACKFILL = "backfill"
LAYOUT = 1
OFFSETS = 1 << 63
"""Sums of offsets are kept modulo this."""
_HEAD = struct.Struct("<I")


class Taken(msgspec.Struct, frozen=True):
    """The events of one partition that a shard's backfill has read: those with ``begin`` <= offset < ``end``.

    ``total``: how many there were. ``checked``: up to where the last seam check came; ``n_events``, ``sum_offsets``:
    from there on, how many there were, and the sum of their offsets modulo ``OFFSETS``. ``before``: how many events of
    the partition were written before ``begin``; None if that is not known.
    """

    begin: int
    end: int
    n_events: int
    sum_offsets: int
    checked: int
    total: int
    before: int | None = None

    @classmethod
    def beginning(cls, at: int, before: int | None) -> "Taken":
        """Return nothing, from an offset on."""
        return cls(begin=at, end=at, n_events=0, sum_offsets=0, checked=at, total=0, before=before)


class Seed(msgspec.Struct, frozen=True):
    """A shard as a backfill left it.

    ``snapshot``: as from ``Shard.to_snapshot``. ``log``: as from ``LogTable.snapshot``. ``taken``: by partition.
    ``since_us``: the instant from which the backfill was asked to begin; None for the beginning of the archive.
    """

    layout: int
    fingerprint: str
    snapshot: dict[str, Any]
    log: dict[str, Any]
    taken: dict[int, Taken]
    since_us: int | None = None

    @property
    def is_checked(self) -> bool:
        """Whether its backfill has come to an end, and nothing was taken since."""
        return all(one.checked == one.end and not one.n_events for one in self.taken.values())


class Seeds:
    """The seeds of a state folder."""

    def __init__(self, state: Path) -> None:
        self.root = state / BACKFILL

    def has(self, view_id: str) -> bool:
        """Return whether any shard of a view has a seed."""
        return any((self.root / view_id).glob("*.seed"))

    def read(self, view: ViewPlan, shard: str) -> Seed | None:
        """Return the seed of a shard; None if there is none.

        Raises ``LayoutError`` if it is damaged or of another definition.
        """
        path = self._path(view.id, shard)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            seed = _parse(data)
        except (ValueError, struct.error) as error:
            raise LayoutError(f"{path} is damaged ({error}); {again(view)}") from error
        if (seed.layout, seed.fingerprint) != (LAYOUT, view.state_fingerprint):
            raise LayoutError(
                f"{path} was computed with another definition of {view.id}, or by another version; {again(view)}"
            )
        return seed

    def write(self, view: ViewPlan, shard: str, seed: Seed, still_ours: Callable[[], None]) -> None:
        """Make a seed durable in place of the one before."""
        data = msgspec.msgpack.encode(seed)
        path = self._path(view.id, shard)
        with durable.disk(path.parent):
            durable.make_folder(path.parent)
            durable.replace(path, _HEAD.pack(zlib.crc32(data)) + data, still_ours)

    def forget(self, view_id: str, log: Path, changelog: Path) -> None:
        """Remove the seeds of a view, and its log and its state, which nobody has served."""
        with durable.disk(log):
            # The log first: seeds without their log are refused, and a log without seeds is one of a pipeline.
            if self.has(view_id):
                durable.remove_tree(log)
                shutil.rmtree(changelog, ignore_errors=True)
        self.remove(view_id)

    def views(self) -> list[str]:
        """Return the ids of the views that have seeds."""
        return sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []

    def shards(self, view_id: str) -> list[str]:
        """Return the shards of a view that have seeds."""
        return sorted(path.stem for path in (self.root / view_id).glob("*.seed"))

    def remove_shard(self, view_id: str, shard: str) -> None:
        """Remove the seed of a shard, and all that is left of the view's if it was the last one."""
        with durable.disk(self.root):
            self._path(view_id, shard).unlink(missing_ok=True)
        if not self.shards(view_id):
            self.remove(view_id)

    def remove(self, view_id: str) -> None:
        """Remove the seeds of a view."""
        with durable.disk(self.root):
            shutil.rmtree(self.root / view_id, ignore_errors=True)
            durable.remove_empty([self.root])

    def _path(self, view_id: str, shard: str) -> Path:
        return self.root / view_id / f"{shard}.seed"


def _parse(data: bytes) -> Seed:
    if _HEAD.unpack_from(data)[0] != zlib.crc32(data[_HEAD.size :]):
        raise ValueError("its bytes do not match their checksum")
    return msgspec.msgpack.decode(data[_HEAD.size :], type=Seed)


def after_check(taken: Mapping[int, Taken]) -> dict[int, Taken]:
    """Return what was taken, of which nothing is left to be checked."""
    return {
        partition: msgspec.structs.replace(one, checked=one.end, n_events=0, sum_offsets=0)
        for partition, one in taken.items()
    }


def again(view: ViewPlan) -> str:
    """Return how to begin the past of a view anew."""
    command = "backfill" if view.stream.table is None else "materialize"
    return f"begin again with 'unskew {command} {view.id} --again'"
