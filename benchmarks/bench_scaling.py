"""Measure what one process costs as work grows, fit the law it follows, and print what the law predicts.

    python benchmarks/bench_scaling.py [--only views partitions entities processes] [--quick] [--rounds N]
                                      [--entities 1000 1000000]

Views and partitions need no broker and no Redis: polls go the way of ``bench_poll.py``, from records to bytes for Redis
and rows for log and archive, through the end of one epoch of five seconds. Each view has nine features over three
windows (5 min, 1 h, 30 d). "Equal" views have equal filters, values and keys; views that "differ" have a filter and a
value of their own. Entities: ``bench_kernel.py``, all of ``ShardState.apply``, every entity met before. Processes: the
whole pipeline of ``bench_pipeline.py``, each process a child, beside an embedded broker and a Valkey, which share the
machine's cores, so processor time an event is what counts. It is the children's alone.

Times are processor time of all threads. A law is ``a + b x`` with the least squares of relative deviations, and the
largest of them beside it. A prediction beyond what was measured is an extrapolation, and printed as one.
"""

import argparse
import json
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import bench_kernel
import bench_pipeline
import numpy as np
from workload import EPOCH_US, nine_features, one_epoch, replay_in, turns

GOAL_PER_S = 1_000_000
GOAL_ENTITIES = 1_000_000_000
BUSY = 0.7
"""The part of its core that a process may use; the rest is for bursts and for catching up."""
MACHINE_CORES = 16
N_VIEWS = (1, 2, 5, 10, 20, 50)
POLLS = {10: 500, 1_000: 250}
"""By records of a poll, the polls of five seconds."""
N_PARTITIONS = (1, 16, 100)
RATES = (0, 1_000, 10_000, 100_000)
PARTITION_TURNS = {0: 25, 1_000: 500, 10_000: 500, 100_000: 250}
"""By events a second, the turns of five seconds. A quiet partition announces its clock every 200 ms."""
N_ENTITIES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
TOPIC_PARTITIONS = 8
MANY = 27


class Law(NamedTuple):
    """``fixed + each[0] * x[0] + ...``; ``deviation``: the largest one from what was measured, as a part of it."""

    fixed: float
    each: tuple[float, ...]
    deviation: float

    def at(self, *xs: float) -> float:
        return self.fixed + sum(each * x for each, x in zip(self.each, xs, strict=True))

    def text(self, unit: str, *names: str) -> str:
        more = "".join(
            f" {'-' if each < 0 else '+'} {abs(each):,.3g} x {name}"
            for each, name in zip(self.each, names, strict=True)
        )
        return f"{self.fixed:,.3g}{more} {unit} (largest deviation {self.deviation:.0%})"


def law_of(ys: Sequence[float], *xs: Sequence[float]) -> Law:
    """Return the law with the least squares of relative deviations; ``ys`` are above 0.

    Plain squares would fit the largest costs alone, where a small one may be wrong by its whole size.
    """
    y, columns = np.asarray(ys, float), np.column_stack([np.ones(len(ys)), *(np.asarray(x, float) for x in xs)])
    terms, *_ = np.linalg.lstsq(columns / y[:, None], np.ones(len(y)), rcond=None)
    fixed, *each = terms.tolist()
    return Law(fixed, tuple(each), float(np.abs(columns @ terms / y - 1).max()))


def processes_for(us_per_event: float, per_s: float = GOAL_PER_S) -> int:
    """Return how many processes a rate takes, none busier than it may be."""
    return math.ceil(us_per_event * per_s / 1e6 / BUSY)


def for_the_goal(us_per_event: float) -> str:
    """Return how many processes and machines the goal takes, for people."""
    n_processes = processes_for(us_per_event)
    n_machines = math.ceil(n_processes / MACHINE_CORES)
    return f"{n_processes} processes on {n_machines} machine{'s' if n_machines > 1 else ''}"


def show(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def head(*names: str) -> None:
    show(*names)
    print("|---" * len(names) + "|", flush=True)


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def stages_of(found: dict[str, float], scale: float) -> list[float]:
    parts = [found["route"], found["shard"], found["redis"], found["tables"] + found["epoch's end"]]
    return [part / scale for part in [*parts, sum(parts)]]


def views(given: argparse.Namespace) -> None:
    """Print what one to fifty views on one stream cost an event."""
    print("\n### Views on one stream\n\nMicroseconds of processor an event, one partition.\n")
    head(
        "records a poll",
        "views",
        "n",
        "decode, evaluate",
        "shards' steps",
        "Redis encoding",
        "tables, epoch's end",
        "together",
    )
    laws = {}
    for n_records, n_turns in POLLS.items():
        for differ in (False, True):
            kind, costs = "that differ" if differ else "equal", []
            counts = N_VIEWS[:3] if given.quick else N_VIEWS
            for n_views in counts:
                plans = list(nine_features(n_views, differ=differ).views.values())
                rounds = [
                    one_epoch(plans, turns(n_records, n_turns=n_turns), n_turns=n_turns) for _ in range(given.rounds)
                ]
                cells = stages_of(medians(rounds), n_records)
                costs.append(cells[-1])
                show(f"{n_records:,}", kind, n_views, *(f"{cell:.2f}" for cell in cells))
            laws[n_records, kind] = law_of(costs, counts)
    print()
    for (n_records, kind), law in laws.items():
        print(f"- polls of {n_records:,}, views {kind}: {law.text('us an event', 'views')}")
    law = laws[max(POLLS), "that differ"]
    predicted = "; ".join(f"{n}: {for_the_goal(law.at(n))}" for n in (1, 10, 50))
    print(
        f"- predicted for {GOAL_PER_S:,} events/s in polls of {max(POLLS):,}, views that differ, {BUSY:.0%} of a core each, "
        f"machines of {MACHINE_CORES} cores, without reading Kafka and sending to Redis (extrapolated: one process was "
        f"measured), by views: {predicted}",
        flush=True,
    )


def partitions(given: argparse.Namespace) -> None:
    """Print what a turn costs by the partitions that it reads, at several rates."""
    print(
        "\n### Partitions of one stream\n\nOne view; rates are of all partitions together. "
        "A turn has a poll of each partition with records.\n"
        "More than one core: the turns are then as far apart as they take, with fewer and larger polls.\n"
    )
    head("events/s", "turns/s", "partitions", "polls a turn", "records a poll", "us a turn", "us an event", "cores")
    laws: dict[int, Law] = {}
    for rate in RATES[:2] if given.quick else RATES:
        n_turns = PARTITION_TURNS[rate]
        per_s = n_turns * 1e6 / EPOCH_US
        n_records, polls, costs = round(rate / per_s), [], []
        for n_partitions in N_PARTITIONS:
            plans = list(nine_features(1).views.values())
            rounds = [
                one_epoch(
                    plans, turns(n_records, n_partitions, n_turns=n_turns), n_turns=n_turns, n_partitions=n_partitions
                )
                for _ in range(given.rounds)
            ]
            first = islice(turns(n_records, n_partitions, n_turns=n_turns), 25)
            polls.append(statistics.mean(len(turn) for turn in first))
            costs.append(sum(medians(rounds).values()))
            show(
                f"{rate:,}" if rate else "0 (clocks alone)", f"{per_s:g}", n_partitions, f"{polls[-1]:.1f}",
                f"{n_records / polls[-1]:.1f}", f"{costs[-1]:,.0f}",
                f"{costs[-1] / n_records:.2f}" if n_records else "-", f"{costs[-1] * per_s / 1e6:.4f}",
            )  # fmt: skip
        laws[rate] = law_of(costs, polls)
    print()
    for rate, law in laws.items():
        print(f"- {rate:,} events/s: {law.text('us a turn', 'polls a turn')}")
    quiet = laws[0].at(1_000) * PARTITION_TURNS[0] / EPOCH_US
    print(
        f"- predicted: 1,000 quiet partitions of one view take {quiet:.2f} of a core (extrapolated beyond 100)",
        flush=True,
    )


def entities(given: argparse.Namespace) -> None:
    """Print what an event and an entity cost by the number of entities."""
    print("\n### Entities of one shard\n\nNine features over three windows; every entity was met before.\n")
    head("keys", "entities", "ns an event", "tiles an entity", "bytes an entity", "peak MB")
    numbers = N_ENTITIES[:2] if given.quick else given.entities
    tiles, sizes = [], []
    laws = {}
    for keys in ("uniform", "Zipf 1.1"):
        costs = []
        for n_entities in numbers:
            found = in_a_process("--kernel", json.dumps([keys, n_entities]))
            costs.append(1e9 / found["whole"])
            tiles.append(found["tiles"] / n_entities)
            sizes.append(found["bytes"])
            show(
                keys, f"{n_entities:,}", f"{costs[-1]:,.0f}", f"{tiles[-1]:,.1f}",
                f"{sizes[-1]:,.0f}", f"{found['peak'] / 1e6:,.0f}",
            )  # fmt: skip
        laws[keys] = law_of(costs, np.log10(numbers).tolist())
    # Some arrays have a fixed size: without it the law would fail for few entities.
    size = law_of(sizes, tiles, [1e3 / n for n in [*numbers, *numbers]])
    print()
    for keys, law in laws.items():
        print(f"- {keys} keys: {law.text('ns an event', 'log10(entities)')}")
    print(f"- {size.text('bytes an entity', 'live tiles an entity', '1,000 / entities')}")
    n_tiles = tiles[len(numbers) - 1]
    print(
        f"- predicted for {GOAL_ENTITIES:,} entities with uniform keys, {n_tiles:.1f} tiles each (extrapolated beyond "
        f"{max(numbers):,} entities a shard; a process needs twice its state while it writes a base):"
    )
    for n_processes in (1, MANY, 100):
        own = GOAL_ENTITIES / n_processes
        print(
            f"  - processes: {n_processes}; each has {size.at(n_tiles, 1e3 / own) * own / 1e9:,.0f} GB of state and takes "
            f"{laws['uniform'].at(math.log10(own)):,.0f} ns an event",
            flush=True,
        )


def in_a_process(*words: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def kernel(text: str) -> None:
    keys, n_entities = json.loads(text)
    case = bench_kernel.Case(bench_kernel.LONG, "300, 360, 360", n_entities, keys)
    print(json.dumps(bench_kernel.measure(case, 500_000, 50_000)))


def free_addresses(count: int) -> list[str]:
    """Return addresses of this machine at which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return found


class Form(NamedTuple):
    """How a pipeline is divided among processes."""

    name: str
    partitioned: bool
    n_processes: int
    in_cluster: bool = False


FORMS = (
    Form("partitioned by the entity, one process", True, 1),
    Form("the same, partitions of their own", True, 2),
    Form("the same, a cluster", True, 2, in_cluster=True),
    Form("hashed, 8 shards, one process", False, 1),
    Form("the same, a cluster", False, 2, in_cluster=True),
)


def child(text: str) -> None:
    """Be one process of a pipeline: get ready, say so, wait for a word, and run."""
    from unskew.pipelines.run import run

    asked = json.loads(text)
    home = Path(asked["folder"])

    def once(topic: str, folder: Path, prefix: str, **options: Any) -> Any:
        deployment = replay_in(
            folder,
            bootstrap=asked["bootstrap"],
            redis_url=asked["redis_url"],
            prefix=prefix,
            n_hashes=1 if asked["partitioned"] else TOPIC_PARTITIONS,
            **options,
        )
        plan = bench_pipeline.the_plan(topic, partitioned=asked["partitioned"])
        return run(plan, deployment, stop=threading.Event())

    own = home / f"warm-{asked['process']}"
    once("warm", own, f"{asked['prefix']}-warm-{asked['process']}", state=own / "state")
    print("ready", flush=True)
    sys.stdin.readline()
    state = home / ("state" if asked["cluster"] else f"state-{asked['process']}")
    options = {"cluster": asked["cluster"], "process": asked["process"]} if asked["cluster"] else {}
    began, began_cpu = time.time(), time.process_time()
    status = once("events", home, asked["prefix"], state=state, partitions=asked["partitions"], **options)
    took = {"began": began, "ended": time.time(), "cpu_s": time.process_time() - began_cpu, "consumed": status.consumed}
    print(json.dumps(took), flush=True)


def run_form(form: Form, broker: str, redis_url: str, n_events: int, prefix: str) -> dict[str, float]:
    """Return seconds and processor seconds of a pipeline in this form, from an empty state to the topic's end."""
    cluster = free_addresses(form.n_processes) if form.in_cluster else []
    divided = form.n_processes > 1 and not cluster
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for number in range(form.n_processes):
            asked = {
                "bootstrap": broker,
                "redis_url": redis_url,
                "folder": folder,
                "prefix": prefix,
                "partitioned": form.partitioned,
                "partitions": list(range(number, TOPIC_PARTITIONS, form.n_processes)) if divided else None,
                "cluster": cluster,
                "process": number,
            }
            command = [sys.executable, __file__, "--child", json.dumps(asked)]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                print(file=process.stdin, flush=True)
            found = [json.loads(process.stdout.readline()) for process in processes if process.stdout is not None]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert sum(one["consumed"] for one in found) == n_events, found
        seconds = max(one["ended"] for one in found) - min(one["began"] for one in found)
        return {"seconds": seconds, "cpu_s": sum(one["cpu_s"] for one in found)}


def processes(given: argparse.Namespace) -> None:
    """Print what an event costs in one process and in two, in both forms."""
    from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis

    n_events = 200_000 if given.quick else 1_000_000
    print(
        f"\n### Processes\n\n{n_events:,} events, 100,000 entities (Zipf 1.1), {TOPIC_PARTITIONS} partitions, from start to end, "
        f"start-up included. Broker and Valkey share the {os.cpu_count()} cores.\n"
    )
    found: dict[Form, list[dict[str, float]]] = {form: [] for form in FORMS}
    with EmbeddedBroker() as broker, EmbeddedRedis() as redis:
        for topic, count in (("warm", 20_000), ("events", n_events)):
            bench_pipeline.produce(broker, topic, count, 100_000, TOPIC_PARTITIONS)
        for number in range(given.rounds):
            for place, form in enumerate(FORMS):
                found[form].append(run_form(form, broker.bootstrap, redis.url, n_events, f"s{number}-{place}"))
    head("form", "processes", "events/s", "us of processor an event", "beside one process")
    costs: list[float] = []
    alone = 1.0
    for form, rounds in found.items():
        middle = medians(rounds)
        us = middle["cpu_s"] / n_events * 1e6
        if form.n_processes == 1:
            alone = us
        costs.append(us)
        show(form.name, form.n_processes, f"{n_events / middle['seconds']:,.0f}", f"{us:.2f}", f"{us / alone:.2f}")
    print(
        f"\n- partitions of their own: {costs[1]:.2f} us an event however many processes, because they exchange nothing; "
        f"predicted for {GOAL_PER_S:,} events/s, {BUSY:.0%} of a core each: {for_the_goal(costs[1])} "
        "(extrapolated: two were measured, on one machine)"
    )
    for kind, one, two in (("partitioned", costs[0], costs[2]), ("hashed", costs[3], costs[4])):
        # Of n processes, each keeps one event of n and sends the others on.
        crossing = 2 * (two - one)
        print(
            f"- a cluster, {kind}: {one:.2f} + {crossing:.2f} x (n - 1) / n us an event, two points and so no deviation; "
            f"predicted for {GOAL_PER_S:,} events/s: {for_the_goal(one + crossing)} (extrapolated)",
            flush=True,
        )


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "views": views,
    "partitions": partitions,
    "entities": entities,
    "processes": processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES), help="the tables to print")
    parser.add_argument("--quick", action="store_true", help="fewer cases: whether it runs, not what it costs")
    parser.add_argument(
        "--entities",
        nargs="+",
        type=int,
        default=list(N_ENTITIES),
        help="numbers of entities; 10,000,000 take 8 GB of memory",
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each case but entities; the median counts")
    for hidden in ("--kernel", "--child"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kernel is not None:
        kernel(given.kernel)
    elif given.child is not None:
        child(given.child)
    else:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
        # A virtual machine's first touch of memory costs more than the work in it, and a first epoch compiles.
        bench_kernel.touch_memory()
        one_epoch(list(nine_features(1).views.values()), turns(1_000, n_turns=50), n_turns=50)
        for name in given.only:
            TABLES[name](given)


if __name__ == "__main__":
    main()
