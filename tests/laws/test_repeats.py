"""Only the events decide which are repeats: not batches, marks, restarts, or leftovers of old events."""

from collections.abc import Iterable
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import laws
from tests.support.plans import Wanted, republished, sliding, view
from unskew.features.errors import LayoutError
from unskew.features.evaluate import evaluate
from unskew.features.kernel import repeats as module
from unskew.features.kernel.repeats import Repeats
from unskew.features.plan import ViewPlan
from unskew.features.text_buffers import Keys

LAWS = laws(max_examples=150)
WITHIN = 10
TEXT, NUMBER = pl.String(), pl.Int64()
Event = tuple[int, str, str | int | None]
Step = tuple[list[Event], int]
"""(arrival, entity, id) in order, and the clock after them."""


def plan(kind: pl.DataType = TEXT) -> ViewPlan:
    counted = view(Wanted("n", "count", sliding(5, 1)), columns={"id": kind})
    return replace(counted, stream=replace(counted.stream, event_id="id", dedupe_within_us=WITHIN))


@pytest.fixture(autouse=True, scope="module")
def _smallest_queue():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MIN_QUEUE", 1)
        yield


def naive(events: Iterable[Event]) -> list[int]:
    """The places of the events that count, by the words of the definition."""
    counted: dict[tuple[str, object], int] = {}
    places = []
    for place, (arrival, entity, name) in enumerate(events):
        if name is None:
            places.append(place)
        elif (entity, name) not in counted or arrival - counted[entity, name] > WITHIN:
            counted[entity, name] = arrival
            places.append(place)
    return places


def frame(planned: ViewPlan, events: list[Event], first: int) -> pl.DataFrame:
    kind = planned.stream.columns["id"]
    instants = pl.Series([arrival for arrival, _, _ in events], dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    decoded = pl.DataFrame(
        {
            "user": pl.Series([entity for _, entity, _ in events], dtype=pl.String),
            "id": pl.Series([name for _, _, name in events], dtype=kind),
            "_partition": pl.Series([0] * len(events), dtype=pl.Int32),
            "_offset": pl.Series(range(first, first + len(events)), dtype=pl.Int64),
            "_arrival": instants,
            "_event_time": instants,
        }
    )
    return evaluate(planned, decoded).events


def counted(planned: ViewPlan, steps: list[Step], restarts: set[int]) -> tuple[list[int], Repeats]:
    """The places of the events that count, restarted from bytes before some of the steps."""
    repeats = Repeats(planned, "h0")
    places: list[int] = []
    n_events = 0
    for number, (events, clock) in enumerate(steps):
        if number in restarts:
            data = repeats.to_bytes()
            repeats = Repeats.from_bytes(planned, "h0", data)
            assert repeats.to_bytes() == data
        kept = repeats.drop(frame(planned, events, n_events) if events else None, clock)
        places += [] if kept is None else kept["offset"].to_list()
        n_events += len(events)
    return places, repeats


@st.composite
def histories(draw: st.DrawFn, names: st.SearchStrategy) -> list[Event]:
    """Ids that come again within the time, at its very end, past it, and while others are forgotten."""
    arrival = draw(st.sampled_from([0, -WITHIN, 1_490_486_400_000_000]))
    events = []
    for _ in range(draw(st.integers(0, 40))):
        arrival += draw(st.sampled_from([0, 0, 0, 1, 2, WITHIN // 2, WITHIN - 1, WITHIN, WITHIN + 1, 3 * WITHIN]))
        events.append((arrival, draw(st.sampled_from(["a", "b", "ab", "é|"])), draw(names)))
    return events


@st.composite
def split(draw: st.DrawFn, events: list[Event]) -> list[Step]:
    """The same in steps, empty ones and marks between events among them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=8)))
    steps: list[Step] = []
    for first, past in zip([0, *cuts], [*cuts, len(events)], strict=True):
        lowest = max(events[past - 1][0] if past else -3 * WITHIN, steps[-1][1] if steps else -3 * WITHIN)
        highest = events[past][0] if past < len(events) else lowest + 2 * WITHIN
        steps.append((events[first:past], draw(st.sampled_from([lowest, highest, (lowest + highest) // 2]))))
    return steps


TEXTS = st.sampled_from(["", "a", "b", "ba", "x" * 40, None])
NUMBERS = st.sampled_from([0, 1, -1, 2**63 - 1, None])


@pytest.mark.parametrize(("kind", "names"), [(TEXT, TEXTS), (NUMBER, NUMBERS)], ids=["texts", "numbers"])
@LAWS
@given(st.data())
def test_the_events_that_count_are_those_of_the_recount_however_they_come(kind, names, data):
    events = data.draw(histories(names))
    steps = data.draw(split(events))
    restarts = data.draw(st.sets(st.integers(0, len(steps))))

    places, repeats = counted(plan(kind), steps, restarts)

    assert places == naive(events)
    assert repeats.dropped == len(events) - len(places)


@LAWS
@given(st.data())
def test_what_is_remembered_is_of_the_last_time_only_and_the_same_however_it_came(data):
    events = data.draw(histories(TEXTS))
    steps = data.draw(split(events))
    clock = steps[-1][1] + data.draw(st.sampled_from([0, 1, WITHIN // 2, WITHIN]))
    _, repeats = counted(plan(), [*steps, ([], clock)], set())
    _, whole = counted(plan(), [(events, clock)], set())
    recent = [
        events[place] for place in naive(events) if events[place][2] is not None and clock - events[place][0] <= WITHIN
    ]

    assert len(repeats) == len(recent)
    assert repeats.n_entities == len({entity for _, entity, _ in recent})
    assert repeats.to_bytes() == whole.to_bytes()


def test_a_repeat_does_not_make_the_time_longer():
    """
    0    6    10 11       17    21 22
    |----x----x| |--------x-----x| |
    """
    events = [(at, "a", "one") for at in (0, 6, 10, 11, 17, 21, 22)]

    assert counted(plan(), [(events, 22)], set())[0] == [0, 3, 6]


def test_an_id_is_one_only_with_its_entity_and_an_event_without_id_always_counts():
    events = [(0, "a", "bc"), (0, "ab", "c"), (0, "a", None), (0, "a", None), (0, "a", ""), (0, "a", "")]

    assert counted(plan(), [(events, 0)], set())[0] == [0, 1, 2, 3, 4]


def test_entities_and_ids_are_forgotten_when_the_clock_has_passed():
    planned = plan()
    repeats = Repeats(planned, "h0")
    for start in range(0, 400 * WITHIN, WITHIN):
        events = [(start + index // 100, f"user {start + index}", f"id {start + index}") for index in range(500)]
        repeats.drop(frame(planned, events, 0), start + 4)
        assert len(repeats) <= 2 * 500
        assert repeats.n_entities <= 2 * 500
    remembered = len(repeats._ids.arrays.pool), repeats._ids.capacity, len(repeats._queue.at), len(repeats._held)
    repeats.drop(None, start + 3 * WITHIN)

    assert (len(repeats), repeats.n_entities, len(repeats._ids)) == (0, 0, 0)
    # 200,000 ids have come: the arrays have room for those of a few steps.
    assert max(remembered) < 100_000
    assert repeats.entities.find(Keys.of(pl.Series([f"user {start}"]))).tolist() == [-1]


def test_damaged_bytes_and_those_of_another_shard_or_definition_are_refused():
    planned = plan()
    _, repeats = counted(planned, [([(0, "a", "one")], 0)], set())
    data = repeats.to_bytes()

    with pytest.raises(LayoutError, match="checksum does not match"):
        Repeats.from_bytes(planned, "h0", data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(LayoutError, match="not a state"):
        Repeats.from_bytes(planned, "h0", b"")
    with pytest.raises(LayoutError, match="in shard h0 with another definition"):
        Repeats.from_bytes(planned, "h1", data)
    with pytest.raises(LayoutError, match=r"another definition.*new version"):
        Repeats.from_bytes(republished(planned, state_fingerprint="1" * 64), "h0", data)
