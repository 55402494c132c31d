"""Stopped or broken off after any item and resumed, a pipeline leaves what it leaves without interruption."""

import contextlib
import threading
from contextlib import closing
from dataclasses import replace

import polars as pl
import pytest

from tests.support.pipeline import Bench, Outcome, Record, bits, entities, expected_log, history, logged, plan
from tests.support.plans import republished
from unskew.features.errors import LayoutError, RequestError, Stopped, UnskewError
from unskew.features.plan import Plan
from unskew.monitoring.recount import Recount
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.serving.online import OnlineReader
from unskew.sinks.tables import layout

RECORDS = history(160, seed=11)
VIEWS = ["by_user", "by_item"]
# Every item is an epoch of its own.
EVERY_ITEM = {"epoch_s": 0.0, "poll_records": 6}


class BrokenOff(UnskewError):
    """Stands for whatever may end a process in the middle of its work."""


class After:
    """A stop flag that acts when it has been asked ``n`` times: ``stop`` as a signal would, or by an error."""

    def __init__(self, n: int, *, how: str) -> None:
        self._left = n
        self._how = how
        self.acted = False

    def is_set(self) -> bool:
        self._left -= 1
        if self._left >= 0:
            return False
        self.acted = True
        if self._how == "abort":
            raise BrokenOff
        return True


def _interrupted(definitions: Plan, deployment: Deployment, n: int, how: str) -> bool:
    """Run until the flag acts, then to the end; whether it acted before the end."""
    flag = After(n, how=how)
    try:
        run(definitions, deployment, stop=flag)
    except BrokenOff:
        assert how == "abort"
    except Stopped:
        # The order came while the run was still starting.
        assert how == "stop"
    run(definitions, deployment, stop=threading.Event())
    return flag.acted


def _of(partition: int) -> list[Record]:
    return [record for record in RECORDS if record.partition == partition]


def _same(one: Outcome, other: Outcome) -> None:
    for view in VIEWS:
        assert one.log(view).equals(other.log(view))
        assert one.complete_to(view) == other.complete_to(view)
    assert one.archive().equals(other.archive())
    assert one.dead_letters().equals(other.dead_letters())


@pytest.mark.parametrize("how", ["stop", "abort"])
def test_interrupted_at_every_epoch_and_resumed_the_outcome_is_the_same(bench: Bench, how: str) -> None:
    topic = bench.produce(RECORDS)
    reference = bench.run(topic, **EVERY_ITEM)
    definitions = plan(topic)
    acted = 0
    for n in range(1, 90, 8 if how == "stop" else 6):
        outcome = Outcome(definitions, bench.deployment(**EVERY_ITEM))
        acted += _interrupted(definitions, outcome.deployment, n, how)

        _same(outcome, reference)
        assert outcome.staged() == []
    assert acted > 5


def test_broken_off_many_times_in_a_row_the_outcome_is_the_same(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    reference = bench.run(topic, **EVERY_ITEM)
    outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
    broken = 0
    for attempt in range(20):
        try:
            run(outcome.plan, outcome.deployment, stop=After(9 + 2 * attempt, how="abort"))
        except BrokenOff:
            broken += 1
            continue
        break
    # However far that came: how fast records are fetched is not for a test to say.
    run(outcome.plan, outcome.deployment, stop=threading.Event())
    assert broken > 2

    _same(outcome, reference)


def test_readers_see_only_what_is_durable_and_nothing_is_withdrawn(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
    seen: set = set()
    for n in (20, 31, 12, 25, 400):
        with contextlib.suppress(BrokenOff):
            run(outcome.plan, outcome.deployment, stop=After(n, how="abort"))
        now = {
            (view, row)
            for view in VIEWS
            if list((outcome.deployment.log / view).glob("v1/day=*/*.parquet"))
            for row in outcome.log(view).iter_rows()
        }
        assert seen <= now
        seen = now
    assert seen


def test_what_is_served_after_a_stop_is_exact_where_it_says_so(bench: Bench) -> None:
    """Records that share an instant are cut apart by the polls, and ordered shards hold some back."""
    topic = bench.produce(RECORDS)
    n_exact = dict.fromkeys(VIEWS, 0)
    # The progress of a run before it is asked to stop depends on the speed of fetches: some stops are near the middle.
    for n in range(32, 152, 12):
        outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
        run(outcome.plan, outcome.deployment, stop=After(n, how="stop"))
        if not any(outcome.deployment.archive.glob("*/day=*/*.parquet")):
            continue
        events = outcome.archive()
        for name in VIEWS:
            n_exact[name] += _exact_and_right(bench, outcome, name, events)
    assert min(n_exact.values()) > 0


def _exact_and_right(bench: Bench, outcome: Outcome, name: str, events: pl.DataFrame) -> int:
    """How many entities are served as exact; their values must be the recount's."""
    view = outcome.plan.views[name]
    features = [feature.name for feature in view.features]
    keys = entities(view, events)
    with closing(OnlineReader(bench.redis_url, prefix=outcome.deployment.prefix)) as reader:
        asked = pl.DataFrame(keys, schema=list(view.entity.keys), orient="row")
        found = reader.read([f"{name}:{feature}" for feature in features], asked)
    served, meta = found.to_polars(), found.metadata[name]
    recount = Recount(view, events)
    exact = [row for row, provisional in enumerate(meta["provisional"]) if not provisional]
    for row in exact:
        as_of = meta["as_of"].dt.epoch("us")[row]
        assert bits(served[feature][row] for feature in features) == bits(recount.values(keys[row], as_of).values())
    return len(exact)


def test_a_topic_that_grows_after_its_end_goes_on_where_it_ended(bench: Bench) -> None:
    """Partitions end at uneven instants; what comes later is counted from the clock that the shards have reached."""
    topic = bench.produce(RECORDS)
    counts = {partition: sum(record.partition == partition for record in RECORDS) for partition in range(4)}
    ends = {topic: {partition: count if partition % 2 else count // 3 for partition, count in counts.items()}}
    outcome = Outcome(plan(topic), bench.deployment(ends=ends))
    first = run(outcome.plan, outcome.deployment, stop=threading.Event())

    second = run(outcome.plan, replace(outcome.deployment, ends="now"), stop=threading.Event())

    assert first.consumed + second.consumed == len(RECORDS)
    ended_us = max(record.stamp_ms for record in RECORDS if record.partition % 2) * 1000
    late = [
        one
        for partition in (0, 2)
        for one in _of(partition)[counts[partition] // 3 :]
        if one.stamp_ms * 1000 < ended_us
    ]
    assert second.bumped == len(late) > 0
    view = outcome.plan.views["by_item"]
    events = outcome.archive()
    complete_to = dict.fromkeys(entities(view, events), min(outcome.complete_to("by_item").values()))
    assert logged(view, outcome.log("by_item")) == expected_log(view, events, complete_to)


def test_a_changed_definition_is_refused_with_a_layout_error(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    outcome = bench.run(topic)
    view = outcome.plan.views["by_user"]
    changed = republished(view, state_fingerprint="0" * 64)
    definitions = replace(outcome.plan, views={**outcome.plan.views, "by_user": changed})

    with pytest.raises(LayoutError, match=r"by_user@1.*another definition.*new version"):
        run(definitions, outcome.deployment, stop=threading.Event())


def test_a_view_added_later_starts_with_its_own_coverage_and_the_others_go_on(bench: Bench) -> None:
    # Between two instants: what came at the very instant of the end would be counted past it.
    n = next(n for n in range(100, len(RECORDS)) if RECORDS[n - 1].stamp_ms < RECORDS[n].stamp_ms)
    topic = bench.produce(RECORDS[:n])
    both = plan(topic)
    both = replace(both, views={**both.views, "by_item": replace(both.views["by_item"], history="none")})
    one = replace(both, views={"by_user": both.views["by_user"]})
    outcome = Outcome(both, bench.deployment())
    run(one, outcome.deployment, stop=threading.Event())
    bench.append(topic, RECORDS[n:])

    run(both, outcome.deployment, stop=threading.Event())

    assert outcome.log("by_user").equals(bench.run(topic).log("by_user"))
    since = layout.read_coverage(outcome.deployment.log / "by_item" / "v1")
    assert since is not None
    assert since.since_us is not None
    assert since.since_us >= RECORDS[n - 10].stamp_ms * 1000


def test_a_view_left_out_for_a_while_does_not_come_back_as_if_nothing_had_happened(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:60])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    run(both, outcome.deployment, stop=threading.Event())
    without = replace(both, views={"by_user": both.views["by_user"]})
    run(without, replace(outcome.deployment, drop=["by_item"]), stop=threading.Event())

    with pytest.raises(LayoutError, match=r"by_item@1: left out of an earlier run.*new version"):
        run(both, outcome.deployment, stop=threading.Event())


def test_end_offsets_that_leave_out_a_partition_are_refused(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:20])

    with pytest.raises(RequestError, match="no end offset for partition 1, 3"):
        bench.run(topic, ends={topic: {0: 3, 2: 3}})


def test_a_first_record_from_the_future_is_a_dead_letter_and_the_flow_goes_on(bench: Bench) -> None:
    future = replace(RECORDS[0], stamp_ms=4_000_000_000_000)
    reference = bench.run(bench.produce(RECORDS))

    outcome = bench.run(bench.produce([future, *RECORDS]))

    letters = outcome.dead_letters()
    assert letters.filter(pl.col("reason").str.contains("past the present")).rows() != []
    for view in VIEWS:
        assert outcome.values(view).equals(reference.values(view))


def test_a_damaged_deployment_file_is_a_layout_error(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:20])
    outcome = bench.run(topic)
    (outcome.deployment.state / "deployment.json").write_text('{"layout"')

    with pytest.raises(LayoutError, match=r"deployment\.json is damaged"):
        run(outcome.plan, outcome.deployment, stop=threading.Event())


def test_another_number_of_shards_or_a_lost_state_is_refused(bench: Bench, tmp_path) -> None:
    topic = bench.produce(RECORDS[:40])
    outcome = bench.run(topic)

    with pytest.raises(LayoutError, match="1 shards"):
        run(outcome.plan, replace(outcome.deployment, n_hashes=3), stop=threading.Event())
    with pytest.raises(LayoutError, match="published by an earlier run"):
        run(
            outcome.plan,
            replace(outcome.deployment, state=tmp_path / "elsewhere", prefix="elsewhere"),
            stop=threading.Event(),
        )


def test_an_entity_in_a_second_partition_stops_the_flow(bench: Bench) -> None:
    moved = [replace(record, partition=(record.partition + index // 100) % 4) for index, record in enumerate(RECORDS)]
    topic = bench.produce(moved)

    with pytest.raises(LayoutError, match=r"entity user%20\d%25 came in partition \d.*partitioned_by user"):
        bench.run(topic)


def test_a_rows_seq_counts_its_shard_without_gaps(bench: Bench) -> None:
    outcome = bench.run(bench.produce(RECORDS), n_hashes=2)
    for view in VIEWS:
        for (_shard,), rows in outcome.log(view).group_by("shard"):
            assert rows.sort("seq")["seq"].to_list() == list(range(len(rows)))
            keys = rows.sort("seq").select("available_at", pl.first().cast(pl.String))
            assert keys.rows() == sorted(keys.rows())
