"""Words of the hashes beside the values: they are read back as written, and reported if something else wrote them."""

import pytest

from unskew.features.errors import LayoutError
from unskew.features.ledger import NOTHING_LATE, Ledger
from unskew.sinks.redis.words import (
    NOWHERE,
    Clock,
    Clocks,
    Ledgers,
    Listing,
    Marks,
    Place,
    clock_words,
    ledger_words,
    mark_words,
)

H0, H1, H2 = (f"visits@1/h{number}" for number in range(3))


def clocks(words: dict[str, object], key: str = "clocks") -> Clocks:
    return Clocks((key, {field.encode(): str(word).encode() for field, word in words.items()}))


def test_clocks_read_back_as_they_were_written():
    words = clock_words({H0: Clock(7, 3), H1: Clock(8), H2: Clock(None)})

    assert words == {H0: 7, f"{H0}#since": 3, H1: 8, H2: "ended"}
    found = clocks(words)
    assert [(found.closed_us(shard), found.since_us(shard)) for shard in (H0, H1, H2)] == [
        (7, 3),
        (8, None),
        (None, None),
    ]
    assert [found.has_ended(shard) for shard in (H0, H1, H2)] == [False, False, True]
    assert [found.stands(shard) for shard in (H0, H2, "visits@1/h9")] == [True, True, False]


def test_marks_read_back_as_they_were_written_in_their_own_history_alone():
    words = mark_words("a:b", {H0: Place(7, 2), H1: Place(-1, 0)})

    assert words == {H0: "a:b:7:2", H1: "a:b:-1:0"}
    found = Marks(("marks", {**words, H2: "other:9:9", "#loss": "x"}))
    assert found.places("a:b") == {H0: (7, 2), H1: (-1, 0)}
    assert [found.place(shard, "a:b") for shard in (H2, "visits@1/h9")] == [NOWHERE, NOWHERE]
    # A reader asks how far anybody may have sent values.
    assert [found.sent_us(shard) for shard in (H0, H2, "visits@1/h9")] == [7, 9, None]
    assert found.loss == "x"


def test_ledgers_read_back_as_they_were_written():
    found = Ledgers(("ledgers", ledger_words({H0: Ledger(duplicates=3)})))

    assert (found.ledger(H0), found.ledger(H1)) == (Ledger(duplicates=3), NOTHING_LATE)


def test_a_views_shards_are_those_listed_else_those_of_which_a_word_stands():
    words = {"visits@1/p10.0": 1, "visits@1/p2.0#since": 1, "visits@11/h5": 1, "visits@1": 1}

    assert clocks(words).shards("visits@1") == ("p10.0", "p2.0")
    assert clocks({**words, "visits@1#shards": "p2.0 p0.0"}).shards("visits@1") == ("p2.0", "p0.0")
    assert not clocks(words).is_listed("visits@1")


@pytest.mark.parametrize(("stored", "lacks"), [
    ({H0: 7, f"{H0}#since": 3}, False),
    ({H0: 8, f"{H0}#since": 4}, False),
    ({H0: 6, f"{H0}#since": 3}, True),
    ({H0: 7, f"{H0}#since": 2}, True),
    ({H0: "ended", f"{H0}#since": 3}, True),
    ({H0: 7}, True),
    ({}, True),
])  # fmt: skip
def test_a_clock_lacks_where_it_is_missing_or_earlier(stored, lacks):
    assert clocks(stored).lacks(H0, Clock(7, 3)) is lacks


def test_that_a_shard_ended_lacks_only_where_nothing_is_said_of_it():
    assert clocks({}).lacks(H0, Clock(None))
    assert not clocks({H0: "ended"}).lacks(H0, Clock(None))
    assert not clocks({H0: 7}).lacks(H0, Clock(None))


def test_outdated_are_fields_of_shards_that_a_view_no_longer_has():
    listing = Listing({"visits@1": ["h0"]})

    assert listing.words == {"visits@1#shards": "h0"}
    words = {
        H0: 1,
        f"{H0}#since": 1,
        H1: 1,
        f"{H1}#since": 1,
        "visits@1#shards": "h0 h1",
        "stays@1/h1": 1,
        "foreign": 1,
    }
    assert clocks(words).outdated(listing) == [H1, f"{H1}#since"]
    marks = Marks(("marks", {H0: "s:1:1", H1: "s:1:1", "stays@1/h1": "s:1:1", "#loss": "x"}))
    assert marks.outdated(listing) == [H1, "#loss"]


def test_outdated_are_the_ends_of_own_shards_and_not_those_that_other_processes_keep():
    words = {H0: "ended", H1: "ended", H2: "ended", "stays@1/h0": "ended"}
    shards = {"visits@1": ["h0", "h1"]}

    assert set(clocks(words).outdated(Listing(shards))) == {H0, H1, H2}
    assert set(clocks(words).outdated(Listing(shards, own={H0}))) == {H0, H2}


@pytest.mark.parametrize("word", ["", "soon", "1.5", " 7", "1_000", "٣", "9" * 19, "7" * 40, b"\xff"])
def test_a_clock_that_is_none_is_named_with_its_key_and_the_others_are_read(word):
    damaged = word if isinstance(word, bytes) else word.encode()
    found = Clocks(("unskew:clock:main", {H0.encode(): damaged, f"{H1}#since".encode(): damaged, H2.encode(): b"7"}))

    with pytest.raises(LayoutError, match=r"'visits@1/h0' of 'unskew:clock:main'.*HDEL"):
        found.closed_us(H0)
    with pytest.raises(LayoutError, match=r"'visits@1/h1#since' of 'unskew:clock:main'"):
        found.since_us(H1)
    assert found.closed_us(H2) == 7


@pytest.mark.parametrize("word", ["", "soon", "s:7", "s::", "s:x:1", "s:1:x"])
def test_a_mark_that_is_none_is_named_with_its_key(word):
    with pytest.raises(LayoutError, match=r"'visits@1/h0' of 'unskew:sent:main'"):
        Marks(("unskew:sent:main", {H0: word})).sent_us(H0)


def test_a_mark_of_ones_own_history_that_is_damaged_holds_nothing_back_silently():
    with pytest.raises(LayoutError, match=r"'visits@1/h0' of 'marks'"):
        Marks(("marks", {H0: "s:7:x"})).places("s")


def test_of_several_pipelines_the_last_counts_and_the_one_that_is_wrong_is_named():
    found = Clocks(("one", {H0: "1", H1: "?"}), ("two", {H0: "2"}))

    assert found.closed_us(H0) == 2
    with pytest.raises(LayoutError, match="'visits@1/h1' of 'one'"):
        found.closed_us(H1)
