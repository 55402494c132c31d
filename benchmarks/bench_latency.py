"""Measure the latency from produce to readable in Redis on a live topic, at fixed rates, for both kinds of shard.

    python benchmarks/bench_latency.py [--rates 1000 10000 50000] [--views 1] [--seconds 60] [--probes 200]

Quantiles are p50, p99 and p99.9. There are four processes: the broker and Valkey (this process), the pipeline (the
function that ``unskew run --idle wall`` calls, with other waits of the Kafka client), a producer and a prober. The
producer is an open loop: every event has an instant at which it is due, fixed before the run, and latency counts from
that instant, so delays of the producer are latency too. Some of the events are probes: they belong to separate
entities, and the n-th probe of an entity has the amount n, so that ``max_30d`` says how many of them Redis has. The
prober knows when the probes are due. It reads, in one pipelined request at a time, only entities with outstanding
probes; a value counts as readable when the reply that holds it has arrived.

With ``--redis-away``, the pipeline reaches Valkey through a relay that holds each piece of bytes back for so many
milliseconds in both directions, as a network does; the prober reads without it.

All other events belong to entities that follow Zipf's law. There are nine features over three windows, as in
bench_pipeline.

The embedded broker answers a fetch that finds nothing only after the consumer's ``fetch.wait.max.ms``, even if records
arrive meanwhile, whereas Kafka answers at the first record. So the pipeline runs with ``--fetch-wait`` milliseconds
instead of its own 100; the cost of that wait is still in the figures. The embedded broker also returns one batch per
partition and fetch, however many there are. So the producer's ``linger.ms`` is the client's default of 5: smaller
batches could not be fetched as fast as they are produced.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hiredis
import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import redis
from confluent_kafka import Producer
from workload import SCHEMA, Forgetful, Watched, journal_of, live_in, nine_features, processor_s, zipf

from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.demo.encode import encode
from unskew.features.plan import Plan
from unskew.pipelines.run import run
from unskew.stopping import stopping_on_signals

TOPIC = "events"
VIEW = "by_user_0"
FIRST_PROBE = 1_000_000_000
"""The number of the first entity that is a probe; all later ones are too."""
N_PROBES = 2_000
POLL_S = 0.0005
AHEAD_S = 4.0
"""The time that the helpers have to prepare before the first event is due."""
GIVE_UP_S = 30.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of one run, passed to its processes.

    ``first_ns``: when the first event is due, on the monotonic clock. ``journal``: if true, items wait until the
    journal holds the decisions behind them, as they do in the product.
    """

    bootstrap: str
    redis_port: int
    redis_url: str
    partitioned: bool
    rate: int
    seconds: float
    warm_up_s: float
    probes_per_s: int
    entities: int
    partitions: int
    settle: str
    fetch_wait_ms: int
    linger_ms: float
    epoch_s: float
    folder: str
    first_ns: int = 0
    journal: bool = True
    views: int = 1

    @property
    def n_events(self) -> int:
        return int(self.rate * (self.warm_up_s + self.seconds))

    @property
    def name(self) -> str:
        return f"{TOPIC}-{'partitioned' if self.partitioned else 'ordered'}-{self.rate}"


def due_ns(case: Case) -> npt.NDArray[np.int64]:
    """Return when each event is due, in nanoseconds after the first one."""
    return np.arange(case.n_events, dtype=np.int64) * 1_000_000_000 // case.rate


def probes(case: Case) -> npt.NDArray[np.int64]:
    """Return the indices of probes, in order: a random one in each of equal stretches, so that they have no rhythm."""
    stretch = case.rate / case.probes_per_s
    n_probes = int(case.n_events / stretch)
    return ((np.arange(n_probes) + np.random.default_rng(1).random(n_probes)) * stretch).astype(np.int64)


def the_plan(case: Case) -> Plan:
    plan: Plan = nine_features(case.views, case.name, partitioned=case.partitioned, settle=case.settle)
    return plan


def pipeline(case: Case) -> None:
    folder = Path(case.folder)
    deployment = live_in(
        folder,
        bootstrap=case.bootstrap,
        redis_url=case.redis_url,
        prefix=case.name,
        epoch_s=case.epoch_s,
        config={"fetch.wait.max.ms": case.fetch_wait_ms},
    )
    stop = threading.Event()
    with stopping_on_signals(stop), journal_of(Watched if case.journal else Forgetful) as journals:
        status = run(the_plan(case), deployment, stop=stop)
    waits = journals[0].waits
    waited = {"n": waits.at_most()[-1][1], "sum_s": waits.sum_s, "longest_s": waits.longest_s}
    told = {"consumed": status.consumed, "bumped": status.bumped, "dead": status.dead, "late": status.late}
    print(json.dumps({**told, "waited": waited}))


def producing(case: Case) -> Producer:
    return Producer(
        {
            "bootstrap.servers": case.bootstrap,
            "linger.ms": case.linger_ms,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
        }
    )


def produce(case: Case) -> None:
    random = np.random.default_rng(0)
    users = zipf(case.n_events, case.entities, random) if case.entities else np.arange(case.n_events)
    amounts = np.round(random.gamma(2.0, 20.0, case.n_events), 2)
    chosen = probes(case)
    number = np.arange(len(chosen))
    users[chosen] = FIRST_PROBE + number % N_PROBES
    amounts[chosen] = 1 + number // N_PROBES
    due = due_ns(case)
    wall_ns = case.first_ns + time.time_ns() - time.monotonic_ns()
    stamps_us = (wall_ns + due) // 1000
    values = encode(pl.DataFrame({"user": users, "amount": amounts, "at": stamps_us}), SCHEMA)
    stamps_ms = (stamps_us // 1000).tolist()
    # In a topic partitioned by the entity, each has one partition; in the other kind, partitions do not matter.
    parts = (users if case.partitioned else np.arange(case.n_events)) % case.partitions
    partitions = parts.tolist()
    producer = producing(case)
    failed = 0

    def delivered(error: object, _message: object) -> None:
        nonlocal failed
        failed += error is not None

    begun = 0
    behind_ns = np.zeros(case.n_events, np.int64)
    while begun < case.n_events:
        now_ns = time.monotonic_ns() - case.first_ns
        until = int(np.searchsorted(due, now_ns, side="right"))
        behind_ns[begun:until] = now_ns - due[begun:until]
        for event in range(begun, until):
            producer.produce(
                case.name, values[event], partition=partitions[event], timestamp=stamps_ms[event], on_delivery=delivered
            )
        producer.poll(0)
        begun = max(begun, until)
        if begun < case.n_events:
            time.sleep(max(0.0005, (due[begun] - (time.monotonic_ns() - case.first_ns)) / 1e9))
    waiting = producer.flush(30)
    seconds = (time.monotonic_ns() - case.first_ns) / 1e9
    counted = behind_ns[int(case.warm_up_s * case.rate) :]
    print(
        json.dumps(
            {
                "rate": (case.n_events - waiting - failed) / seconds,
                "failed": failed + waiting,
                "late_p999_ms": float(np.quantile(counted, 0.999)) / 1e6,
            }
        )
    )


class Values:
    """A reader of ``max_30d`` of several entities in one request."""

    def __init__(self, case: Case) -> None:
        self._socket = socket.create_connection(("127.0.0.1", case.redis_port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(10.0)
        self._reader = hiredis.Reader()
        self._prefix = f"{case.name}:{VIEW}@1"

    def of(self, entities: list[int]) -> list[float]:
        """Return the values in the order of the entities; 0 if there is no value yet."""
        keys = [b"%s:{%d}" % (self._prefix.encode(), entity) for entity in entities]
        self._socket.sendall(
            b"".join(b"*3\r\n$4\r\nHGET\r\n$%d\r\n%s\r\n$7\r\nmax_30d\r\n" % (len(k), k) for k in keys)
        )
        found: list[float] = []
        while len(found) < len(keys):
            reply = self._reader.gets()
            while reply is not False:
                found.append(float(reply or 0.0))
                reply = self._reader.gets()
            if len(found) < len(keys):
                self._reader.feed(self._socket.recv(65_536))
        return found


def probe(case: Case) -> None:
    values = Values(case)
    chosen = probes(case)
    number = np.arange(len(chosen))
    entities = (FIRST_PROBE + number % N_PROBES).tolist()
    numbers = (1 + number // N_PROBES).tolist()
    due = (case.first_ns + due_ns(case)[chosen]).tolist()
    latency_ns = np.full(len(chosen), -1, np.int64)
    outstanding: dict[int, deque[int]] = {}
    following = 0
    asked = 0
    give_up_ns = due[-1] + int(GIVE_UP_S * 1e9)
    while following < len(due) or outstanding:
        now_ns = time.monotonic_ns()
        if now_ns > give_up_ns:
            break
        while following < len(due) and due[following] <= now_ns:
            outstanding.setdefault(entities[following], deque()).append(following)
            following += 1
        if outstanding:
            # If very many probes are outstanding, one request for all of them would block the server.
            asking = list(outstanding)[:64]
            asked += 1
            found = values.of(asking)
            read_ns = time.monotonic_ns()
            for entity, value in zip(asking, found, strict=True):
                waiting = outstanding.pop(entity)
                while waiting and numbers[waiting[0]] <= value:
                    first = waiting.popleft()
                    latency_ns[first] = read_ns - due[first]
                if waiting:
                    # It goes to the end, so that the others get their turn.
                    outstanding[entity] = waiting
        time.sleep(POLL_S)
    warm_ns = case.first_ns + int(case.warm_up_s * 1e9)
    counted = latency_ns[np.array(due) >= warm_ns]
    seen = counted[counted >= 0]
    quantiles = np.quantile(seen, [0.5, 0.9, 0.99, 0.999, 1.0]) / 1e6 if len(seen) else np.full(5, np.nan)
    print(
        json.dumps(
            {
                "probes": len(counted),
                "unseen": int((counted < 0).sum()),
                "ms": quantiles.tolist(),
                "asks_per_s": asked / (case.seconds + case.warm_up_s),
            }
        )
    )


ROLES = {"pipeline": pipeline, "produce": produce, "probe": probe}


def end_with(parent: int) -> None:
    """End this process when the process that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def start(role: str, case: Case) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(Path(__file__)), "--role", role, "--case", msgspec.json.encode(case).decode()]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def answer(process: "subprocess.Popen[bytes]", timeout_s: float) -> dict[str, Any]:
    out, _ = process.communicate(timeout=timeout_s)
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def machine_s() -> float:
    """Return the processor seconds of everything on the machine so far."""
    user, nice, system, _idle, _wait, irq, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")


def server_of(case: Case) -> int:
    """Return the process of the Redis server."""
    with redis.Redis.from_url(case.redis_url) as client:
        return int(client.info("server")["process_id"])


def wait_until_read(case: Case, process: "subprocess.Popen[bytes]") -> None:
    """Send events of a separate entity until Redis has it: by then the pipeline has started and compiled."""
    producer, values = producing(case), Values(case)
    deadline_s = time.monotonic() + 180
    entity = FIRST_PROBE + N_PROBES
    while not values.of([entity])[0]:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit("the pipeline does not start")
        now_us = time.time_ns() // 1000
        frame = pl.DataFrame({"user": [entity], "amount": [1.0], "at": [now_us]})
        part = entity % case.partitions
        producer.produce(case.name, encode(frame, SCHEMA)[0], partition=part, timestamp=now_us // 1000)
        producer.flush(10)
        time.sleep(0.1)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run.

    ``ms``: quantiles of latency: 0.5, 0.9, 0.99, 0.999 and the maximum. ``cores``: cores used by the pipeline, and by
    everything else meanwhile. ``wait_ms``: how long items waited for the journal, mean and maximum.
    """

    sent_per_s: float
    ms: list[float]
    n_probes: int
    n_unseen: int
    producer_late_ms: float
    cores: tuple[float, float]
    bumped: float
    wait_ms: tuple[float, float]


@contextmanager
def relayed(port: int, away_s: float) -> Iterator[int]:
    """Yield a port behind which the server at another one is farther away, by so long in each direction."""
    loop = asyncio.new_event_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            loop.call_later(away_s, writer.write, data)
        loop.call_later(away_s, writer.close)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        for end in (writer, to_server):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(pass_on(reader, to_server), pass_on(from_server, writer))

    server = loop.run_until_complete(asyncio.start_server(connect, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def row(case: Case) -> str:
    """Return one row of the table."""
    found = measure(case)
    p50, p90, p99, p999, most = found.ms
    unseen = f" ({found.n_unseen:,} never seen)" if found.n_unseen else ""
    kind = "partitioned" if case.partitioned else f"ordered, settle {case.settle}"
    return (
        f"| {kind} | {case.rate:,} | {found.sent_per_s:,.0f} | {p50:.1f} | {p90:.1f} | {p99:.1f} | {p999:.1f} | {most:.0f} | "
        f"{found.n_probes:,}{unseen} | {found.producer_late_ms:.1f} | {found.cores[0]:.2f} | {found.cores[1]:.2f} | "
        f"{found.bumped:.2%} |"
    )


def measure(case: Case) -> Measured:
    """Measure one run."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        running = start("pipeline", case)
        processes.append(running)
        wait_until_read(case, running)
        case = msgspec.structs.replace(case, first_ns=time.monotonic_ns() + int(AHEAD_S * 1e9))
        prober, producer = start("probe", case), start("produce", case)
        processes += [prober, producer]
        ours = [running.pid, prober.pid, producer.pid, os.getpid(), server_of(case)]
        time.sleep(AHEAD_S + case.warm_up_s)
        began = time.monotonic()
        before = [machine_s(), *map(processor_s, ours)]
        # Measure until a little before the last event is due, while the helpers are still running.
        time.sleep(case.seconds - 1.0)
        after = [machine_s(), *map(processor_s, ours)]
        cores = (np.array(after) - before) / (time.monotonic() - began)
        others = max(0.0, cores[0] - cores[1:].sum())
        sent = answer(producer, 60 + GIVE_UP_S)
        found = answer(prober, 60 + GIVE_UP_S)
        running.send_signal(signal.SIGTERM)
        status = answer(running, 60)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    if sent["failed"] or status["dead"]:
        raise SystemExit(f"not delivered {sent['failed']}, dead letters {status['dead']}")
    return Measured(
        sent_per_s=sent["rate"],
        ms=found["ms"],
        n_probes=found["probes"],
        n_unseen=found["unseen"],
        producer_late_ms=sent["late_p999_ms"],
        cores=(float(cores[1]), float(others)),
        bumped=status["bumped"] / status["consumed"],
        wait_ms=(
            1e3 * status["waited"]["sum_s"] / max(status["waited"]["n"], 1),
            1e3 * status["waited"]["longest_s"],
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--kinds", choices=["partitioned", "ordered"], nargs="+", default=["partitioned", "ordered"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=10.0)
    parser.add_argument("--probes", type=int, default=200, help="probes per second")
    parser.add_argument("--entities", type=int, default=100_000, help="0: each event is of a new one")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--views", type=int, default=1, help="views with the same nine features; the first is read")
    parser.add_argument("--settle", default="10ms")
    parser.add_argument("--fetch-wait", type=int, default=1)
    parser.add_argument("--linger", type=float, default=5.0)
    parser.add_argument("--epoch", type=float, default=5.0, help="seconds between commits")
    parser.add_argument(
        "--redis-away", type=float, default=0.0, help="milliseconds one way between pipeline and Valkey"
    )
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        ROLES[given.role](msgspec.json.decode(given.case, type=Case))
        return
    entities = f"{given.entities:,} entities (Zipf 1.1)" if given.entities else "each event of a new entity"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores for broker, Valkey, pipeline, producer and prober together; "
        f"{given.partitions} partitions, {given.views} views, {entities}, {given.probes} probes a second, "
        f"{given.seconds:.0f} s after {given.warm_up:.0f} s of warm-up; linger.ms {given.linger:g}, "
        f"fetch.wait.max.ms {given.fetch_wait}, an epoch every {given.epoch:g} s, Valkey {given.redis_away:g} ms away. Milliseconds.\n"
    )
    print(
        "| shards | events/s asked | sent | p50 | p90 | p99 | p99.9 | most | probes | producer behind, p99.9 | "
        "pipeline's cores | others' cores | bumped |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for kind in given.kinds:
        for rate in given.rates:
            with (
                EmbeddedBroker() as broker,
                EmbeddedRedis() as server,
                tempfile.TemporaryDirectory() as folder,
                relayed(server.port, given.redis_away / 1000) if given.redis_away else nullcontext(server.port) as port,
            ):
                case = Case(
                    bootstrap=broker.bootstrap,
                    redis_port=server.port,
                    redis_url=server.url.replace(f":{server.port}", f":{port}"),
                    partitioned=kind == "partitioned",
                    rate=rate,
                    seconds=given.seconds,
                    warm_up_s=given.warm_up,
                    probes_per_s=min(given.probes, rate // 5),
                    entities=given.entities,
                    partitions=given.partitions,
                    settle=given.settle,
                    fetch_wait_ms=given.fetch_wait,
                    linger_ms=given.linger,
                    epoch_s=given.epoch,
                    folder=folder,
                    views=given.views,
                )
                broker.create_topic(case.name, case.partitions)
                print(row(case), flush=True)


if __name__ == "__main__":
    main()
