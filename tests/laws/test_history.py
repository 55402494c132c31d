"""Rebuild and backfill on histories at every edge, against the recount of the raw events."""

import dataclasses
import random
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fed import KEYS, bits
from tests.support.histories import N_PACKS, WINDOWS, History, histories, laws, pack
from tests.support.plans import SECOND, Wanted, events, lifetime, republished, sliding
from tests.support.plans import view as plan_of
from unskew.features.plan import ViewPlan
from unskew.monitoring.recount import Recount
from unskew.pipelines.history.archive import Archive, Reached
from unskew.pipelines.history.backfill import Backfill, backfill
from unskew.pipelines.history.rebuild import rebuild
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.ordering import Shard, Siblings, shard_names
from unskew.pipelines.state.seeds import Seeds
from unskew.pipelines.state.whole import WholeState
from unskew.sinks.tables.kinds import ArchiveTable
from unskew.sinks.tables.layout import published_files, read_coverage, view_root

N_PARTITIONS = 2


class Killed(Exception):
    """The process ends here."""


def plan(name: str, number: int, *, dedupe: bool = False) -> ViewPlan:
    view = pack(name, number)
    stream = dataclasses.replace(view.stream, columns={**view.stream.columns, "id": pl.String()})
    if dedupe:
        stream = dataclasses.replace(stream, event_id="id", dedupe_within_us=view.windows[0].hop_us or 1_000_000)
    return dataclasses.replace(republished(view, topic="stream"), stream=stream)


def archived(root: Path, view: ViewPlan, history: History, draw: random.Random) -> None:
    """Publish the events in files of random sizes."""
    for partition in range(N_PARTITIONS):
        mine = history.events.filter(pl.col("_partition") == partition).sort("_offset")
        table = ArchiveTable(root, view.stream.topic, partition, None)
        while mine.height:
            n = draw.randint(1, mine.height)
            clock_us = int(mine["_arrival"].to_physical()[n - 1])
            table.append(mine[:n], first_us=int(mine["_arrival"].to_physical()[0]), clock_us=clock_us)
            table.snapshot()
            mine = mine[n:]
        table.append(history.events.clear(), clock_us=history.clock_us)
        table.snapshot()
        table.snapshot()
        table.settle()


def rows_of(rows: pl.DataFrame, view: ViewPlan, key: str, cause: str | None = None) -> list[tuple[object, ...]]:
    mine = rows.filter(pl.col("user") == key).sort("available_at")
    mine = mine.with_columns(pl.col("available_at", "event_time").to_physical())
    return [
        (
            row["available_at"],
            cause or row["cause"],
            row["event_time"],
            row["partition"],
            row["offset"],
            bits({output.name: row[output.name] for output in view.outputs}),
        )
        for row in mine.iter_rows(named=True)
    ]


def expected(recount: Recount, key: str, history: History, cause: str | None = None) -> list[tuple[object, ...]]:
    return [
        (row.instant_us, cause or row.cause, row.event_time_us, row.partition, row.offset, bits(row.values))
        for row in recount.rows((key,), history.clock_us - 1)
    ]


def content(shard: Shard) -> dict[str, object]:
    """A shard's state, whatever rows and numbers it gave to entities and texts."""
    state = shard.state
    parts = list(state.everything(1000))
    return {
        "clock": (state.clock_us, state.since_us, state.seq, state.n_tiles, state.n_items, shard.dropped),
        "late": (parts[0].late_histogram, parts[0].late_by_us),
        "rows": pl.concat([part.current for part in parts]).sort("key").to_dicts(),
    }


def restored(view: ViewPlan, seeds: Seeds, changelogs: Changelogs, names: list[str]) -> dict[str, dict[str, object]]:
    siblings = Siblings()
    found = {}
    for name in names:
        seed = seeds.read(view, name)
        assert seed is not None
        found[name] = content(Shard.from_snapshot(view, siblings, changelogs, seed.snapshot, WholeState))
    return found


def log_of(root: Path, view: ViewPlan) -> pl.DataFrame:
    files = published_files(view_root(root, view.name, view.version))
    return (
        pl.concat([pl.read_parquet(file.path, hive_partitioning=False) for file in files]) if files else pl.DataFrame()
    )


def with_ids(history: History, draw: random.Random) -> History:
    ids = [draw.choice(["one", "two", "three", None]) for _ in range(history.events.height)]
    return History(history.events.with_columns(pl.Series("id", ids, pl.String())), history.clock_us)


@pytest.mark.parametrize("named", WINDOWS)
@laws(max_examples=6)
@given(st.data())
def test_rebuild_and_backfill_equal_the_recount(named: str, data: st.DataObject) -> None:
    draw = data.draw(st.randoms(use_true_random=False))
    view = plan(named, draw.randrange(N_PACKS), dedupe=draw.random() < 0.3)
    history = with_ids(data.draw(histories(view.windows[0])), draw)
    recount = Recount(view, history.events)
    n_hashes = draw.choice([1, 2, 3])
    end = {p: Reached(offset=history.events.height, clock_us=history.clock_us) for p in range(N_PARTITIONS)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        archived(root / "archive", view, history, draw)
        archive = Archive.open(root / "archive", view.stream)

        rebuilt = rebuild([view], archive, end=end, n_partitions=N_PARTITIONS, n_hashes=n_hashes)[view.id]

        for key in KEYS:
            assert rows_of(rebuilt.rows, view, key) == expected(recount, key, history)

        names = shard_names(view, range(N_PARTITIONS), n_hashes)
        changelogs = Changelogs(root / "state" / "changelog")
        seeds = Seeds(root / "state")
        shards = list(names)
        draw.shuffle(shards)
        cut = draw.randint(0, len(shards))
        for part in (shards[:cut], shards[cut:]):
            _until_done(
                Backfill(
                    view=view,
                    archive=archive,
                    end=end,
                    shards=part,
                    n_partitions=N_PARTITIONS,
                    n_hashes=n_hashes,
                    log=root / "log",
                    seeds=seeds,
                    changelogs=changelogs,
                    chunk_events=draw.choice([1, 2, 5]),
                ),
                draw,
            )
        changelogs.close()

        log = log_of(root / "log", view)
        for key in KEYS:
            found = rows_of(log, view, key, "backfill") if log.height else []
            assert found == expected(recount, key, history, "backfill")
        once = {shard.state.shard: content(shard) for shard in rebuilt.shards}
        assert restored(view, seeds, changelogs, names) == once
        if history.events.height:
            coverage = read_coverage(view_root(root / "log", view.name, view.version))
            assert {shard.complete_to_us for shard in coverage.shards.values()} == {history.clock_us - 1}


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted("sum", "sum", sliding(5 * SECOND, SECOND), "x"),
        Wanted("n", "count", sliding(5 * SECOND, SECOND)),
        Wanted("n", "count", lifetime()),
    ],
    ids=["with values", "without values", "at one instant"],
)
def test_a_backfill_goes_on_where_the_shards_of_a_partition_are_unequally_far(wanted, tmp_path):
    """A piece of the archive begins before the place of one shard, and ends after it."""
    view = republished(plan_of(wanted), partitioned=True)
    instants = [1 if wanted.window == lifetime() else at for at in range(1, 41)]
    rows = [(at * SECOND, at * SECOND, {"user": f"u{n % 8}", "x": float(n)}) for n, at in enumerate(instants)]
    table = ArchiveTable(tmp_path / "archive", view.stream.topic, 0, None)
    table.append(events(rows), first_us=SECOND, clock_us=instants[-1] * SECOND)
    table.snapshot()
    table.snapshot()
    table.settle()
    archive = Archive.open(tmp_path / "archive", view.stream)
    changelogs, seeds = Changelogs(tmp_path / "state" / "changelog"), Seeds(tmp_path / "state")
    end = {0: Reached(offset=40, clock_us=41 * SECOND)}

    for shards, upto in ((["p0.0"], {0: Reached(offset=20, clock_us=instants[19] * SECOND)}), (["p0.0", "p0.1"], end)):
        backfill(
            Backfill(
                view=view,
                archive=archive,
                end=upto,
                shards=shards,
                n_partitions=1,
                n_hashes=2,
                log=tmp_path / "log",
                seeds=seeds,
                changelogs=changelogs,
            )
        )
    changelogs.close()

    log, history = log_of(tmp_path / "log", view), History(events(rows), 41 * SECOND)
    recount = Recount(view, history.events)
    for key in {row["user"] for _, _, row in rows}:
        found = rows_of(log, view, key, "backfill")
        assert found == expected(recount, key, history, "backfill")
        assert found


def _until_done(job: Backfill, draw: random.Random) -> None:
    """Run a backfill that is killed at random places, each time from what is on the disk."""
    for left in [draw.randint(1, 24) for _ in range(draw.randint(0, 3))]:
        calls = [left]

        def ours(calls: list[int] = calls) -> None:
            calls[0] -= 1
            if not calls[0]:
                raise Killed

        try:
            backfill(dataclasses.replace(job, still_ours=ours))
        except Killed:
            continue
    backfill(job)
