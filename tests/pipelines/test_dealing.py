"""How shards are dealt to processes that compute side by side."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipelines.test_archive import VIEW, events, write
from tests.support.plans import republished
from unskew.features.keys import shard_of
from unskew.features.plan import ViewPlan
from unskew.pipelines.history.archive import Archive
from unskew.pipelines.history.dealing import dealt, dealt_by_events, spread
from unskew.pipelines.history.rebuild import whole
from unskew.pipelines.state.ordering import shard_names

N_HASHES = 8
NAMES = [f"h{number}" for number in range(N_HASHES)]
PARTITIONED = republished(VIEW, partitioned=True)


def by_events(one: ViewPlan, root: Path, names: Sequence[str], n_processes: int) -> list[list[str]]:
    archive = Archive.open(root, one.stream)
    return dealt_by_events(one, archive, whole(archive), names, N_HASHES, n_processes)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 4))
def test_the_largest_share_is_at_most_a_third_larger_than_it_must_be(weights: list[int], n_shares: int) -> None:
    shares = spread(dict(enumerate(weights)), n_shares)

    assert sorted(itertools.chain.from_iterable(shares)) == list(range(len(weights)))
    assert len(shares) == n_shares
    assert sum(bool(share) for share in shares) == min(n_shares, len(weights))
    ways = itertools.product(range(n_shares), repeat=len(weights))
    best = min(
        max(sum(weight for at, weight in zip(way, weights, strict=True) if at == n) for n in range(n_shares))
        for way in ways
    )
    assert 3 * max(sum(weights[unit] for unit in share) for share in shares) <= 4 * best


def test_the_shard_of_a_frequent_key_has_fewer_others_beside_it(tmp_path: Path) -> None:
    keys = [f"u{number}" for number in range(200)]
    hot = next(key for key in keys if shard_of(pl.Series([key]), N_HASHES)[0] == 0)
    rows = events(400).with_columns(
        user=pl.Series([hot if number % 2 else keys[number % 200] for number in range(2_000)])
    )
    write(tmp_path, rows, per_file=100)

    one, other = by_events(VIEW, tmp_path, NAMES, 2)

    assert {*one, *other} == set(NAMES)
    assert "h0" in one
    assert len(one) <= 2
    counts = Counter(shard_of(rows["user"], N_HASHES).tolist())
    assert max(sum(counts[int(name[1:])] for name in share) for share in (one, other)) < 0.6 * rows.height


def test_partitions_are_dealt_by_their_numbers_of_events(tmp_path: Path) -> None:
    for partition, n_days in enumerate((40, 10, 20, 10)):
        write(tmp_path, events(n_days, partition), per_file=1_000)
    names = shard_names(PARTITIONED, range(4), N_HASHES)

    one, other = by_events(PARTITIONED, tmp_path, names, 2)

    assert {name.partition(".")[0] for name in one} == {"p0"}
    assert {name.partition(".")[0] for name in other} == {"p1", "p2", "p3"}
    assert sorted(one + other) == sorted(names)


@pytest.mark.parametrize("one", [VIEW, PARTITIONED])
def test_no_process_is_without_a_shard(one: ViewPlan, tmp_path: Path) -> None:
    write(tmp_path, events(1))
    write(tmp_path, events(1, partition=1))
    names = shard_names(one, range(2), N_HASHES)

    for n_processes in range(1, 12):
        shares = by_events(one, tmp_path, names, n_processes)
        assert len(shares) == min(n_processes, 2 if one.partitioned else N_HASHES)
        assert all(shares)
        assert sorted(itertools.chain.from_iterable(shares)) == sorted(names)


def test_what_the_sample_cannot_read_is_left_to_those_who_read_it(tmp_path: Path) -> None:
    write(tmp_path, events(4), per_file=10)
    archive = Archive.open(tmp_path, VIEW.stream)
    damaged, gone, *_ = (file.path for file in archive.files[0])
    damaged.write_bytes(damaged.read_bytes()[:-20])
    gone.unlink()

    shares = dealt_by_events(VIEW, archive, whole(archive), NAMES, N_HASHES, 3)

    assert sorted(itertools.chain.from_iterable(shares)) == NAMES


def test_processes_of_a_cluster_deal_alike_whatever_is_archived() -> None:
    shares = dealt(VIEW, NAMES, 3)

    assert sorted(itertools.chain.from_iterable(shares)) == NAMES
    assert {len(share) for share in shares} == {2, 3}
    assert dealt(VIEW, NAMES, 3) == shares
