"""Services: named lists of features, each pinned to a version, a type and a default."""

import json
from pathlib import Path

import pytest

from tests.support.definitions import view
from unskew import DefinitionError, Feature, FeatureView, RequestError, Service, Sliding, agg, compile
from unskew.features.definitions.load import load_definitions
from unskew.features.on_request import wanted
from unskew.features.planning import FieldChange
from unskew.features.registry import Published, describe, merge, own_part, parse

HOUR = Sliding("1h")
N = Feature("n", agg.count(), HOUR)
SPEND = Feature("spend", agg.mean("amount"), HOUR, default=1.5)
CHECKOUT = Service("checkout", ["purchases:spend", "purchases:n"], owner="risk", tags={"tier": "1"})


def versions(*numbers: int, serving: int, spend: Feature = SPEND) -> list[FeatureView]:
    return [view(N, spend, version=number, serving=number == serving) for number in numbers]


def text_of(*definitions: object) -> str:
    return json.dumps(describe(compile(definitions)))  # type: ignore[arg-type]


def read(published: Published, service: str = "checkout") -> list[tuple[str, str]]:
    """The columns of a service, each with the version that it is read from."""
    return [(one.column, one.view.id) for one in wanted(service, published).asked]


def test_a_service_has_its_columns_in_its_own_order_and_keeps_the_version_that_served() -> None:
    stored = merge(None, text_of(versions(1, serving=1), CHECKOUT))
    # Another version serves from now on, and the service is not published again.
    stored = merge(stored, text_of(versions(1, 2, serving=2)))
    published = parse(stored)

    assert published.views.find("purchases").id == "purchases@2"
    assert read(published) == [("spend", "purchases@1"), ("n", "purchases@1")]

    stored = merge(stored, text_of(versions(1, 2, serving=2), CHECKOUT))
    assert read(parse(stored)) == [("spend", "purchases@2"), ("n", "purchases@2")]


def test_a_service_reads_two_versions_of_a_view_side_by_side() -> None:
    both = Service("both", ["purchases@2:n", "purchases:spend"])
    published = Published.of(compile(versions(1, 2, serving=1), both))

    assert [(one.column, one.view.id) for one in wanted("both", published, full_feature_names=True).asked] == [
        ("purchases@2__n", "purchases@2"),
        ("purchases__spend", "purchases@1"),
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda view: view.update(version=7), "purchases@1 is not published"),
        (lambda view: view.update(state_fingerprint="0"), "purchases@1 is computed from another definition"),
        (lambda view: view["features"].pop(), "purchases@1 has no such feature"),
        (lambda view: view["features"][1].update(type="int64", default=1), "its type is int64, not float64"),
        (lambda view: view["features"][1].update(default=2.5), "its default is 2.5, not 1.5"),
    ],
)
def test_a_service_refuses_what_it_was_not_made_for(change, why) -> None:
    registry = json.loads(text_of(versions(1, serving=1), CHECKOUT))
    change(registry["views"][0])

    with pytest.raises(RequestError, match="service checkout .owner: risk. reads purchases:spend, and .*" + why):
        read(parse(registry))


def test_an_unknown_service_gets_the_nearest_name() -> None:
    published = Published.of(compile(versions(1, serving=1), CHECKOUT))

    with pytest.raises(RequestError, match=r"there is no service 'chekout'; did you mean 'checkout'\?"):
        wanted("chekout", published)


@pytest.mark.parametrize(
    ("service", "fault"),
    [
        (Service("Checkout", ["purchases:n"]), "service Checkout: the name must be lower-case letters"),
        (Service("purchases", ["purchases:n"]), "service purchases: a view has that name too; rename one"),
        (Service("s", []), "service s: features: [] is not a list of features"),
        (Service("s", "purchases:n"), "service s: features: 'purchases:n' is not a list of features"),
        (Service("s", [7]), "service s: features: 7 is not text; write view:feature"),  # type: ignore[list-item]
        (Service("s", ["purchases"]), "service s: 'purchases' is not a feature reference; write view:feature"),
        (Service("s", ["purchase:n"]), "service s: there is no view 'purchase'; did you mean 'purchases'?"),
        (Service("s", ["purchases:m"]), "service s: purchases has no feature 'm'"),
        (Service("s", ["purchases@3:n"]), "service s: view 'purchases' has no version '3'"),
        (Service("s", ["purchases:n", "purchases:n"]), "service s: features: purchases:n is there more than once"),
        (
            Service("s", ["purchases:n"], tags={"tier": 1}),
            "service s: tags: 'tier': 1: names and values of tags are text",
        ),  # type: ignore[dict-item]
        (Service("s", ["purchases:n"], tags=["a"]), "service s: tags: ['a'] is not a mapping"),  # type: ignore[arg-type]
        (Service("s", ["purchases:n"], owner=1), "service s: owner: 1 is not text"),  # type: ignore[arg-type]
        (Service(3, ["purchases:n"]), "service 3: it has no name; give it one"),  # type: ignore[arg-type]
    ],
)
def test_a_service_that_is_wrong_is_a_fault_with_its_name(service: Service, fault: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        compile(versions(1, serving=1), service)

    assert fault in str(caught.value)


def test_two_services_of_one_name_are_a_fault_unless_they_are_the_same() -> None:
    assert compile(versions(1, serving=1), CHECKOUT, CHECKOUT).services.keys() == {"checkout"}

    with pytest.raises(DefinitionError, match="service checkout: it is defined twice, with differences"):
        compile(versions(1, serving=1), CHECKOUT, Service("checkout", ["purchases:n"]))


def test_yaml_and_python_define_the_same_service(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "from unskew import Service\n"
        "checkout = Service('checkout', ['purchases:spend', 'purchases:n'], owner='risk', tags={'tier': '1'})\n"
    )
    (tmp_path / "two.yaml").write_text(
        "service: {name: checkout, features: [purchases:spend, 'purchases:n'], owner: risk, tags: {tier: '1'}}\n"
    )
    (one,), (two,) = load_definitions([tmp_path / "one.py"]), load_definitions([tmp_path / "two.yaml"])

    assert one == two == CHECKOUT
    (tmp_path / "two.yaml").write_text("service: {name: checkout, feature: [purchases:n]}\n")
    with pytest.raises(DefinitionError, match=r"service checkout: unknown key 'feature'; did you mean 'features'\?"):
        load_definitions([tmp_path / "two.yaml"])


def test_services_of_other_deployments_stay_and_ones_of_the_same_name_are_replaced() -> None:
    other = Service("other", ["purchases:n"])
    stored = merge(None, text_of(versions(1, serving=1), CHECKOUT, other))
    mine = text_of(versions(1, serving=1), Service("checkout", ["purchases:n"]))
    stored = merge(stored, mine)

    assert {name: one.references for name, one in parse(stored).services.items()} == {
        "checkout": ["purchases:n"],
        "other": ["purchases:n"],
    }
    assert parse(own_part(stored, mine)).services.keys() == {"checkout"}
    assert parse(own_part(stored, text_of(versions(1, serving=1)))).services == {}


def test_a_service_without_features_in_what_is_published_cannot_be_read() -> None:
    registry = json.loads(text_of(versions(1, serving=1), CHECKOUT))
    registry["services"][0]["features"] = []

    with pytest.raises(Exception, match="service 'checkout' has no features, or no name"):
        parse(registry)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (("v:a", "v:b"), ("v:b", "v:c"), "features: +v:c -v:a"),
        (["v:a", "v:b"], ["v:b", "v:a"], "features: in another order"),
        ([], ["v:a"], "features: [] -> ['v:a']"),
    ],
)
def test_a_change_of_a_list_says_what_came_and_went(before: object, after: object, text: str) -> None:
    assert FieldChange(name="features", before=before, after=after).text() == text
