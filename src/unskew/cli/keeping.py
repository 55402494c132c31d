"""The folder with which ``unskew dev --keep`` goes on: what it holds, and the topics that it was made from."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.features.errors import LayoutError, RequestError, UnskewError
from unskew.pipelines.kafka.sending import Outgoing, Sender
from unskew.pipelines.state.folder import RECOVERY, held_by
from unskew.pipelines.state.saved import read_saved

if TYPE_CHECKING:
    from unskew.demo.embedded import EmbeddedBroker

_MARK = ".unskew-dev"
_STOPPED, _IN_USE, _FAILED = "stopped", "in use", "failed"
_PIECE = 10_000


@contextlib.contextmanager
def kept(root: Path) -> Iterator[None]:
    """Use a folder, a new one or that of an earlier run, which must have stopped orderly, as this one should.

    Raises ``RequestError`` for a folder of anything else, for one in use, and for one whose last run was killed: the
    records that its broker had, and the state has not, are gone.
    """
    mark = root / _MARK
    if root.exists() and any(root.iterdir()):
        if not mark.is_file():
            raise RequestError(
                f"--keep {root}: it holds files that are not unskew dev's; name an empty or a new folder"
            )
        before = mark.read_text("utf-8")
        if before == _FAILED:
            raise RequestError(
                f"--keep {root}: the pipeline of its last unskew dev ended with an error, so events that it had not read are "
                "lost; name a new folder (log and archive in this one can be read)"
            )
        if before != _STOPPED:
            raise RequestError(
                f"--keep {root}: an unskew dev runs on it, or did not come to its end, so records that it had not kept yet are "
                "lost; name a new folder (log and archive in this one can be read)"
            )
    root.mkdir(parents=True, exist_ok=True)
    mark.write_text(_IN_USE, "utf-8")
    try:
        yield
    except UnskewError:
        mark.write_text(_FAILED, "utf-8")
        raise
    mark.write_text(_STOPPED, "utf-8")


def make_topics_again(broker: "EmbeddedBroker", state: Path) -> None:
    """Make the topics of a state, each as long as it was; their records are empty, and the pipeline goes on after them.

    Nothing if there is no state.
    """
    try:
        held = held_by(state)
    except LayoutError:
        return
    saved = read_saved(state / RECOVERY, held.n_partitions)
    for stream, known in held.topics.items():
        for topic in known.ids:
            broker.create_topic(topic, sum(one == topic for one, _ in known.partitions))
            sender = Sender(topic, broker.bootstrap)
            for number, (of, partition) in enumerate(known.partitions):
                place = saved.places[stream].get(number)
                if of == topic and place is not None:
                    _fill(sender, partition, int(place["offset"]))


def _fill(sender: Sender, partition: int, n: int) -> None:
    empty = Outgoing(partition=partition, key=None, value=b"")
    for at in range(0, n, _PIECE):
        sender.send([empty] * min(_PIECE, n - at))
    sender.flush()
