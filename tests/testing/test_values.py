"""``values`` against a recount in plain Python, which knows nothing of the kernel, and on every kind of subject."""

import datetime as dt
import itertools
import statistics
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import laws
from unskew import (
    Calendar,
    Derived,
    Entity,
    Feature,
    FeatureView,
    Lifetime,
    OnDemand,
    RequestError,
    Session,
    Sessions,
    Sliding,
    Stream,
    Table,
    Tumbling,
    agg,
    compile,
)
from unskew.features.definitions.vocabulary import Window
from unskew.testing import values

SCHEMA = {
    "type": "record",
    "name": "Purchase",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "shop", "type": "long"},
        {"name": "amount", "type": ["null", "double"], "default": None},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["sale", "return"]}, "default": "sale"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
STREAM = Stream("purchases", topic="purchases", schema=SCHEMA, event_time="at", partitioned_by="user")
USER = Entity("user", key="user")
# The day on which Berlin's clocks go forward.
NOON = dt.datetime(2017, 3, 26, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def at(seconds: float) -> dt.datetime:
    return NOON + seconds * SECOND


def view(*features: Any, **changes: Any) -> FeatureView:
    fields: dict[str, Any] = {"name": "spending", "entity": USER, "stream": STREAM, "features": list(features)}
    return FeatureView(**fields | changes)


COUNT = Feature("n", agg.count(), Sliding("10s", hop="2s"))


# The recount. Instants are datetimes; an event is in a window by the earlier of when it happened and arrived.


def floor(instant: dt.datetime, step_s: int) -> dt.datetime:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return epoch + (instant - epoch) // (step_s * SECOND) * (step_s * SECOND)


def local_midnight(instant: dt.datetime) -> dt.datetime:
    local = instant.astimezone(ZoneInfo("Europe/Berlin"))
    return local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).astimezone(dt.UTC)


WINDOWS: dict[str, tuple[Window, Callable[[dt.datetime, dt.datetime], bool]]] = {
    "sliding": (Sliding("10s", hop="2s"), lambda t, e: e >= floor(t, 2) - 10 * SECOND),
    "hopless": (Sliding("6s", hop="6s"), lambda t, e: e >= floor(t, 6) - 6 * SECOND),
    "tumbling": (Tumbling("8s"), lambda t, e: e >= floor(t, 8)),
    "closed": (Tumbling("8s", closed=True), lambda t, e: floor(t, 8) - 8 * SECOND <= e < floor(t, 8)),
    "day": (Calendar("day", tz="Europe/Berlin"), lambda t, e: e >= local_midnight(t)),
    "ever": (Lifetime(), lambda _t, _e: True),
}


def exact(numbers: list[float]) -> float:
    return float(sum(map(Fraction, numbers)))


def amounts(events: list[dict[str, Any]]) -> list[float]:
    return [float(event["amount"]) for event in events if event.get("amount") is not None]


AGGREGATIONS: dict[str, tuple[Any, Callable[[list[dict[str, Any]]], Any]]] = {
    "count": (agg.count(), len),
    "sum": (agg.sum("amount"), lambda them: exact(amounts(them))),
    "mean": (agg.mean("amount"), lambda them: exact(amounts(them)) / len(amounts(them)) if amounts(them) else None),
    "min": (agg.min("amount"), lambda them: min(amounts(them), default=None)),
    "max": (agg.max("shop"), lambda them: max((one["shop"] for one in them), default=None)),
    "first": (agg.first("amount"), lambda them: amounts(them)[0] if amounts(them) else None),
    "last": (agg.last("shop"), lambda them: them[-1]["shop"] if them else None),
    "last_n": (agg.last_n("shop", 2), lambda them: [one["shop"] for one in them][:-3:-1] or None),
    "first_time": (agg.first_time(), lambda them: them[0]["effective"] if them else None),
    "last_time": (agg.last_time(), lambda them: them[-1]["effective"] if them else None),
    "count_distinct": (agg.count_distinct("shop"), lambda them: len({one["shop"] for one in them})),
    "std": (agg.std("shop"), lambda them: statistics.stdev(one["shop"] for one in them) if len(them) > 1 else None),
    "by": (
        agg.count(by="kind", keys=2),
        lambda them: (
            [
                {"key": kind, "value": count}
                for kind, count in sorted(
                    Counter(one["kind"] for one in them).items(), key=lambda item: (-item[1], item[0])
                )
            ]
            or None
        ),
    ),
}


@st.composite
def purchases(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Events in any order, at one instant, late, and from the future."""
    return [
        {
            "user": draw(st.sampled_from("ab")),
            "shop": draw(st.integers(-3, 3)),
            "amount": draw(st.none() | st.integers(-40, 40).map(lambda quarters: quarters / 4)),
            "kind": draw(st.sampled_from(["sale", "return"])),
            "at": (happened := at(draw(st.integers(-40, 40)) / 2)),
            "arrived": happened + draw(st.sampled_from([0, 0, 0, 1, 5, 30, -3])) * SECOND,
        }
        for _ in range(draw(st.integers(1, 12)))
    ]


def recounted(
    events: list[dict[str, Any]], user: str, t: dt.datetime, holds: Callable[[dt.datetime, dt.datetime], bool]
) -> list[dict[str, Any]]:
    """The events of a user in a window at an instant, in the order in which they count."""
    known = [
        {**event, "effective": min(event["at"], event["arrived"])}
        for event in sorted(events, key=lambda event: event["arrived"])
        if event["user"] == user and event["arrived"] <= t
    ]
    inside = [event for event in known if holds(t, event["effective"])]
    return sorted(inside, key=lambda event: (event["effective"], event["arrived"]))


EVERYTHING = view(
    *(Feature(f"{w}_{a}", function, window) for (w, (window, _)), (a, (function, _)) in itertools.product(
        list(WINDOWS.items())[:3], AGGREGATIONS.items()))
)  # fmt: skip
THE_REST = view(
    *(Feature(f"{w}_{a}", function, window) for (w, (window, _)), (a, (function, _)) in itertools.product(
        list(WINDOWS.items())[3:], AGGREGATIONS.items())),
    where="kind = 'sale'",
)  # fmt: skip


@given(purchases(), st.lists(st.integers(-30, 90), min_size=1, max_size=4, unique=True))
@laws(25)
def test_values_are_those_of_a_recount_in_plain_python(events, seconds):
    instants = [at(each) for each in seconds]
    users = {event["user"] for event in events}
    for tried, counting in ((EVERYTHING, events), (THE_REST, [one for one in events if one["kind"] == "sale"])):
        found = values(tried, events, at=instants, arrival="arrived")

        for instant in instants:
            assert found[instant].keys() == users
            for user, feature in itertools.product(users, tried.features):
                window, _, name = feature.name.partition("_")
                inside = recounted(counting, user, instant, WINDOWS[window][1])
                expected = AGGREGATIONS[name][1](inside)
                value = found[instant][user][feature.name]
                assert value == (pytest.approx(expected) if name == "std" else expected), (feature.name, instant, user)


def test_every_kind_of_window_but_sessions_is_recounted():
    assert {type(window) for window, _ in WINDOWS.values()} == set(Window.__subclasses__()) - {Session}


def test_a_session_ends_after_its_gap_and_a_view_over_sessions_counts_it_then():
    carts = Sessions("carts", stream=STREAM, gap="10s", hop="1s", values={"spent": agg.sum("amount")})
    running = view(Feature("n", agg.count(), Session("10s", hop="1s")))
    closed = view(Feature("n", agg.count(), Lifetime()), Feature("most", agg.max("spent"), Lifetime()), stream=carts)
    # s:  0 . . 3 . . . . . . . . . 14 | 25: the session that began at 14 is over
    #     [ one session ][ over: 14  ]
    events = [{"user": "a", "shop": 1, "amount": s + 1.0, "at": at(s)} for s in (0, 3, 14)]

    assert [one["n"] for one in values(running, events, at=map(at, (0, 3, 13, 14, 24, 25)), entity="a").values()] == [
        1, 2, 2, 1, 1, 0,
    ]  # fmt: skip
    assert values(closed, events, at=[at(13), at(14), at(25)], entity="a") == {
        at(13): {"n": 0, "most": None},
        at(14): {"n": 1, "most": 5.0},
        at(25): {"n": 2, "most": 15.0},
    }


def test_a_value_counts_what_had_arrived_by_then_that_instant_included():
    events = [
        {"user": "a", "shop": 1, "at": at(0)},
        {"user": "a", "shop": 1, "at": at(0), "came": at(4)},
        {"user": "a", "shop": 1, "at": at(0), "came": at(30)},
    ]

    found = values(view(COUNT), events, at=map(at, (-1, 0, 4, 9, 12, 30)), entity="a", arrival="came")
    delayed = values(
        view(COUNT), [{"user": "a", "shop": 1, "at": at(0)}], at=map(at, (2, 3)), entity="a", arrival=3 * SECOND
    )

    assert [one["n"] for one in found.values()] == [0, 1, 2, 2, 0, 0]
    assert [one["n"] for one in delayed.values()] == [0, 1]


def test_repeats_are_dropped_as_the_stream_says():
    stream = Stream("purchases", topic="purchases", schema=SCHEMA, event_time="at", event_id="shop", dedupe_within="5s")
    events = [{"user": "a", "shop": 7, "at": at(s)} for s in (0, 1, 8)]

    assert values(view(COUNT, stream=stream), events, at=at(8), entity="a") == {"n": 2}


def test_defaults_are_read_and_derived_features_computed():
    spending = view(
        COUNT,
        Feature("spent", agg.sum("amount"), Sliding("10s", hop="2s")),
        Feature("mean", agg.mean("amount"), Sliding("10s", hop="2s"), default=-1.0),
        Derived("each", "spent / n", default=0.0),
    )
    events = [{"user": "a", "shop": 1, "amount": 3, "at": at(0)}]

    assert values(spending, events, at=[at(0), at(60)], entity="a") == {
        at(0): {"n": 1, "spent": 3.0, "mean": 3.0, "each": 3.0},
        at(60): {"n": 0, "spent": 0.0, "mean": -1.0, "each": 0.0},
    }


def test_keys_of_several_columns_are_tuples_or_mappings():
    pair = view(COUNT, entity=Entity("pair", key=["user", "shop"]))
    events = [{"user": "a", "shop": shop, "at": at(0)} for shop in (1, 2, 2)]

    assert values(pair, events, at=at(0)) == {("a", 1): {"n": 1}, ("a", 2): {"n": 2}}
    assert values(pair, events, at=at(0), entity=("a", 2)) == {"n": 2}
    assert values(pair, events, at=at(0), entity={"shop": 1, "user": "a"}) == {"n": 1}
    with pytest.raises(RequestError, match=r"no event of stream 'purchases' is about user 'a', shop 3"):
        values(pair, events, at=at(0), entity=("a", 3))
    with pytest.raises(RequestError, match=r"give 2 values, not 1"):
        values(pair, events, at=at(0), entity="a")


def test_frames_of_polars_and_pandas_hold_events_as_dicts_do():
    rows = [{"user": "a", "shop": 1, "amount": 2.5, "at": at(0)}, {"user": "b", "shop": 2, "amount": None, "at": at(1)}]
    spending = view(COUNT, Feature("spent", agg.sum("amount"), Sliding("10s", hop="2s")))
    expected = {"a": {"n": 1, "spent": 2.5}, "b": {"n": 1, "spent": 0.0}}
    naive = pl.DataFrame(rows).with_columns(pl.col("at").dt.replace_time_zone(None))

    for events in (
        rows,
        pl.DataFrame(rows),
        pl.LazyFrame(rows),
        naive,
        pd.DataFrame(rows),
        pl.DataFrame(rows).to_arrow(),
    ):
        assert values(spending, events, at=at(1)) == expected


def test_no_events_give_the_values_of_an_entity_that_was_never_seen():
    assert values(view(COUNT), [], at=at(0), entity="anybody") == {"n": 0}
    assert values(view(COUNT), [], at=at(0)) == {}


NESTED = {
    "type": "object",
    "required": ["order", "at"],
    "properties": {
        "order": {
            "type": "object",
            "required": ["user"],
            "properties": {
                "user": {"type": "string"},
                "price": {"type": "object", "properties": {"cents": {"type": "string"}}},
            },
        },
        "at": {"type": "integer"},
        "tags": {"type": "array"},
    },
}
ORDERS = Stream(
    "orders",
    topic="orders",
    format="json",
    schema=NESTED,
    event_time="at",
    fields={"user": "order.user", "cents": "order.price.cents"},
    read_as={"at": "unix-ms", "cents": "decimal(38,2)"},
)


def test_records_inside_are_dicts_and_values_are_read_as_the_stream_says():
    spending = view(Feature("spent", agg.sum("cents"), Sliding("10s", hop="2s")), stream=ORDERS)
    ms = int(at(0).timestamp() * 1000)
    events = [
        {"order": {"user": "a", "price": {"cents": "1.10"}}, "at": ms, "tags": ["new"]},
        {"order": {"user": "a", "price": {"cents": Decimal("2.05")}}, "at": at(1)},
        {"order": {"user": "a", "price": None}, "at": str(ms)},
        {"user": "a", "cents": 1, "at": ms},
    ]

    assert values(spending, events, at=at(1), entity="a") == {"spent": Decimal("4.15")}
    assert values(spending, pl.DataFrame(events[:1]), at=at(1), entity="a") == {"spent": Decimal("1.10")}
    with pytest.raises(
        RequestError, match=r"event 1 of stream 'orders': order.price.cents: order.price is 3, not a record"
    ):
        values(spending, [events[0], {"order": {"user": "a", "price": 3}, "at": ms}], at=at(1))


def test_a_table_says_when_its_rows_arrive():
    fields = [*SCHEMA["fields"][:2], SCHEMA["fields"][4]]  # type: ignore[index]
    table = Table(
        "visits",
        path="nowhere",
        schema={**SCHEMA, "fields": fields},
        event_time="at",
        delay="1h",
        zone="Europe/Berlin",
        columns={"shop": "store"},
    )
    visits = view(Feature("n", agg.count(), Sliding("2h", hop="1h")), stream=table)
    # 14:00 in Berlin, on that day, is noon in UTC.
    events = [{"user": "a", "store": 1, "at": dt.datetime(2017, 3, 26, 14)}]  # noqa: DTZ001

    found = values(visits, events, at=["2017-03-26T12:59:59Z", "2017-03-26T13:00:00Z"], entity="a")

    assert list(found.values()) == [{"n": 0}, {"n": 1}]


def test_a_view_is_found_by_its_name_and_version_among_definitions(tmp_path):
    one, two = view(COUNT, serving=True), view(Feature("n", agg.count(), Lifetime()), version=2)
    events = [{"user": "a", "shop": 1, "at": at(0)}]
    plan = compile(one, two)
    (tmp_path / "views.yaml").write_text(
        "name: n\nentity: user\nsource: purchases\ntype: int64\naggregation: {function: count, window: 10s}\n"
    )

    for definitions in (plan, [one, two]):
        assert values("spending", events, at=at(60), entity="a", definitions=definitions) == {"n": 0}
        assert values("spending@2", events, at=at(60), entity="a", definitions=definitions) == {"n": 1}
        assert values(two, events, at=at(60), entity="a", definitions=definitions) == {"n": 1}
        with pytest.raises(RequestError, match="there is no view 'spendign'; did you mean 'spending'"):
            values("spendign", events, at=at(0), definitions=definitions)
    assert values("n", events, at=at(0), entity="a", definitions=[tmp_path, STREAM, USER]) == {"n": 1}
    with pytest.raises(RequestError, match="'spending' is a name: give the definitions"):
        values("spending", events, at=at(0))


def test_on_demand_features_read_views_of_several_streams_inputs_and_now():
    clicks = Stream("clicks", topic="clicks", schema=SCHEMA, event_time="at")
    clicked = view(
        Feature("clicks", agg.count(), Lifetime()), name="clicked", stream=clicks, entity=Entity("shop", key="shop")
    )
    checkout = OnDemand(
        "checkout",
        inputs={"price": "float64"},
        features=[
            Derived("share", "price / spending:spent"),
            Derived("popular", "clicked:clicks > 1"),
            Derived("hour", "date_part('hour', now)"),
        ],
    )
    spending = view(Feature("spent", agg.sum("amount"), Lifetime()))
    events = {
        "purchases": [{"user": "a", "shop": 1, "amount": 8, "at": at(0)}],
        "clicks": [{"user": "a", "shop": 9, "at": at(s)} for s in (0, 1)],
    }
    known = {"definitions": [spending, clicked], "inputs": {"price": 2.0}}

    found = values(checkout, events, at=at(1), entity={"user": "a", "shop": 9}, **known)

    assert found == {"share": 0.25, "popular": True, "hour": 12}
    assert values("checkout", events, at=[at(0)], entity={"user": "a", "shop": 9}, definitions=[checkout, spending, clicked], inputs={"price": 4.0}) == {
        at(0): {"share": 0.5, "popular": False, "hour": 12}
    }  # fmt: skip
    with pytest.raises(
        RequestError, match="checkout is computed for one entity at a time: give entity, with user, shop"
    ):
        values(checkout, events, at=at(1), **known)
    with pytest.raises(RequestError, match=r"events of several streams are read \('purchases', 'clicks'\)"):
        values(checkout, [], at=at(1), entity={"user": "a", "shop": 9}, **known)
    with pytest.raises(RequestError, match="spending@1 is a view and takes no inputs"):
        values(spending, [], at=at(1), inputs={"price": 2.0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"amont": 1}, "event 1 of stream 'purchases' has the field 'amont', which the stream does not have; did you mean 'amount'?"),
        ({"amount": "much"}, "event 1 of stream 'purchases': amount: 'much' is not a number"),
        ({"amount": True}, "event 1 of stream 'purchases': amount: True is not a number"),
        ({"amount": float("nan")}, "event 1 of stream 'purchases': spending.spent: value is NaN, infinite or beyond 2^62"),
        ({"shop": 1.5}, "event 1 of stream 'purchases': shop: 1.5 is not a whole number"),
        ({"shop": 2**63}, "event 1 of stream 'purchases': shop: 9223372036854775808 does not fit its type"),
        ({"kind": "sales"}, "event 1 of stream 'purchases': kind: 'sales' is not one of the allowed values; did you mean 'sale'?"),
        ({"user": None}, "event 1 of stream 'purchases': user is null, and the schema requires it"),
        ({"user": 3}, "event 1 of stream 'purchases': user: 3 is not a text"),
        ({"at": None}, "event 1 of stream 'purchases': at is null, and it is the event time"),
        ({"at": 5}, "event 1 of stream 'purchases': at: 5 is not a datetime, or its text as in 2026-03-01T12:00:00Z"),
        ({"at": "2017-03-26T12:00:00"}, "event 1 of stream 'purchases': at: '2017-03-26T12:00:00' is not an ISO 8601 time"),
        ({"at": dt.datetime(1800, 1, 1, tzinfo=dt.UTC)}, "event 1 of stream 'purchases': at: 1800-01-01 00:00:00+00:00 is not between the years 1900 and 2200"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_event_that_is_refused_is_named_with_its_field_or_left_out_if_asked(changes, said):
    spending = view(COUNT, Feature("spent", agg.sum("amount"), Sliding("10s", hop="2s")))
    event = {"user": "a", "shop": 1, "amount": 1.0, "at": at(0)}
    # The second of them is wrong, and arrives first.
    events = [{**event, "at": at(1)}, {**event, **changes}, {**event, "at": at(1)}]

    with pytest.raises(RequestError) as raised:
        values(spending, events, at=at(1))

    assert str(raised.value).startswith(said)
    if "amont" not in changes:
        assert values(spending, events, at=at(1), skip_refused=True) == {"a": {"n": 2, "spent": 2.0}}


def test_what_is_not_an_instant_an_event_or_a_view_is_said():
    events = [{"user": "a", "shop": 1, "at": at(0)}]

    for arguments, said in (
        ({"at": "noon"}, "'noon' is not an instant"),
        ({"at": []}, "at has no instants"),
        ({"at": "1800-01-01"}, "1800-01-01 is not between the years 1900 and 2200"),
        ({"at": at(0), "entity": "c"}, "no event of stream 'purchases' is about user 'c'; entities are a"),
        ({"at": at(0), "arrival": 3}, "arrival is the name of a field, or a timedelta"),
        ({"at": at(0), "arrival": "cmae"}, "arrival names the field 'cmae', which no event has; their fields are user"),
    ):
        with pytest.raises(RequestError, match=said):
            values(view(COUNT), events, **arguments)
    for given_events, said in (
        ([3], "events of stream 'purchases': row 0 is 3"),
        ({"purchase": []}, "there is no stream 'purchase'; did you mean 'purchases'"),
    ):
        with pytest.raises(RequestError, match=said):
            values(view(COUNT), given_events, at=at(0))
    with pytest.raises(RequestError, match="give a FeatureView, an OnDemand, or the name of one, not 3"):
        values(3, events, at=at(0))
