"""Which views a letter that is sent again would be counted by twice, where a view has several versions."""

import pytest

from tests.support.pipeline import SCHEMA, START, Record
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.plan import Plan
from unskew.pipelines.replay import Checks, Resend


def versions(*numbers: int) -> Plan:
    stream = Stream("purchases", topic="purchases", schema=SCHEMA, event_time="at", schema_ids=7)
    features = [Feature("n", agg.count(), Sliding("5s"))]
    return compile_definitions(
        FeatureView(
            "spend",
            entity=Entity("user", key="user"),
            stream=stream,
            features=features,
            version=number,
            serving=number == 1,
        )
        for number in numbers
    )


@pytest.mark.parametrize(
    ("defined", "refused_by", "counted_by"),
    [
        ((1, 2), ("spend@1", "spend@2"), None),
        ((1, 2), ("spend@1",), "spend@2"),
        ((1, 2), ("spend@2",), "spend@1"),
        # A letter of the time before versions: it does not say which of them could not use it.
        ((1, 2), ("spend",), "spend@1, spend@2"),
        ((1,), ("spend",), None),
        ((2,), ("spend",), None),
        # No view could use it.
        ((1, 2), (), None),
    ],
)
def test_a_letter_names_the_versions_that_could_not_use_it(
    defined: tuple[int, ...], refused_by: tuple[str, ...], counted_by: str | None
) -> None:
    value = Record(0, START // 1000, "ann", 1, 1.0, True, START).value()
    letter = Resend("purchases", "purchases", 0, 5, b"ann", value, None, refused_by)
    checks = Checks(versions(*defined), None)

    assert checks.fault(letter, twice=True) is None
    expected = None if counted_by is None else f"{counted_by} counted it when it first came"
    found = checks.fault(letter, twice=False)
    assert found is None if expected is None else str(found).startswith(expected)
