"""The compilation of the kernel before a pipeline reads its first record, in processes of its own.

It takes a minute of processor time where nothing is kept yet (``jit_cache`` keeps it). A process can be ended at
any moment, a compilation cannot. Two processes share the work; a pipeline that starts meanwhile waits for them, and
then finds everything.

``unskew warm`` compiles everything now, for an image; ``python -m unskew.pipelines.compiling`` is a process that helps.
"""

import argparse
import contextlib
import fcntl
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from unskew.features import jit_cache
from unskew.features.jit import Entry
from unskew.features.kernel import words as w
from unskew.features.kernel.accumulators import mark_texts
from unskew.features.kernel.codings import _take_apart
from unskew.features.kernel.directory import (
    Directory,
    _fill_rows,
    _gather,
    _move,
    _repack,
    find_among,
    find_rows,
    insert_rows,
    remove_rows,
)
from unskew.features.kernel.engine import current, pack, reset_rows, run, take_dead
from unskew.features.kernel.items import add_slots
from unskew.features.kernel.packed import no_program
from unskew.features.kernel.repeats import _forget, _join, _new_queue, _remember, _split
from unskew.features.kernel.results import number_texts, take_items
from unskew.features.kernel.shown_texts import shift_shown, take_shown
from unskew.features.kernel.state import Batch
from unskew.features.kernel.state_bytes import Tiles, _collect, _hang
from unskew.features.shard_state import new_rows, new_state
from unskew.features.text_buffers import _hash_keys, _write_ends, _write_heads, _write_keys, read_only
from unskew.pipelines.decoding.avro_walk import _branches, _check, _cut, _walk
from unskew.pipelines.decoding.columns import _read_decimals
from unskew.pipelines.kafka.blobs import _cut as _cut_out
from unskew.pipelines.kafka.fetching import _keep, _look
from unskew.pipelines.kafka.headers import _find_last
from unskew.sinks.redis.resp_bytes import look_into, take_values, write_nested, write_rows

_LOOK_S = 0.1
_N_PARTS = 2

_log = logging.getLogger("unskew.kernel")


class Flag(Protocol):
    """A request to stop, for example ``threading.Event``."""

    def is_set(self) -> bool: ...


def entries() -> list[list[Entry]]:
    """Return all entries, in parts that have little in common and can be compiled at the same time."""
    ints, tables = np.empty(0, np.int64), np.empty((0, 0), np.int64)
    narrow, octets = np.empty(0, np.int32), np.empty(0, np.uint8)
    hashes, marks, many_marks = np.empty(0, np.uint64), np.empty(0, np.bool_), np.empty((0, 0), np.bool_)
    shown, shown_octets, shown_marks = read_only(ints), read_only(octets), read_only(marks)
    program = no_program()
    state = new_state(program, 0)
    batch = Batch(narrow, shown, shown, shown, shown, shown, many_marks, tables, many_marks)
    rows = new_rows(program, 0)
    arrays = Directory().arrays
    queue = _new_queue(0)
    tiles = Tiles(narrow, narrow, ints, tables, tables)
    of_kernel = [
        Entry.of(run, ints, batch, 0, 0, rows, ints),
        Entry.of(current, ints, rows, ints),
        Entry.of(mark_texts, program, state, narrow, 0, marks),
        Entry.of(_collect, program, state, narrow, *tiles),
        Entry.of(_hang, program, state, narrow, *tiles),
    ]
    of_the_rest = [
        Entry.of(take_values, tables, tables, ints, ints, marks, tables, tables, np.empty((0, 0), np.int32), many_marks, marks),
        Entry.of(look_into, tables, ints, tables, tables, ints, shown_octets, shown, ints),
        Entry.of(write_nested, octets, shown_octets, ints, tables, ints, tables, tables, ints, shown_octets, shown,
               shown_octets, shown, ints),
        Entry.of(write_rows, octets, shown_octets, ints, shown_octets, 0, shown_octets, ints, ints, ints, shown_octets,
               shown, shown_octets, shown, tables, many_marks, shown_marks, shown),
        Entry.of(_look, ints, 0),
        Entry.of(_keep, ints, tables, octets),
        Entry.of(_cut_out, shown_octets, ints, ints, octets),
        Entry.of(_find_last, shown_octets, ints, shown_octets, ints, ints),
        Entry.of(_check, shown_octets, ints, tables, tables, ints, tables, ints, marks),
        Entry.of(_cut, shown_octets, ints, tables, tables, ints, tables, octets),
        Entry.of(_branches, shown_octets, ints, tables, ints, tables, ints, ints, ints),
        Entry.of(_walk, shown_octets, 0, 0, 0, tables, ints, tables),
        Entry.of(_read_decimals, shown, shown_octets, np.empty((0, 2), np.uint64), marks),
        Entry.of(insert_rows, arrays, shown, shown_octets, hashes, narrow, narrow),
        Entry.of(find_rows, arrays, shown, shown_octets, hashes, narrow),
        Entry.of(find_among, ints, narrow, 0, ints, shown, shown_octets, hashes, narrow),
        Entry.of(remove_rows, arrays, narrow),
        Entry.of(_fill_rows, arrays, narrow, ints, shown_octets),
        Entry.of(_move, ints, ints, tables, 0),
        Entry.of(_repack, arrays, octets),
        Entry.of(_gather, arrays, narrow, False, ints, octets),
        Entry.of(_join, narrow, shown_marks, shown, shown_octets, ints, octets),
        Entry.of(_split, ints, octets, ints, octets),
        Entry.of(_forget, arrays, ints, arrays, queue, 0),
        Entry.of(_remember, arrays, ints, arrays, queue, narrow, shown_marks, ints, shown_octets, shown, 0, marks),
        Entry.of(_hash_keys, shown, shown_octets, hashes),
        Entry.of(_write_heads, shown, shown_octets, hashes),
        Entry.of(_take_apart, hashes, 0, ints),
        Entry.of(pack, program, state),
        Entry.of(take_dead, state, narrow),
        Entry.of(take_items, tables, 1, ints, ints, tables),
        Entry.of(take_shown, tables, ints, tables, tables, narrow, narrow),
        Entry.of(shift_shown, tables, ints, tables, tables, ints),
        Entry.of(_write_ends, shown, read_only(narrow), ints),
        Entry.of(_write_keys, shown, shown_octets, read_only(narrow), ints, octets),
        Entry.of(number_texts, ints, np.empty(0, np.uint32), narrow, np.empty(0, np.uint32)),
        Entry.of(reset_rows, program, state.entities, narrow, ints, np.int64(w.NONE)),
        Entry.of(add_slots, state.scalars, state.items, state.item_links, state.slots, 0),
    ]  # fmt: skip
    return [of_kernel, of_the_rest]


_done = threading.Event()


def is_done() -> bool:
    """Return true if a pipeline will find all that it needs; what was found once is not looked for again."""
    if not _done.is_set() and all(entry.is_kept() for part in entries() for entry in part):
        _done.set()
    return _done.is_set()


def compile_ahead(folder: Path | None, stop: Flag) -> None:
    """Compile what is not kept yet; return at once, with less done, when ``stop`` is set.

    ``folder``: as in ``jit_cache.suggest``. If no folder can be written, or if a process fails, functions are compiled
    where they are first called.
    """
    if folder is not None:
        jit_cache.suggest(folder)
    if jit_cache.places().writable is None:
        return
    with contextlib.ExitStack() as ending:
        children = [ending.enter_context(_compiler(part, folder)) for part in range(min(_N_PARTS, os.cpu_count() or 1))]
        while any(child.poll() is None for child in children):
            if stop.is_set():
                return
            time.sleep(_LOOK_S)
        if failed := [child.returncode for child in children if child.returncode]:
            _log.warning(
                "the kernel could not be compiled ahead (status %s); it is compiled with the first events", failed[0]
            )


@contextlib.contextmanager
def _compiler(part: int, folder: Path | None) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that compiles from ``part`` on; it ends with the block."""
    words = [sys.executable, "-m", "unskew.pipelines.compiling", "--from", str(part)]
    words += [] if folder is None else [str(folder)]
    # A session of its own: Ctrl-C in a terminal reaches only us. The pipe closes when we end, however that is.
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def collect_rarely() -> None:
    """Let Python look for garbage less often: numba's trees make that a tenth of the work, for hardly any garbage."""
    gc.set_threshold(100_000, 50, 1_000)


def compile_all(first: int = 0) -> None:
    """Compile all parts in this process, which does nothing else, beginning with part ``first``.

    Wait where another process is at work.
    """
    jit_cache.say_nothing()
    collect_rarely()
    parts = entries()
    for number in (*range(first, len(parts)), *range(first)):
        with _alone(number):
            for entry in parts[number]:
                entry.compile()


@contextlib.contextmanager
def _alone(part: int) -> Iterator[None]:
    """Let one process at a time compile a part."""
    place = jit_cache.places().writable
    if place is None:
        yield
        return
    with (place / f"{part}.lock").open("wb") as lock:
        # Some network file systems have no locks; there, two processes may compile the same.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _end_with_parent() -> None:
    # Not through ``sys.stdin``: its lock would be held when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    """Compile all parts, and end when standard input ends."""
    arguments = argparse.ArgumentParser(prog="python -m unskew.pipelines.compiling", description=main.__doc__)
    arguments.add_argument("folder", type=Path, nargs="?", help="where it is kept if no usual folder can be written")
    arguments.add_argument("--from", dest="first", type=int, default=0, help="the part to begin with")
    given = arguments.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if given.folder is not None:
        jit_cache.suggest(given.folder)
    compile_all(given.first)


if __name__ == "__main__":
    main()
