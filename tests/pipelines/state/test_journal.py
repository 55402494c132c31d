"""The journal of decisions: what a restart finds of them, however the process ended, and how little is kept."""

import os
import threading
import time
import zlib
from pathlib import Path

import pytest

from tests.support.disk import Disk, refuse
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.pipelines.state.journal import LONGEST_BYTES, Journal, Placed, Refused, Script

HERE = "clicks clicks/0"
THERE = "clicks clicks/1"


def journal(folder: Path, state: str = "state", process: int = 0, n_processes: int = 1, **more) -> Journal:
    return Journal(
        folder,
        state,
        process=process,
        n_processes=n_processes,
        **{"durably": lambda work: work(), "still_ours": lambda: None, **more},
    )


def written(folder: Path, *facts, **more) -> Journal:
    """A journal in which these facts are durable; its process is then killed."""
    made = journal(folder, **more)
    for fact in facts:
        made.note(fact)
    made.ensure(len(facts))
    return made


def placed(begins: int, next_: int, clock_us: int | None, **more) -> Placed:
    return Placed(HERE, begins, next_, clock_us, **more)


def mark(offset: int, clock_us: int) -> Placed:
    return placed(offset, offset, clock_us, floor_us=clock_us)


def test_a_restart_announces_each_mark_where_it_was_announced(tmp_path):
    written(tmp_path, placed(0, 3, 10), mark(3, 20), placed(3, 5, 21), mark(5, 40))

    script = journal(tmp_path).script(HERE, None, None)

    assert (script.begins, script.until, script.clock_us, script.ended) == (0, 5, 40, False)
    assert list(script.marks) == [(3, 20), (5, 40)]


def test_a_restart_finds_with_how_many_partitions_a_stream_was_once_read(tmp_path):
    assert journal(tmp_path).n_partitions("clicks") is None
    written(tmp_path, placed(0, 3, 10, n_partitions=2), Placed(THERE, 0, 1, 10, n_partitions=2))

    # The next life finds four, and dies before an epoch of it is durable.
    again = journal(tmp_path)
    again.script(HERE, None, None)
    again.ensure(again.note(placed(3, 4, 11, n_partitions=4)))

    assert journal(tmp_path).n_partitions("clicks") == 2
    assert journal(tmp_path).n_partitions("click") is None


def test_what_the_saved_place_says_is_not_done_again(tmp_path):
    written(tmp_path, placed(0, 3, 10), mark(3, 20), placed(3, 5, 21), mark(5, 40))
    again = journal(tmp_path)

    assert list(again.script(HERE, 5, 21).marks) == [(5, 40)]
    assert again.script(HERE, 5, 40) is None
    assert again.script(THERE, None, None) is None


def test_of_marks_at_one_offset_the_first_and_the_latest_are_kept(tmp_path):
    written(tmp_path, *(mark(7, clock_us) for clock_us in range(10, 60, 10)), placed(7, 9, 51))
    made = journal(tmp_path)
    made.script(HERE, None, None)

    assert next(iter(made.script(HERE, None, None).marks)) == (7, 10)
    for clock_us in range(60, 90, 10):
        made.note(mark(9, clock_us))
    assert [fact.floor_us for fact in made._live[HERE]][-2:] == [60, 80]


def test_places_to_which_records_alone_led_are_kept_as_one(tmp_path):
    made = journal(tmp_path)
    for offset in range(1_000):
        made.note(placed(offset, offset + 1, offset))

    assert made._live[HERE] == [placed(0, 1_000, 999)]


@pytest.mark.parametrize("n_lost", [1, 3, 8, 20])
def test_a_torn_last_record_is_left_out_and_what_is_before_it_is_found(tmp_path, n_lost):
    made = written(tmp_path, placed(0, 3, 10))
    made.ensure(made.note(placed(3, 9, 20)))
    path = tmp_path / "0.journal"
    size = path.stat().st_size
    os.truncate(path, size - n_lost)
    assert journal(tmp_path).script(HERE, None, None).until == 3

    os.truncate(path, size + 4096)
    assert journal(tmp_path).script(HERE, None, None).until == 3


def test_a_flipped_bit_anywhere_but_in_the_last_write_is_an_error_that_names_the_file(tmp_path):
    made = written(tmp_path, placed(0, 3, 10))
    for offset in range(3, 9):
        made.ensure(made.note(placed(offset, offset + 1, 10 * offset)))
    path = tmp_path / "0.journal"
    whole = path.read_bytes()
    last = whole.rindex(b'[["') - 8
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(bytes(damaged))
        if at >= last:
            assert journal(tmp_path).script(HERE, None, None).until == 8
        else:
            with pytest.raises(LayoutError, match=r"0\.journal is damaged: the record at byte \d+ .*remove it"):
                journal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 40, bytes(4096)], ids=["empty", "text", "zeros"])
def test_what_is_no_journal_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "0.journal").write_bytes(content)

    with pytest.raises(LayoutError, match=r"0\.journal is damaged.*restore it.*or remove it"):
        journal(tmp_path)


def test_a_folder_in_the_place_of_a_journal_is_named_with_what_to_do(tmp_path):
    (tmp_path / "0.journal").mkdir()

    with pytest.raises(LayoutError, match=r"0\.journal cannot be read \(Is a directory\).*or remove it"):
        journal(tmp_path)


def test_facts_of_another_history_are_not_read_and_another_layout_is_refused(tmp_path):
    written(tmp_path, placed(0, 3, 10))
    other = journal(tmp_path, state="another")
    assert other.script(HERE, None, None) is None
    assert other.existed

    body = b'{"layout":9,"state":"state"}'
    head = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
    (tmp_path / "1.journal").write_bytes(head + body)
    with pytest.raises(LayoutError, match="layout 9, this version reads 1"):
        journal(tmp_path)


def test_every_process_of_a_deployment_finds_what_any_of_them_noted(tmp_path):
    written(tmp_path, placed(0, 3, 10), n_processes=2)
    written(tmp_path, Placed(THERE, 0, 8, 70), process=1, n_processes=2)

    one = journal(tmp_path)
    assert one.script(HERE, None, None).until == 3
    assert one.script(THERE, None, None).until == 8
    assert one.latest_us("clicks") == 70
    one.ensure(one.note(placed(3, 4, 80)))
    # The other's file is taken over and is gone; what it said is not.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.journal"]
    assert journal(tmp_path).script(THERE, None, None).until == 8


def test_whoever_still_holds_an_old_file_open_writes_where_nobody_reads(tmp_path):
    frozen = written(tmp_path, placed(0, 3, 10))
    successor = written(tmp_path, placed(3, 4, 20))
    frozen.note(placed(3, 9, 99))
    frozen.ensure(2)

    assert successor.script(HERE, None, None).until == 3
    assert journal(tmp_path).script(HERE, None, None).until == 4


def test_nothing_is_passed_on_where_another_process_has_taken_over(tmp_path):
    def taken_over() -> None:
        raise LayoutError("the lease was taken over")

    made = journal(tmp_path, still_ours=taken_over)
    with pytest.raises(LayoutError, match="taken over"):
        made.ensure(made.note(placed(0, 3, 10)))
    with pytest.raises(LayoutError, match="taken over"):
        made.ensure(0)


def test_what_is_durable_is_forgotten_but_for_the_last_place(tmp_path):
    made = journal(tmp_path)
    made.script(HERE, None, None)
    for fact in (placed(0, 3, 10), mark(3, 20), Refused(HERE, ((1, 1), (4, 4)), "time", ""), placed(3, 5, 21)):
        made.note(fact)

    made.durable(HERE, 3, 20)
    assert made._live[HERE] == [Refused(HERE, ((1, 1), (4, 4)), "time", ""), placed(3, 5, 21)]
    made.durable(HERE, 5, 21)
    assert made._live[HERE] == [placed(3, 5, 21)]


def test_a_file_that_has_grown_is_replaced_by_a_short_one_and_nothing_is_lost(tmp_path):
    made = journal(tmp_path)
    made.script(HERE, None, None)
    path = tmp_path / "0.journal"
    longest = 0
    for offset in range(0, 4_000, 2):
        made.note(mark(offset, 10 * offset))
        made.ensure(made.note(placed(offset, offset + 2, 10 * offset + 5)))
        if offset % 100 == 0:
            made.durable(HERE, offset, 10 * offset)
            # The longer another thread takes to replace the file, the longer it becomes.
            replaced = threading.Event()
            made._soon(replaced.set)
            assert replaced.wait(60)
        longest = max(longest, path.stat().st_size)
    made.close()

    assert longest < 2 * LONGEST_BYTES
    script = journal(tmp_path).script(HERE, 3_900, 39_000)
    assert (script.until, script.clock_us) == (4_000, 10 * 3_998 + 5)
    assert list(script.marks)[-1] == (3_998, 39_980)


def test_what_is_noted_while_the_file_is_about_to_be_replaced_is_not_lost(tmp_path):
    made = journal(tmp_path)
    made.script(HERE, None, None)
    for offset in range(0, 2_000, 2):
        made.note(mark(offset, 10 * offset))
        made.note(placed(offset, offset + 2, 10 * offset + 5))
    made.ensure(made.noted)
    assert (tmp_path / "0.journal").stat().st_size > LONGEST_BYTES
    busy = threading.Event()
    made._soon(lambda: busy.wait(60) and None)

    made.durable(HERE, 1_000, 9_985)
    made.ensure(made.note(mark(2_000, 90_000)))
    busy.set()
    made.close()

    script = journal(tmp_path).script(HERE, 1_000, 9_985)
    assert (script.until, script.clock_us, script.marks[-1]) == (2_000, 90_000, (2_000, 90_000))
    assert (tmp_path / "0.journal").stat().st_size < 1.5 * LONGEST_BYTES


def test_a_disk_that_is_away_is_waited_for_and_loses_nothing(tmp_path):
    folder = tmp_path / "journal"
    folder.write_text("not a folder")
    tries = []

    def patiently(work) -> None:
        while True:
            try:
                work()
            except StoreUnavailable:
                tries.append(1)
                folder.unlink()
            else:
                return

    made = journal(folder, durably=patiently)
    ticket = made.note(placed(0, 3, 10))
    made.ensure(ticket)

    assert tries
    assert journal(folder).script(HERE, None, None).until == 3


def test_what_is_noted_after_a_replacement_whose_name_was_not_made_durable_is_found(tmp_path, monkeypatch):
    made = journal(tmp_path)
    made.script(HERE, None, None)
    for offset in range(0, 2_000, 2):
        made.note(mark(offset, 10 * offset))
        made.note(placed(offset, offset + 2, 10 * offset + 5))
    made.ensure(made.noted)
    disk = Disk(monkeypatch, tmp_path)
    refuse(monkeypatch, tmp_path)

    made.durable(HERE, 1_900, 18_985)
    made._aside.shutdown()
    made._aside = None
    assert disk.calls == [("fsync", "0.tmp"), ("rename", "0.journal")]

    made.ensure(made.note(mark(2_000, 90_000)))
    # The name first: with the old file back, the fact would be gone.
    assert disk.calls[2:] == [("fsync", "."), ("fsync", "0.journal")]
    assert journal(tmp_path).script(HERE, 1_900, 18_985).marks[-1] == (2_000, 90_000)
    made.close()


def test_another_thread_makes_durable_what_was_begun(tmp_path):
    others = set(threading.enumerate())
    made = journal(tmp_path)
    ticket = made.note(placed(0, 3, 10))
    made.begin()
    assert [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("unskew-journal")]
    until_s = time.monotonic() + 60
    while not made.holds(ticket):
        assert time.monotonic() < until_s
        time.sleep(0.001)
    made.close()

    assert journal(tmp_path).script(HERE, None, None).until == 3
    assert not set(threading.enumerate()) - others


def test_refused_offsets_are_kept_as_runs_and_found_again():
    offsets = [3, 4, 5, 9, 11, 12, 30]
    fact = Refused.of(HERE, offsets, "schema", "unknown")
    assert fact.runs == ((3, 5), (9, 9), (11, 12), (30, 30))

    script = Script([fact, fact, placed(0, 40, 1)])
    for first in range(35):
        for last in range(first, 35):
            found = {offset for offset, _ in script.refused(first, last)}
            assert found == {offset for offset in offsets if first <= offset <= last}
