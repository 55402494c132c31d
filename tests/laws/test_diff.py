"""The differences of two definitions, on histories at every edge, against a recount of the raw events of each."""

import dataclasses
import math
import random
import tempfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.test_history import KEYS, archived, plan
from tests.support.fed import bits
from tests.support.histories import N_PACKS, histories, laws
from tests.support.plans import republished
from unskew.features.plan import FilterPlan, ViewPlan
from unskew.monitoring.recount import Recount
from unskew.pipelines.history import diff as module
from unskew.pipelines.history.compared import AtEnd, FeatureDiff, merged
from unskew.pipelines.history.diff import ViewDiff, diff

OTHERS = ("few tiles", "tumbling", "lifetime", "session", "berlin day")


def changed(old: ViewPlan, named: str, number: int, change: str, draw: random.Random) -> ViewPlan:
    """The view with one thing changed."""
    match change:
        case "window":
            other = plan(draw.choice([one for one in OTHERS if one != named]), number)
            return republished(other, state_fingerprint="1" * 64)
        case "where":
            where = FilterPlan(text="x > 0", expr=pl.col("x") > 0)
            return republished(dataclasses.replace(old, where=where), state_fingerprint="1" * 64)
        case _:
            feature = next(
                (one for one in old.features if one.published.type == "int64" and one.published.empty is None), None
            )
            if feature is None:
                return old
            defaulted = msgspec.structs.replace(feature.published, default=7)
            features = tuple(
                dataclasses.replace(one, published=defaulted) if one is feature else one for one in old.features
            )
            return republished(
                dataclasses.replace(old, features=features), features=tuple(one.published for one in features)
            )


def expected(
    old: ViewPlan, new: ViewPlan, events: pl.DataFrame, from_us: int | None, upto_us: int
) -> dict[str, object]:
    """Every instant of every entity at which a side's values begin, compared value by value."""
    recounts = [(view, Recount(view, events)) for view in (old, new)]
    common = [one.name for one in new.outputs if one.name in {each.name for each in old.outputs}]
    found: dict[str, object] = {"instants": 0, "differing": 0, "entities": 0, "changed": 0}
    cells: dict[str, list[tuple[int, str, object, object]]] = {name: [] for name in common}
    ends: dict[str, list[tuple[object, object]]] = {name: [] for name in common}
    for key in sorted(KEYS):
        rows = {row.instant_us for _, recount in recounts for row in recount.rows((key,), upto_us)}
        instants = sorted(at for at in rows if from_us is None or at > from_us)
        if from_us is not None and any(
            bits(read(view, recount, key, from_us, common)) != bits(read(view, recount, "nobody", from_us, common))
            for view, recount in recounts
        ):
            instants.insert(0, from_us)
        differs = False
        for at in instants:
            sides = [read(view, recount, key, at, common) for view, recount in recounts]
            unlike = [name for name in common if bits({"": sides[0][name]}) != bits({"": sides[1][name]})]
            found["differing"] += bool(unlike)
            differs |= bool(unlike)
            for name in unlike:
                cells[name].append((at, key, sides[0][name], sides[1][name]))
        if instants:
            sides = [read(view, recount, key, upto_us, common) for view, recount in recounts]
            for name in common:
                if bits({"": sides[0][name]}) != bits({"": sides[1][name]}):
                    ends[name].append((sides[0][name], sides[1][name]))
        found["instants"] += len(instants)
        found["entities"] += bool(instants)
        found["changed"] += differs
    return found | {"cells": cells, "ends": ends}


def read(view: ViewPlan, recount: Recount, key: str, at: int, names: list[str]) -> dict[str, object]:
    values = recount.values((key,), at)
    defaults = {one.name: one.default for one in view.outputs}
    return {name: defaults[name] if values[name] is None else values[name] for name in names}


def assert_is(one: ViewDiff, wanted: dict[str, object]) -> None:
    counts = one.counts
    cells, ends = wanted.pop("cells"), wanted.pop("ends")
    assert {name: getattr(counts, name) for name in wanted} == wanted
    assert [feature.name for feature in one.features] == list(cells)
    for feature in one.features:
        unlike = sorted(cells[feature.name], key=lambda cell: cell[:2])
        assert feature.differing == len(unlike)
        assert feature.entities == len({key for _, key, *_ in unlike})
        assert feature.from_null == sum(old is None for *_, old, _ in unlike)
        assert feature.to_null == sum(new is None for *_, new in unlike)
        shown = [(each.instant_us, *each.entity, each.old, each.new) for each in feature.examples]
        assert [bits(dict(enumerate(each))) for each in shown] == [bits(dict(enumerate(each))) for each in unlike[:3]]
        assert_magnitudes(feature, [(old, new) for *_, old, new in unlike])
        assert_end(feature.end, ends[feature.name])


def assert_end(end: AtEnd, pairs: list[tuple[object, object]]) -> None:
    assert end.differing == len(pairs)
    assert end.from_null == sum(old is None for old, _ in pairs)
    assert end.to_null == sum(new is None for _, new in pairs)
    exact = sorted(abs(new - old) for old, new in fractions(pairs))
    assert len(end.changes) == len(exact)
    if exact:
        wanted = (sum(exact) / len(exact), exact[(len(exact) - 1) // 2], exact[-1])
        figures = (end.changes.mean, end.changes.median, end.changes.most)
        assert all(math.isclose(one, float(its), rel_tol=1e-9) for one, its in zip(figures, wanted, strict=True))


def fractions(pairs: list[tuple[object, object]]) -> list[tuple[Fraction, Fraction]]:
    return [
        (Fraction(old), Fraction(new))
        for old, new in pairs
        if all(isinstance(one, int | float | Decimal) and not isinstance(one, bool) for one in (old, new))
    ]


def assert_magnitudes(feature: FeatureDiff, pairs: list[tuple[object, object]]) -> None:
    numbers = fractions(pairs)
    assert feature.increased == sum(new > old for old, new in numbers)
    assert feature.absolute.n == feature.relative.n == len(numbers)
    for found, exact in (
        (feature.absolute, [abs(new - old) for old, new in numbers]),
        (feature.relative, [abs(new - old) / max(abs(old), abs(new)) for old, new in numbers]),
    ):
        for q in (0.5, 0.9, 0.99):
            if exact:
                wanted = sorted(exact)[max(1, math.ceil(q * len(exact))) - 1]
                # A difference of two large floats is rounded to one.
                assert math.isclose(found.quantile(q), float(wanted), rel_tol=0.0101, abs_tol=1e-300)
        if exact:
            assert math.isclose(found.most, float(max(exact)), rel_tol=1e-9, abs_tol=1e-300)


@pytest.mark.parametrize("named", ["few tiles", "closed", "session", "lifetime", "kathmandu day"])
@laws(max_examples=5)
@given(st.data())
def test_differences_equal_those_of_two_recounts(named: str, data: st.DataObject) -> None:
    draw = data.draw(st.randoms(use_true_random=False))
    change = draw.choice(["window", "window", "where", "default"])
    number = draw.randrange(N_PACKS)
    old = plan(named, number)
    new = changed(old, named, number, change, draw)
    history = data.draw(histories(old.windows[0]))
    if not history.events.height:
        return
    arrivals = history.events["_arrival"].to_physical().to_list()
    from_us = draw.choice([None, arrivals[0] - 1, draw.choice(arrivals), draw.choice(arrivals) + 1])
    if from_us is not None and from_us >= history.clock_us:
        from_us = None
    until_us = draw.choice([None, history.clock_us, history.clock_us + 5])
    if draw.random() < 0.5 and arrivals[-1] > (from_us or arrivals[0]):
        until_us = draw.randint((from_us or arrivals[0]) + 1, arrivals[-1])
    upto_us = min(history.clock_us, until_us or history.clock_us) - 1
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEP_ROWS", draw.choice([0, 1, 5, 10_000]))
        root = Path(folder)
        archived(root, old, history, draw)

        (one,) = diff([old], [new], root, from_us=from_us, until_us=until_us)
        parts = draw.choice([2, 3])
        job = module._job([module._Pair(old=old, new=new)], root, from_us, until_us, module.Sample())
        together = merged([module._compare(part, lambda _: None) for part in module._parts(job, parts)])

    if one.unchanged:
        assert old == new
        return
    wanted = expected(old, new, history.events, from_us, upto_us)
    assert_is(one, wanted)
    assert together[new.id].counts == one.counts
    for mine, its in ((together[new.id].features, one.features), (together[new.id].added, one.populations)):
        assert [dataclasses.asdict(each) for each in mine] == [dataclasses.asdict(each) for each in its]
