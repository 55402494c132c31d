"""What a backfill does once, however many chunks, checks and views there are."""

from collections import Counter
from pathlib import Path

import pytest

from tests.pipelines.test_archive import VIEW, events, write
from tests.support.plans import republished
from unskew.features.plan import StreamPlan
from unskew.features.shard_state import ShardState
from unskew.pipelines.history.archive import Archive
from unskew.pipelines.history.handover import HandOver, hand_over
from unskew.pipelines.history.seam import check_taken
from unskew.pipelines.state.changelog import Changelogs, Manifest
from unskew.pipelines.state.saved import Saved
from unskew.pipelines.state.seeds import Seeds
from unskew.pipelines.state.whole import WholeState


def test_the_archive_is_opened_once_for_all_new_views_and_each_state_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "archive", events(4))
    write(tmp_path / "archive", events(4, partition=1))
    topic = VIEW.stream.topic
    cut = Archive.open(tmp_path / "archive", VIEW.stream).cut
    views = [VIEW, republished(VIEW, name="second")]
    counted: Counter[str] = Counter()
    as_opened, as_written = Archive.open, WholeState.snapshot

    def opened(root: Path, stream: StreamPlan) -> Archive:
        counted["opened"] += 1
        return as_opened(root, stream)

    def written(self: WholeState, state: ShardState, dropped: int) -> Manifest:
        counted[f"{state.view.id}/{state.shard}"] += 1
        return as_written(self, state, dropped)

    monkeypatch.setattr(Archive, "open", opened)
    monkeypatch.setattr(WholeState, "snapshot", written)
    changelogs = Changelogs(tmp_path / "state" / "changelog")
    seeds = Seeds(tmp_path / "state")

    seams = hand_over(
        HandOver(
            views=views,
            log=tmp_path / "log",
            archive=tmp_path / "archive",
            saved=Saved(
                shards=[],
                places={
                    topic: {p: {"offset": one.offset, "clock": one.clock_us, "ended": False} for p, one in cut.items()}
                },
                tables={},
            ),
            seeds=seeds,
            changelogs=changelogs,
            partitions={topic: [0, 1]},
            n_partitions={topic: 2},
            n_hashes=2,
            still_ours=lambda: None,
            going_on=lambda: None,
        )
    )

    changelogs.close()
    assert [seam.view for seam in seams] == [view.id for view in views]
    assert all(seam.events == 40 and seam.compared for seam in seams)
    assert counted == {"opened": 1, **{f"{view.id}/{shard}": 1 for view in views for shard in ("h0", "h1")}}
    for view in views:
        for shard in ("h0", "h1"):
            seed = seeds.read(view, shard)
            assert seed is not None
            # The check is durable too: nothing of what was taken is left to be checked again.
            assert all((one.checked, one.n_events) == (one.end, 0) for one in seed.taken.values())
            assert sum(one.total for one in seed.taken.values()) == 40
            check_taken(view, as_opened(tmp_path / "archive", view.stream), cut, {shard: seed.taken})
