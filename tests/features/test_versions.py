"""Which version of a view a name means, and what definitions of several versions must say."""

import json
from pathlib import Path

import pytest

from tests.support.definitions import SCHEMA, view
from tests.support.plans import republished
from unskew import DefinitionError, Feature, RequestError, Sliding, agg, compile
from unskew.features.definitions.load import load
from unskew.features.plan import Plan
from unskew.features.references import by_view, resolve
from unskew.features.registry import describe, parse

HOUR = Sliding("1h")
N, SPEND = Feature("n", agg.count(), HOUR), Feature("spend", agg.sum("amount"), HOUR)


def versions(*numbers: int, serving: int = 0) -> Plan:
    return compile(view(N, SPEND, version=number, serving=number == serving) for number in numbers)


ONE, TWO, THREE = versions(3), versions(1, 2, serving=1), versions(2, 10, 1, serving=10)


@pytest.mark.parametrize(
    ("plan", "reference", "found"),
    [
        (ONE, "purchases", "purchases@3"),
        (ONE, "purchases@3", "purchases@3"),
        (TWO, "purchases", "purchases@1"),
        (TWO, "purchases@2", "purchases@2"),
        (THREE, "purchases", "purchases@10"),
        (THREE, "purchases@1", "purchases@1"),
    ],
)
def test_a_bare_name_means_the_version_that_serves(plan: Plan, reference: str, found: str) -> None:
    assert plan.views[reference].id == plan.published.find(reference).id == found
    # A reader that has nothing but the registry finds the same.
    assert parse(describe(plan)).views.find(reference).id == found


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("purchases@3", "view 'purchases' has no version '3'; there is purchases@1, purchases@2"),
        ("purchases@", "view 'purchases' has no version ''; there is purchases@1, purchases@2"),
        ("purchases@01", "view 'purchases' has no version '01'; there is purchases@1, purchases@2"),
        ("purchase@1", "there is no view 'purchase'; did you mean 'purchases'?"),
        ("visits", "there is no view 'visits'; views are purchases"),
    ],
)
def test_an_unknown_reference_says_what_there_is(reference: str, error: str) -> None:
    with pytest.raises(RequestError) as caught:
        TWO.views.find(reference)

    assert str(caught.value) == error
    assert reference not in TWO.views


def test_a_bare_name_is_refused_if_nothing_says_which_version_serves() -> None:
    unclear = Plan(streams={}, views={one.id: republished(one, serving=True) for one in TWO.views.values()})

    with pytest.raises(
        RequestError, match="several versions, and nothing says which one serves; ask for purchases@1 or"
    ):
        unclear.views.find("purchases")
    assert "purchases" not in unclear.views


def test_iteration_gives_names_that_always_mean_the_same_version() -> None:
    assert (list(ONE.views), len(ONE.views)) == (["purchases"], 1)
    assert (list(TWO.views), len(TWO.views)) == (["purchases@1", "purchases@2"], 2)
    assert {name: one.id for name, one in TWO.views.items()} == {name: name for name in TWO.views}


def test_columns_are_named_as_the_request_names_the_view() -> None:
    references = ["purchases:n", "purchases@1:n", "purchases@2:n", "purchases:n"]
    asked = resolve(references, TWO.published, full_feature_names=True)

    assert [(one.column, one.view.id) for one in asked] == [
        ("purchases__n", "purchases@1"),
        ("purchases@1__n", "purchases@1"),
        ("purchases@2__n", "purchases@2"),
    ]
    assert list(by_view(asked)) == ["purchases", "purchases@1", "purchases@2"]
    assert [one.column for one in resolve(["purchases@1:n", "purchases@2:spend"], TWO.published)] == ["n", "spend"]
    with pytest.raises(RequestError, match="purchases:n and purchases@2:n would share the column 'n'"):
        resolve(["purchases:n", "purchases@2:n"], TWO.published)
    with pytest.raises(RequestError, match="purchases@2 has no feature 'm'"):
        resolve(["purchases@2:m"], TWO.published)


@pytest.mark.parametrize(
    ("definitions", "fault"),
    [
        (
            [view(N, version=2), view(N, version=1)],
            "purchases: it has the versions 2 and 1, and none says that it serves; write serving=True",
        ),
        (
            [view(N, version=each, serving=True) for each in (1, 2, 3)],
            "purchases: it has the versions 1, 2 and 3, and 1, 2 and 3 say that they serve; write",
        ),
        (
            [view(N, serving="yes"), view(N, version=2)],
            "purchases: serving 'yes' is not true or false; write serving=True in the version that",
        ),
        (
            [view(N), view(SPEND, version=2, serving=True), view(N, version=2)],
            "view purchases: version 2 is defined twice, with differences; rename or remove one, or give one",
        ),
        (
            [view(N, serving=True), view(Feature("m", agg.sum("nothing"), HOUR), version=2)],
            "purchases@2.m: value: the stream has no column 'nothing'",
        ),
    ],
)
def test_definitions_that_do_not_say_which_version_serves_are_refused(definitions: list, fault: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        compile(*definitions)

    (found,) = caught.value.faults
    assert found.startswith(fault)


def test_a_version_beside_another_changes_no_fingerprint() -> None:
    alone, beside = versions(1).views["purchases"], TWO.views["purchases@1"]
    not_serving = versions(1, 2, serving=2).views["purchases@1"]

    for one in (beside, not_serving):
        assert one.state_fingerprint == alone.state_fingerprint
        assert one.presentation_fingerprint == alone.presentation_fingerprint
    assert beside.published == alone.published
    assert "serving" not in describe(versions(1))["views"][0]


YAML = """
name: spent_1h
entity: user_id
source: transactions
version: {version}
{serving}
aggregation: {{function: sum, value: amount, window: 1h{filter}}}
"""


def test_versions_in_yaml_lie_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "schema.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "base.yaml").write_text(
        "entity: {name: user, key: user_id}\n---\n"
        "stream: {name: transactions, topic: transactions, schema: schema.avsc, event_time: event_time}\n"
    )
    (tmp_path / "v1.yaml").write_text(YAML.format(version=1, serving="serving: true", filter=""))
    (tmp_path / "v2.yaml").write_text(YAML.format(version=2, serving="", filter=", filter: online"))

    found = load(tmp_path)

    assert list(found.views) == ["spent_1h@1", "spent_1h@2"]
    assert found.views["spent_1h"].version == 1
    (tmp_path / "v1.yaml").write_text(YAML.format(version=1, serving='serving: "yes"', filter=""))
    with pytest.raises(DefinitionError, match="spent_1h: serving 'yes' is not true or false"):
        load(tmp_path)
