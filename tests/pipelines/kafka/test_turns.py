"""The flow's thread rests once no partition has anything, until one of them needs its turn or a record comes."""

from unskew.pipelines.kafka.turns import LONGEST_S, SHORTEST_S, Turns


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
