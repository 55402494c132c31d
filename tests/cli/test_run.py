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
from click.testing import CliRunner, Result

from tests.support.pipeline import SCHEMA, Bench, history
from unskew import FeatureStore, RequestError
from unskew.cli import main
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
        *(sys.executable, "-m", "unskew", "run", "--apply", "--definitions", str(_definitions(root, topic))),
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


def test_a_run_says_at_its_start_what_it_runs_and_at_its_end_why_it_ends(bench: Bench) -> None:
    topic = bench.produce(RECORDS)

    done = _run(bench, topic)
    again = _run(bench, topic, "--log-format", "json")

    assert (done.returncode, done.stdout, again.returncode, again.stdout) == (0, "", 0, "")
    n_dead = sum(record.raw is not None for record in RECORDS)
    lines = [line.split(None, 1) for line in done.stderr.splitlines()]
    assert lines[0][0] == "unskew"
    assert lines[0][1].endswith(" runs pipeline main, prefix unskew")
    said = dict(lines[1:-1])
    assert said["kafka"] == bench.broker.bootstrap
    assert said["topic"] == f"{topic}, 4 partitions"
    assert said["view"] == "user_count_1h@1, 1 feature"
    assert [said[name] for name in ("log", "archive", "state")] == [
        str(bench.root / name) for name in ("log", "archive", "state")
    ]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ended after ")
    assert f"because the topics were read to their end: {len(RECORDS):,} events, " in last
    assert last.endswith(f", {n_dead} dead letters")
    begun, ended = map(json.loads, again.stderr.splitlines())
    assert list(begun) == [
        *("at", "event", "version", "pipeline", "prefix", "process", "processes", "kafka", "redis", "topics", "views"),
        *("log", "archive", "dead_letters", "state", "metrics"),
    ]
    assert (begun["event"], begun["topics"], begun["views"]) == ("begun", {topic: 4}, {"user_count_1h@1": 1})
    # Everything was read by the run before.
    assert ended.pop("at") > begun["at"]
    assert ended.pop("seconds") > 0
    assert ended == {
        "event": "ended", "why": "the topics were read to their end", "error": None, "exception": None,
        "consumed": 0, "rows": 0, "dead": 0, "late": 0,
    }  # fmt: skip


def test_a_failure_as_json_is_an_object_on_the_last_line(bench: Bench) -> None:
    topic = bench.produce(RECORDS)

    done = _run(bench, topic, "--log-format", "json", redis_url="redis://:secret@127.0.0.1:1/0")

    assert (done.returncode, done.stdout) == (1, "")
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert (found[-1]["event"], found[-1]["why"]) == ("ended", "it failed")
    assert "127.0.0.1:1" in found[-1]["error"]
    assert "secret" not in done.stderr


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

    url = "redis://:secret@127.0.0.1:1/0" if broken == "redis" else None
    done = _run(bench, topic, "--progress", "none", redis_url=url)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert ("127.0.0.1:1" if broken == "redis" else "partitioned_by") in done.stderr


@pytest.mark.parametrize("library", ["polars", "bytewax"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_order_to_stop_while_the_pipeline_is_imported_is_a_clean_stop(
    bench: Bench, number: signal.Signals, library: str
) -> None:
    command = _command(bench, bench.produce(RECORDS))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        until_s = time.monotonic() + 60
        # The first library that definitions need, and one of the first that the pipeline itself needs.
        while library not in maps.read_text():
            assert time.monotonic() < until_s
            time.sleep(0.001)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)

    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("module", ["click", "unskew.cli.run", "unskew.settings"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_order_to_stop_while_the_command_line_is_imported_is_a_clean_stop(
    number: signal.Signals, module: str
) -> None:
    asked = (
        "import os, sys\n"
        "class Asked:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {number:d})\n"
        "sys.meta_path.insert(0, Asked())\n"
        "sys.argv = ['unskew', 'run', '--no-such-option']\n"
        "from unskew.__main__ import main\n"
        "main()\n"
    )

    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_order_to_stop_while_no_broker_answers_is_a_clean_stop_that_leaves_nothing(bench: Bench) -> None:
    command = _command(bench, "nowhere", "--metrics", "127.0.0.1:1")
    command[command.index("--bootstrap-servers") + 1] = "127.0.0.1:1"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until_s = time.monotonic() + 60
        while not (bench.root / "state" / "_leases").exists():
            assert time.monotonic() < until_s
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)

    assert (process.returncode, errors) == (0, "")
    # But what was applied.
    assert sorted(path.name for path in bench.root.iterdir()) == ["purchase.avsc", "registry", "views.yaml"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"--state": "{file}"}, "cannot be used as a state folder"),
        ({"--state": "s3://bucket/state"}, "--state s3://bucket/state: it is an address"),
        ({"--log": "s3://user:word@bucket/log"}, "--log s3://...: the address must not hold credentials"),
        ({"--kafka-config": "{root}"}, "--kafka-config"),
        ({"--bootstrap-servers": "no.such.host.invalid:9092"}, "no.such.host.invalid:9092"),
        ({"--definitions": "{file}"}, "definition files are .py"),
        ({"--end": "{root}"}, "--end"),
        ({"--epoch": "soon"}, "soon"),
        ({"damaged": ""}, "is damaged"),
    ],
)
def test_the_last_line_of_a_failed_run_says_what_is_wrong(bench: Bench, wrong: dict[str, str], words: str) -> None:
    (bench.root / "file").write_text("")
    command = _command(bench, bench.produce(RECORDS[:5]))
    if "damaged" in wrong:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        next((bench.root / "state" / "recovery").glob("*.sqlite3")).write_bytes(b"x" * 9000)
    else:
        for option, value in wrong.items():
            if option in command:
                place = command.index(option)
                del command[place : place + 2]
            command += [option, value.format(root=bench.root, file=bench.root / "file")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: ")
    assert words in last
    assert not any("Traceback" in line or "panicked" in line for line in before), done.stderr


@pytest.mark.parametrize(
    "ends",
    [
        *("[]", "5", "NaN", "", '{"t": 5}', '{"t": {"x": 1}}', '{"t": {"0": 1.5}}', '{"t": {"0": true}}', "\xff"),
        *('{"t": {"0": null}}', '{"t": {"0": -1}}', '{"t": {"0": 9223372036854775808}}', '{"t": {"0": "5"}}'),
        '{"t": {"0": 5}',
    ],
)
def test_a_file_of_end_offsets_that_does_not_hold_them_is_refused(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "ends.json"
    path.write_text(ends, encoding="latin-1")
    needed = ["--log", "log", "--archive", "archive", "--state", "state", "--definitions", str(tmp_path)]

    done = CliRunner().invoke(main, ["run", "--idle", "none", "--end", str(path), *needed])

    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: --end '{path}': ")
    assert done.stderr.endswith("""give 'now' or a JSON file like {"topic": {"0": 1000, "1": 990}}\n""")


ADDRESSES = ["s3://bucket/log", "gs://bucket/log", "file:///tmp/log", "abfss://a@b.net/log", "C:\\log", r"\\server\log"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_not_taken_for_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {
        "run": ["--idle", "none", "--log", "log", "--archive", "archive", "--state", "state", "--definitions", "views"],
        "audit": ["--log", "log", "--archive", "archive", "--definitions", "views"],
        "log stats": ["view", "--log", "log", "--definitions", "views"],
        "compact": ["--log", "log", "--archive", "archive"],
        "dead-letters list": ["--dead-letters", "dead", "--archive", "archive"],
        "demo": ["--output", "output"],
        "check": [],
    }
    options = {"--log", "--archive", "--state", "--dead-letters", "--output", "--definitions", "PATH"}
    asked = [
        [*command.split(), *given, *((option,) if option != "PATH" else ()), address]
        for command, given in needed.items()
        for option in options
        if option in given or (option, command) in {("PATH", "check"), ("--dead-letters", "run")}
    ]
    assert len(asked) == 16
    in_store = address.startswith(("s3://", "gs://"))
    if in_store:
        asked = [words for words in asked if words[-2] not in {"--log", "--archive", "--dead-letters"}]
        assert len(asked) == 6
        assert FeatureStore(log=address) is not None

    for words in asked:
        done = CliRunner().invoke(main, words)
        assert (done.exit_code, "it is an address, and only paths" in done.output) == (1, True), (words, done.output)
    for make in (lambda: FeatureStore(log=Path(address)), *(() if in_store else (lambda: FeatureStore(log=address),))):
        with pytest.raises(RequestError, match=r"log .*: it is an address"):
            make()
    assert list(tmp_path.iterdir()) == []
    assert FeatureStore(log=f"./{address}") is not None


def modes(root: Path) -> dict[str, str]:
    """The permissions of all that lies under a folder, by path."""
    found = {}
    for path in [root, *root.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            found[str(path.relative_to(root))] = stat.filemode(path.lstat().st_mode)
    return found


def test_all_that_a_run_makes_is_for_its_user_alone(bench: Bench) -> None:
    last = RECORDS[-1]
    # So many that a shard's events go to a file.
    many = RECORDS * 30
    topic = bench.produce([*many, replace(last, raw=b"not a record")])
    bench.root.chmod(0o755)
    seen: dict[str, str] = {}
    places = [bench.root / name for name in ("log", "archive", "dead_letters", "state")]
    parts = {
        *("-wal", "/recovery/", ".journal", ".events", "/_leases/", "/_coverage/p", "_shards", "/_staged/"),
        "dead_letters/",
    }

    def look() -> bool:
        for place in places:
            if place.is_dir():
                seen.update({f"{place.name}/{path}": mode for path, mode in modes(place).items()})
        return all(any(part in path for path in seen) for part in parts)

    # Not until an end, as what is there only while a run lasts could be missed.
    command = [word for word in _command(bench, topic) if word not in {"--end", "now"}]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            until_s = time.monotonic() + 120
            while not look():
                assert time.monotonic() < until_s, [part for part in parts if not any(part in path for path in seen)]
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.wait() == 0, process.stderr.read()
    look()

    assert {path: mode for path, mode in seen.items() if mode not in {"drwx------", "-rw-------"}} == {}


@pytest.mark.long
def test_it_runs_what_was_applied_and_no_restart_switches_readers(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    topic = bench.produce(RECORDS)
    path = _definitions(bench.root, topic)
    folders = ["--log", str(bench.root / "log"), "--redis-url", bench.redis_url]
    first = path.read_text()
    second = first.replace("name: user_count_1h", "name: user_count_1h\nversion: 2").replace("window: 1h", "window: 1d")
    beside = second.partition("name: user_count_1h")[2]
    both = f"{first}serving: true\n---\nname: user_count_1h{beside}"

    def started(text: str, *more: str) -> Result:
        words = [word for word in _command(bench, topic) if word != "--apply"]
        path.write_text(text)
        # In this process: it is not about processes, and there are many starts.
        return CliRunner().invoke(main, [*words[3:], *more, "--progress", "none"])

    def said(text: str, *more: str) -> str:
        done = started(text, *more)
        assert (done.exit_code, len(done.output.splitlines())) == (1, 1), done.output
        return done.output

    def meant() -> str:
        answer = FeatureStore(redis_url=bench.redis_url).get_online_features(
            ["user_count_1h:user_count_1h", "user_count_1h@1:user_count_1h"], [{"user": "user 1%"}], full_feature_names=True
        )  # fmt: skip
        bare, of_first = (answer.to_dict()[name] for name in answer.to_dict() if name != "user")
        return "first" if bare == of_first else "second"

    assert "error: nothing was applied yet to " in said(first)
    assert not (bench.root / "state").exists()
    assert started(first, "--apply").exit_code == 0
    assert started(first).exit_code == 0
    # How a stream is read needs no apply, and is said.
    settling = started(first.replace("event_time: at", "event_time: at, settle: 3s"))
    assert settling.exit_code == 0, settling.output
    assert "~ stream purchases: settle: none -> 3s: this run does it so, and unskew apply would" in caplog.text
    assert "the definitions are not what was applied: ~ view user_count_1h@1" in said(
        first.replace("window: 1h", "window: 2h")
    )
    assert "would compute something else under the same version" in said(
        first.replace("window: 1h", "window: 2h"), "--apply"
    )
    assert "the definitions are not what was applied: + view user_count_1h@2" in said(second)
    assert "user_count_1h@1 serves, and is removed" in said(second, "--apply")
    assert started(both, "--apply").exit_code == 0
    assert meant() == "first"
    promoted = CliRunner().invoke(main, ["promote", "user_count_1h@2", *folders, "--warming"])
    assert promoted.exit_code == 0, promoted.output
    assert meant() == "second"
    # A restart with the same definitions does not take it back.
    assert started(both, "--apply").exit_code == 0
    assert meant() == "second"
