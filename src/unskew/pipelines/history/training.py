"""The logs that views would have, computed from the archive for the entities that labels name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import ViewPlan
from unskew.pipelines.history.archive import Archive, Cut
from unskew.pipelines.history.rebuild import Rebuilt, closed_through, rebuild


@dataclass(frozen=True)
class RebuiltViews:
    """Views as rebuilt from events, by id, and by topic the place in the archive up to which events were read."""

    views: Mapping[str, Rebuilt]
    ends: Mapping[str, Cut]


def rebuilt_for(
    archive_root: Path,
    views: Sequence[ViewPlan],
    keys: Mapping[str, pl.Series],
    until_us: int,
    ends: Mapping[str, Cut] | None = None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> RebuiltViews:
    """Rebuild views, of any streams, for some entities, up to an instant.

    ``keys``: by view id, the canonical keys. ``until_us``: the last instant whose values are wanted. ``ends``: the
    places up to which events were read before, to read the same ones again. ``progress``: called with what is
    rebuilt, the events that were read, and about how many there are. Raises ``RequestError`` if nothing of a stream is
    archived; ``LayoutError`` as ``rebuild`` does, and if the archive does not reach ``ends``.
    """
    by_topic: dict[str, list[ViewPlan]] = {}
    for view in views:
        by_topic.setdefault(view.stream.topic, []).append(view)
    found: dict[str, Rebuilt] = {}
    reached: dict[str, Cut] = {}
    for topic, together in by_topic.items():
        archive = Archive.open(archive_root, together[0].stream)
        if not archive:
            raise RequestError(
                f"{archive.root} holds no events, so {', '.join(view.id for view in together)} cannot be computed from them; give "
                "the --archive folder of the pipeline"
            )
        reached[topic] = closed_through(archive, until_us) if ends is None else _again(archive, ends.get(topic, {}))
        name = ", ".join(view.id for view in together)
        found |= rebuild(
            together, archive, end=reached[topic], keys=keys, progress=partial(progress, f"events of {name}")
        )
    return RebuiltViews(found, reached)


def _again(archive: Archive, end: Cut) -> Cut:
    """Return an earlier place in the archive; raises ``LayoutError`` if the archive does not reach it."""
    for partition, wanted in end.items():
        now = archive.cut.get(partition)
        if now is None or now.offset < wanted.offset:
            raise LayoutError(
                f"{archive.root}: partition {partition} is archived up to offset {0 if now is None else now.offset}, and the "
                f"training set was made with events up to {wanted.offset}; give the archive that it was made with"
            )
    return end
