"""The topics that a state was made from, and the checks of whether the broker still has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from unskew.features.errors import LayoutError

START_OVER = "start over with an empty --state, --log, --archive and --dead-letters and another --prefix"


class Described(msgspec.Struct, frozen=True):
    """A topic as the broker describes it; ``id`` is None if the broker gives none (before Kafka 2.8)."""

    id: str | None
    n_partitions: int


class KnownTopics(msgspec.Struct, frozen=True):
    """The topics of a stream as they were when its records were read.

    ``ids``: by topic, the id that the broker gave it when it was created; None if the broker gave none. ``partitions``:
    topic and partition of every number, in the order of the numbers. A number stays with its partition.
    """

    ids: Mapping[str, str | None]
    partitions: Sequence[tuple[str, int]]

    @classmethod
    def of(cls, found: Mapping[str, Described], before: "KnownTopics | None" = None) -> "KnownTopics":
        """Return the topics found, with numbers: partitions of ``before`` keep theirs, and new ones follow."""
        every = [(topic, number) for topic, one in found.items() for number in range(one.n_partitions)]
        known = [] if before is None else before.partitions
        return cls(
            {topic: one.id or (before.ids.get(topic) if before else None) for topic, one in found.items()},
            [*known, *sorted(set(every) - set(known), key=every.index)],
        )

    @classmethod
    def from_json(cls, found: Any) -> "KnownTopics":
        """Return what ``to_json`` gave."""
        return msgspec.convert(found, cls)

    def to_json(self) -> Any:
        """Return plain types."""
        return msgspec.to_builtins(self)

    def check(self, title: str, found: Mapping[str, Described], *, any_id: bool = False) -> None:
        """Raise ``LayoutError`` if the broker lacks one of these topics or partitions, or has others of the same name.

        ``title``: names the stream's topics in errors. ``any_id``: true if topics with other ids are the same ones.
        """
        for topic, id_ in self.ids.items():
            one = found.get(topic)
            if one is None:
                raise LayoutError(
                    f"{title}: topic {topic!r} was read before and is not among the topics now; create it again from a backup, give the "
                    f"stream its earlier topics, or {START_OVER}"
                )
            if not any_id and id_ is not None and one.id is not None and id_ != one.id:
                raise LayoutError(recreated(topic, id_, one.id))
            had = sum(name == topic for name, _ in self.partitions)
            if one.n_partitions < had:
                raise LayoutError(
                    f"Topic {topic!r} has {one.n_partitions} partitions, but had {had} when its records were read. Kafka never takes "
                    f"partitions away, so it was deleted and created again, or this is another cluster; {START_OVER}"
                )


def recreated(topic: str, before: str, now: str) -> str:
    """Compose the error for a topic that has another id than before."""
    return (
        f"Topic {topic!r} has the id {now}, but had {before} when its records were read: it was deleted and created again, so its "
        f"records are not the ones already counted; {START_OVER}. If the topic was restored or mirrored, with the same records at "
        "the same offsets, run once with --adopt-topic-ids"
    )


def partitions_added(title: str, before: int, now: int, views: Sequence[str]) -> str:
    """Compose the error for partitions that were added to the topic of views that count by partition."""
    return (
        f"{title} has {now} partitions, but had {before} when its records were read, and {', '.join(views)} relies on "
        "partitioned_by: keys have moved between partitions, so values would be wrong. Kafka cannot take partitions away: "
        f"{START_OVER}; or leave out partitioned_by of the stream, and give a new version to each of these views"
    )
