"""A shard that restarts from its changelog goes on as if nothing had been; and what is damaged is named."""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.test_sessions import GAPS, of_sessions
from tests.support.fed import Fed
from tests.support.histories import N_PACKS, WINDOWS, History, histories, laws, pack, small_view, splits
from tests.support.plans import SECOND, Wanted, events, lifetime, republished, session, sessions, sliding, view
from unskew.features.definitions.windows import plan_window
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.features.evaluate import evaluate
from unskew.features.kernel.repeats import Repeats
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.pipelines.state import changelog as module
from unskew.pipelines.state.changelog import Changelog, Changelogs, Manifest, events_name, restored
from unskew.sinks.aside import Aside

SHARD = "h0"
COUNT = view(Wanted("n", "count", lifetime()), Wanted("sum", "sum", sliding(6 * SECOND, 2 * SECOND), "x"))


class Life(Fed):
    """A shard with a changelog, restarted from it before the batches of these numbers."""

    def __init__(
        self,
        view: ViewPlan,
        history: History,
        batches: list[tuple[int, int, int]],
        folder: Path,
        restarts: set[int],
        kept_bytes: int,
    ) -> None:
        self.view = view
        self.current = {}
        logs = Changelogs(folder, kept_bytes=kept_bytes)
        self.state = ShardState(view, SHARD)
        notes = Changelog(logs, view, SHARD, None)
        closed = []
        steps = [(history.events[first:past], clock) for first, past, clock in batches]
        for number, (records, clock) in enumerate([*steps, (None, history.clock_us)]):
            manifest = Manifest.from_bytes(notes.snapshot(self.state, 0).to_bytes())
            if number in restarts:
                logs.close()
                logs = Changelogs(folder, kept_bytes=kept_bytes)
                self.state, _ = restored(logs, view, SHARD, manifest)
                notes = Changelog(logs, view, SHARD, manifest)
            evaluated = None if records is None else evaluate(view, records).events
            updates = self.state.apply(evaluated, clock)
            if evaluated is not None:
                notes.append(evaluated)
            closed.append(updates.closed)
            self.current |= {row["key"]: row for row in updates.current.iter_rows(named=True)}
        self.log = pl.concat(closed)
        logs.close()


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Bases are due after every few events."""
    monkeypatch.setattr(module, "LEAST_EVENTS", 4)
    monkeypatch.setattr(module, "TILES_PER_EVENT", 4)
    monkeypatch.setattr(module, "CHUNK_EVENTS", 3)
    monkeypatch.setattr(module, "ASIDE_BYTES", 3_000)
    # A base that is still being made would write beside the next life, which a process that has ended does not.
    monkeypatch.setattr(module, "GIVE_UP_S", 60.0)
    return monkeypatch


def _agree(view: ViewPlan, history: History, data: st.DataObject) -> None:
    batches = data.draw(splits(history))
    restarts = data.draw(st.sets(st.integers(0, len(batches))))
    kept_bytes = data.draw(st.sampled_from([0, 2_000, 1 << 20]))
    folder = Path(tempfile.mkdtemp())
    try:
        through, restarted = Fed(view, history, batches), Life(view, history, batches, folder, restarts, kept_bytes)
    finally:
        shutil.rmtree(folder)
    assert restarted.log.equals(through.log)
    assert restarted.current == through.current


@pytest.mark.parametrize("named", list(WINDOWS))
@pytest.mark.parametrize("small", [0, 1_000_000], ids=["bases made aside", "bases taken at once"])
@laws(max_examples=4)
@given(st.data())
def test_restarts_from_the_changelog_change_not_one_bit(named, small, bases, data):
    bases.setattr(module, "SMALL_STATE", small)
    window = plan_window(WINDOWS[named])
    plan = pack(named, data.draw(st.integers(0, N_PACKS - 1)))

    _agree(plan, data.draw(histories(window)), data)


@laws(max_examples=25)
@given(st.data())
def test_restarts_change_nothing_of_views_over_sessions(bases, data):
    bases.setattr(module, "SMALL_STATE", data.draw(st.sampled_from([0, 1_000_000])))
    gap_us, hop_us = data.draw(st.sampled_from(GAPS))
    inner = sessions(gap_us, hop_us, Wanted("spend", "sum", session(gap_us, hop_us), pl.col("x")))
    over = [want for want in of_sessions(plan_window(WINDOWS["few tiles"])) if "length" in want.name]
    plan = small_view(over, sessions=inner)

    _agree(plan, data.draw(histories(inner.windows[0])), data)


def _some(first: int, count: int, *, users: int = 3) -> pl.DataFrame:
    rows = [
        (number * SECOND, number * SECOND, {"user": f"u{number % users}", "x": 1.0})
        for number in range(first, first + count)
    ]
    return evaluate(COUNT, events(rows)).events


def _fed(folder: Path, *, n_epochs: int = 6) -> tuple[Manifest, ShardState]:
    logs = Changelogs(folder)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    manifest = notes.snapshot(state, 0)
    for epoch in range(n_epochs):
        applied = _some(10 * epoch, 10)
        state.apply(applied, (10 * epoch + 10) * SECOND)
        notes.append(applied)
        manifest = notes.snapshot(state, 0)
    logs.close()
    return manifest, state


def _wait(logs: Changelogs) -> None:
    """Return once its thread has done what it was given; ``close`` drops what the thread has not begun."""
    done = threading.Event()
    logs.soon(done.set)
    assert done.wait(60)


def _files(folder: Path) -> list[Path]:
    return sorted((folder / COUNT.id / SHARD).iterdir())


def _syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of the calling thread is added at each fsync."""
    made: list[str] = []
    for name in ("fsync", "fdatasync"):
        call = getattr(os, name)

        def noted(file: int, call: Callable[[int], None] = call) -> None:
            made.append(threading.current_thread().name)
            call(file)

        monkeypatch.setattr(os, name, noted)
    return made


def test_few_events_cost_an_epochs_end_no_fsync_and_are_written_aside(tmp_path, monkeypatch):
    made = _syncs(monkeypatch)
    monkeypatch.setattr(module, "ASIDE_BYTES", 5_000)
    logs = Changelogs(tmp_path, kept_bytes=1 << 16)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    manifests = []
    for epoch in range(12):
        applied = _some(10 * epoch, 10)
        state.apply(applied, (10 * epoch + 10) * SECOND)
        notes.append(applied)
        manifests.append(notes.snapshot(state, 0))
        _wait(logs)
    logs.close()

    assert manifests[0].events == ()
    assert manifests[0].kept is not None
    assert made
    assert set(made) == {"unskew-changelog_0"}
    assert any(manifest.events for manifest in manifests)
    assert [manifest.since_base for manifest in manifests] == [10 * n for n in range(1, 13)]
    again, _ = restored(Changelogs(tmp_path), COUNT, SHARD, manifests[-1])
    assert again.to_bytes() == state.to_bytes()


def test_more_events_than_a_manifest_keeps_are_durable_in_a_file_first(tmp_path, monkeypatch):
    made = _syncs(monkeypatch)
    logs = Changelogs(tmp_path, kept_bytes=1)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    applied = _some(0, 10)
    state.apply(applied, 10 * SECOND)
    notes.append(applied)
    manifest = notes.snapshot(state, 0)
    logs.close()

    assert manifest.kept is None
    assert manifest.since_base == 10
    assert made


def test_kept_events_outlast_a_disk_that_cannot_write_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ASIDE_BYTES", 1)
    logs = Changelogs(tmp_path, kept_bytes=1 << 16)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    tried = threading.Event()

    def full(*_: object) -> None:
        tried.set()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(module.durable, "write_at", full)
        applied = _some(0, 10)
        state.apply(applied, 10 * SECOND)
        notes.append(applied)
        manifest = notes.snapshot(state, 0)
        assert tried.wait(60)
        assert manifest.kept is not None
        again, _ = restored(Changelogs(tmp_path), COUNT, SHARD, manifest)
        assert again.to_bytes() == state.to_bytes()
    applied = _some(10, 10)
    state.apply(applied, 20 * SECOND)
    notes.append(applied)
    manifest = notes.snapshot(state, 0)
    logs.close()

    again, _ = restored(Changelogs(tmp_path), COUNT, SHARD, manifest)
    assert again.to_bytes() == state.to_bytes()


def test_damage_of_kept_events_is_named(tmp_path):
    logs = Changelogs(tmp_path, kept_bytes=1 << 16)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    applied = _some(0, 10)
    state.apply(applied, 10 * SECOND)
    notes.append(applied)
    manifest = notes.snapshot(state, 0)
    assert manifest.kept is not None
    data = bytearray(manifest.kept.data)
    data[-9] ^= 1
    damaged = msgspec.structs.replace(manifest, kept=msgspec.structs.replace(manifest.kept, data=bytes(data)))

    with pytest.raises(LayoutError, match="what the recovery store keeps of"):
        restored(logs, COUNT, SHARD, damaged)


def test_a_manifest_of_an_earlier_version_is_read(tmp_path):
    manifest, _ = _fed(tmp_path)
    earlier = {name: value for name, value in msgspec.to_builtins(manifest).items() if name != "kept"}

    assert Manifest.from_bytes(json.dumps(earlier).encode()) == manifest


def test_bytes_behind_a_manifest_are_cut_and_files_that_none_names_are_removed(tmp_path):
    manifest, state = _fed(tmp_path)
    (file,) = _files(tmp_path)
    whole = file.stat().st_size
    with file.open("ab") as torn:
        torn.write(b"\x99" * 77)
    for name in ("00000002.events", "00000001.base", "00000001.tmp"):
        file.with_name(name).write_bytes(b"of an epoch that was never durable")
    logs = Changelogs(tmp_path)

    found, _ = restored(logs, COUNT, SHARD, manifest)
    Changelog(logs, COUNT, SHARD, manifest)

    assert found.to_bytes() == state.to_bytes()
    assert _files(tmp_path) == [file]
    assert file.stat().st_size == whole


@pytest.mark.parametrize("place", [0, 5, 40, -1])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, place):
    manifest, _ = _fed(tmp_path)
    (file,) = _files(tmp_path)
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)

    with pytest.raises(LayoutError, match=r"is damaged.*start over: 'unskew run' with an empty --state") as error:
        restored(Changelogs(tmp_path), COUNT, SHARD, manifest)

    assert str(file) in str(error.value)


@pytest.mark.parametrize("harm", ["shorter", "gone"])
def test_a_file_that_lost_its_end_or_is_gone_is_named(tmp_path, harm):
    manifest, _ = _fed(tmp_path)
    (file,) = _files(tmp_path)
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(LayoutError, match=str(file)):
        restored(Changelogs(tmp_path), COUNT, SHARD, manifest)


@pytest.mark.usefixtures("bases")
def test_a_damaged_base_is_named(tmp_path):
    manifest, _ = _fed(tmp_path)
    base = tmp_path / COUNT.id / SHARD / module.base_name(manifest.base)
    content = bytearray(base.read_bytes())
    content[len(content) // 2] ^= 1
    base.write_bytes(content)

    with pytest.raises(LayoutError, match=r"is damaged.*checksum") as error:
        restored(Changelogs(tmp_path), COUNT, SHARD, manifest)

    assert str(base) in str(error.value)


def test_a_lost_segment_cannot_go_unnoticed(tmp_path):
    manifest, _ = _fed(tmp_path)
    short = replace_events(manifest, manifest.events[:-1])

    with pytest.raises(LayoutError, match="base and events give"):
        restored(Changelogs(tmp_path), COUNT, SHARD, short)


def replace_events(manifest: Manifest, files: tuple[module.EventsFile, ...]) -> Manifest:
    return Manifest(**{name: getattr(manifest, name) for name in manifest.__struct_fields__} | {"events": files})


def test_a_changed_definition_is_refused_and_told_what_to_do(tmp_path):
    manifest, _ = _fed(tmp_path)
    changed = republished(COUNT, state_fingerprint="f" * 64)

    with pytest.raises(LayoutError, match=rf"{COUNT.id}.*version {COUNT.version + 1}.*'unskew run' again"):
        restored(Changelogs(tmp_path), changed, SHARD, manifest)


def test_what_an_epoch_writes_follows_what_it_brought_and_not_the_state(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_BASES", [8])
    logs = Changelogs(tmp_path)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    many = _some(0, 20_000, users=20_000)
    state.apply(many, 20_000 * SECOND)
    notes.append(many)
    notes.snapshot(state, 0)
    before = logs.n_bytes
    few = _some(20_000, 10)
    state.apply(few, 20_010 * SECOND)
    notes.append(few)

    notes.snapshot(state, 0)

    assert 0 < logs.n_bytes - before < 10_000 < before
    logs.close()


@pytest.mark.usefixtures("bases")
def test_files_of_before_a_base_go_only_when_the_epoch_that_names_it_is_durable(tmp_path):
    logs = Changelogs(tmp_path)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    manifests = []
    for epoch in range(12):
        applied = _some(10 * epoch, 10)
        state.apply(applied, (10 * epoch + 10) * SECOND)
        notes.append(applied)
        manifests.append((notes.snapshot(state, 0), state.to_bytes()))
        _wait(logs)
        # Until this one is durable, a restart takes the one before.
        for manifest, expected in manifests[-2:]:
            assert {file.name for file in _files(tmp_path)} >= manifest.names()
            found, _ = restored(Changelogs(tmp_path), COUNT, SHARD, manifest)
            assert found.to_bytes() == expected
    assert manifests[-1][0].base > 0
    assert len(_files(tmp_path)) < 6
    logs.close()


@pytest.mark.usefixtures("bases")
def test_ids_are_remembered_for_as_long_as_they_may_repeat_whatever_bases_are_made(tmp_path):
    plan = view(
        Wanted("n", "count", lifetime()),
        event_id="id",
        dedupe_within_us=30 * SECOND,
        columns={"id": pl.String()},
    )
    logs = Changelogs(tmp_path)
    notes, state, repeats = Changelog(logs, plan, SHARD, None), ShardState(plan, SHARD), Repeats(plan, SHARD)
    for epoch in range(40):
        rows = [
            (number * SECOND, number * SECOND, {"user": f"u{number % 2}", "id": f"i{number % 11}"})
            for number in range(5 * epoch, 5 * epoch + 5)
        ]
        frame = events(rows, columns={"id": pl.String()})
        kept = repeats.drop(evaluate(plan, frame).events, (epoch * 5 + 5) * SECOND)
        state.apply(kept, (epoch * 5 + 5) * SECOND)
        notes.append(kept)
        manifest = notes.snapshot(state, repeats.dropped)

        found, remembered = restored(Changelogs(tmp_path), plan, SHARD, manifest)

        assert found.to_bytes() == state.to_bytes()
        assert remembered.to_bytes() == repeats.to_bytes()
    assert repeats.dropped > 0
    _wait(logs)
    assert len(list((tmp_path / plan.id / SHARD).iterdir())) < 15
    logs.close()


def test_a_full_disk_is_waited_for_and_nothing_is_written_twice(tmp_path, monkeypatch):
    logs = Changelogs(tmp_path)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    notes.snapshot(state, 0)
    applied = _some(0, 10)
    state.apply(applied, 10 * SECOND)
    notes.append(applied)
    real, left = module.os.pwrite, [3]

    def short(file: int, data: bytes, at: int) -> int:
        left[0] -= 1
        if left[0] >= 0:
            real(file, data[:7], at)
            raise OSError(28, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr(module.os, "pwrite", short)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="No space left"):
            notes.snapshot(state, 0)

    manifest = notes.snapshot(state, 0)

    found, _ = restored(Changelogs(tmp_path), COUNT, SHARD, manifest)
    assert found.to_bytes() == state.to_bytes()
    assert manifest.since_base == 10
    logs.close()


def test_a_base_is_given_up_when_the_process_ends(tmp_path, bases):
    bases.setattr(module, "SMALL_STATE", 0)
    logs = Changelogs(tmp_path)
    logs.closed.set()
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    applied = _some(0, 50)
    state.apply(applied, 50 * SECOND)
    notes.append(applied)

    notes.snapshot(state, 0)
    for thread in threading.enumerate():
        if thread.name == "unskew-base":
            thread.join()

    assert notes.snapshot(state, 0).base == 0
    logs.close()


@pytest.mark.parametrize("harm", [MemoryError("no room for an array"), OSError("no such file")])
def test_a_base_that_failed_at_once_is_tried_again(tmp_path, bases, caplog, harm):
    bases.setattr(module, "SMALL_STATE", 0)
    made = module.write_base
    bases.setattr(module, "write_base", _raising(harm))
    logs = Changelogs(tmp_path)
    started = _joined_at_once(bases)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    for epoch in range(2):
        events = _some(50 * epoch, 50)
        state.apply(events, 50 * (epoch + 1) * SECOND)
        notes.append(events)
        notes.snapshot(state, 0)
    bases.setattr(module, "write_base", made)
    events = _some(100, 50)
    state.apply(events, 150 * SECOND)
    notes.append(events)
    notes.snapshot(state, 0)

    manifest = notes.snapshot(state, 0)
    logs.close()

    assert manifest.base > 0
    assert len(started) == 3
    assert caplog.text.count("lacks memory") == isinstance(harm, MemoryError)
    assert restored(Changelogs(tmp_path), COUNT, SHARD, manifest)[0].to_bytes() == state.to_bytes()


def test_a_small_base_that_failed_is_tried_again(tmp_path, bases):
    made = module.write_base
    bases.setattr(module, "write_base", _raising(OSError("no such file")))
    logs = Changelogs(tmp_path)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    found = []
    for epoch in range(4):
        events = _some(50 * epoch, 50)
        state.apply(events, 50 * (epoch + 1) * SECOND)
        notes.append(events)
        found.append(notes.snapshot(state, 0).base)
        _wait(logs)
        if epoch == 1:
            bases.setattr(module, "write_base", made)

    manifest = notes.snapshot(state, 0)
    logs.close()

    assert found[:3] == [0, 0, 0] < [manifest.base]
    assert restored(Changelogs(tmp_path), COUNT, SHARD, manifest)[0].to_bytes() == state.to_bytes()


def _held_back(bases: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """Let no base be written until the event is set; the list gets the shards of those that are written."""
    made, may_write, written = module.write_base, threading.Event(), []

    def write(folder: Path, number: int, *others: Any, **options: Any) -> int | None:
        assert may_write.wait(60)
        written.append(f"{folder.name} {number}")
        return made(folder, number, *others, **options)

    bases.setattr(module, "write_base", write)
    return may_write, written


def test_small_states_wait_to_be_written_only_up_to_a_bound(tmp_path, bases):
    bases.setattr(module, "TAKEN_BYTES", 1)
    may_write, written = _held_back(bases)
    logs = Changelogs(tmp_path)
    shards = ["h0", "h1"]
    notes = {shard: Changelog(logs, COUNT, shard, None) for shard in shards}
    states = {shard: ShardState(COUNT, shard) for shard in shards}
    for shard in shards:
        states[shard].apply(_some(0, 50), 50 * SECOND)
        notes[shard].append(_some(0, 50))
    named = []
    for epoch in range(6):
        manifests = {shard: notes[shard].snapshot(states[shard], 0) for shard in shards}
        named.append({shard for shard in shards if manifests[shard].base})
        if epoch == 2:
            assert written == []
            may_write.set()
        if epoch >= 2:
            _wait(logs)
    logs.close()

    assert named == [set(), set(), set(), {"h0"}, {"h0", "h1"}, {"h0", "h1"}]
    assert [one.split()[0] for one in written] == shards
    for shard in shards:
        found, _ = restored(Changelogs(tmp_path), COUNT, shard, manifests[shard])
        assert found.to_bytes() == states[shard].to_bytes()


def test_a_base_that_is_finished_within_a_commit_is_not_made_again(tmp_path, bases):
    may_write, written = _held_back(bases)
    logs = Changelogs(tmp_path)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    finished = threading.Event()
    adopt = Changelog._adopt

    def adopt_and_wait(self: Changelog) -> None:
        adopt(self)
        if self._making:
            may_write.set()
            assert finished.wait(60)

    bases.setattr(Changelog, "_adopt", adopt_and_wait)
    named = set()
    for epoch in range(6):
        events = _some(50 * epoch, 50)
        state.apply(events, 50 * (epoch + 1) * SECOND)
        notes.append(events)
        named.add(f"{SHARD} {notes.snapshot(state, 0).base}")
        logs.soon(finished.set)
        if epoch:
            _wait(logs)
    logs.close()

    assert len(written) > 2
    assert set(written[:-1]) <= named


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_texts_of_events_that_were_filtered_out_are_not_written(tmp_path, kept_bytes):
    logs = Changelogs(tmp_path, kept_bytes=kept_bytes)
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    names = [f"a user with a long name {number:02}" for number in range(40)]
    mixed = _some(0, 40).with_columns(key=pl.Series(names))
    mine = mixed.filter(pl.int_range(pl.len()) % 3 > 0)
    state.apply(mine, 40 * SECOND)
    notes.append(mine)

    manifest = notes.snapshot(state, 0)
    logs.close()

    written = b"".join(path.read_bytes() for path in _files(tmp_path)) if not kept_bytes else manifest.kept.data
    assert {name for name in names if name.encode() in written} == set(mine["key"])


def test_the_first_bases_of_shards_are_made_at_the_ends_of_different_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_EVENTS", 800 * module.TILES_PER_EVENT)
    logs = Changelogs(tmp_path)
    shards = [f"h{number}" for number in range(len(module.FIRST_BASES))]
    notes = [Changelog(logs, COUNT, shard, None) for shard in shards]
    states = [ShardState(COUNT, shard) for shard in shards]
    begun: dict[str, int] = {}
    for epoch in range(12):
        for shard, note, state in zip(shards, notes, states, strict=True):
            events = _some(100 * epoch, 100)
            state.apply(events, 100 * (epoch + 1) * SECOND)
            note.append(events)
            if note.snapshot(state, 0).base:
                begun.setdefault(shard, epoch)
        _wait(logs)
    logs.close()

    assert begun.keys() == set(shards)
    assert len(set(begun.values())) > len(shards) // 2


def test_a_thread_that_cannot_be_started_stops_neither_bases_nor_the_end(tmp_path, monkeypatch, caplog):
    logs, calls = Changelogs(tmp_path), []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _raising(RuntimeError("can't start new thread")))
        assert not logs.aside(lambda: calls.append("refused"))
    logs.close()

    assert logs.aside(lambda: calls.append("made"))
    logs.close()
    assert calls == ["made"]
    assert "can't start new thread" in caplog.text


def _raising(error: Exception) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def _joined_at_once(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Let each thread of a base end before its start returns; return those that were started."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_and_join(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "unskew-base":
            thread.join()
            started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start_and_join)
    return started


def test_a_process_that_stood_still_damages_nothing_of_the_one_that_took_over(tmp_path):
    """It wakes up with files open, and with an epoch to end."""
    taken_over = []

    def still_ours() -> None:
        if taken_over:
            raise LayoutError("the lease of this process was taken over")

    old_logs, new_logs = Changelogs(tmp_path, still_ours), Changelogs(tmp_path)
    old, old_state = Changelog(old_logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    manifest = None
    for epoch in range(3):
        events_ = _some(10 * epoch, 10)
        old_state.apply(events_, (10 * epoch + 10) * SECOND)
        old.append(events_)
        # The last epoch is not durable when the process freezes, but some of it is written.
        last = old.snapshot(old_state, 0)
        manifest = last if epoch < 2 else manifest

    taken_over.append(True)
    assert manifest is not None
    new_state, _ = restored(new_logs, COUNT, SHARD, manifest)
    new = Changelog(new_logs, COUNT, SHARD, manifest)
    for epoch in range(2, 5):
        events_ = _some(10 * epoch, 10, users=3)
        new_state.apply(events_, (10 * epoch + 10) * SECOND)
        new.append(events_)
        # The old one writes to whatever it has open, and ends an epoch.
        old.append(_some(900 + epoch, 5))
        old._hand_over()
        old._write_aside()
        with pytest.raises(LayoutError, match="taken over"):
            old.snapshot(old_state, 0)
        manifest = new.snapshot(new_state, 0)
    old_logs.close()
    new_logs.close()

    again, _ = restored(Changelogs(tmp_path), COUNT, SHARD, manifest)
    assert again.to_bytes() == new_state.to_bytes()


class AtOnce(Aside):
    """Makes each call within the epoch's end."""

    def soon(self, call: Callable[[], None]) -> None:
        call()


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_process_that_stood_still_removes_no_file_of_the_one_that_took_over(tmp_path, taken_over):
    def still_ours() -> None:
        if is_over:
            raise LayoutError("the lease of this process was taken over")

    is_over: list[bool] = []
    logs = Changelogs(tmp_path, still_ours, kept_bytes=1 << 16, aside=AtOnce(5.0))
    notes, state = Changelog(logs, COUNT, SHARD, None), ShardState(COUNT, SHARD)
    state.apply(_some(0, 10), 10 * SECOND)
    notes.append(_some(0, 10))
    notes._outgoing = {events_name(7)}
    file = notes.folder / events_name(7)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"needed")
    is_over += [True] * taken_over

    notes.snapshot(state, 0)
    logs.close()

    assert file.exists() == taken_over
