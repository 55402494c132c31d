"""Rows that are there for a feature alone are those that a replay without the feature does not have."""

import random
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fed import bits
from tests.support.histories import N_PACKS, histories, laws, pack
from tests.support.plans import DAY, MINUTE, Wanted, WantedOfOthers, events, republished, sliding, view
from tests.support.written import write_archive, write_log
from unskew.features.definitions.without import with_derived, without
from unskew.monitoring.value.rows import LogRows, log_rows
from unskew.offline import log_reader
from unskew.offline.log_reader import RebuiltLog, ViewLog
from unskew.pipelines.history.archive import Archive, Reached
from unskew.pipelines.history.rebuild import Rebuilt, rebuild

PAIR = view(
    Wanted("short", "count", sliding(5 * MINUTE, MINUTE)),
    Wanted("long", "sum", sliding(2 * DAY, DAY // 4), "x"),
    Wanted("noted", "last", sliding(2 * DAY, DAY // 4), "x", filter="n > 0"),
    derived=(WantedOfOthers("ratio", "long / short"), WantedOfOthers("twice", "2 * short")),
    shared=True,
)


def of(rebuilt: Rebuilt) -> LogRows:
    return log_rows(
        RebuiltLog(
            view=rebuilt.view.published,
            title="",
            rows=rebuilt.rows,
            since_us=rebuilt.since_us,
            first_since_us=rebuilt.first_since_us,
            complete_to_us=rebuilt.complete_to_us,
        ),
        n_requests=3,
    )


@pytest.mark.parametrize("named", ["few tiles", "closed", "berlin day", "lifetime", "session"])
@laws(max_examples=1)
@given(st.data())
def test_a_replay_without_the_feature_has_so_many_rows_less(named: str, data: st.DataObject) -> None:
    draw = data.draw(st.randoms(use_true_random=False))
    plan = republished(pack(named, draw.randrange(N_PACKS)), topic="stream")
    history = data.draw(histories(plan.windows[0]))
    some = draw.sample(plan.outputs, 4)
    lesser = [
        republished(left, name=f"without_{number}")
        for number, feature in enumerate(some)
        if (left := without(plan, [feature.name])) is not None
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_archive(Path(folder), plan, history.events, history.clock_us)
        end = {partition: Reached(offset=history.events.height, clock_us=history.clock_us) for partition in range(2)}

        found = rebuild([plan, *lesser], Archive.open(Path(folder), plan.stream), end=end, n_partitions=2)

        rows = of(found[plan.id])
        assert rows.n_rows == found[plan.id].rows.height
        for feature, left in zip(some, lesser, strict=True):
            fewer = rows.n_rows - found[left.id].rows.height
            assert rows.alone([feature.name]) == fewer, feature.name


def pairs_history() -> pl.DataFrame:
    """Five users for twelve days: bursts of events a minute apart, of which some pass no filter."""
    draw = random.Random(1)
    rows, now = [], 1_490_400_000_000_000
    for _ in range(400):
        now += draw.choice([MINUTE // 3, MINUTE // 3, 2 * MINUTE, DAY // 10])
        rows.append(
            (now, now, {"user": f"u{draw.randrange(5)}", "x": draw.choice([0.0, 1.0, 2.5]), "n": draw.randrange(2)})
        )
    return events(rows)


def test_pieces_of_a_log_give_what_the_whole_gives_and_derived_features_go_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = pairs_history()
    clock_us = int(history["_arrival"].to_physical()[-1]) + 3 * DAY
    plan = republished(PAIR, topic="stream")
    write_log(tmp_path / "log", plan, history, clock_us, n_shards=3, n_batches=12)
    logged = ViewLog(tmp_path / "log", plan.published)
    whole = log_rows(logged, 50)
    monkeypatch.setattr(log_reader, "_MEMORY_BYTES", 1_000)
    n_pieces = sum(1 for _ in logged.newest_first(["available_at"]))

    pieces = log_rows(logged, 50)

    assert n_pieces > 20
    assert (pieces.changed, pieces.n_rows, pieces.n_entities) == (whole.changed, whole.n_rows, whole.n_entities)
    assert pieces.requests.equals(whole.requests)
    assert pieces.sizes == whole.sizes
    # Counted once more, plainly.
    alone = dict.fromkeys(["short", "long", "noted"], 0)
    rows = pl.read_parquet(tmp_path / "log" / "**" / "*.parquet", hive_partitioning=False)
    for _, mine in rows.sort("available_at").group_by("user"):
        before = {"short": 0, "long": 0.0, "noted": None}
        for row in mine.select(*before).iter_rows(named=True):
            unlike = [name for name in before if bits({"": row[name]}) != bits({"": before[name]})]
            before = row
            if len(unlike) == 1:
                alone[unlike[0]] += 1
    assert {name: whole.alone(with_derived(plan.published, name)) for name in alone} == alone
    assert all(alone[name] for name in ("short", "long"))
    assert with_derived(plan.published, "short") == {"short", "ratio", "twice"}
    assert whole.alone(["ratio", "twice"]) == 0
    assert whole.alone(["short", "long", "noted"]) == whole.n_rows == rows.height
    assert whole.n_entities == 5
    # Requests are rows of events, each once.
    caused = rows.filter(pl.col("cause") == "event").select("user", event_timestamp="available_at")
    assert whole.requests.height == 50 == whole.requests.unique().height
    assert whole.requests.join(caused, on=["user", "event_timestamp"], how="anti").is_empty()
