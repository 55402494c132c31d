"""Training sets: their manifest recounted, their reproduction to the last bit, their parts and their files."""

import bisect
import datetime as dt
import json
import math
import os
import random
import shutil
from collections import Counter

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.support.growing import (
    FEATURES,
    FIRST,
    PLAN,
    SECOND_HALF,
    T0,
    USERS,
    VIEW,
    WINDOW,
    Growing,
    GrowingArchive,
    compacted,
    grow,
    rows_of,
    some_events,
)
from tests.support.plans import DAY, HOUR, SECOND, republished
from tests.support.typed import EMPTY, FULL, NAMES, ORDERS
from tests.support.updates import updates
from unskew import FeatureStore, LayoutError, RequestError, StoreUnavailable
from unskew.features.plan import Plan
from unskew.offline.compaction import Limits, archive_tables, compact, log_tables
from unskew.offline.content import checksum
from unskew.offline.distribution import distribution
from unskew.offline.manifest import Manifest
from unskew.offline.retention import retain_log
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.tables.layout import published_files, read_coverage, view_root


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Only lost power asks for syncing, which is slow."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def some_labels(seed: int, n: int = 400) -> pl.DataFrame:
    """Labels also of strangers and of nobody, before the log, past its first part, and several times the same."""
    pick = random.Random(seed)
    rows = [(pick.choice([*USERS, "stranger", None]), T0 + pick.randrange(-HOUR, 3 * DAY)) for _ in range(n)]
    rows += rows[:7]
    return pl.DataFrame(
        {"user": [user for user, _ in rows], "event_timestamp": [t for _, t in rows], "bought": range(len(rows))},
    ).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))


LABELS = some_labels(3)


@pytest.fixture
def growing(tmp_path):
    log = Growing(tmp_path / "log")
    log.feed(FIRST, T0 + 2 * DAY + HOUR)
    return log


def asked(log: Growing, labels=LABELS, features=FEATURES, **options):
    store = FeatureStore(Plan(streams={}, views={log.plan.name: log.plan}), log=log.root)
    return store.get_historical_features(labels, features, outside="null", **options)


def grown_and_compacted(log: Growing) -> None:
    grow(log)
    compacted(log)


def compacted_and_grown(log: Growing) -> None:
    compacted(log)
    grow(log)


@pytest.mark.parametrize(
    "then", [grow, compacted, grown_and_compacted, compacted_and_grown], ids=lambda one: one.__name__
)
@pytest.mark.parametrize(
    "options", [{}, {"inclusive": True, "max_age": "30min", "with_status": True, "full_feature_names": True}]
)
def test_a_manifest_makes_the_same_bytes_again_whatever_happened_to_the_log(growing, tmp_path, then, options):
    first = asked(growing, **options)
    first.to_parquet(tmp_path / "first.parquet")
    then(growing)

    # Nothing but the log is needed: the definitions are in the manifest.
    again = FeatureStore(log=growing.root).reproduce(LABELS, tmp_path / "first.manifest.json")
    again.to_parquet(tmp_path / "again.parquet")

    for name in ("parquet", "manifest.json"):
        assert (tmp_path / f"first.{name}").read_bytes() == (tmp_path / f"again.{name}").read_bytes()
    assert again.summary.equals(first.summary)
    # The labels past the first part have values now, and would not be the same if all of the log counted.
    if then is not compacted:
        assert not asked(growing, **options).columns.equals(first.columns)


def test_a_merged_file_that_goes_on_past_the_position_is_read_up_to_it(growing):
    """Compaction of one day merges files from before and after the position."""
    growing.feed(some_events(5, T0 + 2 * DAY + HOUR, T0 + 2 * DAY + 3 * HOUR, 60), T0 + 2 * DAY + 3 * HOUR)
    first = asked(growing)
    reached = {name: part.next for name, part in first.manifest.views[0].log.shards.items()}
    growing.feed(some_events(6, T0 + 2 * DAY + 3 * HOUR, T0 + 2 * DAY + 5 * HOUR, 60), T0 + 5 * DAY)
    compacted(growing)
    across = [
        file
        for file in published_files(view_root(growing.root, "clicks", 1))
        if file.first < reached[file.writer] <= file.last
    ]
    assert len(across) == 2

    again = FeatureStore(log=growing.root).reproduce(LABELS, first.manifest)

    assert again.columns.equals(first.columns)
    assert again.manifest == first.manifest


def test_after_old_days_were_removed_only_later_labels_are_reproduced(growing):
    cut = dt.date(2017, 7, 16)
    later = LABELS.filter(pl.col("event_timestamp").dt.date() >= cut)
    first, whole = asked(growing, later), asked(growing)
    grow(growing)
    (table,) = log_tables(growing.root)
    retain_log(table, ["user"], cut, grace_s=0, now_s=10**10)
    store = FeatureStore(log=growing.root)

    assert len(later) > 50
    assert store.reproduce(later, first.manifest).to_polars().equals(first.to_polars())
    with pytest.raises(LayoutError, match=r"has other values. Since then .* old days were removed"):
        store.reproduce(LABELS, whole.manifest)


def test_a_log_in_an_object_store_gives_the_same_training_set(growing, tmp_path, bucket, monkeypatch):
    far = Growing(bucket / "log")
    far.feed(FIRST, T0 + 2 * DAY + HOUR)
    near = asked(growing)
    first = asked(far)
    first.to_parquet(tmp_path / "far.parquet")
    grow(far)
    compacted(far)
    monkeypatch.setattr("unskew.offline.log_reader._MEMORY_BYTES", 5_000)

    again = FeatureStore(log=str(far.root)).reproduce(LABELS, tmp_path / "far.manifest.json")

    assert again.manifest == first.manifest == near.manifest
    frames = [FeatureStore(PLAN, log=log.root).history("clicks", "u3").frame for log in (far, growing)]
    assert frames[0].height > frames[1].height > 50
    assert frames[0][: frames[1].height].equals(frames[1])


def test_values_of_every_type_are_reproduced_and_counted(tmp_path):
    table = LogTable(tmp_path, ORDERS, "h0", None, now_us=lambda: 0)
    awkward = {**FULL, "rate": -0.0, "share": math.inf}
    for seq, values in enumerate([FULL, EMPTY, awkward]):
        row = {"user": "u", **values, "available_at": T0 + seq, "cause": "event", "seq": seq}
        table.append(updates(ORDERS, T0 + seq + 1, log_rows=[row], since_us=T0 - 9 * DAY))
        table.snapshot()
    table.settle()
    labels = pl.DataFrame({"user": ["u"] * 4, "event_timestamp": [T0, T0 + 1, T0 + 2, T0 + 2]}).with_columns(
        pl.col("event_timestamp").cast(pl.Datetime("us", "UTC"))
    )
    store = FeatureStore(Plan(streams={}, views={"orders": ORDERS}), log=tmp_path)
    first = store.get_historical_features(labels, [f"orders:{name}" for name in NAMES], inclusive=True)
    first.to_parquet(tmp_path / "a.parquet")

    again = store.reproduce(labels, tmp_path / "a.manifest.json")

    assert repr(again.to_polars().rows()) == repr(first.to_polars().rows())
    assert pl.read_parquet(tmp_path / "a.parquet").equals(first.to_polars())
    assert Manifest.read(tmp_path / "a.manifest.json") == first.manifest
    by_name = {part.feature: part.distribution for part in first.manifest.features}
    assert (by_name["spend"].edges, by_name["spend"].counts) == (("-12.30", "0.00"), (3, 1))
    assert by_name["share"].edges[-1] == "inf"
    assert by_name["since"].min == 0
    assert (by_name["counts"].of, by_name["counts"].edges, by_name["counts"].counts) == ("length", (3,), (3,))
    assert first.manifest.views[0].view("a") == ORDERS.published


def test_values_from_events_are_reproduced_after_more_events_and_compaction(tmp_path):
    archive = GrowingArchive(tmp_path / "archive")
    archive.feed(FIRST, T0 + 2 * DAY + HOUR)
    store = FeatureStore(PLAN, archive=archive.root)
    first = store.get_historical_features(LABELS, FEATURES, outside="null", source="events")
    first.to_parquet(tmp_path / "first.parquet")
    early = shutil.copytree(archive.root, tmp_path / "early")
    archive.feed(SECOND_HALF, T0 + 5 * DAY)
    later = store.get_historical_features(LABELS, FEATURES, outside="null", source="events")
    (table,) = archive_tables(archive.root)
    compact(table, Limits(grace_s=0), now_s=10**10)

    again = store.reproduce(LABELS, tmp_path / "first.manifest.json")

    assert again.manifest == first.manifest
    assert again.to_polars().equals(first.to_polars())
    assert not later.columns.equals(first.columns)
    assert first.manifest.archive[VIEW.stream.topic][0].offset == len(FIRST) // 2
    assert first.manifest.views[0].log is None
    with pytest.raises(LayoutError, match=r"partition 0 is archived up to offset .* give the archive that it was made"):
        FeatureStore(PLAN, archive=early).reproduce(LABELS, later.manifest)
    with pytest.raises(LayoutError, match="the definitions have no clicks@1"):
        FeatureStore(Plan(streams={}, views={}), archive=archive.root).reproduce(LABELS, first.manifest)
    other = republished(VIEW, state_fingerprint="other")
    with pytest.raises(
        LayoutError, match=r"made with another definition of clicks@1 \(state fingerprint .*, now other\)"
    ):
        FeatureStore(Plan(streams={}, views={"clicks": other}), archive=archive.root).reproduce(LABELS, first.manifest)
    with pytest.raises(RequestError, match="give the definitions"):
        FeatureStore(archive=archive.root).reproduce(LABELS, first.manifest)
    seen: list[tuple[str, int, int]] = []
    store.get_historical_features(
        LABELS, FEATURES, outside="null", source="events", progress=lambda *given: seen.append(given)
    )
    rebuilt = [(done, n_all) for what, done, n_all in seen if what == "events of clicks@1"]
    upto = LABELS["event_timestamp"].max()
    n_before = sum((each["_arrival"] <= upto).sum() for each in (FIRST, SECOND_HALF))
    assert rebuilt[-1] == (n_before, n_before)
    assert seen[-1][0] == "clicks@1"


@pytest.mark.parametrize("max_age_us", [None, 1_800 * SECOND])
def test_every_count_of_the_manifest_is_that_of_a_recount(growing, max_age_us):
    result = asked(growing, max_age=None if max_age_us is None else dt.timedelta(microseconds=max_age_us))
    coverage = read_coverage(view_root(growing.root, "clicks", 1))
    logged = rows_of(growing)
    statuses: dict[str, Counter] = {output.name: Counter() for output in VIEW.outputs}
    nulls: Counter = Counter()
    unknown = 0
    for user, t in zip(LABELS["user"], LABELS["event_timestamp"].to_physical(), strict=True):
        bound = t - 1
        rows = logged.get(user, [])
        place = bisect.bisect_right(rows, bound, key=lambda row: row[0]) - 1
        outside = None
        if user is None:
            outside = "no_key"
        elif t < coverage.first_since_us:
            outside = "before_log"
        elif bound > coverage.complete_to_us:
            outside = "after_log"
        unknown += outside is None and place < 0
        for output in VIEW.outputs:
            feature = VIEW.published.feature(output.name)
            stored = rows[place][1][output.name] if place >= 0 else feature.empty
            expired = place >= 0 and max_age_us is not None and rows[place][0] < bound - max_age_us
            warming = bound // WINDOW.hop_us * WINDOW.hop_us - WINDOW.extent_us < coverage.since_us
            status = outside or ("warming" if warming else "expired" if expired else None)
            statuses[output.name][status or ("default" if stored == feature.empty else "present")] += 1
            value = None if expired else stored
            value = feature.default if value is None else value
            nulls[output.name] += outside is not None or value is None

    (part,) = result.manifest.views
    assert part.unknown == unknown > 20
    assert (part.id, part.state_fingerprint) == ("clicks@1", VIEW.published.state_fingerprint)
    assert {name: shard.next for name, shard in part.log.shards.items()} == {
        name: shard.next_sequence for name, shard in coverage.shards.items()
    }
    for feature in result.manifest.features:
        assert {name: n for name, n in feature.statuses.items() if n} == statuses[feature.feature]
        assert feature.nulls == nulls[feature.feature]
        assert feature.null_share == nulls[feature.feature] / len(LABELS)
        assert feature.distribution == distribution(result.columns[feature.column])
    assert set(statuses["mean"]) >= {"no_key", "before_log", "after_log", "warming", "default", "present"}
    assert (max_age_us is not None) == ("expired" in statuses["mean"])


def test_as_served_reads_what_had_been_written_at_the_labels_instant(growing, tmp_path):
    result = asked(growing, as_served=True)
    logged = rows_of(growing)
    coverage = read_coverage(view_root(growing.root, "clicks", 1))
    expected, n_behind = [], 0
    for user, at in zip(LABELS["user"], LABELS["event_timestamp"], strict=True):
        outside = user is None or not coverage.first_since_us <= round(at.timestamp() * 1e6) <= coverage.complete_to_us
        rows = [row for _, row in logged.get(user, []) if row["written_at"] < at]
        n_behind += not outside and rows != [row for _, row in logged.get(user, []) if row["available_at"] < at]
        expected.append(None if outside else rows[-1]["count"] if rows else 0)

    assert result.columns["count"].to_list() == expected
    assert n_behind > 50
    assert result.manifest.join.on == "written_at"
    result.to_parquet(tmp_path / "a.parquet")
    grown_and_compacted(growing)
    again = FeatureStore(log=growing.root).reproduce(LABELS, tmp_path / "a.manifest.json")
    assert again.manifest == result.manifest
    with pytest.raises(RequestError, match="only a log knows when values were written"):
        asked(growing, as_served=True, source="events")


def recounted(values: list) -> dict:
    """The documented convention, in plain Python."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if kinds <= {str, bool} or (kinds <= {int} and len(set(present)) <= 20):
        most = sorted(Counter(present).items(), key=lambda pair: (-pair[1], pair[0]))[:20]
        edges, counts = [value for value, _ in most], [n for _, n in most]
        return {"kind": "values", "edges": edges, "counts": counts, "others": len(present) - sum(counts)}
    numbers = sorted(value for value in present if not (isinstance(value, float) and math.isnan(value)))
    edges = []
    for tenth in range(1, 11):
        edge = next((one for at, one in enumerate(numbers, 1) if 10 * at >= tenth * len(numbers)), None)
        if edge is not None and edge not in edges:
            edges.append(edge)
    bounds = [-math.inf, *edges]
    counts = [
        sum(1 for one in numbers if one <= high and (at == 0 or one > low))
        for at, (low, high) in enumerate(zip(bounds, edges, strict=False))
    ]
    return {"kind": "bins", "edges": edges, "counts": counts, "others": len(present) - len(numbers)}


PICK = random.Random(7)
COLUMNS = {
    "ints": [PICK.choice([None, PICK.randrange(1000)]) for _ in range(997)],
    "few ints": [PICK.choice([None, *range(20)]) for _ in range(300)],
    "one int more": [*range(21), 3, 3, None],
    "spike": [0] * 500 + [PICK.randrange(100) for _ in range(400)],
    "floats": [PICK.choice([None, PICK.gauss(0, 1), 0.0]) for _ in range(503)],
    "few floats": [1.5, 2.5, 2.5],
    "one float": [1.5],
    "extreme": [math.nan, -1e308, 5e-324, 1e308, math.nan, None],
    "texts": [PICK.choice(["", "a", "é", *map(str, range(40))]) for _ in range(600)],
    "bools": [True, None, False, True],
    "large ints": [-(2**63), 2**63 - 1, *range(60)],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_distributions_are_those_of_a_recount(name):
    found = distribution(pl.Series(COLUMNS[name]))

    wanted = recounted(COLUMNS[name])
    assert (found.kind, list(found.edges), list(found.counts), found.others) == tuple(wanted.values())
    assert found.n == sum(found.counts) + found.others == sum(one is not None for one in COLUMNS[name])
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


@pytest.mark.parametrize("dtype", [pl.Int64(), pl.Float64(), pl.String(), pl.Boolean(), pl.List(pl.Int64())])
def test_columns_without_values_have_an_empty_distribution(dtype):
    for values in ([], [None, None]):
        found = distribution(pl.Series(values, dtype=dtype))
        assert (found.n, found.edges, found.counts, found.others, found.min) == (0, (), (), 0, None)


def test_a_checksum_depends_on_values_and_type_alone():
    given = {name: pl.Series(values) for name, values in COLUMNS.items()}
    given |= {
        name: pl.Series([FULL[name], None, EMPTY[name]], dtype=ORDERS.published.feature(name).dtype.polars)
        for name in NAMES
    }
    for series in given.values():
        pieces = pl.concat([series[:2], series[2:]], rechunk=False)
        shifted = pl.concat([series[1:], series])[len(series) - 1 :]
        assert checksum(series) == checksum(pieces) == checksum(shifted)
        assert checksum(series) != checksum(pl.concat([series, series[:1]]))
    assert len({checksum(series) for series in given.values()}) == len(given)
    different = [
        [[1], [2]], [[1, 2], []], [[], [1, 2]], [[1, 2], None], [None, [1, 2]], [[None], [1, 2]], [[1, None], [2]],
    ]  # fmt: skip
    assert len({checksum(pl.Series(one, dtype=pl.List(pl.Int64))) for one in different}) == len(different)
    texts = [["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"], ["abc", None], [None, "abc"]]
    assert len({checksum(pl.Series(one)) for one in texts}) == len(texts)
    assert checksum(pl.Series([0.0])) != checksum(pl.Series([-0.0]))


@pytest.mark.parametrize(
    "series",
    [
        *(pl.Series([1, None, 3], dtype=dtype) for dtype in (pl.Int8, pl.UInt64, pl.Int128, pl.UInt128, pl.Float32)),
        pl.Series([dt.date(2020, 1, 1), None, dt.date(1950, 1, 1)]),
        pl.Series([dt.time(1, 2), None, dt.time(3)]),
        pl.Series([dt.timedelta(1), None, dt.timedelta(2)]),
        pl.Series(["a", None, "b"], dtype=pl.Categorical),
        pl.Series(["a", None, "b"], dtype=pl.Enum(["b", "a"])),
        pl.Series([b"a", None, b""]),
        pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int64, 2)),
        pl.Series([{"a": 1, "b": [{"c": "x"}]}, None, {"a": None, "b": []}]),
        pl.Series([[[1], []], None, [[None]]]),
        pl.Series([None, None, None]),
    ],
    ids=lambda series: str(series.dtype),
)
def test_label_columns_of_any_type_have_a_checksum(series):
    pieces = pl.concat([series[:1], series[1:]], rechunk=False)

    assert checksum(series) == checksum(pieces)
    assert checksum(series) != checksum(series[:2])
    assert series.null_count() == 3 or checksum(series) != checksum(series.reverse())


def changed(manifest: Manifest, *path: str | int, to: object) -> bytes:
    """The manifest's JSON with another value at a place."""
    whole = json.loads(manifest.to_json())
    place = whole
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(whole).encode()


def test_what_cannot_be_reproduced_is_refused(growing, tmp_path):
    early = shutil.copytree(growing.root, tmp_path / "early")
    grow(growing)
    result = asked(growing)
    manifest = result.manifest
    store = FeatureStore(log=growing.root)
    file = tmp_path / "m.manifest.json"

    def refused(error: type[Exception], text: str, labels=LABELS, given=manifest, store=store) -> None:
        with pytest.raises(error, match=text):
            store.reproduce(labels, given)

    refused(RequestError, "have 406 rows in place of 407", LABELS[:-1])
    refused(RequestError, "columns are user, event_timestamp in place of", LABELS.drop("bought"))
    refused(RequestError, "'user' has other values", LABELS.with_columns(user=pl.col("user").reverse()))
    refused(RequestError, "'bought' has other values", LABELS.with_columns(bought=pl.lit(1, pl.Int64)))
    refused(RequestError, r"'bought' is Float64 in place of Int64", LABELS.cast({"bought": pl.Float64}))
    refused(LayoutError, "shard h0 has rows up to .* give the log that it was made with", store=FeatureStore(log=early))
    other = Growing(tmp_path / "other")
    other.feed(FIRST[40:], T0 + 2 * DAY + HOUR)
    other.feed(SECOND_HALF, T0 + 5 * DAY)
    other.feed(some_events(8, T0 + 5 * DAY, T0 + 8 * DAY, 900), T0 + 9 * DAY)
    refused(LayoutError, "the log was begun anew", store=FeatureStore(log=other.root))
    values = Growing(tmp_path / "values")
    values.feed(FIRST.with_columns(x=pl.col("x") + 1), T0 + 2 * DAY + HOUR)
    values.feed(SECOND_HALF, T0 + 5 * DAY)
    refused(
        LayoutError,
        "'sum' has other values. Since then the log or the archive was changed",
        store=FeatureStore(log=values.root),
    )
    refused(RequestError, "give its folder as log", store=FeatureStore(PLAN))
    refused(RequestError, "No such file", given=tmp_path / "nowhere.json")
    for data, error, text in (
        (b"", RequestError, "m.manifest.json is not a manifest of a training set"),
        (b"\xff", RequestError, "is not a manifest"),
        (b"[" * 100_000, RequestError, "is not a manifest"),
        (b"{}", RequestError, "is not a manifest"),
        (changed(manifest, "format", to=2), LayoutError, "has format 2, but this version reads 1"),
        (changed(manifest, "features", to=3), RequestError, "is not a manifest"),
        (changed(manifest, "views", 0, "definition", "features", to=[]), LayoutError, "its features have no names"),
        (
            changed(manifest, "views", 0, "definition", "state_fingerprint", to="x"),
            LayoutError,
            "written with another definition of clicks@1",
        ),
        (changed(manifest, "features", 0, "feature", to="nope"), RequestError, "no feature 'nope'"),
        (changed(manifest, "join", "max_age_us", to=1), LayoutError, "the training set is not that of"),
    ):
        file.write_bytes(data)
        refused(error, text, given=file)


def test_another_default_is_that_of_the_manifest(growing):
    """A presentation may change without a new version; the manifest knows the default of then."""
    first = asked(growing)
    features = tuple(
        msgspec.structs.replace(one, default=-7) if one.name == "last" else one for one in VIEW.published.features
    )
    now = republished(VIEW, features=features, presentation_fingerprint="other")

    again = FeatureStore(Plan(streams={}, views={"clicks": now}), log=growing.root).reproduce(LABELS, first.manifest)

    assert again.columns.equals(first.columns)
    assert -1 in first.columns["last"].to_list()


@pytest.mark.parametrize("kind", ["polars", "pandas", "arrow", "rows"])
def test_a_split_by_time_divides_labels_and_keeps_their_order(growing, kind):
    given = {
        "polars": LABELS,
        "pandas": LABELS.to_pandas().set_index(np.arange(len(LABELS)) + 5),
        "arrow": LABELS.to_arrow(),
        "rows": LABELS.to_dicts(),
    }[kind]
    result = asked(growing, given, with_status=True)
    instants = LABELS["event_timestamp"]
    ordered = instants.sort()

    train, valid, test = result.split(by="time", fractions=(0.6, 0.2, 0.2), gap="1h")

    cuts = [ordered[math.ceil(0.6 * len(LABELS))], ordered[math.ceil(0.8 * len(LABELS))]]
    hour = dt.timedelta(hours=1)
    wanted = [instants < cuts[0] - hour, (instants >= cuts[0]) & (instants < cuts[1] - hour), instants >= cuts[1]]
    for part, mask in zip((train, valid, test), wanted, strict=True):
        assert part.to_polars().equals(result.to_polars().filter(mask))
        assert type(part.to_df()) is type(result.to_df())
        assert part.summary.equals(asked(growing, LABELS.filter(mask)).summary)
        store = FeatureStore(log=growing.root)
        assert store.reproduce(part.given.polars(), part.manifest).columns.equals(part.columns) or kind == "rows"
    if kind == "pandas":
        assert isinstance(train.to_df(), pd.DataFrame)
        assert train.to_df().index.tolist() == [at + 5 for at, one in enumerate(wanted[0]) if one]


def test_a_split_at_instants_never_divides_labels_of_one_instant(growing):
    noon = dt.datetime.fromtimestamp(T0 // SECOND + 86_400, dt.UTC)
    result = asked(growing)
    t = LABELS["event_timestamp"]

    for at in (noon, noon.isoformat(), [noon]):
        before, after = result.split(at=at)
        assert before.to_polars().equals(result.to_polars().filter(t < noon))
        assert after.to_polars().equals(result.to_polars().filter(t >= noon))
    same = asked(growing, LABELS.with_columns(event_timestamp=pl.lit(noon).cast(t.dtype)))
    with pytest.raises(RequestError, match="part 0 of the split would have no labels"):
        same.split(fractions=(0.5, 0.5))
    for wrong, text in (
        ({}, "give either fractions"),
        ({"fractions": (0.5, 0.5), "at": noon}, "give either fractions"),
        ({"fractions": (0.5, 0.6)}, "add up to 1"),
        ({"fractions": (1.0,)}, "add up to 1"),
        ({"fractions": (1.5, -0.5)}, "add up to 1"),
        ({"at": "soon"}, "is not an instant"),
        ({"at": 5}, "is not an instant"),
        ({"at": []}, "one instant or several"),
        ({"at": [noon, noon]}, "each later than the one before"),
        ({"at": noon, "gap": "some"}, "gap: "),
        ({"at": noon, "by": "user"}, 'split by="time"'),
        ({"at": "2000-01-01"}, "part 0 of the split would have no labels"),
        ({"at": "2100-01-01"}, "part 1 of the split would have no labels"),
    ):
        with pytest.raises(RequestError, match=text):
            result.split(**wrong)


def test_a_file_appears_whole_and_its_manifest_last(growing, tmp_path, monkeypatch):
    result = asked(growing)
    out = tmp_path / "out.parquet"
    assert result.to_parquet(out) == tmp_path / "out.manifest.json"
    assert pl.read_parquet(out).equals(result.to_polars())
    was = out.read_bytes()

    with pytest.raises(RequestError, match=r"out\.parquet is there already"):
        result.to_parquet(out)
    smaller = asked(growing, LABELS[:5])
    monkeypatch.setattr(
        pl.DataFrame, "write_parquet", lambda *_given, **_more: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(StoreUnavailable, match="No space left"):
        smaller.to_parquet(out, overwrite=True)
    assert out.read_bytes() == was
    monkeypatch.undo()
    monkeypatch.setattr(
        "unskew.sinks.durable.replace", lambda *_given: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(StoreUnavailable, match="No space left"):
        smaller.to_parquet(out, overwrite=True)
    assert pl.read_parquet(out).height == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out.parquet"]
    monkeypatch.undo()
    smaller.to_parquet(out, overwrite=True)
    assert Manifest.read(tmp_path / "out.manifest.json") == smaller.manifest
    other = tmp_path / "out.pq"
    assert result.to_parquet(other) == tmp_path / "out.pq.manifest.json"
    assert Manifest.read(tmp_path / "out.manifest.json") == smaller.manifest
    # Without an ending it would have the same manifest.
    with pytest.raises(
        RequestError, match=r"its manifest would be out\.manifest\.json, as that of out\.parquet beside it"
    ):
        result.to_parquet(tmp_path / "out", overwrite=True)
    for wrong, text in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "out.parquet", "there is no folder"),
        ("s3://bucket/out.parquet", "it is an address"),
    ):
        with pytest.raises(RequestError, match=text):
            result.to_parquet(wrong)
    objects = asked(growing, LABELS.with_columns(bought=pl.Series([object()] * len(LABELS), dtype=pl.Object)))
    with pytest.raises(RequestError, match="'bought' holds Python objects"):
        objects.to_parquet(tmp_path / "objects.parquet")
    assert objects.manifest.labels.columns["bought"].checksum is None


def test_a_training_set_shows_its_counts_and_what_to_beware_of(growing):
    result = asked(growing, max_age="30min")
    text, page = repr(result), result._repr_html_()
    before = (LABELS["event_timestamp"].to_physical() < int(FIRST["_arrival"].to_physical()[0])) & LABELS[
        "user"
    ].is_not_null()
    share = f"{100 * before.sum() / len(LABELS):.2f} %"  # below 1 %

    assert text.startswith(
        "HistoricalFeatures: 407 labels x 5 features, from the log\nclicks@1: history from 2017-07-14T02:4"
    )
    assert f"warning: {share} of the labels lie before the view's history: their values are null" in text
    assert f"<li>{share} of the labels lie before the view&#x27;s history" in page
    for name in ("no_key", "before_log", "after_log", "warming", "expired", "default", "present", "clicks@1:ratio"):
        assert name in text
        assert name in page
    fine = asked(growing, LABELS.filter(pl.col("user") == "u1")[:1], ["clicks:count"])
    assert "0 %" in repr(fine)
    strangers = asked(growing, LABELS.with_columns(user=pl.lit("nobody")), ["clicks:mean"])
    assert any("check that their keys are those of the view" in one for one in strangers.warnings)
    assert "all values are null: mean" in strangers.warnings
    assert asked(growing, LABELS[:0]).warnings == []
    assert "0 labels" in repr(asked(growing, LABELS[:0]))
    assert asked(growing, LABELS[:0]).manifest.output.rows == 0


def test_progress_ends_at_all_rows(growing):
    seen: list[tuple[str, int, int]] = []
    asked(growing, progress=lambda *given: seen.append(given))

    n_rows = sum(map(len, rows_of(growing).values()))
    assert seen[-1] == ("clicks@1", n_rows, n_rows)
    assert asked(growing, progress=True).columns.height == len(LABELS)
    with pytest.raises(RequestError, match="progress is True, False or a function"):
        asked(growing, progress="yes")
