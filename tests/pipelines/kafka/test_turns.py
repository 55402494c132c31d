"""The flow's thread rests once no partition has anything, until one of them needs its turn or a record comes."""

import pytest

from unskew.pipelines.kafka.turns import LONGEST_QUIET_S, LONGEST_S, QUIET_SHARE, SHORTEST_S, Turns


def begun(*partitions, **options):
    turns = Turns(**options)
    for partition in partitions:
        turns.begin(partition)
    return turns


class Topic:
    def __init__(self) -> None:
        self.awaited: list[float] = []

    def await_records(self, timeout_s: float) -> None:
        self.awaited.append(timeout_s)


def test_a_round_without_items_ends_in_a_rest_until_the_first_partition_needs_its_turn():
    turns, topic = begun("p0", "p1", "p2"), Topic()

    for _ in range(3):
        turns.taken("p0", topic, gave=False, wait_s=0.015)
        turns.taken("p1", topic, gave=False, wait_s=0.005)
        turns.taken("p2", topic, gave=False, wait_s=10.0)

    assert topic.awaited == [0.005, 0.005]


def test_no_rest_is_longer_than_the_longest_or_shorter_than_the_shortest():
    slept: list[float] = []
    turns, topic = begun("p0", rest=slept.append), Topic()

    for wait_s in (10.0, float("-inf"), 10.0):
        turns.taken("p0", topic, gave=False, wait_s=wait_s)

    assert topic.awaited == [LONGEST_S]
    assert slept == [SHORTEST_S]


def test_there_is_no_rest_after_an_item():
    turns, topic = begun("p0", "p1"), Topic()

    for gave in (True, True, True):
        turns.taken("p0", topic, gave=gave, wait_s=0.01)
        turns.taken("p1", topic, gave=False, wait_s=0.01)

    assert topic.awaited == []


def test_the_last_partition_rests_so_that_all_begin_together_after_it():
    turns, rested = begun("p0", "p1", "p2"), []
    turns.before_rest = lambda: bool(rested.append(asked))

    turns.marked("p1")
    for asked in ("p2", "p0", "p1", "p2", "p0", "p1", "p2"):
        turns.taken(asked, Topic(), gave=False)

    assert rested == ["p2", "p2"]


def test_items_without_records_begin_no_round_unless_a_partition_gives_a_second_one():
    turns, topic = begun("p0", "p1"), Topic()
    rounds = []

    for partition in ("p0", "p1", "p0", "p1"):
        turns.marked(partition)
        rounds.append(turns.round)
    turns.taken("p0", topic, gave=False)
    turns.taken("p1", topic, gave=False)

    assert rounds == [0, 0, 1, 1]
    assert topic.awaited == []


def test_two_topics_are_looked_at_every_millisecond():
    slept: list[float] = []
    topics = Topic(), Topic()
    turns = begun(*topics, rest=slept.append)

    for _ in range(3):
        for topic in topics:
            turns.taken(topic, topic, gave=False, wait_s=0.01)

    assert slept == [SHORTEST_S, SHORTEST_S]
    assert not any(topic.awaited for topic in topics)


def test_what_waits_for_more_is_told_of_each_rest():
    turns, topic = begun("p0"), Topic()
    rests: list[int] = []
    turns.before_rest = lambda: bool(rests.append(turns.round))

    for _ in range(3):
        turns.taken("p0", topic, gave=False, wait_s=0.01)

    assert rests == [1, 2]


def test_a_rest_is_short_while_something_is_on_its_way():
    slept: list[float] = []
    turns, topic = begun("p0", rest=slept.append), Topic()
    turns.before_rest = lambda: True

    for _ in range(2):
        turns.taken("p0", topic, gave=False, wait_s=10.0)

    assert (slept, topic.awaited) == ([SHORTEST_S], [])


def test_a_partition_that_begins_a_turn_takes_turns_until_it_leaves():
    turns = Turns()
    begun: list[bool] = []
    turns.before_turn = lambda: begun.append(turns.come)

    assert not turns.come
    turns.begin("p0")
    turns.begin("p1")
    turns.left("p0")
    assert turns.come
    turns.left("p1")
    turns.left("p2")
    assert not turns.come
    assert begun == [True, True]


class Processor:
    """The processor time of the flow's thread, as rounds take it."""

    def __init__(self, n_partitions: int) -> None:
        self.now_s = 5.0
        self.turns, self.topic = Turns(rest=lambda _: None, processor_s=lambda: self.now_s), Topic()
        self.names = [f"p{number}" for number in range(n_partitions)]
        for name in self.names:
            self.turns.begin(name)
        self.rest()

    def rest(self) -> None:
        for _ in range(2):
            for name in self.names:
                self.turns.taken(name, self.topic, gave=False)

    def round(self, each_s: float, n_marks: int, *, gave: bool = False) -> None:
        """Let the first partitions give items without records, which take so long, and then rest."""
        for name in self.names[:n_marks]:
            self.turns.marked(name)
            self.now_s += each_s
        if gave:
            self.turns.taken(self.names[0], self.topic, gave=True)
        self.rest()
        # What a rest takes is not counted.
        self.now_s += 1.0
        self.rest()


@pytest.mark.parametrize(
    ("n_partitions", "each_s", "at_least_s"), [(1, 9e-5, 0.0045), (100, 9e-5, 0.45), (400, 9e-5, 0.8)]
)
def test_items_of_quiet_partitions_take_a_bounded_share_of_the_processor(n_partitions, each_s, at_least_s):
    processor = Processor(n_partitions)

    for _ in range(5):
        assert processor.turns.quiet_s == 0.0
        processor.round(each_s, n_partitions)

    assert at_least_s <= processor.turns.quiet_s <= at_least_s + 0.1
    assert processor.turns.quiet_s <= LONGEST_QUIET_S
    if processor.turns.quiet_s < LONGEST_QUIET_S:
        assert n_partitions * each_s / processor.turns.quiet_s <= QUIET_SHARE


def test_what_only_some_rounds_take_says_nothing_of_quiet_partitions():
    processor = Processor(10)
    for each_s in (0.5, 0.1, 9e-4, 9e-4, 9e-4):
        processor.round(each_s, 10)
    assert processor.turns.quiet_s == pytest.approx(0.5)

    # An epoch's end, records, and a few partitions whose last instant is open.
    processor.round(0.2, 10)
    for _ in range(9):
        processor.round(0.2, 10, gave=True)
        processor.round(0.2, 4)

    assert processor.turns.quiet_s == pytest.approx(0.5)


def test_quiet_partitions_that_cost_less_again_give_items_more_often():
    processor = Processor(10)
    for _ in range(5):
        processor.round(9e-4, 10)
    assert processor.turns.quiet_s == pytest.approx(0.5)

    for _ in range(3):
        processor.round(9e-5, 10)

    assert processor.turns.quiet_s == pytest.approx(0.1)
