"""Routing: split a decoded poll into the slices of shards and the rows of tables."""

import itertools
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import polars as pl

from unskew.features.evaluate import Evaluator
from unskew.features.events import Events
from unskew.features.plan import ViewPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.decoder import Decoded, Decoder, letters
from unskew.pipelines.kafka.poll import Poll
from unskew.pipelines.state.journal import Journal, Refused
from unskew.pipelines.state.ordering import Slice, shard_names

MOST_TOGETHER = 10_000
"""Polls with at most so many records together are decoded at once; more would take memory and save nothing."""


class TableRows(msgspec.Struct, frozen=True):
    """Rows of one partition for the event archive, or its dead letters; ``first_us``, ``clock_us``: as in ``Slice``."""

    topic: str
    partition: int
    dead: bool
    rows: pl.DataFrame
    first_us: int | None = None
    clock_us: int | None = None


class Router:
    """Decode the polls of one stream and split them by view and shard; the only state is counters.

    ``journal``: makes the decisions about a poll durable before anything that follows from them is passed on; None
    records nothing.
    """

    def __init__(
        self,
        views: Sequence[ViewPlan],
        decoder: Decoder,
        n_partitions: int,
        n_hashes: int,
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        # Views with equal filters, values and keys have equal events, and the same number here.
        numbers: dict[tuple[object, ...], int] = {}
        evaluators = [(view, Evaluator(view)) for view in views]
        self._views = [(view, each, numbers.setdefault(each.text(), len(numbers))) for view, each in evaluators]
        self._decoder = decoder
        self._n_partitions = n_partitions
        self._n_hashes = n_hashes
        # The partitions of which a poll has come, and whether any had dead letters.
        self._has_dead: dict[int, bool] = {}
        self.dead = 0
        self.dead_by_kind: dict[str, int] = {}

    @property
    def incompatible(self) -> int:
        """The number of messages whose writer's schema cannot be resolved to the stream's."""
        return self._decoder.incompatible

    @property
    def ignored(self) -> int:
        """The number of messages that are not meant to be events of the stream."""
        return self._decoder.ignored

    def route(self, polls: Sequence[Poll]) -> Iterator[tuple[str, Slice | TableRows]]:
        """Return everything that follows from polls, keyed by shard or table; those of a partition come in its order.

        Every shard of a partition gets a slice for each of its polls, possibly an empty one, so that clocks and epochs
        reach all of them. So do the partition's two tables: what a table staged is published at the end of the next
        epoch in which its part of the sink gets an item. That of dead letters gets none but the first until it has any.
        """
        items: list[tuple[str, Slice | TableRows]] = []
        ticket = 0
        for group in _alike(polls):
            events, decoded = self._decoder.decode_together(group)
            items += self._items(group, events, decoded)
            if self._journal is not None:
                for poll, one in zip(group, decoded, strict=True):
                    ticket = max(ticket, poll.ticket, self._note_refused(self._journal, poll, one))
        # All items have been made before the wait for the journal: the disk works meanwhile.
        if self._journal is not None:
            self._journal.ensure(ticket)
        return iter(items)

    def _note_refused(self, journal: Journal, poll: Poll, decoded: Decoded) -> int:
        """Record which ids a Schema Registry did not know, because it may know them later.

        Return a ticket; 0 if nothing was recorded.
        """
        if not decoded.dead.height or not self._decoder.asks:
            return 0
        known = {bad.offset for bad in poll.rejected}
        refused: dict[str, list[int]] = {}
        letters_ = decoded.dead.filter(pl.col("kind") == "schema").select("offset", "reason")
        for offset, reason in letters_.iter_rows():
            if offset not in known:
                refused.setdefault(reason, []).append(offset)
        return max(
            (journal.note(Refused.of(poll.place, offsets, "schema", reason)) for reason, offsets in refused.items()),
            default=0,
        )

    def _items(
        self, polls: Sequence[Poll], events: pl.DataFrame, decoded: Sequence[Decoded]
    ) -> Iterator[tuple[str, Slice | TableRows]]:
        topic = self._decoder.topic
        dead = [[one.dead] for one in decoded]
        # Equal events are evaluated once, unless a view refuses some.
        shared: dict[int, list[Events]] = {}
        for view, evaluate, number in self._views:
            parts = shared.get(number)
            if parts is None and events.height:
                evaluated = evaluate(events)
                parts = Events(evaluated.events).parts(_begins(evaluated.events["partition"], polls))
                if evaluated.rejected.height:
                    begins = _begins(evaluated.rejected["_partition"], polls)
                    for poll, letters_, (begin, end) in zip(polls, dead, itertools.pairwise(begins), strict=True):
                        if begin < end:
                            letters_.append(_letters(poll, topic, view.id, evaluated.rejected[begin:end]))
                else:
                    shared[number] = parts
            for place, poll in enumerate(polls):
                yield from slices(
                    view,
                    None if parts is None else parts[place],
                    n_hashes=self._n_hashes,
                    partition=poll.partition,
                    n_partitions=self._n_partitions,
                    clock_us=poll.clock_us,
                    first_us=poll.first_us,
                    ended=poll.ended,
                    replaying=poll.replaying,
                    resumed=poll.resumed,
                )
        for poll, one, letters_ in zip(polls, decoded, dead, strict=True):
            part = poll.partition
            rows = TableRows(topic, part, dead=False, rows=one.events, first_us=poll.first_us, clock_us=poll.clock_us)
            yield f"archive/{topic}/{part}", rows
            all_dead = pl.concat(letters_) if len(letters_) > 1 else one.dead
            self.dead += all_dead.height
            if all_dead.height:
                for kind, count in all_dead["kind"].value_counts().iter_rows():
                    self.dead_by_kind[kind] = self.dead_by_kind.get(kind, 0) + count
            had_dead = self._has_dead.get(part)
            self._has_dead[part] = bool(had_dead) or all_dead.height > 0
            if had_dead is not False or all_dead.height:
                yield f"dead/{topic}/{part}", TableRows(topic, part, dead=True, rows=all_dead)


def _alike(polls: Sequence[Poll]) -> Iterator[list[Poll]]:
    """Yield polls that can be decoded together, each time in the order of their partitions; see ``Decoder``."""
    group: list[Poll] = []
    n_records = 0
    for poll in polls:
        fits = not group or (
            poll.partition > group[-1].partition
            and (poll.schema_id, poll.decided) == (group[-1].schema_id, group[-1].decided)
            and n_records + len(poll.values) <= MOST_TOGETHER
        )
        if not fits:
            yield group
            group, n_records = [], 0
        group.append(poll)
        n_records += len(poll.values)
    if group:
        yield group


def _begins(partitions: pl.Series, polls: Sequence[Poll]) -> list[int]:
    """Return where the rows of each poll begin, and where all end; rows and polls are in the order of partitions."""
    if len(polls) == 1:
        return [0, len(partitions)]
    begins: list[int] = np.searchsorted(partitions.to_numpy(), [poll.partition for poll in polls]).tolist()
    return [*begins, len(partitions)]


def slices(
    view: ViewPlan,
    events: Events | None,
    *,
    n_hashes: int,
    partition: int,
    n_partitions: int,
    clock_us: int | None,
    first_us: int | None,
    ended: bool,
    replaying: bool = False,
    resumed: bool = False,
) -> Iterator[tuple[str, Slice]]:
    """Yield the slice of every shard that a partition feeds, keyed by ``view@version/shard``.

    ``events``: the view's events of the partition; the other arguments are those of ``Slice``.
    """
    names = shard_names(view, [partition], n_hashes)
    pieces: Sequence[Events | None] = [None] * len(names)
    if events is not None and events.height:
        pieces = [events] if len(names) == 1 else events.by_hash(len(names))
    for name, piece in zip(names, pieces, strict=True):
        yield (
            f"{view.id}/{name}",
            Slice(
                view=view.id,
                shard=name,
                partition=partition,
                n_partitions=n_partitions,
                clock_us=clock_us,
                first_us=first_us,
                ended=ended,
                events=piece,
                replaying=replaying,
                resumed=resumed,
            ),
        )


def _letters(poll: Poll, topic: str, view: str, rejected: pl.DataFrame) -> pl.DataFrame:
    """Return dead letters for events that were decoded but that a view cannot take."""
    places = np.searchsorted(poll.offsets, rejected["_offset"].to_numpy()).tolist()
    topic, partition = poll.origin or (topic, poll.partition)
    return letters(
        topic,
        partition,
        view,
        (
            (
                int(poll.offsets[place]),
                int(poll.arrivals[place]),
                Rejection(kind, reason),
                poll.keys[place],
                poll.values[place],
                poll.headers_at(place),
            )
            for place, kind, reason in zip(places, rejected["kind"], rejected["reason"], strict=True)
        ),
    )
