"""The plan of what a log holds, made again from the log alone: for commands that are given no definitions."""

from collections.abc import Collection
from pathlib import Path

from unskew.features.definitions.recorded import stream_of
from unskew.features.definitions.revived import revived
from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import Plan, StreamPlan, ViewPlan
from unskew.features.versions import Versions
from unskew.offline.logged import LoggedVersion, defined
from unskew.sinks.tables.layout import read_stream, view_roots


def logged_plan(log_root: Path, only: Collection[str] | None = None) -> Plan:
    """Return the plan of the views of a log, each over its stream as it was when the log was last written.

    ``only``: the versions that are wanted, as ``name@version``, as far as the log holds them; None for all. Raises
    ``RequestError`` if it holds none, and ``LayoutError`` if it does not say all that is needed.
    """
    held = [LoggedVersion(*found) for found in view_roots(log_root)]
    wanted = [one for one in held if only is None or one.id in only]
    if not wanted:
        what = "of any view" if not held else "of a view that is applied"
        raise RequestError(f"{log_root} holds no log {what}; give the --log folder of unskew run, or --definitions")
    streams: dict[str, StreamPlan] = {}
    views: list[ViewPlan] = []
    for one in wanted:
        words = read_stream(one.root)
        if words is None:
            raise LayoutError(
                f"{one.root} does not say how its stream is read, because an earlier version of unskew wrote it; give the definitions "
                "with --definitions, or start unskew run with them once"
            )
        stream = stream_of(words, str(one.root))
        views.append(revived(defined(one), {stream.name: stream}))
        streams[stream.name] = stream
    return Plan(streams=streams, views=Versions(views))
