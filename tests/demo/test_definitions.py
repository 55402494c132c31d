"""The Complete Journey's definitions compile to what the README of the example says."""

import pytest

from unskew.demo.journey import HOME, schema
from unskew.features.definitions.load import load
from unskew.features.plan import Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load(HOME)


def test_two_streams_feed_six_views_of_three_entities(plan):
    assert {stream.topic for stream in plan.streams.values()} == {"transactions", "page_views"}
    assert {name: view.entity.name for name, view in plan.views.items()} == {
        "household_purchases": "household",
        "household_coupon_count_30d": "household",
        "household_page_views": "household",
        "product_purchases": "product",
        "store_purchases": "store",
        "product_page_views": "product",
    }


def test_households_follow_their_partition_and_the_others_are_hashed(plan):
    assert {name for name, view in plan.views.items() if view.partitioned} == {
        "household_purchases",
        "household_coupon_count_30d",
        "household_page_views",
    }


def test_the_view_written_in_yaml_is_one_feature_of_its_own_name(plan):
    view = plan.views["household_coupon_count_30d"]

    assert [(feature.name, feature.function, str(feature.dtype)) for feature in view.features] == [
        ("household_coupon_count_30d", "count", "int64")
    ]
    assert view.stream.name == "transactions"
    assert view.filters[0].text == "coupon_disc > 0"


def test_default_hops_are_those_that_the_readme_counts_rows_by(plan):
    hops = {
        (window.extent_us // 60_000_000, window.hop_us // 1_000_000)
        for view in plan.views.values()
        for window in view.windows
        if window.kind == "sliding"
    }

    assert hops == {(5, 1), (60, 10), (7 * 24 * 60, 30 * 60), (30 * 24 * 60, 2 * 60 * 60)}


@pytest.mark.parametrize(("stream", "name"), [("transactions", "transaction"), ("page_views", "page_view")])
def test_streams_read_the_schemas_that_records_are_written_with(plan, stream, name):
    assert list(plan.streams[stream].columns) == [field["name"] for field in schema(name)["fields"]]
