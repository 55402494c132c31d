"""Compare each handwritten piece of wire code with a library: processor time and rows per second, as ratios.

    python benchmarks/bench_wire.py [--rows 10_000] [--messages 50_000] [--repeats 5]

The ways of doing one thing run in turns, and each figure is the median over the turns, so other work on the machine
affects all of them alike: the ratios mean more than the times. "Processor" is the time of this process alone, including
its threads; rows/s are those of this process and an embedded Valkey together, on a loopback connection.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import fastavro
import hiredis
import msgspec
import numpy as np
import polars as pl
import redis
from redis.crc import key_slot
from workload import SCHEMA

from unskew.demo.embedded import EmbeddedRedis
from unskew.demo.encode import encode
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.plan import StreamPlan, ViewPlan
from unskew.features.types import Type
from unskew.features.updates import StepRows, Updates
from unskew.pipelines.decoding.avro import AvroDecoder
from unskew.pipelines.decoding.avro_walk import FRAME_BYTES, Wire
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.poll import Poll
from unskew.sinks.redis.cluster_slots import slots_of
from unskew.sinks.redis.keyspace import value_key
from unskew.sinks.redis.nodes import ROWS_PER_CHUNK, OneServer
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.resp_replies import BYTES_PER_READ, Replies
from unskew.sinks.redis.texts import Reader, column_of, text_of
from unskew.sinks.redis.writer import RedisWriter

PLURALS = {"flush": "flushes"}
Way = Callable[[], object]


def compiled() -> tuple[StreamPlan, ViewPlan]:
    features = [
        Feature(f"{name}_{extent}", aggregation, Sliding(extent))
        for extent in ("5m", "1h", "30d")
        for name, aggregation in (("count", agg.count()), ("sum", agg.sum("amount")), ("max", agg.max("amount")))
    ]
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at")
    plan = compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features)
    )
    return plan.streams["events"], plan.views["by_user"]


def rows_of(view: ViewPlan, n: int, *, with_null: bool) -> pl.DataFrame:
    random = np.random.default_rng(0)
    now_us = time.time_ns() // 1000
    columns = {"key": pl.Series([f"user-{number:06d}" for number in range(n)])}
    for output in view.outputs:
        values = random.integers(0, 1_000, n) if output.dtype == Type("int64") else random.gamma(2.0, 20.0, n)
        columns[output.name] = pl.Series(values)
    if with_null:
        columns["max_5m"] = pl.Series([None] * n, dtype=pl.Float64)
    return pl.DataFrame(
        columns
        | {
            "_at": np.full(n, now_us),
            "_until": np.full(n, now_us + 60_000_000),
            "_empty_at": np.full(n, now_us + 86_400_000_000),
            "_gone": np.zeros(n, np.bool_),
        }
    )


def measure(ways: Mapping[str, Way], n: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Return microseconds of processor and wall time per item of ``n``: medians over the turns except the first."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                found[name].append((cpu / n * 1e6, wall / n * 1e6))
    return {
        name: (statistics.median(cpu for cpu, _ in times), statistics.median(wall for _, wall in times))
        for name, times in found.items()
    }


def show(title: str, unit: str, found: Mapping[str, tuple[float, float]], *, per_second: bool = False) -> None:
    """Print a table in which all ways are compared with the first one."""
    print(f"\n### {title}\n")
    print(
        f"| way | processor, us a {unit} | ratio |"
        + (f" {PLURALS.get(unit, f'{unit}s')}/s | ratio |" if per_second else "")
    )
    print("|---|---|---|" + ("---|---|" if per_second else ""))
    first_cpu, first_wall = next(iter(found.values()))
    for name, (cpu, wall) in found.items():
        rate = f" {1e6 / wall:,.0f} | {first_wall / wall:.2f} |" if per_second else ""
        print(f"| {name} | {cpu:.3f} | {cpu / first_cpu:.2f} |{rate}", flush=True)


def commands_of(view: ViewPlan, rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Return the encoder's commands as arguments, made from Python rows as a writer without columns would do it."""
    names = [*(output.name for output in view.outputs), "_at", "_until"]
    commands: list[tuple[Any, ...]] = []
    for row in rows.iter_rows(named=True):
        key = value_key("unskew", view.id, row["key"])
        absent = [name for name in names if row[name] is None]
        fields = [part for name in names if row[name] is not None for part in (name, row[name])]
        if absent:
            commands += [("MULTI",), ("HSET", key, *fields), ("HDEL", key, *absent), ("EXEC",)]
        else:
            commands.append(("HSET", key, *fields))
    return commands


def rows_to_redis(
    client: redis.Redis, view: ViewPlan, rows: pl.DataFrame, repeats: int
) -> dict[str, tuple[float, float]]:
    encoder = RowEncoder(view, "unskew")
    now_us = time.time_ns() // 1000
    nodes = OneServer(client)
    connection = client.connection_pool.get_connection()

    def ours() -> None:
        with nodes.open():
            nodes.send_rows(encoder, StepRows(rows), now_us)
            nodes.finish()

    def pipeline() -> None:
        for chunk in rows.iter_slices(ROWS_PER_CHUNK):
            sent = client.pipeline(transaction=False)
            for command in commands_of(view, chunk):
                sent.execute_command(*command)
            sent.execute()

    def packer() -> None:
        replies = Replies(connection._sock.recv_into)  # type: ignore[attr-defined]  # noqa: SLF001
        for chunk in rows.iter_slices(ROWS_PER_CHUNK):
            # hiredis does not accept floats.
            commands: list[tuple[Any, ...]] = [
                tuple(repr(part) if isinstance(part, float) else part for part in command)
                for command in commands_of(view, chunk)
            ]
            connection.send_packed_command([b"".join(map(hiredis.pack_command, commands))], check_health=False)
            replies.expect(len(commands))
            replies.read(down_to=len(commands))
        replies.read()

    found = measure(
        {"by hand": ours, "hiredis.pack_command": packer, "redis-py's pipeline": pipeline}, rows.height, repeats
    )
    connection.disconnect()
    return found


def replies_of(n: int, repeats: int) -> dict[str, tuple[float, float]]:
    whole = b":1\r\n" * n
    expected = bytes(sorted(set(b":+*0123456789OKQUED\r\n")))

    def receiver() -> Callable[[bytearray], int]:
        source = io.BytesIO(whole)
        return source.readinto

    def parsed() -> None:
        replies = Replies(receiver())
        replies.expect(n)
        replies.read()

    def counted() -> None:
        receive, buffer, left = receiver(), bytearray(BYTES_PER_READ), n
        while left:
            received = buffer[: receive(buffer)]
            assert not received.translate(None, expected)
            left -= received.count(b"\n")

    return measure({"parsed by hiredis": parsed, "lines counted by hand": counted}, n, repeats)


def slots(rows: pl.DataFrame, repeats: int) -> dict[str, tuple[float, float]]:
    before, after = "unskew:by_user@1:{", "}"
    return measure(
        {
            "`slots_of`": lambda: slots_of(rows["key"], before, after),
            "redis-py's `key_slot`": lambda: [
                key_slot(key) for key in (before + rows["key"] + after).cast(pl.Binary).to_list()
            ],
        },
        rows.height,
        repeats,
    )


def flushes(client: redis.Redis, view: ViewPlan, n_rows: int, repeats: int) -> dict[str, tuple[float, float]]:
    empty = pl.DataFrame()
    times = max(1, 400 // n_rows)

    def writing(pipeline: str) -> tuple[RedisWriter, Way]:
        writer = RedisWriter(client, "unskew", pipeline, "bench")
        writer.expect({view.id: [f"h{number}" for number in range(8)]})
        frame = rows_of(view, n_rows, with_null=False)
        now_us = time.time_ns() // 1000
        step = Updates(
            view=view,
            shard="h0",
            clock_us=now_us,
            since_us=1,
            closed_rows=StepRows(empty),
            current_rows=StepRows(frame),
            late=(),
            late_by_us=(),
        )
        applied = iter(range(1, 1_000_000_000))

        def flush() -> None:
            for _ in range(times):
                # Every shard sends its clock; only one has rows.
                for number in range(8):
                    rows = frame if not number else frame.clear()
                    writer.add(
                        step.but(
                            shard=f"h{number}",
                            current_rows=StepRows(rows),
                            clock_us=now_us + (one := next(applied)),
                            applied=one,
                        )
                    )
                writer.flush(now_us)

        return writer, flush

    _, with_witness = writing("with")
    bare, without = writing("without")
    bare._kept.words = lambda *_: iter(())  # type: ignore[method-assign]  # noqa: SLF001
    return measure({"without the witness": without, "with it": with_witness}, times, repeats)


def avro(stream: StreamPlan, n: int, repeats: int) -> dict[str, tuple[float, float]]:
    random = np.random.default_rng(0)
    at = 1_600_000_000_000_000 + np.arange(n) * 1_000
    frame = pl.DataFrame({"user": random.integers(0, 100_000, n), "amount": random.gamma(2.0, 20.0, n), "at": at})
    messages = encode(frame, SCHEMA)
    values = Blobs.of(messages)
    poll = Poll(
        stream="events",
        partition=0,
        clock_us=int(at[-1]),
        ended=False,
        offsets=np.arange(n),
        arrivals=at,
        keys=Blobs.of([None] * n),
        values=values,
        rejected=[],
    )
    decoder, wire = AvroDecoder(stream), Wire(stream.schema)
    parsed = fastavro.parse_schema(dict(stream.schema))
    names = [field["name"] for field in SCHEMA["fields"]]  # type: ignore[index]

    def each() -> list[Any]:
        return [fastavro.schemaless_reader(io.BytesIO(message[FRAME_BYTES:]), parsed, None) for message in messages]

    def library() -> pl.DataFrame:
        records = each()
        return pl.DataFrame({name: [record[name] for record in records] for name in names})

    assert library()["amount"].equals(wire.read(values)["amount"])
    return measure(
        {
            "walked, joined, read by Polars": lambda: (wire.check(values), wire.read(values)),
            "of that, the walk": lambda: wire.check(values),
            "the decoder whole": lambda: decoder.decode(poll),
            "fastavro, message by message": library,
            "of that, without columns": each,
        },
        n,
        repeats,
    )


def texts(dtype: Type, values: list[Any], repeats: int) -> tuple[dict[str, tuple[float, float]], ...]:
    column = pl.Series("x", values, dtype.polars)
    expression = text_of(pl.col("x"), dtype).alias("x")
    frame = column.to_frame()
    as_text = frame.select(expression)["x"].cast(pl.Binary).to_list()
    maps = dtype.nesting == "map"

    def python() -> list[Any]:
        return [{one["key"]: one["value"] for one in value} if maps else value for value in column.to_list()]

    assert [json.loads(text) for text in as_text] == python()
    written = measure(
        {
            "`text_of`": lambda: frame.select(expression),
            "msgspec, value by value": lambda: [msgspec.json.encode(value) for value in python()],
            "json, value by value": lambda: [json.dumps(value, separators=(",", ":")) for value in python()],
        },
        len(values),
        repeats,
    )
    reader = Reader(dtype)
    read = measure(
        {
            "`Reader` (msgspec)": lambda: column_of("x", reader.values(as_text), dtype),
            "json, value by value": lambda: pl.Series(
                [[{"key": k, "value": v} for k, v in one.items()] if maps else one for one in map(json.loads, as_text)],
                dtype=dtype.polars,
            ),
        },
        len(values),
        repeats,
    )
    return written, read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, redis-py {redis.__version__}, "
        f"hiredis {hiredis.__version__}, fastavro {fastavro.__version__}; nine features, {given.rows:,} rows, medians of {given.repeats}"
    )
    stream, view = compiled()
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        for with_null, title in ((False, "an HSET each"), (True, "a transaction each")):
            rows = rows_of(view, given.rows, with_null=with_null)
            show(f"Rows to Redis: {title}", "row", rows_to_redis(client, view, rows, given.repeats), per_second=True)
        for n_rows in (1, 100, given.rows):
            title = f"A flush of {n_rows:,} row{'s' if n_rows > 1 else ''} and eight clocks"
            show(title, "flush", flushes(client, view, n_rows, given.repeats), per_second=True)
    show("Replies", "reply", replies_of(2 * given.rows, given.repeats))
    show("Slots of a cluster", "key", slots(rows_of(view, given.rows, with_null=False), given.repeats))
    show("Avro", "message", avro(stream, given.messages, given.repeats))
    random = np.random.default_rng(0)
    lists = random.gamma(2.0, 20.0, (given.rows, 10)).tolist()
    maps = [
        [{"key": f"shop {one}", "value": one} for one in row]
        for row in random.integers(0, 99, (given.rows, 1)).tolist()
    ]
    for dtype, values in (("list[float64]", lists), ("map[int64]", maps)):
        written, read = texts(Type.parse(dtype), values, given.repeats)
        show(f"Texts of {dtype}, written", "value", written)
        show(f"Texts of {dtype}, read", "value", read)


if __name__ == "__main__":
    main()
