"""How a stream is read, as a revision records it: also what no fingerprint of a view covers, as how long it settles."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from unskew.features.plan import StreamPlan, ViewPlan
from unskew.features.time import format_duration

_DURATIONS = frozenset({"settle_us", "max_ahead_us", "max_age_us", "dedupe_within_us"})


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The settings of one stream. None, or nothing, where its definition does not say; durations in microseconds."""

    name: str
    topics: tuple[str, ...]
    format: str
    event_time: str
    max_ahead_us: int
    settle_us: int | None = None
    max_age_us: int | None = None
    event_id: str | None = None
    dedupe_within_us: int | None = None
    partitioned_by: tuple[str, ...] = ()
    schema_ids: tuple[int, ...] = ()
    other_operations: str | None = None
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = {}

    def facts(self) -> dict[str, Any]:
        """Return the settings by the names under which people know them; what is not said is left out."""
        said = {name: value for name, value in msgspec.to_builtins(self).items() if name != "name"}
        return {
            name.removesuffix("_us"): format_duration(value) if name in _DURATIONS else value
            for name, value in said.items()
        }


def recorded(views: Iterable[ViewPlan]) -> dict[str, StreamSettings]:
    """Return the settings of the streams that views read, by name. What a table has, its views' fingerprints cover."""
    streams = {view.stream.name: view.stream for view in views if view.stream.table is None}
    return {name: _settings(stream) for name, stream in sorted(streams.items())}


def _settings(stream: StreamPlan) -> StreamSettings:
    others = "dead_letter" if stream.refuses_others else "ignore"
    return StreamSettings(
        name=stream.name,
        topics=stream.sources,
        format=stream.format,
        event_time=stream.event_time,
        max_ahead_us=stream.max_ahead_us,
        settle_us=stream.settle_us,
        max_age_us=stream.max_age_us,
        event_id=stream.event_id,
        dedupe_within_us=stream.dedupe_within_us,
        partitioned_by=stream.partitioned_by,
        schema_ids=stream.schema_ids,
        other_operations=others if stream.envelope == "debezium" else None,
        description=stream.description,
        owner=stream.owner,
        tags=stream.tags,
    )
