"""Sessions as a stream: their columns, and what cannot be."""

import polars as pl
import pytest

from tests.support.definitions import SCHEMA, stream, view
from unskew import DefinitionError, Derived, Entity, Feature, Sessions, Sliding, agg, compile
from unskew.features.plan import ViewPlan

DAY = Sliding("1d")
USER = Entity("user", key="user_id")
INSTANT = pl.Datetime("us", "UTC")


def sessions(**changes: object) -> Sessions:
    fields: dict[str, object] = {"name": "visits", "stream": stream(), "gap": "30min"}
    return Sessions(**fields | changes)  # type: ignore[arg-type]


def over(*features: object, **changes: object) -> ViewPlan:
    return compile(visits(*features, **changes)).views["purchases"]


def visits(*features: object, **changes: object) -> object:
    return (
        view(*features, stream=sessions(**changes))
        if features
        else view(Feature("n", agg.count(), DAY), stream=sessions(**changes))
    )


def faults_of(*definitions: object) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        compile(*definitions)
    return caught.value.faults


def test_a_session_has_its_keys_its_instants_its_length_its_events_and_the_values_asked_for():
    values = {"spend": agg.sum("amount"), "entry": agg.first("status"), "paid": agg.max("n_items")}
    dtypes = {
        "user_id": "string",
        "start": "timestamp",
        "end": "timestamp",
        "length_s": "float64",
        "events": "int64",
        "spend": "float64",
        "entry": "string",
        "paid": "int64",
    }
    plan = over(
        *(Feature(f"last_{name}", agg.last(f'"{name}"'), DAY, type=dtypes[name]) for name in dtypes), values=values
    )

    assert plan.sessions is not None
    assert [(f.name, f.function, str(f.dtype)) for f in plan.sessions.features] == [
        ("start", "first_time", "timestamp"),
        ("end", "last_time", "timestamp"),
        ("events", "count", "int64"),
        ("spend", "sum", "float64"),
        ("entry", "first", "string"),
        ("paid", "max", "int64"),
    ]
    assert [window.text for window in plan.sessions.windows] == ["session(30min,hop=5s)"]
    assert [window.text for window in plan.windows] == ["sliding(1d,hop=5min)"]


def test_filters_of_the_view_are_over_sessions_and_those_of_the_sessions_over_events():
    plan = over(
        Feature("long", agg.count(), DAY, filter="length_s > 60"),
        Derived("share", "long / 2"),
        where="n_items > 0",
        hop="1min",
        values={"spend": agg.sum("amount")},
    )

    assert plan.sessions is not None
    assert plan.sessions.where is not None
    assert (plan.sessions.where.text, plan.where) == ("n_items > 0", None)
    assert plan.sessions.windows[0].text == "session(30min,hop=1min)"
    assert faults_of(visits(Feature("x", agg.sum("amount"), DAY))) == [
        "purchases.x: value: the stream has no column 'amount'; it has user_id, start, end, length_s, events"
    ]


def test_sessions_are_named_and_found_like_streams():
    by_name = compile(USER, stream(), sessions(stream="transactions"), view(stream="visits", entity="user"))
    by_alias = compile(
        USER, stream(aliases=["table"]), sessions(stream="table"), view(stream="visits", entity="user_id")
    )

    assert by_name.views["purchases"].sessions is not None
    assert by_name.views["purchases"].state_fingerprint == by_alias.views["purchases"].state_fingerprint
    assert list(by_name.streams) == ["transactions"]


def test_two_views_may_be_over_the_same_sessions_with_entities_of_their_own():
    shared = sessions()
    plan = compile(
        view(name="by_user", stream=shared),
        view(name="by_shop", stream=shared, entity=Entity("shop", key=["shop_id", "user_id"])),
    )

    assert {name: each.sessions.entity.keys for name, each in plan.views.items() if each.sessions} == {
        "by_user": ("user_id",),
        "by_shop": ("shop_id", "user_id"),
    }


PLACE = "purchases: sessions visits"
TAKEN = "not allowed or already taken; use letters, digits and _, and none of the names end, events, length_s, start, user_id"


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (
            {"gap": "soon"},
            [f"{PLACE}: 'soon' is not a duration; write a number and a unit, for example 5min, 1h or 30d"],
        ),
        ({"gap": None}, [f"{PLACE}: None is not a duration; write a number and a unit, for example 5min, 1h or 30d"]),
        ({"gap": "0s"}, [f"{PLACE}: the window 0s is not between 1us and 36600d"]),
        (
            {"hop": "7min"},
            [f"{PLACE}: hop 7min does not divide the window 30min; choose a divisor, for example 5min"],
        ),
        (
            {"values": {"start": agg.count()}},
            [f"{PLACE}: the column name 'start' is {TAKEN}"],
        ),
        (
            {"values": {"user_id": agg.count()}},
            [f"{PLACE}: the column name 'user_id' is {TAKEN}"],
        ),
        (
            {"values": {"_offset": agg.count()}},
            [f"{PLACE}: the column name '_offset' is {TAKEN}"],
        ),
        (
            {"values": [agg.count()]},
            [f"{PLACE}: values={[agg.count()]!r} is not a mapping; map the name of each column to its aggregation"],
        ),
        (
            {"values": {"spend": agg.sum("amont")}},
            [f"{PLACE}: spend: value: the stream has no column 'amont'; did you mean 'amount'?"],
        ),
        (
            {"values": {"tops": agg.top_k("status", 2)}},
            [f"{PLACE}: the column tops is list[string]; a column of sessions holds a single value"],
        ),
        (
            {"values": {"by": agg.count(by="status")}},
            [f"{PLACE}: the column by is map[int64]; a column of sessions holds a single value"],
        ),
        (
            {"values": {f"v{i}": agg.count() for i in range(62)}},
            [f"{PLACE}: it has 62 values, more than 61; leave out those that no view reads"],
        ),
        ({"where": "amount"}, [f"{PLACE}: filter: 'amount' is Float64, not Boolean; compare it with something"]),
        (
            {"where": "online", "filter": "online"},
            [f"{PLACE}: it has both where and filter, which are the same thing; keep one, joined by AND"],
        ),
        ({"owner": 3}, [f"{PLACE}: owner: 3 is not text; put it in quotes, or leave it out"]),
        ({"stream": "transaction"}, ["purchases: no stream is called 'transaction'; did you mean 'transactions'?"]),
        (
            {"stream": "visits"},
            ["purchases: 'visits' are sessions, but sessions are made of a stream's events; name a stream"],
        ),
        (
            {"stream": sessions()},
            ["purchases: 'visits' are sessions, but sessions are made of a stream's events; name a stream"],
        ),
        ({"name": ""}, ["sessions '': it has no name; give it one"]),
    ],
)
def test_sessions_that_cannot_be_are_faults_with_remedies(changes, faults):
    found = faults_of(stream(), view(stream=sessions(**changes)))

    assert [fault for fault in found if "defined twice" not in fault] == faults


def test_a_name_is_of_a_stream_or_of_sessions():
    assert faults_of(stream(), sessions(name="transactions")) == [
        "sessions transactions: the stream transactions has that name too; rename one"
    ]
    assert faults_of(stream(aliases=["visits"]), sessions(stream="transactions")) == [
        "sessions visits: the stream transactions, by an alias, has that name too; rename one"
    ]
    assert faults_of(sessions(), sessions(gap="1h")) == [
        "sessions visits: it is defined twice, with differences; rename or remove one"
    ]


def test_an_entity_whose_key_has_the_name_of_a_sessions_column_is_a_fault():
    schema = SCHEMA | {"fields": [*SCHEMA["fields"], {"name": "events", "type": "string"}]}
    defined = view(entity=Entity("e", key="events"), stream=sessions(stream=stream(schema=schema)))

    assert faults_of(defined)[0] == (
        f"{PLACE}: the key column 'events' has the name of a column of sessions; rename it in the reader schema"
    )


def test_whatever_makes_sessions_what_they_are_is_in_the_state_fingerprint():
    plain = over()
    others = [
        compile(view(Feature("n", agg.count(), DAY))).views["purchases"],
        over(gap="1h"),
        over(hop="1min"),
        over(where="online"),
        over(values={"spend": agg.sum("amount")}),
        over(stream=stream(topic="other")),
    ]

    assert len({plain.state_fingerprint, *(each.state_fingerprint for each in others)}) == 7
    assert over(description="visits", owner="web", gap="1800s").state_fingerprint == plain.state_fingerprint
    assert over(name="sittings").state_fingerprint == plain.state_fingerprint
