"""``unskew run`` as a user starts it: its own process, real broker and Redis."""

import contextlib
import json
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pipeline import SCHEMA, Bench, history
from unskew.demo.embedded import EmbeddedBroker

RECORDS = history(120, seed=5)


@pytest.fixture
def bench(broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> Bench:
    return Bench(broker, redis_url, tmp_path)


def _definitions(folder: Path, topic: str) -> Path:
    (folder / "purchase.avsc").write_text(json.dumps(SCHEMA))
    path = folder / "views.yaml"
    path.write_text(
        f"""\
stream: {{name: purchases, topic: {topic}, schema: purchase.avsc, event_time: at, partitioned_by: user}}
---
entity: {{name: user, key: user}}
---
name: user_count_1h
entity: user
source: purchases
aggregation:
  function: count
  window: 1h
"""
    )
    return path


def _command(bench: Bench, topic: str, *more: str, redis_url: str | None = None) -> list[str]:
    root = bench.root
    return [
        *(sys.executable, "-m", "unskew", "run", "--definitions", str(_definitions(root, topic))),
        *("--bootstrap-servers", bench.broker.bootstrap, "--redis-url", redis_url or bench.redis_url),
        *("--log", str(root / "log"), "--archive", str(root / "archive"), "--state", str(root / "state")),
        *("--idle", "none", "--end", "now", "--epoch", "200ms", *more),
    ]


def _run(bench: Bench, topic: str, *more: str, redis_url: str | None = None) -> subprocess.CompletedProcess[str]:
    command = _command(bench, topic, *more, redis_url=redis_url)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_replay_ends_with_status_0_and_says_what_it_did(bench: Bench) -> None:
    topic = bench.produce(RECORDS)

    done = _run(bench, topic, "--progress", "json")

    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["consumed"] == len(RECORDS)
    assert last["dead"] == sum(record.raw is not None for record in RECORDS)
    assert last["lag"] == 0
    assert list((bench.root / "log" / "user_count_1h").glob("v1/day=*/*.parquet"))
    assert (bench.root / "dead_letters" / topic).is_dir()


@pytest.mark.parametrize("broken", ["redis", "partition"])
def test_a_failure_is_one_sentence_on_standard_error_and_status_1(bench: Bench, broken: str) -> None:
    records = RECORDS
    if broken == "partition":
        # The same user, first in one partition and then in another.
        records = [
            *RECORDS[:60],
            *(type(one)(**{**vars(one), "partition": (one.partition + 1) % 4}) for one in RECORDS[60:]),
        ]
    topic = bench.produce(records)

    done = _run(bench, topic, redis_url="redis://:secret@127.0.0.1:1/0" if broken == "redis" else None)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert ("127.0.0.1:1" if broken == "redis" else "partitioned_by") in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_order_to_stop_while_the_pipeline_is_imported_is_a_clean_stop(bench: Bench, number: signal.Signals) -> None:
    command = _command(bench, bench.produce(RECORDS))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        until_s = time.monotonic() + 60
        # One of the first libraries that the pipeline itself needs.
        while "bytewax" not in maps.read_text():
            assert time.monotonic() < until_s
            time.sleep(0.001)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)

    assert (process.returncode, errors) == (0, "")


def modes(root: Path) -> dict[str, str]:
    """The permissions of all that lies under a folder, by path."""
    found = {}
    for path in [root, *root.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            found[str(path.relative_to(root))] = stat.filemode(path.lstat().st_mode)
    return found


def test_all_that_a_run_makes_is_for_its_user_alone(bench: Bench) -> None:
    last = RECORDS[-1]
    topic = bench.produce([*RECORDS, replace(last, raw=b"not a record")])
    bench.root.chmod(0o755)
    seen: dict[str, str] = {}
    places = [bench.root / name for name in ("log", "archive", "dead_letters", "state")]
    with subprocess.Popen(_command(bench, topic), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            for place in places:
                if place.is_dir():
                    seen |= {f"{place.name}/{path}": mode for path, mode in modes(place).items()}
            time.sleep(0.01)
        assert process.stderr is not None
        assert process.wait() == 0, process.stderr.read()

    assert {path: mode for path, mode in seen.items() if mode not in {"drwx------", "-rw-------"}} == {}
    for part in (
        "-wal",
        "/recovery/",
        ".journal",
        ".events",
        "/_leases/",
        "/_coverage/p",
        "_shards",
        "/_staged/",
        "dead_letters/",
    ):
        assert any(part in path for path in seen), part
