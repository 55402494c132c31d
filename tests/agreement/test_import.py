"""History that was imported and then handed over to the topic gives what all of it through the topic gives."""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.agreement.test_history import Killed, ahead, ran, served, without
from tests.support.pipeline import Bench, Outcome, Record, agreed, expected_log, history, logged, naive_arrivals, plan
from unskew.features.errors import RequestError
from unskew.features.plan import Plan, StreamPlan
from unskew.offline.compaction import Limits, archive_tables, compact
from unskew.pipelines.deployment import owner_of
from unskew.pipelines.history import inputs, sorting
from unskew.pipelines.history.archive import BEGINNING, Archive
from unskew.pipelines.history.fitting import Arrivals
from unskew.pipelines.history.importing import ImportJob, import_history
from unskew.pipelines.history.importing import Outcome as Done
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath
from unskew.sinks.tables.imported import Imported, read_imported
from unskew.sinks.tables.layout import published_files, read_coverage, view_root

INSTANT = pl.Datetime("us", "UTC")
RECORDS = history(300, seed=29)


def split(near: int) -> int:
    """A place at which all earlier records are older than all later ones."""
    return next(at for at in range(near, len(RECORDS)) if RECORDS[at - 1].stamp_ms < RECORDS[at].stamp_ms)


FIRST, SECOND, THIRD = split(100), split(180), split(230)


def events(records: Sequence[Record]) -> pl.DataFrame:
    """The records that are events, with their arrivals and places in the topic."""
    arrivals, offsets = naive_arrivals(records), dict[int, int]()
    rows = []
    for record in records:
        offset = offsets.get(record.partition, 0)
        offsets[record.partition] = offset + 1
        if record.raw is None:
            fields = (record.user, record.item, record.amount, record.gift, record.at)
            rows.append((*fields, arrivals[record.partition, offset], record.partition, offset))
    names = ["user", "item", "amount", "gift", "at", "arrived", "p", "o"]
    return pl.DataFrame(rows, schema=names, orient="row").cast({"at": INSTANT, "arrived": INSTANT})


def imported(one: Plan, outcome: Outcome, *paths: Path, **changes: Any) -> Done:
    folders = outcome.deployment
    options = {
        "stream": one.streams["purchases"],
        "archive": folders.archive,
        "state": folders.state,
        "owner": owner_of("a test", folders.state),
        "arrivals": Arrivals(column="arrived"),
        "partition": "p",
        **changes,
    }
    return import_history(ImportJob(paths=paths, **options), threading.Event())


def begun(bench: Bench, both: Plan, topic: str, later: str, n_hashes: int = 1, **changes: Any) -> Outcome:
    """A pipeline without one of the views that reads a topic from its present end on."""
    outcome = Outcome(both, bench.deployment(n_hashes=n_hashes, start="latest", **changes))
    ran(without(both, later), outcome)
    bench.append(topic, RECORDS[FIRST:SECOND])
    ran(without(both, later), outcome)
    return outcome


def assert_as_if_always(bench: Bench, outcome: Outcome, always: Outcome, later: str) -> None:
    both = outcome.plan
    mine, expected = (
        one.log(later).drop("cause", "partition", "offset", "written_at", strict=False) for one in (outcome, always)
    )
    assert mine.equals(expected)
    assert outcome.complete_to(later) == always.complete_to(later)
    coverage, wanted = (read_coverage(view_root(one.deployment.log, later, 1)) for one in (outcome, always))
    assert coverage is not None
    assert wanted is not None
    assert coverage.first_since_us == wanted.first_since_us
    assert {name: values for name, values in served(bench, outcome).items() if later in name} == {
        name: values for name, values in served(bench, always).items() if later in name
    }
    view = both.views[later]
    raw = events(RECORDS).rename({"arrived": "_arrival", "p": "_partition", "o": "_offset"})
    raw = raw.with_columns(pl.col("at").alias("_event_time"))
    (until,) = {us for us in always.complete_to(later).values() if us is not None} if later == "by_item" else (None,)
    if until is not None:
        keys = [(item,) for item in raw["item"].unique()]
        counted = expected_log(view, raw, dict.fromkeys(keys, until))
        assert [row[:2] + row[3:] for row in logged(view, outcome.log(later))] == [row[:2] + row[3:] for row in counted]
    agreed(both, outcome.deployment, samples=300)


# In CSV, NaN is not a number.
N_TEXTS = 39
HAND_OVERS: dict[str, tuple[int, dict[str, Any]]] = {
    # The way, how many records the files hold, and the options.
    "at the first offset": (len(RECORDS), {"offset": "o"}),
    "at the first arrival of each partition": (len(RECORDS), {}),
    "at an instant up to which the topic has events too": (
        THIRD,
        {"until_us": RECORDS[split(140)].stamp_ms * 1000},
    ),
}


def without_repeats(one: Plan) -> Plan:
    """The same views, for which an item that the user has had in the last minute does not count."""
    stream = replace(one.streams["purchases"], event_id="item", dedupe_within_us=60_000_000)
    return Plan(
        streams={"purchases": stream}, views={name: replace(view, stream=stream) for name, view in one.views.items()}
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "later", "repeats"),
    [
        ("at the first offset", "by_item", True),
        ("at the first arrival of each partition", "by_user", True),
        ("at an instant up to which the topic has events too", "by_item", False),
        ("at an instant up to which the topic has events too", "by_user", False),
    ],
)
def test_imported_history_and_the_topic_are_as_all_of_it_through_the_topic(
    bench: Bench, tmp_path: Path, way: str, later: str, *, repeats: bool
) -> None:
    n_records, options = HAND_OVERS[way]
    topic = bench.produce(RECORDS[:FIRST])
    both = plan(topic) if repeats else without_repeats(plan(topic))
    n_hashes = 1 if later == "by_item" else 2
    outcome = begun(bench, both, topic, later, n_hashes)
    always = Outcome(both, bench.deployment(n_hashes=n_hashes))
    ran(both, always)
    first, second = tmp_path / "first.csv", tmp_path / "second.parquet"
    rows = events(RECORDS[:n_records])
    rows[:N_TEXTS].write_csv(first)
    rows[N_TEXTS:].write_parquet(second)

    done = imported(both, outcome, first, second, **options)

    if later == "by_item":
        # A backfill beside the pipeline takes some of it, and the next run the rest.
        (seam,) = ahead(both, outcome, later)
        assert seam.offsets[0] > 0
    bench.append(topic, RECORDS[SECOND:])
    ran(both, always)
    ran(both, outcome)
    assert done.done is not None
    assert_as_if_always(bench, outcome, always, later)
    assert imported(both, outcome, first, second, **options).done is None


@pytest.mark.long
def test_an_import_that_is_killed_again_and_again_goes_on_where_it_was(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = bench.produce(RECORDS[:FIRST])
    both = plan(topic)
    outcome, at_once = begun(bench, both, topic, "by_item"), Outcome(both, bench.deployment())
    shutil.copytree(outcome.deployment.archive, at_once.deployment.archive)
    shutil.copytree(outcome.deployment.state, at_once.deployment.state)
    path = tmp_path / "history.parquet"
    events(RECORDS[:THIRD]).write_parquet(path)
    monkeypatch.setattr(sorting, "RUN_ROWS", 13)
    monkeypatch.setattr(inputs, "BATCH_ROWS", 5)
    options = {"until_us": RECORDS[split(140)].stamp_ms * 1000, "partition": None, "stream": hashed(both)}
    imported(both, at_once, path, **options)
    rename, left, n_kills = durable.rename, [0], 0

    def killed(*arguments: object, **more: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        rename(*arguments, **more)

    for step in range(1, 400, 5):
        left[0] = step
        monkeypatch.setattr(durable, "rename", killed)
        try:
            imported(both, outcome, path, **options)
        except Killed:
            n_kills += 1
            with monkeypatch.context() as unseen:
                unseen.setattr(durable, "rename", rename)
                # Half of an import is seen by nobody.
                assert Archive.open(outcome.deployment.archive, both.streams["purchases"]).hand_overs == {}
        else:
            break
        finally:
            monkeypatch.setattr(durable, "rename", rename)

    assert n_kills >= 4
    assert outcome.archive().equals(at_once.archive())
    records = [read_imported(one.deployment.archive / topic) for one in (outcome, at_once)]
    assert records[0] == records[1]


def hashed(both: Plan) -> StreamPlan:
    return replace(both.streams["purchases"], partitioned_by=())


def test_compaction_merges_what_was_imported(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = bench.produce(RECORDS[:FIRST])
    both = plan(topic)
    outcome = begun(bench, both, topic, "by_item")
    events(RECORDS[:FIRST]).write_parquet(tmp_path / "history.parquet")
    monkeypatch.setattr(sorting, "RUN_ROWS", 9)
    imported(both, outcome, tmp_path / "history.parquet")
    root = outcome.deployment.archive / topic
    before, n_files = outcome.archive(), len(published_files(root))
    stream = both.streams["purchases"]
    opened = Archive.open(outcome.deployment.archive, stream)
    end = opened.cut

    for one in archive_tables(outcome.deployment.archive):
        compact(one, Limits(grace_s=0), now_s=2e9)

    assert len(published_files(root)) < n_files
    assert outcome.archive().equals(before)
    again = Archive.open(outcome.deployment.archive, stream)
    assert again.count({}, end) == opened.count({}, end)
    read = pl.concat([events_ for p in sorted(end) for events_ in again.read(p, BEGINNING, end[p].offset, ["user"])])
    assert read.select("_partition", "_offset").equals(before.select("_partition", "_offset"))


@pytest.mark.long
def test_an_import_into_an_object_store_is_that_on_a_disk(bench: Bench, bucket: ObjectPath, tmp_path: Path) -> None:
    events(RECORDS[:THIRD]).write_parquet(tmp_path / "history.parquet")
    read = []
    for changes in ({}, {"archive": bucket}):
        topic = bench.produce(RECORDS[:FIRST])
        both = plan(topic)
        outcome = begun(bench, both, topic, "by_item", **changes)
        for again in (False, True):
            imported(
                both, outcome, tmp_path / "history.parquet", until_us=RECORDS[split(140)].stamp_ms * 1000, again=again
            )
        ahead(both, outcome, "by_item")
        archive = Archive.open(outcome.deployment.archive, both.streams["purchases"])
        read.append(
            pl.concat(
                one for p in range(4) for one in archive.read(p, BEGINNING, archive.cut[p].offset, ["user", "item"])
            )
        )
        n_events = read[-1].height
        assert sum(n for n, _ in archive.count({}, archive.cut).values()) == n_events
        # Records that are no events have offsets too.
        assert n_events <= archive.most(archive.cut) <= n_events + len(RECORDS) - events(RECORDS).height
    assert read[0].equals(read[1])
    assert int((read[0]["_offset"] < 0).sum()) > 0


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("no file", {"paths": ["gone.parquet"]}, "gone.parquet does not exist"),
    ("format", {"paths": ["notes.txt"]}, "notes.txt has a format that is not known"),
    ("damaged", {"paths": ["damaged.parquet"]}, "damaged.parquet cannot be read"),
    ("twice", {"paths": ["right.parquet", "right.parquet"]}, "is given twice"),
    ("same bytes", {"paths": ["right.parquet", "copy.parquet"]}, "hold the same bytes"),
    ("empty folder", {"paths": ["nothing"]}, "nothing holds no files"),
    ("column", {"paths": ["narrow.parquet"]}, "has no column 'gift'.*--column gift=COLUMN.*--without gift"),
    ("type", {"paths": ["untyped.parquet"]}, "column 'gift' has the type Int64, and the stream's is Boolean"),
    ("zone", {"paths": ["naive.parquet"]}, "column 'at' has times without a zone.*--zone UTC"),
    (
        "rows",
        {"paths": ["wrong.csv"]},
        r"4 rows are not events of the stream \(time 1, type 3\): .*wrong.csv, row 3: item",
    ),
    ("unknown column", {"renamed": {"usr": "user"}}, "--column usr: stream purchases has no such column"),
    ("no time", {"without": frozenset({"at"})}, "--without at: it is the event time"),
    ("partition", {"paths": ["far.parquet"]}, "there is a row of partition 9, and the topic has 4"),
    ("no partition", {"partition": None}, "no known way .* puts the archived events where the topic has them"),
    ("early", {"until_us": 1_000_000}, "begins at .*, so events that arrived between would be lost"),
    ("late", {"until_us": 2_000_000_000_000_000}, "so events of the topic that arrive between would count twice"),
    ("topic", {"paths": ["later.parquet"]}, "no row is left to import"),
]


def test_what_cannot_be_imported_is_refused_and_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    topic = bench.produce(RECORDS[:FIRST])
    both = plan(topic)
    outcome = begun(bench, both, topic, "by_item")
    right = events(RECORDS[:30])
    files = {
        "right.parquet": right,
        "copy.parquet": right,
        "narrow.parquet": right.drop("gift"),
        "untyped.parquet": right.with_columns(gift=pl.lit(1, pl.Int64)),
        "naive.parquet": right.with_columns(pl.col("at").dt.replace_time_zone(None)),
        "far.parquet": right.with_columns(p=pl.lit(9)),
        "later.parquet": right.with_columns(arrived=pl.lit(RECORDS[-1].stamp_ms * 1000).cast(INSTANT)),
    }
    for name, rows in files.items():
        rows.write_parquet(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 but not really PAR1")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "wrong.csv").write_text(
        "user,item,amount,gift,at,arrived,p\n"
        "a,1,1.5,true,2017-03-26T00:00:00Z,2017-03-26T00:00:00Z,0\n"
        "a,2,,false,2017-03-26T00:00:00.123456+02:00,2017-03-26T00:00:00Z,0\n"
        "a,one,1.5,true,2017-03-26T00:00:00Z,2017-03-26T00:00:00Z,0\n"
        "a,1,1.5,true,,2017-03-26T00:00:00Z,0\n"
        "a,1,1.5,yes,2017-03-26T00:00:00Z,2017-03-26T00:00:00Z,0\n"
        "a,,1.5,true,2017-03-26T00:00:00Z,2017-03-26T00:00:00Z,0\n"
    )
    before = outcome.archive()

    for title, options, message in WRONG:
        named = {"paths": ["right.parquet"], **options}
        with pytest.raises(RequestError, match=message):
            imported(both, outcome, *(tmp_path / name for name in named.pop("paths")), **named)
        assert outcome.archive().equals(before), title
        assert read_imported(outcome.deployment.archive / topic) == Imported(), title
    done = imported(both, outcome, tmp_path / "wrong.csv", skip_refused=True)
    assert done.done is not None
    assert (done.done.rows, done.done.refused) == (2, 4)
    mine = outcome.archive().filter(pl.col("_offset") < 0)
    assert mine["item"].to_list() == [1, 2]
    assert mine["at"].to_physical().to_list() == [1_490_486_400_000_000, 1_490_479_200_123_456]


def test_files_are_taken_once_and_in_the_order_of_time(bench: Bench, tmp_path: Path) -> None:
    topic = bench.produce(RECORDS[:FIRST])
    both = plan(topic)
    outcome = begun(bench, both, topic, "by_item")
    old, middle, new = (tmp_path / f"{name}.parquet" for name in ("old", "middle", "new"))
    events(RECORDS[: split(40)]).write_parquet(old)
    events(RECORDS[split(40) : split(70)]).write_parquet(middle)
    events(RECORDS[split(70) : FIRST]).write_parquet(new)

    imported(both, outcome, middle)

    assert imported(both, outcome, middle).done is None
    with pytest.raises(RequestError, match="imported already, with other options"):
        imported(both, outcome, middle, offset="o")
    with pytest.raises(RequestError, match=r"middle.parquet was imported already, .* would count twice; leave out it"):
        imported(both, outcome, middle, new)
    with pytest.raises(RequestError, match="history is imported from old to new: give all files in one go"):
        imported(both, outcome, old)
    imported(both, outcome, new)
    assert Archive.open(outcome.deployment.archive, both.streams["purchases"]).hand_overs[0].since_us == min(
        one.stamp_ms * 1000 for one in RECORDS[split(40) :]
    )
    imported(both, outcome, old, middle, new, again=True)
    archived = outcome.archive().filter(pl.col("_offset") < 0)
    assert archived.height == events(RECORDS[:FIRST]).height
    assert archived["_arrival"].sort().equals(events(RECORDS[:FIRST])["arrived"].sort().alias("_arrival"))
