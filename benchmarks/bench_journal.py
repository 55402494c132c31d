"""Measure the cost of the journal: throughput and latency with it and without it, in turns, in one run.

    python benchmarks/bench_journal.py [--events 1_000_000] [--repeats 5] [--rates 1000 10000] [--seconds 12]

Throughput is measured as in bench_pipeline (a replay, polls of up to 10,000 records), latency as in bench_latency (a
live topic). Runs with and without the journal alternate, so that other work on the machine affects both; ratios are of
medians. First come the time that the disk under the state folder takes for one small durable write, and the time that
Redis, the other place where decisions could be kept, takes for one more command in a flush.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import bench_latency
import bench_pipeline
import numpy as np
import redis
from workload import Forgetful, Watched, journal_of

from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis

N_SYNCS = 500


def disk_ms(folder: Path) -> tuple[float, float]:
    """Return the median and 99th percentile of the time to append 100 bytes and make them durable."""
    file = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT)
    took = []
    for _ in range(N_SYNCS):
        began = time.perf_counter()
        os.write(file, bytes(100))
        os.fdatasync(file)
        took.append(1e3 * (time.perf_counter() - began))
        time.sleep(0.002)
    os.close(file)
    return float(np.quantile(took, 0.5)), float(np.quantile(took, 0.99))


def redis_ms(url: str) -> tuple[float, float]:
    """Return median times of a pipelined flush of ten rows, without and with a hash of eight fields before them."""
    took: dict[bool, list[float]] = {False: [], True: []}
    with redis.Redis.from_url(url) as client:
        for turn in range(2 * N_SYNCS):
            more = bool(turn % 2)
            commands = client.pipeline(transaction=False)
            if more:
                commands.hset("decisions", mapping={f"p{number}": f"{turn}:{number}:17954" for number in range(8)})
            for number in range(10):
                commands.hset(f"row{number}", mapping={f"f{field}": turn for field in range(9)})
            began = time.perf_counter()
            commands.execute()
            took[more].append(1e3 * (time.perf_counter() - began))
    return statistics.median(took[False]), statistics.median(took[True])


def throughput(events: int, repeats: int) -> None:
    print(
        "| shards | with, events/s | without | ratio | runs with | runs without |\n|---|---|---|---|---|---|",
        flush=True,
    )
    with EmbeddedBroker() as broker, EmbeddedRedis() as server:
        bench_pipeline.produce(broker, "events", events, 100_000, 8)
        for partitioned in (True, False):
            plan = bench_pipeline.the_plan("events", partitioned=partitioned)
            rates: dict[bool, list[float]] = {True: [], False: []}
            # The first turn of each warms up.
            for turn in range(2 * (repeats + 1)):
                kept = turn % 4 in {0, 3}
                with journal_of(Watched if kept else Forgetful):
                    seconds, *_ = bench_pipeline.measure(plan, broker, server.url, events, f"t{turn}{partitioned}", 5.0)
                if turn > 1:
                    rates[kept].append(events / seconds)
            with_it, without = statistics.median(rates[True]), statistics.median(rates[False])
            shown = [", ".join(f"{rate:,.0f}" for rate in rates[kept]) for kept in (True, False)]
            kind = "partitioned" if partitioned else "hashed"
            print(
                f"| {kind} | {with_it:,.0f} | {without:,.0f} | {with_it / without:.3f} | {shown[0]} | {shown[1]} |",
                flush=True,
            )


def latency(rates: list[int], seconds: float, turns: int) -> None:
    print(
        "\n| shards | events/s | an item waits for the journal, mean and most, ms | with: p50, p99 ms | without: p50, p99 ms | "
        "runs with, p50 | runs without, p50 |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for partitioned in (True, False):
        for rate in rates:
            found: dict[bool, list[bench_latency.Measured]] = {True: [], False: []}
            for turn in range(2 * turns):
                kept = turn % 4 in {0, 3}
                found[kept].append(measured(rate, seconds, partitioned=partitioned, journal=kept))
            ms = {
                kept: [statistics.median(one.ms[quantile] for one in ones) for quantile in (0, 2)]
                for kept, ones in found.items()
            }
            waits = [one.wait_ms for one in found[True]]
            runs = {kept: ", ".join(f"{one.ms[0]:.1f}" for one in ones) for kept, ones in found.items()}
            print(
                f"| {'partitioned' if partitioned else 'hashed, settle 10ms'} | {rate:,} | "
                f"{statistics.mean(mean for mean, _ in waits):.2f}, {max(most for _, most in waits):.1f} | "
                f"{ms[True][0]:.1f}, {ms[True][1]:.1f} | {ms[False][0]:.1f}, {ms[False][1]:.1f} | {runs[True]} | {runs[False]} |",
                flush=True,
            )


def measured(rate: int, seconds: float, *, partitioned: bool, journal: bool) -> bench_latency.Measured:
    with EmbeddedBroker() as broker, EmbeddedRedis() as server, tempfile.TemporaryDirectory() as folder:
        case = bench_latency.Case(
            bootstrap=broker.bootstrap,
            redis_port=server.port,
            redis_url=server.url,
            partitioned=partitioned,
            rate=rate,
            seconds=seconds,
            warm_up_s=6.0,
            probes_per_s=200,
            entities=100_000,
            partitions=4,
            settle="10ms",
            fetch_wait_ms=1,
            linger_ms=5.0,
            epoch_s=5.0,
            folder=folder,
            journal=journal,
        )
        broker.create_topic(case.name, case.partitions)
        return bench_latency.measure(case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rates", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--turns", type=int, default=3, help="turns per rate, with and without the journal")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis() as server:
        p50, p99 = disk_ms(Path(folder))
        without, with_it = redis_ms(server.url)
    print(f"a small write made durable: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    print(
        f"a flush of ten rows to Redis: {without:.3f} ms; with eight fields of decisions before them: {with_it:.3f} ms\n"
    )
    throughput(given.events, given.repeats)
    latency(given.rates, given.seconds, given.turns)


if __name__ == "__main__":
    main()
