import json

import pytest

from tests.features.definitions import stream, view
from unskew import Calendar, Entity, Feature, LayoutError, Sliding, Tumbling, agg, compile
from unskew.features.registry import describe, parse, register

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
    views = parse(json.dumps(describe(PLAN)))

    assert views == {name: register(plan) for name, plan in PLAN.views.items()}
    assert parse(describe(PLAN)) == views


def test_registry_holds_what_a_reader_needs():
    registered = parse(json.dumps(describe(PLAN)))["purchases"]
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
    assert registered.window_of(least).tz == "Europe/Berlin"
    assert registered.feature("least") == least
    assert registered.feature("most") is None


def test_field_of_a_newer_version_is_passed_over():
    described = describe(PLAN)
    described["views"][0]["colour"] = "blue"

    assert parse(described) == parse(describe(PLAN))


@pytest.mark.parametrize("published", ["", "{", "{}", b'{"format": 1}', '{"format": 1, "views": [{}]}', {"views": 3}])
def test_what_is_no_registry_is_a_layout_error(published):
    with pytest.raises(LayoutError, match="publish it again with unskew run"):
        parse(published)


def test_registry_of_another_format_is_a_layout_error():
    with pytest.raises(LayoutError, match="has format 2, this version reads 1"):
        parse({"format": 2, "views": []})
