"""Updates with other values of some fields are what ``dataclasses.replace`` makes of them."""

from dataclasses import fields, replace

from tests.support.flows import step


def test_updates_with_other_values_are_new_and_differ_in_these_only():
    first = step(10, 1, ["a", "b"])
    other = first.but(clock_us=20, behind=True)

    expected = replace(first, clock_us=20, behind=True)
    assert all(getattr(other, field.name) is getattr(expected, field.name) for field in fields(expected))
    assert (first.clock_us, first.behind) == (10, False)
