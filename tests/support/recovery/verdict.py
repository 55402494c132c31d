"""What an interrupted run must have left behind: what an uninterrupted one leaves, and what the naive recount says."""

import json
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from tests.support.pipeline import bits, entities, expected_log, logged
from tests.support.recovery.processes import Site
from tests.support.recovery.watch import FilesWatch, RedisWatch, wrong_reads
from unskew.features.plan import ViewPlan
from unskew.monitoring.recount import Recount
from unskew.sinks.redis.keyspace import connect

MOST_SHOWN = 5
DEAD_LETTER = ("topic", "partition", "offset", "view")


class Verdict:
    """Every demand on what one site holds, against that of a run over the same records that nothing interrupted.

    ``faults``: what is not as it must be, in words; empty where all is well.
    """

    def __init__(self, site: Site, reference: Site) -> None:
        self._site = site
        self._reference = reference
        self._plan = site.scene.plan
        self.faults: list[str] = []

    def judge(self, files: FilesWatch, online: RedisWatch, *, seed: int, n_recounted: int = 2) -> list[str]:
        """All faults; the log is recounted for ``n_recounted`` entities of each view, drawn by ``seed``."""
        self.faults += [f"seen meanwhile: {fault}" for fault in (*files.faults, *online.faults)]
        seen = len(files.faults)
        for view in self._plan.views.values():
            self._judge_log(view, files)
            self._recount(view, online, random.Random(seed), n_recounted)
        for topic in self._site.scene.partitions:
            self._judge_archive(topic, files)
        self._judge_dead_letters()
        self._judge_redis()
        self._judge_leftovers()
        self.faults += [f"seen meanwhile: {fault}" for fault in files.faults[seen:]]
        return self.faults

    def _judge_log(self, view: ViewPlan, files: FilesWatch) -> None:
        root = view_root(self._site, view)
        rows, expected = table(root), table(view_root(self._reference, view))
        if twice := rows.height - rows.n_unique(["shard", "seq"]):
            self.faults.append(f"log of {view.name}: {twice} rows stand twice")
        files.check_unchanged(root, rows, "shard", "seq")
        order = ["shard", "seq"]
        self._compare(f"log of {view.name}", rows.drop("written_at"), expected.drop("written_at"), order)
        mine, its = (coverage(view_root(site, view)) for site in (self._site, self._reference))
        if mine != its:
            self.faults.append(f"coverage of {view.name}: {mine}, without interruption {its}")

    def _judge_archive(self, topic: str, files: FilesWatch) -> None:
        root = self._site.archive / topic
        rows, expected = table(root), self._archived[topic]
        if twice := rows.height - rows.n_unique(["_partition", "_offset"]):
            self.faults.append(f"archive of {topic}: {twice} events stand twice")
        files.check_unchanged(root, rows, "_partition", "_offset")
        self._compare(f"archive of {topic}", rows, expected, ["_partition", "_offset"])

    def _judge_dead_letters(self) -> None:
        """At least once: a record that is there twice is the same both times."""
        found = [pl.concat([table(root) for root in sorted(site.dead_letters.glob("[!_]*"))]) for site in self._both]
        rows, expected = (letters.unique(DEAD_LETTER, maintain_order=True) for letters in found)
        self._compare("dead letters", rows, expected, list(DEAD_LETTER))

    def _judge_redis(self) -> None:
        mine, its = (everything_in_redis(site) for site in self._both)
        for name in sorted(mine.keys() | its.keys()):
            if mine.get(name) != its.get(name):
                self.faults.append(f"Redis {name}: {mine.get(name)}, without interruption {its.get(name)}")

    def _judge_leftovers(self) -> None:
        for folder in (self._site.log, self._site.archive, self._site.dead_letters):
            left = [path for path in folder.rglob("*") if path.is_file() and _is_unfinished(path)]
            if left:
                self.faults.append(f"left behind: {', '.join(map(str, left[:MOST_SHOWN]))}")

    def _recount(self, view: ViewPlan, online: RedisWatch, chance: random.Random, n_recounted: int) -> None:
        """The log, and what was read as exact, against code that shares no line with the kernel."""
        events = self._archived[view.stream.topic]
        rows = table(view_root(self._site, view))
        nothing = bits(Recount(view, events).values((), 0).values())
        reads = [read for read in online.exact if read.view == view.name]
        self.faults += wrong_reads(reads, view, rows, nothing)[:MOST_SHOWN]
        keys = entities(view, events)
        some = sorted(chance.sample(keys, min(n_recounted, len(keys))))
        chosen = pl.DataFrame(some, schema={key: events.schema[key] for key in view.entity.keys}, orient="row")
        complete_to = self._complete_to(view, rows, some)
        expected = expected_log(view, events.join(chosen, on=view.entity.keys, how="semi"), complete_to)
        found = logged(view, rows.join(chosen, on=view.entity.keys, how="semi"))
        if found != expected:
            lacking, extra = _first(set(expected) - set(found)), _first(set(found) - set(expected))
            self.faults.append(
                f"log of {view.name} and recount differ for {some}: {len(found)} rows, counted anew {len(expected)}; "
                f"lacking {lacking}; too much {extra}"
            )

    def _complete_to(self, view: ViewPlan, rows: pl.DataFrame, keys: Sequence[tuple[Any, ...]]) -> dict[Any, int]:
        """Per key, up to where its shard closed instants; of a key without a row, as far as any did."""
        closed = {shard: found["complete_to"] for shard, found in coverage(view_root(self._site, view)).items()}
        shards = {tuple(key): shard for *key, shard in rows.select(*view.entity.keys, "shard").unique().rows()}
        return {key: closed[shards[key]] if key in shards else max(filter(None, closed.values())) for key in keys}

    def _compare(self, what: str, rows: pl.DataFrame, expected: pl.DataFrame, order: list[str]) -> None:
        mine, its = rows.sort(order), expected.sort(order)
        if mine.equals(its):
            return
        lacking = its.join(mine, on=order, how="anti", nulls_equal=True)
        extra = mine.join(its, on=order, how="anti", nulls_equal=True)
        other = "" if lacking.height or extra.height else f"; the first that differs: {_first_difference(mine, its)}"
        self.faults.append(
            f"{what}: {mine.height} rows, without interruption {its.height}; {lacking.height} lacking"
            f" {lacking.select(order).rows()[:MOST_SHOWN]}, {extra.height} too much"
            f" {extra.select(order).rows()[:MOST_SHOWN]}{other}"
        )

    @property
    def _both(self) -> tuple[Site, Site]:
        return self._site, self._reference

    @cached_property
    def _archived(self) -> dict[str, pl.DataFrame]:
        """By topic, all decoded events, of the run that nothing interrupted."""
        return {topic: table(self._reference.archive / topic) for topic in self._site.scene.partitions}


def view_root(site: Site, view: ViewPlan) -> Path:
    return site.log / view.name / f"v{view.version}"


def table(root: Path) -> pl.DataFrame:
    """All published rows: reading fails where a file is not whole."""
    return pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in sorted(root.glob("day=*/*.parquet"))])


def everything_in_redis(site: Site) -> dict[str, Any]:
    """Every key below the site's prefix, without it, and its content; the same of all runs over the same records."""
    found: dict[str, Any] = {}
    with connect(site.redis_url) as client:
        for name in client.scan_iter(match=f"{site.prefix}:*", count=10_000):
            key = name.decode().removeprefix(site.prefix)
            if key == ":registry":
                # Published again at every start, its views then in another order.
                found[key] = sorted(json.loads(client.get(name))["views"], key=str)
            elif key == ":registry:rev":
                # Each publication makes its own.
                found[key] = "a revision"
            elif key.startswith(":sent:"):
                # Which state sent it is first in each value, and a name that no other run has. When values were last
                # compared with the state, or written again after a loss, depends on the time that a run took.
                found[key] = {
                    field: sent.partition(b":")[2]
                    for field, sent in client.hgetall(name).items()
                    if not field.endswith((b"#round", b"#refilled"))
                }
            elif key == ":owners":
                found[key] = {field for field in client.hkeys(name) if not field.startswith(b"#")}
            else:
                found[key] = client.hgetall(name)
    return found


def coverage(root: Path) -> dict[str, Any]:
    files = (root / "_coverage").glob("[!_]*.json")
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(files)}


def _is_unfinished(path: Path) -> bool:
    return path.suffix == ".tmp" or "_staged" in path.parts


def _first(rows: set[Any]) -> Any:
    return min(rows, key=repr) if rows else None


def _first_difference(mine: pl.DataFrame, its: pl.DataFrame) -> str:
    if mine.schema != its.schema:
        return f"columns {mine.schema}, not {its.schema}"
    for one, other in zip(mine.iter_rows(), its.iter_rows(), strict=True):
        if bits(one) != bits(other):
            return f"{one}, not {other}"
    return "none by value"
