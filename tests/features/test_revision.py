"""The copy of a record in the published registry: what was applied last decides, whoever publishes and when."""

import datetime as dt
import json
from typing import Any

import msgspec
import pytest

from tests.support import plans
from unskew.features.errors import LayoutError
from unskew.features.on_demand import OnDemandView
from unskew.features.plan import Plan
from unskew.features.registry import describe, displaced, merge, own_part, parse, without
from unskew.features.revision import Content, Revision, brought_up_to, from_bytes, to_bytes, with_applied
from unskew.features.service import Service, ServiceFeature
from unskew.features.view import View

PLAN = plans.view(plans.Wanted("n", "count", plans.sliding(plans.DAY, plans.HOUR)), name="spend")


def view(version: int = 1, name: str = "spend", **changes: Any) -> View:
    return msgspec.structs.replace(PLAN.published, name=name, version=version, **changes)


def revision(number: int, *views: View, serves: int = 1, services: tuple[str, ...] = (), record: str = "a") -> Revision:
    names = {one.name: serves for one in views}
    pinned = ServiceFeature(reference="spend:n", view="spend@1", type="int64", fingerprint=PLAN.state_fingerprint)
    return Revision(
        unskew="0", record=record, number=number, at=dt.datetime(2026, 1, 31, tzinfo=dt.UTC), by="u@h", command="apply", message="",
        plan=(), git=None,
        content=Content(
            views=views, serves=names, says=names, services=tuple(Service(name=name, features=(pinned,)) for name in services)
        ),
    )  # fmt: skip


def text(given: Revision | None, *views: View) -> str:
    """What a pipeline publishes that computes these views; its definitions let the first one serve."""
    return json.dumps(with_applied({"format": 1, "views": [msgspec.to_builtins(one) for one in views]}, given))


BOTH = view(1), view(2, serving=False)


def meant(stored: str | None, name: str = "spend") -> int:
    found = parse(stored or "").views
    assert json.loads(stored or "")["serves"][name] == found[name].version
    return found[name].version


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (3, 1, 2), (1, 3, 1), (3, 3, 1), (2, 3, 2)], ids=str)
def test_the_last_revision_decides_in_whatever_order_it_is_published(order: tuple[int, ...]) -> None:
    revisions = {
        1: revision(1, *BOTH, serves=2, services=("gone", "kept")),
        2: revision(2, *BOTH, serves=1, services=("kept",)),
        3: revision(3, *BOTH, serves=2, services=("kept", "new")),
    }
    stored: str | None = merge(None, text(None, *BOTH))
    for number in order:
        stored = merge(stored, text(revisions[number], *BOTH), anew=number == 2)

    published = parse(stored or "")
    assert meant(stored) == 2
    assert sorted(published.services) == ["kept", "new"]
    # Of a part that is published again after a loss, too.
    part = own_part(stored or "", text(revisions[order[-1]], *BOTH))
    assert meant(merge(None, part)) == 2
    assert sorted(parse(merge(None, part)).services) == ["kept", "new"]
    assert displaced(stored or "", text(None, *BOTH)) == {}


def test_what_was_applied_is_not_replaced_by_what_is_published_without_a_record() -> None:
    demanded = OnDemandView(
        name="checkout", version=1, inputs={"x": "int64"}, fingerprint="f",
        features=(msgspec.structs.replace(PLAN.published.features[0], name="d", function="derived", window=None, value="x + 1"),),
    )  # fmt: skip
    given = revision(1, view(1), services=("s",))
    given = msgspec.structs.replace(given, content=msgspec.structs.replace(given.content, on_demand=(demanded,)))
    stored = merge(None, text(given, view(1)))
    other = {"format": 1, "views": [], "services": [{"name": "s", "features": []}], "on_demand": [{"name": "checkout"}]}

    assert json.loads(merge(stored, json.dumps(other))) == json.loads(stored)
    assert parse(own_part(stored, text(given, view(1)))).on_demand == {"checkout": demanded}
    # What a later revision removes is gone, and an earlier one does not bring it back.
    later = merge(stored, text(revision(2, view(1)), view(1)))
    assert (parse(later).on_demand, parse(later).services) == ({}, {})
    assert json.loads(merge(later, text(given, view(1)))) == json.loads(later)


def test_a_version_serves_once_it_is_published_and_no_other_one_before_it() -> None:
    to_second = revision(2, *BOTH, serves=2)
    stored = merge(None, text(revision(1, view(1)), view(1)))

    stored = brought_up_to(stored, to_second) or ""
    assert meant(stored) == 1
    stored = merge(stored, text(to_second, *BOTH))
    assert meant(stored) == 2
    # A pipeline that knows no record, and says that its version serves, changes nothing.
    assert meant(merge(stored, json.dumps(describe(Plan(streams={}, views={"spend": PLAN}))), anew=True)) == 2
    # Without the version that serves, the only one that is left does.
    assert meant(without(stored, ["spend@2"])) == 1


def test_a_view_belongs_to_the_record_that_named_it_last_and_records_do_not_disturb_each_other() -> None:
    stored = merge(None, text(revision(5, *BOTH, serves=2, services=("of_a",)), *BOTH))
    stored = merge(stored, text(revision(1, view(name="visits"), services=("of_b",), record="b"), view(name="visits")))
    assert (meant(stored), meant(stored, "visits")) == (2, 1)
    assert sorted(parse(stored).services) == ["of_a", "of_b"]

    stored = merge(stored, text(revision(2, *BOTH, serves=1, record="b"), *BOTH))
    assert meant(stored) == 1
    assert sorted(parse(stored).services) == ["of_a"]


def test_descriptions_are_brought_up_to_date_and_other_states_are_left_to_their_pipelines() -> None:
    stored = merge(None, text(None, *BOTH))
    described = [msgspec.structs.replace(one, description="new") for one in BOTH]
    described[1] = msgspec.structs.replace(described[1], state_fingerprint="another")

    found = parse(brought_up_to(stored, revision(1, *described)) or "").views

    assert [found[name].description for name in ("spend@1", "spend@2")] == ["new", ""]
    assert brought_up_to(None, revision(1, *BOTH)) is None


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"format": 2, "views": []}', "it has format 2, not 1"),
        ('{"format": 1, "views": [{}]}', "cannot be read"),
        ('{"format": 1, "views": [], "applied": 7}', "cannot be read"),
        ('{"format": 1, "views": [], "applied": {"a": {"revision": 9, "serves": {}, "services": []}}}', "has revision 9, but the record ends with revision 1"),
    ],
    ids=["empty", "deep", "newer", "view", "applied", "ahead"],
)  # fmt: skip
def test_a_copy_that_is_damaged_or_ahead_is_not_replaced(stored: str, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        brought_up_to(stored, revision(1, *BOTH))


def test_a_revision_is_read_back_as_it_was_written() -> None:
    every_type = view(
        features=(
            *PLAN.published.features,
            msgspec.structs.replace(PLAN.published.features[0], name="t", type="timestamp", empty=None, default=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
            msgspec.structs.replace(PLAN.published.features[0], name="d", type="decimal(38,2)", empty=None),
        )
    )  # fmt: skip
    written = revision(7, every_type, services=("s",))

    assert from_bytes(to_bytes(written), "here", 7) == written
