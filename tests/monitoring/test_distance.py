"""Distances between distributions: equal to scipy's, quiet without a drift, and loud with one."""

import numpy as np
import polars as pl
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from unskew.features.types import Type
from unskew.monitoring.bins import Bins, counts_of
from unskew.monitoring.distance import FEWEST, LIMIT, distance
from unskew.offline.distribution import distribution


@pytest.mark.parametrize("seed", range(20))
def test_distances_are_those_of_scipy(seed):
    random = np.random.default_rng(seed)
    n_bins = random.integers(2, 23)
    counts = [random.multinomial(random.integers(1, 5_000), random.dirichlet(np.full(n_bins, 0.3))) for _ in range(2)]
    met = (counts[0] + counts[1]) > 0
    p, q = ((one[met] + 0.5) / (one.sum() + 0.5 * met.sum()) for one in counts)

    found = distance(*counts)

    assert p.sum() == pytest.approx(1)
    assert found.psi == pytest.approx(entropy(p, q) + entropy(q, p))
    assert found.kl == pytest.approx(entropy(q, p))
    assert found.js == pytest.approx(jensenshannon(p, q) ** 2)
    assert (found.n_baseline, found.n) == (counts[0].sum(), counts[1].sum())


def drawn(random, kind: str, n: int) -> pl.Series:
    match kind:
        case "normal":
            return pl.Series(random.normal(size=n))
        case "mostly zero":
            return pl.Series(np.where(random.random(n) < 0.8, 0.0, random.gamma(2, 20, n)))
        case "small counts":
            return pl.Series(random.poisson(1.5, n))
        case "texts":
            return pl.Series([f"shop {one}" for one in random.zipf(1.6, n) % 90])
        case _:
            return pl.Series(random.random(n) < 0.1)


OF = {"normal": "float64", "mostly zero": "float64", "small counts": "int64", "texts": "string", "flags": "bool"}


def compared(before: pl.Series, after: pl.Series, dtype: str):
    kept = distribution(before)
    bins = Bins.of(kept, Type.parse(dtype))
    return distance(counts_of(kept, before.null_count())[:-1], bins.counts(after)[:-1])


@pytest.mark.parametrize("sizes", [(250, 250), (600, 400), (5_000, 400)])
def test_two_samples_of_one_distribution_alarm_at_most_once_in_a_hundred(sizes):
    random = np.random.default_rng(11)
    alarms = judged = 0
    psi = []
    for number in range(1_000):
        kind = list(OF)[number % len(OF)]
        found = compared(drawn(random, kind, sizes[0]), drawn(random, kind, sizes[1]), OF[kind])
        judged += not found.are_few
        alarms += not found.are_few and found.psi > found.limit()
        psi.append((found.psi, found.noise))

    assert judged >= 400
    assert alarms <= judged / 100
    # The noise is the average of what such samples show: not far too large either.
    assert 0.5 < np.mean([one for one, _ in psi]) / np.mean([noise for _, noise in psi]) < 1.3


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("normal", lambda values: values + 1.0),
        ("mostly zero", lambda values: values.set(pl.Series(np.arange(len(values)) % 2 == 0), 30.0)),
        ("small counts", lambda values: values * 3),
        ("texts", lambda values: values.replace({"shop 1": "shop of another name"})),
        ("flags", lambda values: ~values),
        ("normal", lambda values: values.set(pl.Series(np.arange(len(values)) % 5 == 0), None)),
        ("normal", lambda values: values.set(pl.Series(np.arange(len(values)) % 5 == 0), float("nan"))),
    ],
)
def test_a_shift_alarms(kind, change):
    random = np.random.default_rng(5)
    before, after = drawn(random, kind, 2_000), drawn(random, kind, 2_000)

    found = compared(before, change(after), OF[kind])

    assert not found.are_few
    assert found.psi > found.limit()


def test_few_values_are_not_judged_however_far_apart_they_are():
    far = (np.array([100, 0, 0]), np.array([0, 0, 100]))
    many = (np.array([100_000, 0, 0]), np.array([0, 0, FEWEST - 1]))
    deciles = (np.full(10, 100), np.full(10, 10))
    enough = (np.full(10, 10_000), np.full(10, 1_000))

    assert [distance(*one).are_few for one in (far, many, deciles, enough)] == [True, True, True, False]
    assert distance(*enough).limit() == LIMIT
    assert distance(np.full(10, 30), np.full(10, 30)).limit() == pytest.approx(LIMIT)
    assert distance(np.full(20, 25), np.full(20, 25)).limit() == pytest.approx(3 * 19 * 2 / 500)
    nothing = distance(np.zeros(3, np.int64), np.array([5, 0, 0]))
    assert (nothing.psi, nothing.are_few) == (0.0, True)
