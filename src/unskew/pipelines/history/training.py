"""The logs that views would have, computed from the archive for the entities that labels name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.plan import ViewPlan
from unskew.pipelines.history.archive import Archive
from unskew.pipelines.history.rebuild import Rebuilt, closed_through, rebuild


def rebuilt_for(
    archive_root: Path, views: Sequence[ViewPlan], keys: Mapping[str, pl.Series], until_us: int
) -> dict[str, Rebuilt]:
    """Rebuild views, of any streams, for some entities, up to an instant; return them by id.

    ``keys``: by view id, the canonical keys. ``until_us``: the last instant whose values are wanted. Raises
    ``RequestError`` if nothing of a stream is archived; ``LayoutError`` as ``rebuild`` does.
    """
    by_topic: dict[str, list[ViewPlan]] = {}
    for view in views:
        by_topic.setdefault(view.stream.topic, []).append(view)
    found: dict[str, Rebuilt] = {}
    for together in by_topic.values():
        archive = Archive.open(archive_root, together[0].stream)
        if not archive:
            raise RequestError(
                f"{archive.root} holds no events, so {', '.join(view.id for view in together)} cannot be computed from them; give "
                "the --archive folder of the pipeline"
            )
        found |= rebuild(together, archive, end=closed_through(archive, until_us), keys=keys)
    return found
