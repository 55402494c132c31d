"""The kernel is compiled before the first poll, in a state of its own, and a signal ends it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.pipeline import SCHEMA, Bench, history
from tests.support.recovery.processes import free_port
from unskew.features import jit_cache
from unskew.offline import lookup
from unskew.pipelines import compiling

ROOT = Path(__file__).parents[2]
CHILD = [sys.executable, "-m", "unskew.pipelines.compiling"]

# Everything that pipelines call, with records of all kinds: twice, so that state is read again, and with repeats.
EXERCISE = """
    import sys, tempfile, threading
    from dataclasses import replace
    from pathlib import Path
    import polars as pl
    from tests.support.pipeline import Bench, history, plan
    from unskew.features.shard_state import ShardState
    from unskew.features.text_buffers import Keys
    from unskew.pipelines import compiling
    from unskew.pipelines.decoding.avro_walk import Wire
    from unskew.pipelines.run import run
    from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis

    with EmbeddedBroker() as broker, EmbeddedRedis() as redis:
        bench = Bench(broker, redis.url, Path(sys.argv[1]))
        topic = bench.produce(history(80, seed=1))
        outcome = bench.run(topic)
        bench.append(topic, history(80, seed=2))
        run(outcome.plan, outcome.deployment, stop=threading.Event())
    for part in compiling.entries():
        for entry in part:
            found = set(entry.function.signatures) - {entry.types}
            assert not found, (entry.function.py_func.__name__, found, entry.types)
    called = sorted(e.function.py_func.__name__ for part in compiling.entries() for e in part if e.function.signatures)
    print(*called)
"""


def test_what_is_compiled_ahead_is_what_a_pipeline_calls(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}  # noqa: TID251 - as below
    command = [sys.executable, "-c", textwrap.dedent(EXERCISE), str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert {"run", "current", "insert_rows", "write_rows", "_check", "take_dead"} <= set(done.stdout.split())


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_pipeline_that_compiles_is_healthy_and_not_ready_and_a_signal_ends_it(
    broker, redis_url: str, tmp_path: Path
) -> None:
    bench = Bench(broker, redis_url, tmp_path)
    topic = bench.produce(history(20, seed=1))
    schema = json.dumps(SCHEMA)
    (tmp_path / "views.yaml").write_text(
        f"stream: {{name: purchases, topic: {topic}, schema: '{schema}', event_time: at, settle: 1s, partitioned_by: user}}\n---\n"
        "entity: {name: user, key: user}\n---\n"
        "{name: n, entity: user, source: purchases, aggregation: {function: count, window: 1h}}\n"
    )
    port = free_port()
    folders = {name: tmp_path / "run" / name for name in ("log", "archive", "state")}
    command = [
        *(sys.executable, "-m", "unskew", "run", "--apply", "--definitions", str(tmp_path / "views.yaml")),
        *("--bootstrap-servers", broker.bootstrap, "--redis-url", redis_url, "--idle", "wall"),
        *(word for name, folder in folders.items() for word in (f"--{name}", str(folder))),
        *("--metrics", str(port)),
    ]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cold")}  # noqa: TID251 - the child's, with one change
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        until_s = time.monotonic() + 120
        while True:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until_s
            try:
                if json.loads(answer(port, "/health")[1])["compiling"]:
                    break
            except OSError:
                time.sleep(0.05)
        health, ready, metrics = (answer(port, f"/{path}") for path in ("health", "ready", "metrics"))
        assert any("compiling the kernel" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)

    assert health[0] == 200
    assert ready[0] == 503
    assert "the kernel is being compiled" in json.loads(ready[1])["reasons"][0]
    assert "unskew_compiling 1.0" in metrics[1]
    assert "unskew_ready 0.0" in metrics[1]
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    # Nothing had begun, so nothing is left but what was applied: neither folders nor processes.
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["registry"]
    assert [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in p.read_bytes()] == []


def test_a_process_that_compiles_ends_by_itself_or_with_its_parent() -> None:
    # Everything is there already, compiled by this call or before.
    compiling.compile_ahead(None, threading.Event())
    assert compiling.is_done()

    with compiling._compiler(0, None) as child:
        assert child.wait(120) == 0
    with subprocess.Popen([*CHILD, "--from", "0"], stdin=subprocess.PIPE) as orphan:
        assert orphan.stdin is not None
        orphan.stdin.close()
        assert orphan.wait(60) in {0, 1}


def test_warm_keeps_all_that_pipelines_and_trainers_call() -> None:
    # What an earlier test compiled is not compiled again.
    done = subprocess.run([sys.executable, "-m", "unskew", "warm"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert f"kept in {jit_cache.places().writable}" in done.stdout
    assert all(entry.is_kept() for part in [*compiling.entries(), lookup.entries()] for entry in part)
