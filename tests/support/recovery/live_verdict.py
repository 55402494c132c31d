"""What readers of a live pipeline were told as exact, held against the archive, the log and the topics themselves."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl
from confluent_kafka import Consumer, TopicPartition

from tests.support.pipeline import Record, bits
from tests.support.recovery.counted import Steps
from tests.support.recovery.live import COUNTED, LiveScene, LiveWatch
from tests.support.recovery.processes import Site
from tests.support.recovery.verdict import coverage, table, view_root
from tests.support.recovery.watch import ExactRead, FilesWatch, wrong_reads
from unskew.features.plan import ViewPlan

MOST_SHOWN = 3
FUTURE = "is past the present"


@dataclass
class Figures:
    """What was looked at, and how much of it was wrong. ``contradicted``: exact reads that are not what the archive
    gives of their instant; ``unlogged``: those that are not what the log says of it. ``bumped``: archived events that
    arrived later than their own timestamp; ``refused``: records that lay too far in the future.
    """

    reads: int = 0
    exact: int = 0
    distinct: int = 0
    contradicted: int = 0
    unlogged: int = 0
    fed: int = 0
    bumped: int = 0
    refused: int = 0

    def __str__(self) -> str:
        return (
            f"{self.reads} reads, {self.exact} exact, {self.distinct} of them distinct: "
            f"{self.contradicted} contradicted by the archive, {self.unlogged} by the log; "
            f"{self.fed} records, {self.bumped} bumped, {self.refused} refused"
        )


@dataclass
class LiveVerdict:
    """Every demand on what one site holds once its last life has ended, and on what readers were told meanwhile.

    ``fed``: by topic and partition, the records in the order of their offsets.
    """

    site: Site
    scene: LiveScene
    fed: Mapping[str, list[list[Record]]]
    faults: list[str] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)

    def judge(self, files: FilesWatch, online: LiveWatch) -> list[str]:
        """All faults."""
        self.figures.reads, self.figures.exact, self.figures.distinct = (
            online.n_reads,
            online.n_exact,
            len(online.exact),
        )
        self.faults += [f"seen meanwhile: {fault}" for fault in (*files.faults, *online.faults)]
        seen = len(files.faults)
        for name, topic in self.scene.topics.items():
            self._judge_topic(name, topic)
            files.check_unchanged(self.site.archive / topic, self._archived[name], "_partition", "_offset")
        reads: dict[str, list[ExactRead]] = {}
        for read in online.exact:
            reads.setdefault(read.view, []).append(read)
        for view in self.scene.plan.views.values():
            self._judge_view(view, reads.get(view.name, []), files)
        self.faults += [f"seen meanwhile: {fault}" for fault in files.faults[seen:]]
        return self.faults

    def _judge_view(self, view: ViewPlan, reads: list[ExactRead], files: FilesWatch) -> None:
        counted = COUNTED[view.name]
        if list(counted.features) != [output.name for output in view.outputs]:
            raise AssertionError(f"{view.name}: the features counted are not those defined")
        entities = counted.entities(self._archived[counted.stream])
        nothing = bits(counted.nothing)
        wrong = list(_contradicted(reads, entities, nothing))
        self.figures.contradicted += len(wrong)
        self._say(f"{view.name}: exact reads that the archive contradicts", wrong)
        root = view_root(self.site, view)
        rows = table(root)
        unlogged = wrong_reads(reads, view, rows, nothing)
        self.figures.unlogged += len(unlogged)
        self._say(f"{view.name}: exact reads that the log contradicts", unlogged)
        if twice := rows.height - rows.n_unique(["shard", "seq"]):
            self.faults.append(f"log of {view.name}: {twice} rows stand twice")
        files.check_unchanged(root, rows, "shard", "seq")
        self._judge_log(view, rows, entities)

    def _judge_log(self, view: ViewPlan, rows: pl.DataFrame, entities: Mapping[object, Steps]) -> None:
        """The whole log, up to where every shard has closed, is what the archive gives."""
        complete_to = min(found["complete_to"] for found in coverage(view_root(self.site, view)).values())
        (key,) = view.entity.keys
        columns = [key, pl.col("available_at").dt.epoch("us").alias("_us"), *(output.name for output in view.outputs)]
        logged = {
            (entity, at_us, bits(values))
            for entity, at_us, *values in rows.select(columns).iter_rows()
            if at_us <= complete_to
        }
        counted = {
            (entity, at_us, bits(values))
            for entity, steps in entities.items()
            for at_us, values in steps.rows(complete_to, lambda one, other: bits(one) == bits(other))
        }
        lacking = [f"lacks {row}" for row in sorted(counted - logged)]
        self._say(f"log of {view.name}", lacking + [f"has {row}" for row in sorted(logged - counted)])

    def _judge_topic(self, name: str, topic: str) -> None:
        """Each record is once in the archive or in the dead letters, and none arrived before its own timestamp."""
        stamps = stamps_ms(self.site.bootstrap, topic, self.fed[topic])
        self.figures.fed += len(stamps)
        archived = self._archived[name]
        if twice := archived.height - archived.n_unique(["_partition", "_offset"]):
            self.faults.append(f"archive of {topic}: {twice} events stand twice")
        letters = dead_letters(self.site, topic)
        refused = {(partition, offset): reason for partition, offset, reason in letters.iter_rows()}
        self.figures.refused += sum(FUTURE in reason for reason in refused.values())
        wrong: list[str] = []
        arrived: dict[int, int] = {}
        places = set()
        columns = ["_partition", "_offset", pl.col("_arrival").dt.epoch("us"), "user", "item", "amount"]
        for partition, offset, at_us, *values in archived.select(columns).sort("_partition", "_offset").iter_rows():
            places.add((partition, offset))
            if at_us < arrived.get(partition, at_us):
                wrong.append(f"{partition}/{offset} arrived at {at_us}, the one before it at {arrived[partition]}")
            arrived[partition] = at_us
            stamp_ms = stamps.get((partition, offset))
            if stamp_ms is None:
                wrong.append(f"{partition}/{offset} was never sent")
                continue
            if at_us < stamp_ms * 1000:
                wrong.append(f"{partition}/{offset} arrived at {at_us}, before its timestamp {stamp_ms} ms")
            self.figures.bumped += at_us > stamp_ms * 1000
            sent = self.fed[topic][partition][offset]
            if bits(values) != bits((sent.user, sent.item, sent.amount)):
                wrong.append(f"{partition}/{offset} is {values}, and {sent} was sent")
        wrong += [
            f"{place} is neither archived nor a dead letter"
            for place in sorted(stamps.keys() - places - refused.keys())
        ]
        wrong += [
            f"{place} is archived, and a dead letter: {refused[place]}" for place in sorted(places & refused.keys())
        ]
        self._say(f"records of {topic}", wrong)

    def _say(self, what: str, wrong: list[str]) -> None:
        if wrong:
            self.faults.append(f"{what}: {len(wrong)}; the first: {'; '.join(wrong[:MOST_SHOWN])}")

    @cached_property
    def _archived(self) -> dict[str, pl.DataFrame]:
        """By stream, all decoded events."""
        return {name: table(self.site.archive / topic) for name, topic in self.scene.topics.items()}


def _contradicted(
    reads: Iterable[ExactRead], entities: Mapping[object, Steps], nothing: tuple[object, ...]
) -> Iterable[str]:
    """Those exact reads that are not what was counted for their instant."""
    for read in sorted(reads, key=lambda read: (read.as_of_us, read.key)):
        (key,) = read.key
        steps = entities.get(key)
        expected = nothing if steps is None else bits(steps.at(read.as_of_us))
        if read.values != expected:
            yield f"{key} at {read.as_of_us}: read {read.values}, counted {expected}"


def stamps_ms(bootstrap: str, topic: str, fed: list[list[Record]]) -> dict[tuple[int, int], int]:
    """By partition and offset, the timestamp that each record of the topic has with the broker."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "verdict", "enable.auto.commit": False, "log_level": 0}
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition, records in enumerate(fed) if records])
    found: dict[tuple[int, int], int] = {}
    n_sent = sum(map(len, fed))
    deadline_s = time.monotonic() + 30
    while len(found) < n_sent:
        assert time.monotonic() < deadline_s, f"{topic}: {n_sent} records were sent, the broker gives {len(found)}"
        for message in consumer.consume(1000, 0.1):
            assert message.error() is None, message.error()
            found[message.partition(), message.offset()] = message.timestamp()[1]
    consumer.close()
    return found


def stored(site: Site, topic: str) -> set[tuple[int, int]]:
    """Partition and offset of every record in the archive or the dead letters."""
    archived = (site.archive / topic).glob("day=*/*.parquet")
    read = [pl.read_parquet(path, columns=["_partition", "_offset"], hive_partitioning=False) for path in archived]
    letters = dead_letters(site, topic).select("partition", "offset")
    return {row for frame in (*read, letters) for row in frame.iter_rows()}


def dead_letters(site: Site, topic: str) -> pl.DataFrame:
    """The dead letters of a topic, each record once; at least once they are written."""
    paths = sorted((site.dead_letters / topic).glob("day=*/*.parquet"))
    columns = {"partition": pl.Int32, "offset": pl.Int64, "reason": pl.String}
    frames = [pl.read_parquet(path, hive_partitioning=False).select(*columns) for path in paths]
    return pl.concat([pl.DataFrame(schema=columns), *frames], how="vertical_relaxed").unique(["partition", "offset"])
