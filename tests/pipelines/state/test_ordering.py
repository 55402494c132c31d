"""What a shard rests on when it begins, and when it begins again: not on which partition happened to be read first."""

import itertools
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis.strategies import data, integers, lists, sampled_from
from polars.testing import assert_frame_equal

from tests.support.plans import SECOND, Wanted, events, republished, session, sessions, sliding, view
from unskew.features.errors import LayoutError
from unskew.features.evaluate import evaluate
from unskew.features.events import Events
from unskew.features.shard_state import ShardState
from unskew.features.updates import Updates
from unskew.pipelines.state.changelog import Changelog, Changelogs
from unskew.pipelines.state.ordering import Shard, Siblings, Slice

VIEW = view(Wanted("n", "count", sliding(6 * SECOND, 2 * SECOND)))
N = 3


@pytest.fixture
def shard(tmp_path):
    logs = Changelogs(tmp_path / "changelog")
    yield lambda: Shard(ShardState(VIEW, "h0"), Siblings(), Changelog(logs, VIEW, "h0", None))
    logs.close()


def restarted(shard, folder):
    """The shard as the next process takes it up."""
    logs = Changelogs(folder / "changelog")
    return Shard.from_snapshot(VIEW, Siblings(), logs, shard.to_snapshot())


def piece(partition, clock_us, *arrivals, **more):
    of_view = None
    if arrivals:
        rows = [(arrival, arrival, {"user": "u"}) for arrival in arrivals]
        of_view = Events(evaluate(VIEW, events(rows, partition=partition)).events)
    first_us = arrivals[0] if arrivals else None
    return Slice(VIEW.id, "h0", partition, N, clock_us, first_us, more.pop("ended", False), of_view, **more)


def test_a_slice_goes_to_another_process_without_the_arrays_of_its_events():
    one = piece(1, 5 * SECOND, 2 * SECOND, 4 * SECOND, replaying=True)
    before = pickle.dumps(one)
    assert one.events.words.numbers["arrival"].tolist() == [2 * SECOND, 4 * SECOND]

    sent = pickle.dumps(one)
    arrived = pickle.loads(sent)

    assert sent == before
    assert_frame_equal(arrived.events.frame, one.events.frame)
    assert msgspec.structs.replace(arrived, events=one.events) == one


def steps(shard, *pieces):
    return [update for one in pieces if isinstance(update := shard.take(one), Updates)]


def orders(*by_partition):
    """Every order in which the partitions' slices can come, each partition's own in its order."""
    numbers = [number for number, pieces in enumerate(by_partition) for _ in pieces]
    for order in sorted(set(itertools.permutations(numbers))):
        turns = [iter(pieces) for pieces in by_partition]
        yield [next(turns[number]) for number in order]


def test_coverage_begins_at_the_same_instant_whichever_partition_is_read_first(tmp_path):
    found = set()
    for number, order in enumerate(
        orders(
            [piece(0, 100), piece(0, 160, 150)],
            [piece(1, 180, 180)],
            [piece(2, 120), piece(2, 200)],
        )
    ):
        logs = Changelogs(tmp_path / str(number))
        made = Shard(ShardState(VIEW, "h0"), Siblings(), Changelog(logs, VIEW, "h0", None))
        found |= {step.since_us for step in steps(made, *order)}
        logs.close()

    assert found == {101}


@pytest.mark.parametrize(
    ("pieces", "since_us", "begins_us"),
    [
        ([[piece(0, 100, resumed=True)], [piece(1, 180, resumed=True)], [piece(2, 120, resumed=True)]], 181, 100),
        # Partitions that the topic got since, or that had no record: they hide nothing, however early they begin.
        ([[piece(0, 100, resumed=True)], [piece(1, 180, resumed=True)], [piece(2, 90, 80)]], 181, 80),
        ([[piece(0, 100, resumed=True)], [piece(1, 181)], [piece(2, 181)]], 101, 100),
        # It has ended, as the shorter part of a replay.
        ([[piece(0, 300, resumed=True, ended=True)], [piece(1, 180, resumed=True)], [piece(2, 120)]], 301, 121),
    ],
    ids=["all resumed", "new with records", "new with marks", "ended"],
)
def test_a_view_that_is_new_in_an_old_topic_begins_after_the_partition_that_was_furthest(
    tmp_path, pieces, since_us, begins_us
):
    """However the slices are ordered, and if the process is killed after any of them."""
    for number, order in enumerate(orders(*pieces)):
        for n_before in range(len(order)):
            folder = tmp_path / f"{number}-{n_before}"
            logs = Changelogs(folder / "changelog")
            made = Shard(ShardState(VIEW, "h0"), Siblings(), Changelog(logs, VIEW, "h0", None))
            assert steps(made, *order[:n_before]) == []
            made = restarted(made, folder)
            # The partitions have gone on meanwhile.
            again = [
                msgspec.structs.replace(one, clock_us=one.clock_us + 7, first_us=None, events=None)
                for one in order[:n_before]
            ]
            (step,) = steps(made, *again, *order[n_before:])
            assert (step.since_us, step.begins_us) == (since_us, begins_us)


def test_a_shard_is_behind_until_every_partition_has_given_again_what_was_shown(shard):
    again = [
        piece(0, 100),
        piece(1, 100, replaying=True),
        piece(2, 100, replaying=True),
        piece(1, 150),
        piece(2, 160, 155, replaying=True),
        piece(2, 170),
        piece(2, 180, replaying=False),
    ]

    assert [step.behind for step in steps(shard(), *again)] == [True, True, True, False, False]


def test_a_partition_that_had_ended_and_goes_on_holds_the_others_back_from_the_beginning(shard, tmp_path):
    before = shard()
    steps(before, piece(0, 100, 90, ended=True), piece(1, 200, 200, ended=True), piece(2, 150, 150, ended=True))
    after = restarted(before, tmp_path)

    # Partition 0 is live and far ahead before the others have given anything.
    clocks = [
        step.clock_us
        for step in steps(
            after,
            piece(0, 900),
            piece(1, 201),
            piece(1, 300, 250),
            piece(2, 201, ended=True),
            piece(0, 950),
            piece(1, 960),
        )
    ]

    assert clocks == [200, 200, 200, 300, 300, 950]


def by_entity(kind):
    """A view of a topic that is partitioned by the entity."""
    if kind == "events":
        return republished(VIEW, partitioned=True)
    inner = republished(
        sessions(6 * SECOND, 2 * SECOND, Wanted("n", "count", session(6 * SECOND, 2 * SECOND))), partitioned=True
    )
    return republished(view(Wanted("n", "count", sliding(6 * SECOND, 2 * SECOND)), sessions=inner), partitioned=True)


@pytest.fixture
def partition_of(tmp_path):
    """Makes the step of a partition's shard, with an event of a user at an instant."""
    logs, siblings, made = Changelogs(tmp_path / "changelog"), Siblings(), {}

    def take(of_view, partition, user, at_us):
        name = f"p{partition}.0"
        if name not in made:
            made[name] = Shard(ShardState(of_view, name), siblings, Changelog(logs, of_view, name, None))
        found = evaluate(of_view, events([(at_us, at_us, {"user": user})], partition=partition)).events
        return made[name].take(Slice(of_view.id, name, partition, N, at_us, at_us, ended=False, events=Events(found)))

    yield take
    logs.close()


@pytest.mark.parametrize("kind", ["events", "sessions"])
def test_an_entity_does_not_come_in_a_second_partition(partition_of, kind):
    of_view = by_entity(kind)
    partition_of(of_view, 0, "u", SECOND)
    partition_of(of_view, 1, "v", SECOND)
    partition_of(of_view, 0, "u", 2 * SECOND)

    with pytest.raises(LayoutError, match=r"entity u came in partition 1 \(p1\.0\) and before that in p0\.0"):
        partition_of(of_view, 1, "u", 2 * SECOND)


@pytest.mark.parametrize("kind", ["events", "sessions"])
def test_an_entity_that_one_partition_has_forgotten_may_come_in_another(partition_of, kind):
    of_view = by_entity(kind)
    partition_of(of_view, 0, "u", SECOND)
    partition_of(of_view, 0, "v", 100 * SECOND)
    partition_of(of_view, 1, "u", 100 * SECOND)

    for at_us in (101 * SECOND, 102 * SECOND):
        partition_of(of_view, 0, "v", at_us)
        partition_of(of_view, 1, "u", at_us)


def last_of_each_key(found):
    return pl.concat([step.current for step in found]).unique("key", keep="last").sort("key")


@given(data())
def test_slices_that_come_together_give_what_they_give_one_after_the_other(drawn):
    """Partitions end and go on, marks come between events, and slices come together as it happens."""
    clocks, slices, n_records, ended = [0] * N, [], [0] * N, [False] * N
    for _ in range(drawn.draw(integers(1, 30))):
        partition = drawn.draw(integers(0, N - 1))
        if ended[partition]:
            # One that goes on begins after the others, which did not wait for it.
            clocks[partition] = max(clocks) + 1
        arrivals = sorted(drawn.draw(lists(integers(clocks[partition], clocks[partition] + 3 * SECOND), max_size=4)))
        clocks[partition] = max([clocks[partition], *arrivals]) + drawn.draw(integers(0, SECOND))
        of_view = None
        if arrivals:
            rows = [(arrival, arrival, {"user": drawn.draw(sampled_from("uvw"))}) for arrival in arrivals]
            frame = events(rows, partition=partition).with_columns(pl.col("_offset") + n_records[partition])
            of_view = Events(evaluate(VIEW, frame).events)
            n_records[partition] += len(arrivals)
        first_us = arrivals[0] if arrivals else None
        ended[partition] = drawn.draw(integers(0, 9)) == 0
        slices.append(Slice(VIEW.id, "h0", partition, N, clocks[partition], first_us, ended[partition], of_view))
    with TemporaryDirectory() as folder:
        made = {}
        for way in ("alone", "together"):
            logs = Changelogs(Path(folder) / way)
            made[way] = Shard(ShardState(VIEW, "h0"), Siblings(), Changelog(logs, VIEW, "h0", None))
        alone = steps(made["alone"], *slices)
        together, rest = [], slices
        while rest:
            n_taken = drawn.draw(integers(1, len(rest)))
            found = made["together"].take_all(rest[:n_taken])
            together += [update for update in found if isinstance(update, Updates)]
            rest = rest[n_taken:]

        assert len(together) <= len(alone)
        assert bool(together) == bool(alone)
        if alone:
            assert_frame_equal(
                pl.concat([step.closed for step in together]), pl.concat([step.closed for step in alone])
            )
            assert_frame_equal(last_of_each_key(together), last_of_each_key(alone))
            for word in ("clock_us", "since_us", "begins_us", "late_by_us", "late_histogram", "applied", "behind"):
                assert getattr(together[-1], word) == getattr(alone[-1], word)
        assert made["together"].state.to_bytes() == made["alone"].state.to_bytes()
        snapshots = [made[way].to_snapshot() for way in ("together", "alone")]
        for word in ("waiting", "clocks", "ended", "begins"):
            assert snapshots[0][word] == snapshots[1][word]
