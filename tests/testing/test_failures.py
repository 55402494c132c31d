"""``assert_features``: what passes, and the whole text of a failure."""

import datetime as dt
from typing import Any

import pytest

from tests.testing.test_values import COUNT, SCHEMA, STREAM, at, view
from unskew import (
    Calendar,
    Derived,
    Feature,
    Lifetime,
    OnDemand,
    RequestError,
    Sessions,
    Sliding,
    Stream,
    Tumbling,
    agg,
)
from unskew.testing import assert_features

EVENTS = [
    {"user": "a", "shop": 1, "amount": 2.0, "at": at(0)},
    {"user": "a", "shop": 2, "amount": 3.0, "at": at(1), "came": at(4)},
    {"user": "a", "shop": 3, "kind": "return", "at": at(3)},
    {"user": "a", "shop": 4, "at": at(9), "came": at(60)},
    {"user": "a", "shop": 5, "at": at(-30)},
    {"user": "b", "shop": 6, "amount": 0.1, "at": at(5)},
]
SPENDING = view(
    COUNT,
    Feature("spent", agg.sum("amount"), Sliding("10s", hop="2s")),
    Feature("returns", agg.count(), Tumbling("10s"), filter="kind = 'return'"),
    Feature("shops", agg.last_n("shop", 2), Sliding("10s", hop="2s")),
    Feature("by_kind", agg.count(by="kind", keys=2), Sliding("10s", hop="2s")),
    Feature("mean", agg.mean("amount"), Calendar("day"), default=0.0),
    Feature("latest", agg.last_time(), Lifetime()),
)


def failing(*arguments: Any, **named: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        assert_features(*arguments, **named)
    return str(raised.value)


def test_what_is_equal_passes_and_features_that_are_not_named_may_be_anything():
    assert_features(SPENDING, EVENTS, {at(5): {"a": {"n": 3, "spent": 5.0}, "b": {"spent": 0.1}}}, arrival="came")
    assert_features(SPENDING, EVENTS, {at(3): {"n": 2}, at(4): {"n": 3}}, entity="a", arrival="came")
    assert_features(SPENDING, EVENTS[:1], {"2017-03-26T12:00:00Z": {"n": 1, "mean": 2.0}})


def test_values_may_be_near_lists_dicts_and_times():
    near = pytest.approx(0.3, abs=1e-9)
    events = [{"user": "a", "shop": shop, "amount": amount, "at": at(0)} for shop, amount in ((1, 0.1), (2, 0.2))]

    assert_features(
        SPENDING,
        events,
        {
            at(0): {
                "spent": near,
                "shops": [pytest.approx(2), 1],
                "by_kind": {"sale": 2},
                "latest": at(0).replace(tzinfo=None),
            },
            at(60): {"by_kind": None, "shops": None, "latest": at(0).astimezone(dt.timezone(dt.timedelta(hours=5)))},
        },
    )
    # Exactly, as no sum of two floats is.
    assert "spent: expected 0.3, found 0.30000000000000004" in failing(SPENDING, events, {at(0): {"spent": 0.3}})


def test_a_failure_shows_what_was_expected_and_found_and_the_events_in_the_window():
    text = failing(
        SPENDING,
        EVENTS,
        {at(5): {"a": {"n": 4, "spent": 1.0, "returns": 2}, "b": {"n": 1, "mean": 0.0}}},
        arrival="came",
    )

    assert (
        text
        == """\
spending of user 'a' at 2017-03-26T12:00:05Z
  n: expected 4, found 3
  spent: expected 1.0, found 5.0
    sliding(10s,hop=2s): 3 events
      event 0: 2017-03-26T12:00:00Z amount=2.0, kind='sale', shop=1
      event 1: 2017-03-26T12:00:01Z (arrived 2017-03-26T12:00:04Z) amount=3.0, kind='sale', shop=2
      event 2: 2017-03-26T12:00:03Z amount=None, kind='return', shop=3
      other events of user 'a': 1 outside of the window, 1 that had not arrived
  returns: expected 2, found 1
    tumbling(10s): 3 events, of which 1 count
      event 0: 2017-03-26T12:00:00Z amount=2.0, kind='sale', shop=1 - the filter of returns is not true
      event 1: 2017-03-26T12:00:01Z (arrived 2017-03-26T12:00:04Z) amount=3.0, kind='sale', shop=2 - the filter of returns is not true
      event 2: 2017-03-26T12:00:03Z amount=None, kind='return', shop=3
      other events of user 'a': 1 outside of the window, 1 that had not arrived
spending of user 'b' at 2017-03-26T12:00:05Z
  mean: expected 0.0, found 0.1
    calendar(day,UTC): 1 event
      event 5: 2017-03-26T12:00:05Z amount=0.1, kind='sale', shop=6"""
    )


def test_a_failure_says_why_an_event_does_not_count():
    stream = Stream("purchases", topic="purchases", schema=SCHEMA, event_time="at", event_id="shop", dedupe_within="5s")
    sales = view(
        COUNT, Feature("spent", agg.sum("amount"), Sliding("10s", hop="2s")), stream=stream, where="kind = 'sale'"
    )
    events = [
        {"user": "a", "shop": 1, "at": at(0)},
        {"user": "a", "shop": 1, "at": at(1)},
        {"user": "a", "shop": 2, "kind": "return", "at": at(2)},
        {"user": "a", "shop": 3, "amount": float("nan"), "at": at(3)},
    ]

    text = failing(sales, events, {at(3): {"n": 4}}, skip_refused=True)

    assert (
        text
        == """\
spending of user 'a' at 2017-03-26T12:00:03Z
  n: expected 4, found 1
    sliding(10s,hop=2s): 4 events, of which 1 count
      event 0: 2017-03-26T12:00:00Z amount=None, kind='sale', shop=1
      event 1: 2017-03-26T12:00:01Z amount=None, kind='sale', shop=1 - repeats an earlier one
      event 2: 2017-03-26T12:00:02Z amount=None, kind='return', shop=2 - where is not true
      event 3: 2017-03-26T12:00:03Z amount=nan, kind='sale', shop=3 - refused by the view"""
    )


def test_a_failure_shows_the_last_ten_events_of_many_and_says_if_there_is_none():
    events = [{"user": "a", "shop": number, "at": at(0)} for number in range(14)]

    text = failing(view(COUNT), events, {at(0): {"n": 15}, at(60): {"n": 1}})

    assert "sliding(10s,hop=2s): 14 events\n      … 4 earlier ones\n      event 4:" in text
    assert text.endswith("sliding(10s,hop=2s): no events\n      other events of user 'a': 14 outside of the window")


def test_a_failure_of_a_closed_period_and_of_sessions_shows_their_events():
    carts = Sessions("carts", stream=STREAM, gap="10s", hop="1s", where="kind = 'sale'")
    closed = view(Feature("n", agg.count(), Tumbling("10s", closed=True)), Derived("twice", "n * 2"))
    sessions = view(Feature("n", agg.count(), Lifetime()), stream=carts)

    text = failing(closed, EVENTS[:3], {at(12): {"n": 5, "twice": 1}}, arrival="came")
    of_sessions = failing(sessions, EVENTS[:3], {at(60): {"n": 5}}, arrival="came")

    assert "  n: expected 5, found 3\n  twice: expected 1, found 6\n    tumbling(10s,closed): 3 events\n" in text
    assert "lifetime() over sessions of session(10s,hop=1s): 3 events, of which 2 count" in of_sessions
    assert of_sessions.endswith("event 2: 2017-03-26T12:00:03Z kind='return' - where is not true")


def test_a_failure_of_on_demand_features_shows_what_they_read():
    checkout = OnDemand("checkout", inputs={"price": "float64"}, features=[Derived("share", "price / spending:spent")])

    text = failing(
        checkout,
        EVENTS,
        {at(5): {"share": 1.0}},
        entity="a",
        definitions=[SPENDING],
        inputs={"price": 2.5},
        arrival="came",
    )

    assert (
        text
        == """\
checkout of user 'a' at 2017-03-26T12:00:05Z
  share: expected 1.0, found 0.5
    price: 2.5
    spending:spent: 5.0"""
    )


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({}, "expected has no instants"),
        ([], "expected is a mapping from instants to values"),
        ({at(5): {}}, "give a mapping from features to values"),
        ({at(5): {"a": {"spend": 1}}}, "spending has no feature 'spend'; did you mean 'spent'?"),
        ({at(5): {"spend": 1}}, "spending has no feature 'spend'; did you mean 'spent'?"),
        ({at(5): {"c": {"n": 1}}}, "no event of stream 'purchases' is about user 'c'; entities are a, b"),
        ({at(5): {"n": 1}}, r"the events are about 2 entities \('a', 'b'\), so say of which one"),
        ({"soon": {"a": {"n": 1}}}, "'soon' is not an instant"),
    ],
)
def test_an_expectation_that_cannot_be_meant_is_an_error_and_no_failure(expected, said):
    with pytest.raises(RequestError, match=said):
        assert_features(SPENDING, EVENTS, expected, arrival="came")
