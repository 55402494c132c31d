"""The state of a shard that is rebuilt from the archive: written whole, because its events are kept there.

It has the files and the manifest of ``changelog.py``, so a flow continues from it as from any saved state. There is one
base, and, if the stream drops repeats, one file with the events whose ids may still be repeated.
"""

import threading
from collections import deque
from collections.abc import Callable

import polars as pl

from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.pipelines.state.changelog import Changelogs, EventsFile, Growing, Manifest, encoded, remove, write_base
from unskew.sinks import durable


def without(events: pl.DataFrame, gone: Callable[[pl.Series], pl.Series]) -> pl.DataFrame:
    """Return events without those of some entities. ``gone``: says for a series of canonical keys which they are."""
    return events.filter(~gone(events["key"]))


class WholeState:
    """The counterpart of ``Changelog`` for a shard that is being rebuilt.

    ``files``: where the state is written; None if it is never written. ``applied``: number of all events so far.
    """

    def __init__(self, files: Changelogs | None, view: ViewPlan, shard: str, saved: Manifest | None) -> None:
        self.applied = 0 if saved is None else saved.applied
        self._files = files
        self._view = view
        self._shard = shard
        self._saved = saved
        self._outgoing: set[str] = set()
        # No file that the saved manifest names may be written again, whoever made it.
        self._number = 0 if saved is None else max([saved.base, *(file.number for file in saved.events)])
        # The events of the last ``dedupe_within``, oldest first.
        self._recent: deque[pl.DataFrame] = deque()
        if files is not None and saved is not None:
            for events in files.events(view, shard, saved):
                self._keep(events)

    def append(self, events: pl.DataFrame) -> None:
        """Note events that are being applied, in their order."""
        if events.height:
            self.applied += events.height
            self._keep(events)

    def _keep(self, events: pl.DataFrame) -> None:
        within_us = self._view.stream.dedupe_within_us
        if within_us is None:
            return
        self._recent.append(events)
        self._let_go(int(events.item(-1, "arrival")) - within_us)

    def forget(self, gone: Callable[[pl.Series], pl.Series]) -> None:
        """Forget the events of some entities. ``gone``: says for a series of canonical keys which they are."""
        self._recent = deque(kept for events in self._recent if (kept := without(events, gone)).height)

    def _let_go(self, before_us: int) -> None:
        while self._recent and int(self._recent[0].item(-1, "arrival")) < before_us:
            self._recent.popleft()

    def snapshot(self, state: ShardState, dropped: int) -> Manifest:
        """Write the state and make it durable; return what to continue from.

        The files of the snapshot before are removed by ``settle``, which is called once the new manifest is durable.
        """
        if self._files is None:
            raise RuntimeError("a state that is only in memory has no snapshot")
        folder = self._files.folder(self._view, self._shard)
        self._number += 1
        events: list[EventsFile] = []
        with durable.disk(folder):
            durable.make_folder(folder)
            remove(folder, except_for=set() if self._saved is None else self._saved.names())
            n_bytes = write_base(folder, self._number, state.to_pieces(), threading.Event(), self._files.still_ours)
            assert n_bytes is not None
            if self._recent:
                file = Growing(folder, self._number, self._files.still_ours)
                for recent in self._recent:
                    file.add(encoded([recent]))
                file.sync()
                events.append(file.described())
                file.close()
        manifest = Manifest(
            fingerprint=self._view.state_fingerprint,
            clock_us=state.clock_us,
            since_us=state.since_us,
            seq=state.seq,
            applied=self.applied,
            dropped=dropped,
            base=self._number,
            base_bytes=n_bytes,
            events=tuple(events),
        )
        self._outgoing = set() if self._saved is None else self._saved.names() - manifest.names()
        self._saved = manifest
        return manifest

    def settle(self) -> None:
        """Remove the files of which the last durable manifest has no need."""
        if self._files is not None and self._outgoing:
            folder = self._files.folder(self._view, self._shard)
            for name in self._outgoing:
                (folder / name).unlink(missing_ok=True)
            self._outgoing = set()
