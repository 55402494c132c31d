"""Population histograms: equal to a plain count of every last row, at any instants, in one or several passes."""

import random
from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from tests.support.plans import DAY, HOUR, MINUTE, events, republished
from tests.support.populations import binned, naive, naive_bin, raw_rows, us
from tests.support.typed import EMPTY, WINDOW
from tests.support.typed import ORDERS as TYPED
from tests.support.written import write_log
from unskew.features.errors import RequestError
from unskew.monitoring.bins import Bins, counts_of
from unskew.monitoring.population import Population, histograms, values_at
from unskew.offline import log_reader
from unskew.offline.log_reader import ViewLog

T0 = 1_490_400_000_000_000
CLOCK = T0 + 4 * DAY
# Every type of value, and no window that never empties.
ORDERS = republished(
    TYPED, windows=tuple(WINDOW if window.kind == "lifetime" else window for window in TYPED.published.windows)
)
COLUMNS = {
    "price": pl.Decimal(38, 2),
    "gift": pl.Boolean(),
    "shop": pl.String(),
    "paid_at": pl.Datetime("us", "UTC"),
}


def orders(n: int = 600, seed: int = 3) -> pl.DataFrame:
    """Orders of 60 users, some of them once and some often, with nulls and windows that empty."""
    rng = random.Random(seed)
    rows = []
    at = T0
    for number in range(n):
        at += rng.randrange(1, 12 * MINUTE)
        paid = at - rng.randrange(HOUR)
        rows.append((at, paid, {
            "user": f"u {min(int(rng.paretovariate(0.6)), 60)}",
            "x": rng.choice([None, -0.0, 0.0, 1e300, rng.gauss(0, 1)]),
            "n": rng.choice([None, rng.randrange(40)]),
            "price": rng.choice([None, Decimal(rng.randrange(-500, 5_000)).scaleb(-2)]),
            "gift": rng.choice([None, True, False, False]),
            "shop": rng.choice([None, *(f"shop {int(rng.paretovariate(0.5)) % 40}" for _ in range(6))]),
            "paid_at": None if number % 9 == 0 else pl.Series([paid], dtype=pl.Datetime("us", "UTC"))[0],
        }))  # fmt: skip
    return events(rows, columns=COLUMNS)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("log")
    write_log(folder, ORDERS, orders(), CLOCK, n_shards=3, n_batches=6)
    return folder


def is_gone(row) -> bool:
    return all(row[name] == value for name, value in EMPTY.items())


@pytest.mark.parametrize("divided", [False, True])
def test_histograms_at_any_instants_are_those_of_every_entitys_last_row(root, monkeypatch, divided):
    if divided:
        # Many small chunks, in place of one.
        monkeypatch.setattr(log_reader, "_MEMORY_BYTES", 20_000)
        monkeypatch.setattr(log_reader, "_CHUNK_BYTES", 4_000)
    log = ViewLog(root, ORDERS.published)
    chosen = binned(log, T0 + 2 * DAY)
    rows = raw_rows(root, ORDERS.name)
    rng = random.Random(7)
    exact = [us(row["available_at"]) for row in rng.sample(rows, 10)]
    instants = sorted([T0 - 1, *exact, *(one - 1 for one in exact[:5]), *(rng.randrange(T0, CLOCK) for _ in range(34))])

    found = histograms(log, [(feature, bins) for feature, bins, _ in chosen], np.array(instants))

    assert {feature.dtype.scalar for feature, _, _ in chosen} == {
        *("int64", "float64", "bool", "string", "timestamp", "decimal"),
    }
    assert {feature.dtype.nesting for feature, _, _ in chosen} == {None, "list", "map"}
    lasts = [{row["user"]: row for row in rows if us(row["available_at"]) <= t_us}.values() for t_us in instants]
    for place, last in enumerate(lasts):
        for (feature, bins, _), counts in zip(chosen, found.counts, strict=True):
            assert counts[place].tolist() == naive(last, feature, bins, is_gone), (feature.name, place)
    entities = [sum(not is_gone(row) for row in last) for last in lasts]
    assert found.entities.tolist() == entities
    assert max(entities) > 20
    assert any(found.gone > 5)


def test_a_population_that_goes_on_is_the_one_that_is_counted_at_once(root):
    log = ViewLog(root, ORDERS.published)
    chosen = [(feature, bins) for feature, bins, _ in binned(log, T0 + DAY)]
    instants = np.arange(T0, CLOCK, 5 * HOUR + 7 * MINUTE)
    at_once = histograms(log, chosen, instants)

    population = Population(log.view, chosen)
    counted_us = 0
    when = [us(row["available_at"]) for row in raw_rows(root, ORDERS.name)]
    for place, t_us in enumerate(instants):
        rest = ViewLog(root, ORDERS.published, after=population.next_sequence)
        assert rest.n_rows() == sum(one > counted_us for one in when)
        counted_us = t_us
        now = population.advance(rest.oldest_first(population.columns), np.array([t_us]))
        assert now.entities[0] == at_once.entities[place]
        for own, all_ in zip(now.counts, at_once.counts, strict=True):
            assert own[0].tolist() == all_[place].tolist()

    with pytest.raises(ValueError, match="ascend"):
        population.advance([], np.array([T0]))


def test_a_baseline_counts_the_population_of_its_instant_in_its_own_bins(root):
    log = ViewLog(root, ORDERS.published)
    t_us = T0 + 2 * DAY
    chosen = binned(log, t_us)
    values, n_gone = values_at(log, t_us)

    found = histograms(log, [(feature, bins) for feature, bins, _ in chosen], np.array([t_us]))

    for (feature, _, one), counts in zip(chosen, found.counts, strict=True):
        n_nulls = 0 if feature.default is not None else values[feature.name].null_count()
        assert counts[0].tolist() == counts_of(one, n_nulls, n_gone).tolist(), feature.name
    assert (found.entities[0], found.gone[0]) == (len(values), n_gone)
    assert n_gone > 0


def test_an_entity_that_came_back_in_another_shard_counts_once_with_its_latest_row(tmp_path):
    view = republished(ORDERS, partitioned=True)
    rows = [(T0 + hour * HOUR, T0 + hour * HOUR, {"user": "u", "n": hour}) for hour in range(6)]
    files = []
    for shard, mine in enumerate((rows[::2], rows[1::2])):
        # One user's rows in both shards, by turns.
        write_log(tmp_path / str(shard), view, events(mine, columns=COLUMNS), T0 + 6 * HOUR)
        files += [
            pl.read_parquet(file, hive_partitioning=False).with_columns(shard=pl.lit(f"p{shard}.0"))
            for file in sorted(tmp_path.glob(f"{shard}/orders/v1/day=*/*.parquet"))
        ]
    # Shard after shard, as a log yields them.
    chunk = pl.concat(files)
    (feature,) = (one for one in view.published.features if one.name == "counts")
    lengths = chunk[feature.name].list.len().cast(pl.Int64).unique().drop_nulls().sort()
    bins = Bins(lengths.alias("edges"), are_upper=True)
    population = Population(view.published, [(feature, bins)])
    instants = np.sort(chunk["available_at"].to_physical().unique().to_numpy())

    found = population.advance([chunk], instants)

    last = chunk.sort("available_at")
    for t_us, counts in zip(instants, found.counts[0], strict=True):
        row = last.filter(pl.col("available_at").to_physical() <= t_us).row(-1, named=True)
        expected = bins.no_row if is_gone(row) else naive_bin(row[feature.name], lengths.to_list(), are_upper=True)
        assert counts.nonzero()[0].tolist() == [expected]
        assert counts.sum() == 1
    assert population.event_us == T0 + 5 * HOUR


def test_bins_of_another_type_and_instants_past_the_log_are_refused(root):
    log = ViewLog(root, ORDERS.published)
    of = {feature.name: (feature, one) for feature, _, one in binned(log, T0 + DAY)}
    for name, other in (
        ("shop", "n"), ("n", "shop"), ("gift", "n"), ("n", "gift"), ("counts", "n"), ("n", "counts"), ("rate", "shop"),
        ("since", "shop"), ("spend", "shop"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            Bins.of(of[name][1], of[other][0].dtype)
    disordered = msgspec.structs.replace(of["spend"][1], edges=of["spend"][1].edges[::-1])
    many = msgspec.structs.replace(of["n"][1], edges=tuple(range(300)), counts=(1,) * 300)
    short = msgspec.structs.replace(of["n"][1], counts=(1,))
    for one, kind, message in (
        (disordered, "spend", "not in order"),
        (many, "n", "20 are the most"),
        (short, "n", "a count for each"),
    ):
        with pytest.raises(ValueError, match=message):
            Bins.of(one, of[kind][0].dtype)
    with pytest.raises(RequestError, match="not complete to the instants"):
        histograms(log, [], np.array([CLOCK + 1]))
