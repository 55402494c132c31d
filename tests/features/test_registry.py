import datetime as dt
import json
from decimal import Decimal

import msgspec
import pytest

from tests.support import plans
from tests.support.definitions import stream, view
from unskew import Calendar, Entity, Feature, LayoutError, Sliding, Tumbling, agg, compile
from unskew.features.plan import Plan
from unskew.features.registry import describe, parse
from unskew.features.view import Parameters

PLAN = compile(
    view(
        Feature("n", agg.count(), Sliding("1h"), filter="online", description="Purchases", owner="risk"),
        Feature("spend", agg.sum("amount"), Tumbling("1d")),
        Feature("least", agg.min("amount"), Calendar("day", tz="Europe/Berlin"), default=1),
        where="n_items > 0",
        owner="growth",
        version=3,
    ),
    view(name="by_shop", entity=Entity("shop", key=["shop_id", "user_id"]), stream=stream()),
)


def test_published_registry_is_read_back_as_it_was():
    views = parse(json.dumps(describe(PLAN))).views

    assert views == PLAN.published
    assert parse(describe(PLAN)).views == views


def test_registry_holds_what_a_reader_needs():
    registered = parse(json.dumps(describe(PLAN))).views["purchases"]
    n, spend, least = registered.features

    assert (registered.id, registered.partitioned, registered.where, registered.owner) == (
        "purchases@3",
        True,
        "n_items > 0",
        "growth",
    )
    assert (registered.entity.keys, registered.entity.types) == (("user_id",), ("string",))
    assert (n.type, n.empty, n.filter, n.owner, n.description) == ("int64", 0, "online", "risk", "Purchases")
    assert (spend.value, repr(spend.empty)) == ("amount", "0.0")
    assert (least.empty, repr(least.default)) == (None, "1.0")
    (window,) = registered.windows_of(least)
    assert window.tz == "Europe/Berlin"
    assert registered.feature("least") == least
    assert registered.feature("most") is None


MOMENT = dt.datetime(2017, 7, 14, 2, 40, 0, 1, tzinfo=dt.UTC)
HOURS = plans.sliding(plans.DAY, plans.HOUR)
OF_SESSIONS = plans.view(
    plans.Wanted("n", "count", HOURS),
    plans.Wanted("spend", "sum", plans.closed(plans.HOUR), "total", "decimal(38,2)"),
    plans.Wanted("latest", "max", plans.lifetime(), "paid_at", "timestamp", default=MOMENT),
    plans.Wanted("dearest", "max", plans.calendar("week", "Europe/Berlin"), "total", "decimal(38,2)", default=Decimal("1.50")),
    plans.Wanted("by_shop", "count", plans.session(plans.HOUR, plans.MINUTE), by="shop", parameters=Parameters(keys=16)),
    plans.Wanted("median", "quantile", HOURS, "x", parameters=Parameters(q=0.0, bits=0)),
    plans.Wanted("sizes", "histogram", HOURS, "x", parameters=Parameters(edges=(1.0, 2.5))),
    plans.Wanted("shop", "last", HOURS, "shop", "string", default=""),
    derived=(
        plans.WantedOfOthers("per_session", "n / n", default=-1.0),
        plans.WantedOfOthers("both", "median + n"),
    ),
    sessions=plans.sessions(plans.HOUR, plans.MINUTE, plans.Wanted("total", "sum", HOURS, "price", "decimal(38,2)"), where="x > 0"),
    name="of_sessions",
)  # fmt: skip


def test_every_type_window_and_parameter_comes_back_from_the_published_text():
    described = describe(Plan(streams={}, views={"of_sessions": OF_SESSIONS}))

    registered = parse(json.dumps(described)).views["of_sessions"]

    assert registered == OF_SESSIONS.published == parse(described).views["of_sessions"]
    assert [(f.empty, f.default) for f in registered.features[:4]] == [
        (0, None),
        (Decimal(0), None),
        (None, MOMENT),
        (None, Decimal("1.50")),
    ]
    assert [window.kind for window in registered.windows][:5] == [
        "sliding",
        "closed",
        "lifetime",
        "calendar",
        "session",
    ]
    assert (registered.windows[3].unit, registered.windows[3].tz) == ("week", "Europe/Berlin")


def test_decimals_and_instants_are_text_and_microseconds_in_json():
    (described,) = describe(Plan(streams={}, views={"of_sessions": OF_SESSIONS}))["views"]
    features = {feature["name"]: feature for feature in described["features"]}

    assert features["spend"]["empty"] == "0"
    assert features["dearest"]["default"] == "1.50"
    assert features["latest"]["default"] == 1_500_000_000_000_001


def test_a_function_is_shown_with_what_it_is_told():
    registered = OF_SESSIONS.published

    assert {f.name: (f.by, f.parameters) for f in registered.features if f.by or f.parameters} == {
        "by_shop": ("shop", {"keys": 16}),
        "median": (None, {"q": 0.0, "bits": 0}),
        "sizes": (None, {"edges": (1.0, 2.5)}),
    }


def test_a_derived_feature_is_a_value_over_the_windows_of_its_inputs():
    registered = msgspec.structs.replace(OF_SESSIONS.published, sessions=None)
    both = registered.feature("both")

    assert (both.function, both.window, both.value, both.inputs) == ("derived", None, "median + n", ("n", "median"))
    assert {window.text for window in registered.windows_of(both)} == {HOURS.text}
    assert registered.windows_of(registered.feature("latest")) == (registered.windows[2],)


def test_a_view_over_sessions_says_of_which():
    sessions = OF_SESSIONS.published.sessions

    assert (sessions.window.kind, sessions.window.extent_us, sessions.window.hop_us) == (
        "session",
        plans.HOUR,
        plans.MINUTE,
    )
    assert sessions.where == "x > 0"
    assert [column.name for column in sessions.columns] == ["start", "end", "events", "total"]


def test_what_an_older_version_published_is_read():
    feature = {
        "name": "n",
        "type": "float64",
        "function": "sum",
        "window": 0,
        "value": "x",
        "filter": None,
        "empty": 0,
        "default": None,
        "description": "",
        "owner": "",
    }
    window = {"text": "calendar(day,UTC)", "kind": "calendar", "hop_us": 1, "extent_us": 1, "span": 0, "tz": "UTC"}
    view = {
        "name": "v",
        "version": 1,
        "entity": {"name": "user", "keys": ["user"], "types": ["string"]},
        "stream": "s",
        "topic": "t",
        "partitioned": False,
        "where": None,
        "windows": [window],
        "features": [feature],
        "state_fingerprint": "",
        "presentation_fingerprint": "",
        "description": "",
        "owner": "",
    }

    parsed = parse(json.dumps({"format": 1, "views": [view]})).views["v"]

    assert (repr(parsed.features[0].empty), parsed.features[0].parameters, parsed.sessions) == ("0.0", {}, None)
    assert parsed.windows_of(parsed.features[0])[0].unit is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "complex"}, "type 'complex'"),
        ({"type": "decimal(38,2)", "default": "much"}, "'much' in purchases@3 is not of type decimal"),
        ({"type": "timestamp", "default": "now"}, "'now' in purchases@3 is not of type timestamp"),
    ],
)
def test_a_scalar_or_type_that_is_none_is_a_layout_error(change, message):
    described = describe(PLAN)
    described["views"][0]["features"][0].update(change)

    with pytest.raises(LayoutError, match=message):
        parse(described)


def test_field_of_a_newer_version_is_passed_over():
    described = describe(PLAN)
    described["views"][0]["colour"] = "blue"

    assert parse(described) == parse(describe(PLAN))


@pytest.mark.parametrize("published", ["", "{", "{}", b'{"format": 1}', '{"format": 1, "views": [{}]}', {"views": 3}])
def test_what_is_no_registry_is_a_layout_error(published):
    with pytest.raises(LayoutError, match="publish it again with unskew run"):
        parse(published)


def test_registry_of_another_format_is_a_layout_error():
    with pytest.raises(LayoutError, match="has format 2, but this version reads 1"):
        parse({"format": 2, "views": []})
