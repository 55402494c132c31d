"""Files of several days hold what the files of these days held, for every reader, wherever merging breaks off."""

import bisect
import datetime as dt
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from tests.offline.test_compaction import AT_ONCE, LATER
from tests.recovery.test_staged_table import Died, Disk
from tests.support.plans import DAY, SECOND, Wanted, republished, sliding, stream, view
from tests.support.servers.objects import SeaweedFS
from tests.support.updates import updates
from unskew.features.errors import LayoutError
from unskew.features.frames import read_table
from unskew.features.keys import OneEntity
from unskew.features.time import moment_of
from unskew.offline import delta, erasing
from unskew.offline.compaction import Compacted, Limits, Table, archive_tables, compact, dead_letter_tables
from unskew.offline.dead_letters import Wanted as WantedLetters
from unskew.offline.dead_letters import find
from unskew.offline.join import historical_features
from unskew.offline.log_reader import ViewLog
from unskew.offline.retention import retain_days, retain_log
from unskew.pipelines.history.archive import Archive
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath, at_hand
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA, ArchiveTable, DeadLetterTable, LogTable
from unskew.sinks.tables.layout import INSTANT, days_of, published_files, superseded_files, view_root

PLAN = view(Wanted("last", "last", sliding(DAY, DAY), "n", "int64", default=-1), name="rare")
SPAN = replace(AT_ONCE, min_files=4, span_days=10)
MARCH_US = 20_513 * DAY  # 2026-03-01, which does not begin a span
USERS = [f"user {n}" for n in range(7)]


class Rare:
    """A log of few rows on many days; ``rows``: what was written, as (user, instant, value)."""

    def __init__(self, folder: Path, seed: int, *, partitioned: bool = False, n_shards: int = 3) -> None:
        self.plan = republished(PLAN, partitioned=partitioned)
        self.folder = folder
        self.root = view_root(folder, "rare", 1)
        self.table = Table(name="log rare@1", root=self.root, sequence="seq", gapless=True)
        self.rows: list[tuple[str, int, int]] = []
        self._random = random.Random(seed)
        self._at = MARCH_US
        self._sequence = dict.fromkeys([f"p{n}.0" if partitioned else f"h{n}" for n in range(n_shards)], 0)
        self._saved: dict[str, Any] = dict.fromkeys(self._sequence)
        self._values = itertools.count()
        self.begin()

    def begin(self) -> None:
        """Go on as a restarted pipeline does."""
        self._writers = {
            name: LogTable(self.folder, self.plan, name, saved, now_us=lambda: 0) for name, saved in self._saved.items()
        }

    def grow(self, n_epochs: int) -> None:
        """Publish epochs; each is minutes, hours or days after the one before, and most shards have no row in it."""
        for _ in range(n_epochs):
            self._at += self._random.choice([SECOND * 100, DAY // 20, DAY // 2, DAY, 3 * DAY])
            epoch: dict[str, list[dict[str, Any]]] = {name: [] for name in self._writers}
            for place, (name, rows) in enumerate(epoch.items()):
                whose = USERS if self.plan.published.partitioned else USERS[place :: len(epoch)]
                for _ in range(self._random.choice([0, 0, 1, 2])):
                    self._at += SECOND
                    row = (self._random.choice(whose), self._at, next(self._values))
                    self.rows.append(row)
                    fields = dict(zip(("user", "available_at", "last"), row, strict=True))
                    rows.append({**fields, "cause": "event", "seq": self._sequence[name]})
                    self._sequence[name] += 1
            for name, rows in epoch.items():
                self._writers[name].append(updates(self.plan, self._at + SECOND, log_rows=rows, shard=name))
                self._saved[name] = self._writers[name].snapshot()

    def end(self) -> None:
        for writer in self._writers.values():
            writer.settle()

    def compact(self, limits: Limits = SPAN, **more: Any) -> Compacted:
        found = compact(self.table, limits, now_s=LATER, **more)
        assert found.faults == ()
        return found

    @property
    def log(self) -> ViewLog:
        return ViewLog(self.folder, self.plan.published)

    def labels(self, begin_us: int = MARCH_US + DAY) -> pl.DataFrame:
        instants = [at + more for _, at, _ in self.rows[:: max(1, len(self.rows) // 25)] for more in (0, 1, 4 * DAY)]
        chosen = [(user, at) for user in [*USERS, "nobody"] for at in instants if begin_us < at <= self._at]
        return pl.DataFrame(chosen, schema={"user": pl.String, "event_timestamp": pl.Int64}, orient="row").cast(
            {"event_timestamp": pl.Datetime("us", "UTC")}
        )

    def expected(self, labels: pl.DataFrame) -> list[int]:
        """The last value before each label, looked up in what was written."""
        written: dict[str, list[tuple[int, int]]] = {user: [] for user in [*USERS, "nobody"]}
        for user, at, value in self.rows:
            written[user].append((at, value))
        found = []
        for user, at in labels.with_columns(pl.col("event_timestamp").to_physical()).iter_rows():
            place = bisect.bisect_left(written[user], (at,))
            found.append(written[user][place - 1][1] if place else -1)
        return found

    def joined(self, labels: pl.DataFrame) -> list[int]:
        views = {"rare": self.plan.published}
        return historical_features(self.folder, views, read_table(labels), ["rare:last"]).columns["last"].to_list()

    def check(self) -> None:
        """Every reader of ours finds what was written, each row once."""
        labels = self.labels()
        assert self.joined(labels) == self.expected(labels)
        log = self.log
        pieces = list(log.newest_first(["user", "available_at", "last"]))
        rows = pl.concat(pieces).cast({"available_at": pl.Int64}).rows()
        assert sorted(rows) == sorted(self.rows)
        later: dict[str, int] = {}
        for piece in pieces:
            for (user,), ones in piece.cast({"available_at": pl.Int64}).group_by("user"):
                assert ones["available_at"].max() < later.get(user, 2**62), "a later piece has an earlier row"
                later[user] = ones["available_at"].min()
        first = log.head(9).cast({"available_at": pl.Int64}).select("user", "available_at", "last")
        assert first.rows() == sorted(self.rows, key=lambda row: row[1])[: first.height]
        assert first.height == min(9, len(self.rows))
        last = log.tail(9).cast({"available_at": pl.Int64}).select("user", "available_at", "last")
        assert last.rows() == sorted(self.rows, key=lambda row: row[1])[-last.height :]
        assert last.height == min(9, len(self.rows))
        stats = log.stats()
        assert (stats.rows, stats.entities) == (len(self.rows), len({user for user, _, _ in self.rows}))
        found = log.rows_of({"user": USERS[3]}, ["available_at", "last"], lambda *_: None)
        assert found.cast({"available_at": pl.Int64}).rows() == [row[1:] for row in self.rows if row[0] == USERS[3]]
        for file in published_files(self.root):
            with at_hand([file.path]) as there:
                days = pl.read_parquet(there[file.path], hive_partitioning=False)["available_at"].dt.date()
            assert days.is_between(file.first_day, file.last_day).all()
            assert (file.last_day - file.first_day).days < SPAN.span_days


def files_of(rare: Rare) -> list[tuple[str, str, int, int]]:
    return [(file.path.parent.name, file.writer, file.first, file.last) for file in published_files(rare.root)]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "disk":
        return tmp_path / "log"
    bucket: ObjectPath = request.getfixturevalue("bucket")
    return bucket / "log"


@pytest.mark.parametrize(
    ("seed", "partitioned", "chunk_bytes"), [(1, False, 12_000), (2, True, 1), (3, True, 12_000), (4, True, 1 << 28)]
)
def test_every_reader_finds_what_was_written_and_a_pipeline_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, partitioned: bool, chunk_bytes: int
) -> None:
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", chunk_bytes)
    rare = Rare(tmp_path, seed, partitioned=partitioned)
    for n_epochs in (50, 9, 20):
        rare.grow(n_epochs)
        opened, labels = rare.log, rare.labels()
        rare.compact(replace(SPAN, set_aside=n_epochs == 9, grace_s=0 if n_epochs != 9 else 1e9))
        views = {"rare": rare.plan.published}
        slow = historical_features(lambda _view, opened=opened: opened, views, read_table(labels), ["rare:last"], outside="null", with_status=True)  # type: ignore[misc]  # fmt: skip
        wanted = [
            value if status != "after_log" else None
            for value, status in zip(rare.expected(labels), slow.columns["last__status"], strict=True)
        ]
        assert slow.columns["last"].to_list() == wanted, "a reader whose files were merged and deleted meanwhile"
        rare.end()
        rare.begin()
        rare.check()
    n_before = len(files_of(rare))

    found = rare.compact()

    assert any("--" in folder for folder, *_ in files_of(rare))
    again = rare.compact()
    assert (again.files_before, again.n_deleted, again.n_waiting) == (found.files_after, 0, 0)
    assert found.files_after <= n_before
    n_days = (rare._at - MARCH_US) // DAY + 1
    # One for each span that is over, and what the running one holds of past days and of the current one.
    assert found.files_after <= 3 * (n_days // 10 + 2 + 2 * SPAN.min_files)
    assert len({folder for folder, *_ in files_of(rare)}) == len(list(rare.root.glob("day=*"))), "no empty folder stays"


def test_both_stores_and_other_engines_agree_before_during_and_after(
    place: Path, request: pytest.FixtureRequest
) -> None:
    rare = Rare(place, 11)
    far = isinstance(place, ObjectPath)
    server: SeaweedFS | None = request.getfixturevalue("object_server") if far else None
    options = {} if server is None else {"storage_options": server.environment}

    def publish() -> None:
        delta.publish(rare.root, "rare@1", now_ms=1_700_000_000_000)

    def by_delta() -> list[tuple[str, int, int]]:
        rows = pl.scan_delta(str(rare.root), **options).select("user", "available_at", "last").collect()
        return sorted(rows.cast({"available_at": pl.Int64}).rows())

    rare.grow(45)
    rare.end()
    publish()
    assert by_delta() == sorted(rare.rows)

    rare.compact(replace(SPAN, grace_s=1e9), publish=publish)

    assert superseded_files(rare.root)
    assert by_delta() == sorted(rare.rows)
    rare.check()
    files = files_of(rare)
    # Those that were merged are deleted without another change.
    rare.compact(publish=publish)
    assert files_of(rare) == files
    assert not superseded_files(rare.root)
    assert by_delta() == sorted(rare.rows)
    rare.check()
    if far:
        return
    commits = [commit for path in sorted((rare.root / "_delta_log").glob("*.json")) for commit in path.read_text().splitlines()]  # fmt: skip
    assert sum('"remove"' in one for one in commits) > 10
    assert not any('"remove"' in one and '"dataChange": true' in one for one in commits)
    globbed = f"read_parquet('{rare.root}/day=*/*.parquet', hive_partitioning = false)"
    found = duckdb.sql(f"SELECT user, epoch_us(available_at), last FROM {globbed}").fetchall()
    assert sorted(found) == sorted(rare.rows)
    labels = rare.labels().with_row_index("row")
    joined = duckdb.sql(
        f"SELECT coalesce(last, -1) FROM labels ASOF LEFT JOIN {globbed} AS log "
        "ON labels.user = log.user AND labels.event_timestamp > log.available_at ORDER BY row"
    ).fetchall()
    assert [value for (value,) in joined] == rare.expected(labels.drop("row"))


def test_a_prune_by_dates_of_other_tools_is_refused_and_not_wrong(tmp_path: Path) -> None:
    rare = Rare(tmp_path, 4)
    rare.grow(60)
    rare.end()
    rare.compact()
    files = f"{rare.root}/day=*/*.parquet"
    day = dt.date(2026, 3, 3)

    for tried in (
        lambda: duckdb.sql(f"FROM read_parquet('{files}', hive_partitioning = true) WHERE day >= DATE '{day}'").fetchall(),
        lambda: duckdb.sql(f"FROM read_parquet('{files}', hive_partitioning = true, hive_types = {{'day': DATE}})").fetchall(),
        lambda: pl.scan_parquet(files, hive_partitioning=True).filter(pl.col("day") >= day).collect(),
        lambda: pl.scan_parquet(files, hive_schema={"day": pl.Date}).filter(pl.col("day") >= day).collect(),
    ):  # fmt: skip
        with pytest.raises((duckdb.Error, pl.exceptions.PolarsError), match=r"day|DATE|date"):
            tried()


# Broken off.


class Store:
    """Counts the calls that change an object store, and dies just before or just after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.die_at: int | None = None
        self.after = False
        for name in ("upload", "write_bytes", "unlink", "replace_if"):
            monkeypatch.setattr(ObjectPath, name, self._watched(getattr(ObjectPath, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: ObjectPath, *arguments: Any, **options: Any) -> Any:
            if path.name == "lock":
                return call(path, *arguments, **options)
            self.calls += 1
            dies = self.calls == self.die_at
            if dies and not self.after:
                raise Died
            result = call(path, *arguments, **options)
            if dies:
                raise Died
            return result

        return watched


@pytest.mark.parametrize("place", ["disk", pytest.param("store", marks=pytest.mark.long)], indirect=True)
def test_dying_at_any_moment_loses_and_doubles_nothing_and_the_work_ends_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = isinstance(place, ObjectPath)
    disk = Store(monkeypatch) if far else Disk(monkeypatch)
    pick = random.Random(21)

    def fresh(name: str) -> Rare:
        rare = Rare(place / name, 21, n_shards=2)
        for limits in (replace(SPAN, span_days=1), SPAN):
            rare.grow(22)
            rare.end()
            rare.begin()
            rare.compact(limits)
        rare.grow(22)
        rare.end()
        return rare

    whole = fresh("whole")
    disk.calls = 0
    whole.compact()
    n_calls = disk.calls
    assert n_calls > 12
    died = fresh("died")
    for _ in range(4 if far else 12):
        disk.calls, disk.die_at, disk.after = 0, pick.randint(1, n_calls), pick.random() < 0.5
        try:
            died.compact(replace(SPAN, grace_s=pick.choice([0, 1e9])))
        except Died:
            n_calls = max(2, n_calls - disk.die_at // 2)
        disk.die_at = None
        died.check()

    died.begin()
    died.compact()
    died.check()
    assert files_of(died) == files_of(whole)
    assert not superseded_files(died.root)


KILLED = """
import os, signal, sys
from pathlib import Path
from unskew.offline.compaction import Limits, Table, compact
left = int(sys.argv[2])
def counted(call):
    def step(*arguments, **more):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return step
for name in ("rename", "mkdir", "unlink", "rmdir"):
    setattr(Path, name, counted(getattr(Path, name)))
table = Table(name="log rare@1", root=Path(sys.argv[1]), sequence="seq", gapless=True)
compact(table, Limits(min_files=4, span_days=10, grace_s=0), now_s=2e9)
"""


def test_a_process_that_is_killed_at_random_calls_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rare = Rare(tmp_path, 31)
    rare.grow(60)
    rare.end()
    pick = random.Random(32)

    for _ in range(2):
        command = [sys.executable, "-c", KILLED, str(rare.root), str(pick.randint(1, 50))]
        killed = subprocess.run(command, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        rare.check()

    rare.compact()
    rare.begin()
    rare.check()


def test_a_writer_goes_on_whose_empty_folder_of_an_old_day_is_removed_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = Rare(tmp_path, 33)
    rare.grow(8)
    rename, n_removed = durable.rename, 0

    def removed(source: Path, target: Path, *more: Any) -> None:
        nonlocal n_removed
        if target.parent.name.startswith("day=") and target.parent.is_dir() and not any(target.parent.iterdir()):
            target.parent.rmdir()
            n_removed += 1
            monkeypatch.setattr(durable, "rename", rename)
        rename(source, target, *more)

    monkeypatch.setattr(durable, "rename", removed)
    rare.grow(8)
    rare.end()

    assert n_removed == 1
    rare.check()


# What changes what was merged.


def cuts(rare: Rare) -> Iterator[dt.date]:
    first, last = (dt.date(1970, 1, 1) + dt.timedelta(days=at // DAY) for at in (MARCH_US, rare._at))
    yield from (first + dt.timedelta(days=n) for n in range(6, (last - first).days, 9))


@pytest.mark.parametrize(
    ("place", "partitioned", "span_days"),
    [("disk", False, 10), ("disk", True, 10), ("disk", True, 1), ("store", True, 10)],
    indirect=["place"],
)
def test_retention_cuts_nothing_out_of_a_file_and_removes_every_old_row_once_its_span_is_over(
    place: Path, monkeypatch: pytest.MonkeyPatch, partitioned: bool, span_days: int
) -> None:
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", 1)
    rare = Rare(place, 41, partitioned=partitioned)
    limits = replace(SPAN, span_days=span_days)
    rare.grow(40)
    rare.end()
    rare.compact(limits)
    n_astride = 0

    for cut in cuts(rare):
        cut_us = (cut - dt.date(1970, 1, 1)).days * DAY
        found = retain_log(rare.table, ["user"], cut, grace_s=0, now_s=LATER)
        assert found.faults == ()
        n_astride += found.n_astride
        labels = rare.labels(cut_us)
        expected = rare.expected(labels)
        assert rare.joined(labels) == expected
        rows = pl.concat(rare.log.newest_first(["user", "available_at", "last"])).cast({"available_at": pl.Int64})
        assert {row for row in rare.rows if row[1] >= cut_us} <= set(rows.rows())
        assert rows.n_unique() == rows.height
        older = rows.filter(pl.col("available_at") < cut_us - (span_days - 1) * DAY)
        # Of what is older than any file that stays: one row for each entity of a shard.
        assert older.height <= len(USERS) * (3 if partitioned else 1)
        rare.compact(limits)
        assert rare.joined(labels) == expected
    assert (n_astride > 1) == (span_days > 1)


def test_an_entity_is_erased_from_merged_files_and_they_are_merged_again(tmp_path: Path) -> None:
    rare = Rare(tmp_path, 51)
    rare.grow(60)
    rare.end()
    rare.compact()
    rule = erasing.LogRule(OneEntity.of(rare.plan.entity, [USERS[2]]))

    found = erasing.erase("log rare@1", rare.root, rule, counts=True, still_ours=lambda: None)

    assert found.n_found
    rare.rows = [row for row in rare.rows if row[0] != USERS[2]]
    rare.check()
    rare.begin()
    rare.grow(30)
    rare.end()
    rare.rows = [row for row in rare.rows if row[0] != USERS[2]]
    erasing.erase("log rare@1", rare.root, rule, counts=True, still_ours=lambda: None)
    rare.compact()
    rare.check()


class Letters:
    """An archive of one partition and its dead letters; ``arrivals`` of each event, by offset, and of each letter."""

    def __init__(self, root: Path, seed: int) -> None:
        self.archive, self.dead_letters = root / "archive", root / "dead_letters"
        self.stream = stream(topic="events", columns={"user": pl.Int64()})
        self.arrivals: dict[int, int] = {}
        self.letters: list[int] = []
        self._random = random.Random(seed)
        events = ArchiveTable(self.archive, "events", 0, None)
        letters = DeadLetterTable(self.dead_letters, "events", "p0", None)
        at, offset = MARCH_US, 0
        for _ in range(70):
            at += self._random.choice([SECOND, DAY // 6, DAY // 3, 2 * DAY])
            offsets = list(range(offset, offset + 3 * self._random.randint(1, 9), 3))
            offset = offsets[-1] + self._random.randint(1, 50)
            self.arrivals |= {one: at + 1_000 * place for place, one in enumerate(offsets)}
            events.append(
                pl.DataFrame(
                    {"user": 1, "_partition": 0, "_offset": one, "_arrival": arrival, "_event_time": arrival}
                    for one, arrival in self.arrivals.items()
                    if one in offsets
                ).cast({"_partition": pl.Int32, "_arrival": INSTANT, "_event_time": INSTANT}),
                first_us=MARCH_US,
                clock_us=at + 9_000,
            )
            # Letters are numbered as they come, and lie up to two days back.
            self.letters.append(at - self._random.randrange(2 * DAY))
            letter = {"topic": "events", "partition": 0, "offset": len(self.letters), "reason": "garbage", "kind": "x"}
            whole = dict.fromkeys(DEAD_LETTER_SCHEMA) | letter | {"arrival": moment_of(self.letters[-1])}
            letters.append(pl.DataFrame([whole], schema=dict(DEAD_LETTER_SCHEMA)))
            events.snapshot()
            letters.snapshot()
        events.settle()
        letters.settle()
        self.end_us = at

    def compact(self) -> None:
        # So small that a span has several files, and a day may lie in two.
        limits = replace(SPAN, target_bytes=7_000)
        for table in (*archive_tables(self.archive), *dead_letter_tables(self.dead_letters)):
            assert compact(table, limits, now_s=LATER).faults == ()

    def check(self) -> tuple[int, list[int]]:
        """Whatever the archive says that it has is there, each event once; return its begin, and the letters."""
        opened = Archive.open(self.archive, self.stream)
        held = pl.concat(opened.read(0, 0, 10**6, [])).cast({"_arrival": pl.Int64})
        found = dict(held.select("_offset", "_arrival").rows())
        assert len(found) == held.height
        assert found.items() <= self.arrivals.items()
        first_us = opened.first_us[0]
        assert {one for one, at in self.arrivals.items() if at >= first_us} <= found.keys()
        assert min(found.values()) >= first_us
        for asked in range(first_us, self.end_us, 2 * DAY + DAY // 7):
            expected = next(one for one, at in self.arrivals.items() if at >= asked)
            assert opened.offset_at(0, asked) == expected
        letters = find(self.dead_letters, WantedLetters())["arrival"].cast(pl.Int64).sort().to_list()
        assert set(letters) <= set(self.letters)
        since = moment_of(letters[len(letters) // 2])
        later = find(self.dead_letters, WantedLetters(since=since))["arrival"].len()
        assert later == len(letters) - len(letters) // 2
        return first_us, letters


def test_an_archive_and_dead_letters_have_what_they_say_and_old_days_leave_them_in_whole_files(
    tmp_path: Path,
) -> None:
    both = Letters(tmp_path, 61)
    both.compact()
    (archive,), (letters,) = archive_tables(both.archive), dead_letter_tables(both.dead_letters)
    spans = [(file.first_day, file.last_day) for file in published_files(archive.root)]
    assert any(before[1] == after[0] and before[0] != after[1] for before, after in itertools.pairwise(spans))
    assert both.check() == (MARCH_US, sorted(both.letters))

    for cut_us in range(MARCH_US + 6 * DAY, both.end_us, 5 * DAY):
        cut = moment_of(cut_us).date()
        for table in (archive, letters):
            retain_days(table, cut)
        first_us, left = both.check()
        assert first_us >= cut_us - SPAN.span_days * DAY
        assert not [at for at in both.arrivals.values() if cut_us <= at < first_us]
        assert left[0] >= cut_us - SPAN.span_days * DAY
        assert {at for at in both.letters if at >= cut_us} <= set(left)
        both.compact()
        assert both.check() == (first_us, left)


def test_the_name_of_a_folder_says_its_days() -> None:
    assert days_of("day=2026-03-01") == (dt.date(2026, 3, 1), dt.date(2026, 3, 1))
    assert days_of("day=2026-03-01--2026-03-30") == (dt.date(2026, 3, 1), dt.date(2026, 3, 30))
    for name in ("day=", "day=march", "day=2026-03-01--", "day=2026-03-01--x", "day=2026-03-01--2026-03-30--"):
        with pytest.raises(LayoutError, match=f"^{name} is not the folder of a day"):
            days_of(name)
