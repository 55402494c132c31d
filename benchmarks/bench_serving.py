"""Measure online reads: one entity and 100, of 20 features of one view and of three views at once.

    python benchmarks/bench_serving.py [--reads 200] [--rounds 10] [--shards 8] [--sdk]
        [--feast-python .venv-feast/bin/python] [--beside SRC]

Three views of 20 features each over 5 windows, 8,000 entities, written to a Valkey on this machine by the pipeline's
writer. In turns, in rounds, each read is made by the SDK (``get_online_features(...).to_dict()``), by redis-py alone
(HMGET of the same fields, texts turned into numbers, without clocks, defaults or status: what one would write by hand),
and, with ``--feast-python``, by Feast's SDK with its Redis store, from the same Valkey with the same values, in a
process of its own. Every value of the SDK is compared with the other two.

Prints p50 and p99 of all reads in milliseconds, and the processor time of one read in this process. Then the same
over HTTP: ``unskew serve``, a server that answers as many bytes without reading anything (``bare_http.py``: what HTTP
alone costs) and, with ``--feast-python``, ``feast serve``, each one process, asked over 1 and 16 connections by a
client in another process; not with ``--sdk``. Last, three on-demand features that read two features of a view.
With ``--beside``, only ``unskew serve`` and that of the package in ``SRC``, in turns.
"""

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import redis
from workload import SCHEMA, processor_s

from unskew import (
    Derived,
    Entity,
    Feature,
    FeatureStore,
    FeatureView,
    OnDemand,
    Sliding,
    Stream,
    agg,
    haversine,
)
from unskew.demo.embedded import EmbeddedRedis
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.evaluate import ARRIVAL, EVENT_TIME, OFFSET, PARTITION, Evaluator
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.shard_state import ShardState
from unskew.sinks.redis.keyspace import value_key
from unskew.sinks.redis.writer import RedisWriter

HERE = Path(__file__).parent
N_USERS = 8_000
VIEWS = ("first", "second", "third")
WINDOWS = ("5m", "1h", "1d", "7d", "30d")
INPUTS = {"lat": 52.1, "lon": 13.0, "query": "red shoes", "amount": 12.5}
Read = Callable[[Sequence[int]], dict[str, list[Any]]]


CHECKOUT = OnDemand(
    "checkout",
    inputs={"lat": "float64", "lon": "float64", "query": "string", "amount": "float64"},
    features=[
        Derived("distance_km", haversine("lat", "lon", "52.5", "13.4")),
        Derived("query_length", "char_length(query)"),
        Derived("amount_to_mean", "amount * first:first_count_30d / first:first_sum_30d", default=0.0),
    ],
)
ON_DEMAND = [f"checkout:{feature.name}" for feature in CHECKOUT.features]


def definitions() -> Plan:
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at", partitioned_by="user")
    views = [
        FeatureView(
            name,
            entity=Entity("user", key="user"),
            stream=stream,
            features=[
                Feature(f"{name}_{what}_{window}", aggregation, Sliding(window))
                for window in WINDOWS
                for what, aggregation in (
                    ("count", agg.count()),
                    ("sum", agg.sum("amount")),
                    ("max", agg.max("amount")),
                    ("mean", agg.mean("amount")),
                )
            ],
        )
        for name in VIEWS
    ]
    return compile_definitions(views, CHECKOUT)


def write(plan: Plan, url: str, n_shards: int) -> None:
    """Write one event of each user, as the pipeline would."""
    writer = RedisWriter(url, "unskew", "main")
    writer.look()
    writer.publish_registry(json.dumps(describe(plan)))
    shards = [f"p{number}.0" for number in range(n_shards)]
    writer.expect({view.id: shards for view in plan.views.values()})
    random, now_us = np.random.default_rng(0), time.time_ns() // 1000
    for view in plan.views.values():
        for number, shard in enumerate(shards):
            users = np.arange(number, N_USERS, n_shards)
            events = pl.DataFrame(
                {
                    "user": users,
                    "amount": np.round(random.gamma(2.0, 20.0, len(users)), 2),
                    "at": np.full(len(users), now_us),
                    PARTITION: np.full(len(users), number, np.int32),
                    OFFSET: np.arange(len(users)),
                    ARRIVAL: np.full(len(users), now_us),
                    EVENT_TIME: np.full(len(users), now_us),
                }
            ).with_columns(pl.col("at", ARRIVAL, EVENT_TIME).cast(pl.Datetime("us", "UTC")))
            state = ShardState(view, shard)
            writer.add(replace(state.apply(Evaluator(view)(events).events, now_us), applied=len(users)))
    writer.flush(now_us)
    writer.close()


def by_hand(client: redis.Redis, plan: Plan, views: Sequence[str]) -> Read:
    asked = [(plan.views[name].id, [output.name for output in plan.views[name].outputs]) for name in views]
    kinds = {
        output.name: int if output.dtype.scalar == "int64" else float
        for name in views
        for output in plan.views[name].outputs
    }

    def read(users: Sequence[int]) -> dict[str, list[Any]]:
        commands = client.pipeline(transaction=False)
        for view_id, names in asked:
            for user in users:
                commands.hmget(value_key("unskew", view_id, str(user)), names)
        replies = iter(commands.execute())
        found: dict[str, list[Any]] = {"user": list(users)}
        for _, names in asked:
            rows = [next(replies) for _ in users]
            for name, texts in zip(names, zip(*rows, strict=True), strict=True):
                found[name] = [None if text is None else kinds[name](text) for text in texts]
        return found

    return read


class Feast:
    """Feast's SDK in a process of its own."""

    def __init__(self, python: Path, url: str, values: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(HERE / "peers_feast_online.py"), url, str(values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.repo = Path(self._answer())

    def measure(self, views: Sequence[str], users: Sequence[int], n_reads: int) -> tuple[list[float], dict[str, Any]]:
        """Return the seconds of each read, and the last answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"views": views, "users": users, "reads": n_reads}) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        return found["seconds"], found["answer"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("Feast does not answer; what it said is above. It needs the extra feast[redis].")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


class Answering:
    """A server in a process of its own. ``PORT`` in its command stands for its port."""

    def __init__(self, command: Sequence[str], *, cwd: Path | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [part.replace("PORT", str(self._port)) for part in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
        )
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                break
            time.sleep(0.1)

    def asked(self, body: Path, n_connections: int, seconds: float) -> dict[str, float]:
        """Return what ``load_http.py`` prints, and the microseconds of processor time of an answer."""
        arguments = [str(self._port), "/get-online-features", str(body), str(n_connections), str(seconds)]
        before_s = processor_s(self._process.pid)
        ran = subprocess.run(
            [sys.executable, str(HERE / "load_http.py"), *arguments], capture_output=True, text=True, check=False
        )
        if ran.returncode:
            raise SystemExit(ran.stderr)
        found: dict[str, float] = json.loads(ran.stdout)
        found["processor"] = (processor_s(self._process.pid) - before_s) / found["answers"] * 1e6
        return found

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def over_http(folder: Path, command: Sequence[str], body: object, *, cwd: Path | None = None) -> int:
    """Start a server, and ask it over 1 and 16 connections. Return the bytes of an answer, without its head."""
    path = folder / "body.json"
    path.write_text(json.dumps(body))
    server = Answering(command, cwd=cwd)
    found: dict[str, float] = {}
    try:
        for n_connections in (1, 16):
            found = server.asked(path, n_connections, 3)
            print(
                f"    {n_connections:>2} connection(s): p50 {found['p50']:8.3f}   p99 {found['p99']:8.3f}   "
                f"{found['answers'] / found['seconds']:8,.0f} answers/s",
                flush=True,
            )
        return int(found["bytes"])
    finally:
        server.end()


def in_turns(folder: Path, command: Sequence[str], body: object, beside: Path, n_rounds: int, title: str) -> None:
    """Ask servers of two sources in turns, for two seconds each, and print medians and ratios of the rounds."""
    path = folder / "body.json"
    path.write_text(json.dumps(body))
    servers = {"before": Answering(["env", f"PYTHONPATH={beside}", *command]), "now": Answering(command)}
    try:
        for n_connections in (1, 16):
            found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
            for number in range(-1, n_rounds):
                for name in sorted(servers, reverse=number % 2 == 1):
                    its = servers[name].asked(path, n_connections, 2 if number >= 0 else 0.5)
                    its["answers/s"] = its["answers"] / its["seconds"]
                    found[name] += [its] if number >= 0 else []
            parts = []
            for what, digits in (("answers/s", 0), ("processor", 0), ("p50", 3), ("p99", 3)):
                before, now = ([one[what] for one in found[name]] for name in ("before", "now"))
                ratios = sorted(its / other for its, other in zip(now, before, strict=True))
                medians = " to ".join(f"{statistics.median(its):,.{digits}f}" for its in (before, now))
                parts.append(f"{medians}, {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
            print(f"| {title}, {n_connections} connection(s) | {' | '.join(parts)} |", flush=True)
    finally:
        for server in servers.values():
            server.end()


def show(title: str, seconds: list[float], cpu_s: float | None) -> None:
    seconds.sort()
    p50, p99 = (seconds[int(len(seconds) * share)] * 1e3 for share in (0.5, 0.99))
    processor = "" if cpu_s is None else f"   processor {cpu_s / len(seconds) * 1e3:7.3f}"
    print(f"  {title:<10} p50 {p50:8.3f}   p99 {p99:8.3f}{processor}", flush=True)


def show_bytes(client: redis.Redis, before: int) -> None:
    """Show what the hashes of all users take; ``before``: the bytes that the server used without them."""
    keys = list(client.scan_iter("unskew:*@*", count=10_000))
    usage = sum(client.memory_usage(key, samples=0) or 0 for key in keys[:: len(keys) // 1_000])
    grown = client.info("memory")["used_memory"] - before
    print(
        f"{len(keys):,} hashes of 20 features: MEMORY USAGE {usage / len(keys[:: len(keys) // 1_000]):,.0f} bytes each; "
        f"the server grew by {grown / len(keys):,.0f} bytes each",
        flush=True,
    )


def show_http(
    plan: Plan, url: str, folder: Path, random: np.random.Generator, feast: Feast | None, feast_python: Path
) -> None:
    serve = [sys.executable, "-m", "unskew", "serve", "--redis-url", url, "--listen", "PORT"]
    for n_entities in (1, 100):
        body = {
            "entities": {"user": random.integers(0, N_USERS, n_entities).tolist()},
            "features": [f"{VIEWS[0]}:{output.name}" for output in plan.views[VIEWS[0]].outputs],
        }
        print(f"over HTTP, {n_entities} x 20, unskew serve:")
        n_bytes = over_http(folder, serve, body)
        print(f"over HTTP, {n_bytes:,} bytes, nothing read:")
        over_http(folder, [sys.executable, str(HERE / "bare_http.py"), "PORT", str(n_bytes)], body)
        if feast is not None:
            print(f"over HTTP, {n_entities} x 20, feast serve:")
            command = [
                str(feast_python.absolute().with_name("feast")),
                "serve",
                "--port",
                "PORT",
                "--no-access-log",
                # Its worker would begin again after 1,000 requests, in the middle of the measurement.
                "--max-requests",
                "0",
            ]
            over_http(folder, command, body, cwd=feast.repo)
    for n_entities in (1, 100):
        columns = {name: [value] * n_entities for name, value in INPUTS.items()}
        body = {
            "entities": {"user": random.integers(0, N_USERS, n_entities).tolist(), **columns},
            "features": ON_DEMAND,
            "now": "2026-03-01T12:00:00Z",
        }
        print(f"over HTTP, {n_entities} x {len(ON_DEMAND)} on-demand features, unskew serve:")
        over_http(folder, serve, body)


def compare(plan: Plan, url: str, folder: Path, random: np.random.Generator, beside: Path, n_rounds: int) -> None:
    serve = [sys.executable, "-m", "unskew", "serve", "--redis-url", url, "--listen", "PORT"]
    print("| over HTTP, before to now, ratio (all rounds) | answers/s | processor, us an answer | p50 | p99 |")
    print("|---|---|---|---|---|")
    features = [f"{VIEWS[0]}:{output.name}" for output in plan.views[VIEWS[0]].outputs]
    for n_entities in (1, 100):
        body = {"entities": {"user": random.integers(0, N_USERS, n_entities).tolist()}, "features": features}
        in_turns(folder, serve, body, beside, n_rounds, f"{n_entities} x 20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--sdk", action="store_true", help="leave HTTP out")
    parser.add_argument("--feast-python", type=Path, default=Path(".venv-feast/bin/python"))
    parser.add_argument("--beside", type=Path, help="the folder that holds another version of the package")
    options = parser.parse_args()
    plan = definitions()
    random = np.random.default_rng(1)
    with EmbeddedRedis() as server, tempfile.TemporaryDirectory() as folder:
        client = redis.Redis.from_url(server.url)
        before = client.info("memory")["used_memory"]
        write(plan, server.url, options.shards)
        if options.beside:
            compare(plan, server.url, Path(folder), random, options.beside.resolve(), options.rounds)
            return
        show_bytes(client, before)
        store = FeatureStore(redis_url=server.url)
        feast = None
        if options.feast_python.exists():
            values = pl.DataFrame(by_hand(client, plan, VIEWS)(range(N_USERS)))
            values.write_parquet(Path(folder) / "values.parquet")
            feast = Feast(options.feast_python, server.url, Path(folder) / "values.parquet")
        else:
            print(f"{options.feast_python} is not there: Feast is left out\n")
        for n_entities, views in ((1, VIEWS[:1]), (100, VIEWS[:1]), (1, VIEWS), (100, VIEWS)):
            references = [f"{name}:{output.name}" for name in views for output in plan.views[name].outputs]
            users = random.integers(0, N_USERS, n_entities).tolist()
            rows = [{"user": user} for user in users]

            def sdk(_: Sequence[int], references: list[str] = references, rows: Any = rows) -> dict[str, list[Any]]:
                return store.get_online_features(references, rows).to_dict()

            ways: dict[str, Read] = {"unskew": sdk, "redis-py": by_hand(client, plan, views)}
            seconds: dict[str, list[float]] = {name: [] for name in (*ways, "Feast")}
            cpu_s = dict.fromkeys(ways, 0.0)
            answers = {}
            for _ in range(options.rounds):
                for name, read in ways.items():
                    read(users)
                    cpu_began = time.process_time()
                    for _ in range(options.reads):
                        began = time.perf_counter()
                        answers[name] = read(users)
                        seconds[name].append(time.perf_counter() - began)
                    cpu_s[name] += time.process_time() - cpu_began
                if feast is not None:
                    its, answers["Feast"] = feast.measure(views, users, max(1, options.reads // 4))
                    seconds["Feast"] += its
            for name, answer in answers.items():
                if answer != answers["unskew"]:
                    raise SystemExit(f"{name} answers otherwise")
            print(f"{n_entities} x {len(references)} features of {len(views)} view(s), {options.shards} shards:")
            for name in answers:
                show(name, seconds[name], cpu_s.get(name))
        for n_entities in (1, 100):
            rows = [{"user": user, **INPUTS} for user in random.integers(0, N_USERS, n_entities).tolist()]
            seconds_each: list[float] = []
            for _ in range(options.reads * options.rounds):
                began = time.perf_counter()
                store.get_online_features(ON_DEMAND, rows).to_dict()
                seconds_each.append(time.perf_counter() - began)
            print(f"{n_entities} x {len(ON_DEMAND)} on-demand features:")
            show("unskew", seconds_each, None)
        store.close()
        if not options.sdk:
            show_http(plan, server.url, Path(folder), random, feast, options.feast_python)
        if feast is not None:
            feast.close()


if __name__ == "__main__":
    main()
