import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.support.plans import DAY, Wanted, events, sliding, view
from tests.support.updates import ledger_after, updates
from unskew.features.errors import LayoutError
from unskew.features.evaluate import evaluate
from unskew.features.ledger import LateEvents
from unskew.features.shard_state import ShardState
from unskew.sinks.tables import kinds
from unskew.sinks.tables.kinds import (
    DEAD_LETTER_SCHEMA,
    MOST_WAITING,
    ArchiveTable,
    DeadLetterTable,
    LogTable,
)
from unskew.sinks.tables.layout import INSTANT, coverage_file, published_files, read_coverage

VISITS = view(Wanted("n", "count", sliding(DAY, DAY)), name="visits")


def log(root, saved=None):
    return LogTable(root, VISITS, "h0", saved, now_us=lambda: 0)


def row(seq):
    return {"user": "a", "n": seq, "available_at": seq, "cause": "event", "seq": seq}


def letters(*given: tuple[int, int, str | None]) -> pl.DataFrame:
    """Dead letters from (offset, day of arrival, view)."""
    rows = [
        ("t", 0, offset, day * DAY, view, "bad", None, b"\x00", "malformed", None, 1, None, None)
        for offset, day, view in given
    ]
    arrival_as_number = {**DEAD_LETTER_SCHEMA, "arrival": pl.Int64()}
    return pl.DataFrame(rows, schema=arrival_as_number, orient="row").cast({"arrival": INSTANT})


def test_a_gap_in_the_log_is_refused(tmp_path):
    table = log(tmp_path)
    table.append(updates(VISITS, 1, log_rows=[row(0)]))

    with pytest.raises(ValueError, match=r"visits@1/h0: the log expects seq 1, the step begins with 2"):
        table.append(updates(VISITS, 3, log_rows=[row(2)]))


def test_a_step_without_rows_moves_what_is_complete(tmp_path):
    table = log(tmp_path)
    table.append(updates(VISITS, 10, log_rows=[row(0)]))
    saved = table.snapshot()
    resumed = log(tmp_path, saved)
    resumed.append(updates(VISITS, 50))
    resumed.snapshot()
    resumed.settle()

    coverage = read_coverage(tmp_path / "visits" / "v1")

    # The clock's own instant is still open.
    assert (coverage.since_us, coverage.complete_to_us) == (0, 49)
    assert coverage.shards["h0"].next_sequence == 1


def test_the_late_events_and_repeats_of_all_shards_are_covered_after_a_restart_too(tmp_path):
    for shard in ("h0", "h1"):
        table = LogTable(tmp_path, VISITS, shard, None, now_us=lambda: 0)
        table.append(ledger_after(updates(VISITS, 10, shard=shard), [0, 0, 7], worst_us=5, duplicates=2))
        saved = table.snapshot()
        resumed = LogTable(tmp_path, VISITS, shard, saved, now_us=lambda: 0)
        resumed.append(ledger_after(updates(VISITS, 20, shard=shard), [0, 0, 7, 1], worst_us=9, duplicates=3))
        resumed.snapshot()
        at_first = read_coverage(tmp_path / "visits" / "v1").shards[shard].ledger
        assert (at_first.windows[0].events, at_first.duplicates) == (3, 2)
        resumed.snapshot()

    found = read_coverage(tmp_path / "visits" / "v1").ledger
    assert found.windows == (LateEvents(events=8, worst_us=9, histogram=(4, 2, 0, 0, 0, 0, 0, 2)),)
    assert found.duplicates == 6


def test_a_damaged_ledger_is_a_layout_error(tmp_path):
    table = log(tmp_path)
    table.append(ledger_after(updates(VISITS, 10), [0]))
    table.snapshot()
    table.settle()
    path = coverage_file(tmp_path / "visits" / "v1", "h0")
    path.write_text(path.read_text().replace('"histogram": [1, ', '"histogram": ['))

    with pytest.raises(LayoutError, match=r"h0\.json does not say what the log covers"):
        read_coverage(tmp_path / "visits" / "v1")


def test_the_archive_goes_on_at_the_offsets_that_come_again_after_a_restart(tmp_path):
    def events(*offsets):
        return pl.DataFrame({"_offset": offsets, "_arrival": [0] * len(offsets)}).cast({"_arrival": INSTANT})

    table = ArchiveTable(tmp_path, "t", 3, None)
    table.append(events(10, 11, 15))
    saved = table.snapshot()
    table.append(events(16))
    table.snapshot()
    # The second epoch did not become durable: its events are read again.
    table = ArchiveTable(tmp_path, "t", 3, saved)
    table.append(events(16, 17))
    table.snapshot()
    table.settle()

    files = published_files(tmp_path / "t")
    assert [(file.writer, file.first, file.last) for file in files] == [("p3", 10, 15), ("p3", 16, 17)]


def test_dead_letters_may_come_in_any_order_and_several_for_one_offset(tmp_path):
    table = DeadLetterTable(tmp_path, "t", "p0", None)
    table.append(letters((7, 1, None)))
    table.append(letters((3, 0, "visits"), (3, 0, "stays"), (8, 1, "visits")))
    saved = table.snapshot()
    table = DeadLetterTable(tmp_path, "t", "p0", saved)
    table.append(letters((2, 0, None)))
    table.snapshot()
    table.settle()

    files = published_files(tmp_path / "t")
    assert [(file.path.parent.name, file.first, file.last) for file in files] == [
        ("day=1970-01-01", 0, 1),
        ("day=1970-01-02", 2, 3),
        ("day=1970-01-01", 4, 4),
    ]
    read = pl.concat(pl.read_parquet(file.path, hive_partitioning=False) for file in files)
    assert read.select("offset", "view").rows() == [(3, "stays"), (3, "visits"), (7, None), (8, "visits"), (2, None)]


def test_dead_letters_without_saved_state_beside_published_ones_are_an_error(tmp_path):
    table = DeadLetterTable(tmp_path, "t", "p0", None)
    table.append(letters((1, 0, None)))
    table.snapshot()
    table.settle()

    with pytest.raises(LayoutError, match="earlier run"):
        DeadLetterTable(tmp_path, "t", "p0", None)


def test_words_of_steps_wait_until_they_are_many_or_a_frame_comes_after_them(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "MOST_WAITING", 20)
    state, table, expected, most = ShardState(VISITS, "h0"), log(tmp_path), [], 0
    for number in range(1, 120):
        rows = [(number, number, {"user": f"u{number % 7}"})]
        step = state.apply(evaluate(VISITS, events(rows)).events, number)
        if number == 50:
            # As one that comes from another process.
            step.closed_rows.frame()
        expected += [step.closed_rows]
        table.append(step)
        if number == 50:
            assert not table.has_waiting
        most = max(most, table.waiting().height if table.has_waiting else 0)
    assert most == 19
    assert table.next_sequence == table.n_buffered == state.seq
    table.snapshot()
    assert not table.has_waiting
    table.settle()

    files = [pl.read_parquet(path) for path in sorted((tmp_path / "visits" / "v1").rglob("*.parquet"))]
    found = pl.concat(files).sort("seq").drop("shard", "written_at")
    assert_frame_equal(found, pl.concat([rows.frame() for rows in expected if rows.height]), check_dtypes=False)


@pytest.mark.parametrize("n_bytes", [10, 100_000])
def test_words_of_steps_wait_until_they_and_their_texts_are_many_bytes(tmp_path, n_bytes):
    shown = Wanted("pages", "last_n", sliding(60, 1), "page", "string", parameters={"n": 3})
    planned = view(shown, columns={"page": pl.String()})
    state, table = ShardState(planned, "h0"), LogTable(tmp_path, planned, "h0", None, now_us=lambda: 1)
    most = 0
    for number in range(1, 200):
        # The texts of a step are one text many times.
        rows = [(number, number, {"user": f"u{each}", "page": f"{number}" * n_bytes}) for each in range(7)]
        table.append(state.apply(evaluate(planned, events(rows, columns={"page": pl.String()})).events, number))
        if table.has_waiting:
            words = table.waiting().words[1]
            most = max(most, words.texts.each.n_bytes)
            assert len(words.texts.each.texts()) <= 3 * number

    assert most < 1 << 21
    assert (most > 1 << 20) == (n_bytes > 10)
    assert table.next_sequence == state.seq
    assert n_bytes > 10 or table.waiting().height == state.seq


def test_rows_of_small_steps_wait_until_they_are_staged_or_many(tmp_path):
    table = log(tmp_path)
    for seq in range(3):
        table.append(updates(VISITS, 10 + seq, log_rows=[row(seq)]))
    assert (table.next_sequence, table.n_buffered) == (3, 3)
    table.append(updates(VISITS, 50, log_rows=[row(seq) for seq in range(3, MOST_WAITING)]))
    assert (table.next_sequence, table.n_buffered) == (MOST_WAITING, MOST_WAITING)
    table.append(updates(VISITS, 60, log_rows=[row(MOST_WAITING)]))
    table.snapshot()
    assert table.n_buffered == 0
    table.settle()

    files = [pl.read_parquet(path) for path in sorted((tmp_path / "visits" / "v1").rglob("*.parquet"))]
    assert pl.concat(files).sort("seq")["seq"].to_list() == list(range(MOST_WAITING + 1))
