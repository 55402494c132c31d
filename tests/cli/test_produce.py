"""``unskew produce`` against a broker: what arrives, what is said, and what every fault leaves there."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import confluent_kafka
import fastavro
import polars as pl
import pytest
from click.testing import CliRunner, Result

from unskew.cli import main
from unskew.demo.embedded import EmbeddedBroker
from unskew.features.definitions.load import load
from unskew.pipelines.kafka.partitioners import crc32, murmur2

ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "record",
    "name": "Purchase",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "status", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
DEFINITIONS = """
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg

purchases = Stream(
    "purchases", topic="{topic}", schema="purchase.avsc", event_time="at", partitioned_by="user_id", settle="1s"
)
user_purchases = FeatureView(
    "user_purchases",
    entity=Entity("user", key="user_id"),
    stream=purchases,
    owner="growth",
    where="status = 'completed'",
    features=[Feature("n", agg.count(), Sliding("30d")), Feature("spend", agg.sum("amount"), Sliding("30d"))],
)
"""
NOON_MS = 1_483_272_000_000
N_PARTITIONS = 3
_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """A topic of a test's own, and definitions of the stream that reads it."""

    bootstrap: str
    topic: str
    folder: Path

    def environment(self) -> dict[str, str]:
        return {"UNSKEW_BOOTSTRAP_SERVERS": self.bootstrap, "UNSKEW_DEFINITIONS": str(self.folder / "views.py")}

    def call(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["produce", *arguments], env=self.environment())

    def process(self, *arguments: str, **more: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "unskew", "produce", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **self.environment()},  # noqa: TID251 - the command's own
            **more,
        )  # fmt: skip

    def lines(self, rows: list[dict[str, Any] | str | bytes], name: str = "events.jsonl") -> str:
        path = self.folder / name
        texts = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
        path.write_bytes(b"\n".join(text.encode() if isinstance(text, str) else text for text in texts))
        return str(path)

    def records(self) -> list[Any]:
        """Every record of the topic, by partition and offset."""
        consumer = confluent_kafka.Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": "recount", "enable.partition.eof": True, "log_level": 0}
        )
        n_partitions = len(consumer.list_topics(timeout=10).topics[self.topic].partitions)
        consumer.assign([confluent_kafka.TopicPartition(self.topic, number, 0) for number in range(n_partitions)])
        found, ended, deadline_s = [], 0, time.monotonic() + 60
        while ended < n_partitions:
            assert time.monotonic() < deadline_s
            record = consumer.poll(1.0)
            if record is None:
                continue
            if record.error() is None:
                found.append(record)
            else:
                ended += 1
        consumer.close()
        return sorted(found, key=lambda each: (each.partition(), each.offset()))


def event(record: Any) -> dict[str, Any]:
    found = fastavro.schemaless_reader(io.BytesIO(record.value()[5:]), fastavro.parse_schema(SCHEMA), None)
    assert isinstance(found, dict)
    return found


def times_ms(place: Place) -> list[int]:
    return sorted(int(event(each)["at"].timestamp() * 1000) for each in place.records())


def rows(n: int, step_ms: int = 1000) -> list[dict[str, Any] | str]:
    return [
        {"user_id": f"u-{number % 7}", "amount": number / 4, "status": "completed", "at": NOON_MS + number * step_ms}
        for number in range(n)
    ]


@pytest.fixture
def place(broker: EmbeddedBroker, tmp_path: Path) -> Place:
    topic = f"produced-{next(_numbers)}"
    broker.create_topic(topic, N_PARTITIONS)
    (tmp_path / "purchase.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "views.py").write_text(DEFINITIONS.format(topic=topic))
    return Place(broker.bootstrap, topic, tmp_path)


@pytest.mark.parametrize(("partitioner", "hashed"), [("crc32", crc32), ("murmur2", murmur2)])
def test_each_row_is_a_record_in_the_partition_of_its_key(place: Place, partitioner: str, hashed: Any) -> None:
    given = rows(50)

    done = place.call(place.topic, place.lines(given), "--partitioner", partitioner)

    assert done.exit_code == 0, done.output
    assert re.fullmatch(rf"50 events sent to {place.topic} \(3 partitions\) in \d+\.\d s\n", done.output)
    records = place.records()
    read = [{**event(each), "at": int(event(each)["at"].timestamp() * 1000)} for each in records]
    assert sorted(read, key=lambda each: each["at"]) == given
    assert all(each.key() == event(each)["user_id"].encode() for each in records)
    assert all(each.partition() == hashed([each.key()])[0] % N_PARTITIONS for each in records)
    # Those of a key stay in their order.
    by_key: dict[bytes, list[float]] = {}
    for each in records:
        by_key.setdefault(each.key(), []).append(event(each)["amount"])
    assert all(amounts == sorted(amounts) for amounts in by_key.values())


@pytest.mark.parametrize("name", ["events.csv", "events.parquet"])
def test_csv_and_parquet_are_the_same_records_as_json_lines(place: Place, name: str) -> None:
    frame = pl.DataFrame(rows(20))
    path = place.folder / name
    frame.write_csv(path) if name.endswith("csv") else frame.write_parquet(path)

    done = place.call("purchases", str(path))

    assert done.exit_code == 0, done.output
    assert [event(each)["amount"] for each in sorted(place.records(), key=lambda each: event(each)["at"])] == [
        number / 4 for number in range(20)
    ]


GOOD = {"user_id": "u", "amount": 1.5, "status": "completed", "at": NOON_MS}
FAULTS = [
    ("{", "line 3: it is not JSON (Input data was truncated)"),
    ("[1]", "line 3: it is not a JSON object; write each event as one"),
    ({**GOOD, "amont": 1}, "line 3: the schema has no field 'amont'; did you mean 'amount'? Correct it, or leave such"),
    (b'{"user_id": "\xe9"}', "line 3: it has bytes that are not text in UTF-8; write the file in UTF-8; correct it"),
    (
        {"user": "u", "time": 1},
        "line 3: none of its fields is one of the stream's, which are user_id, amount, status, at; it has 'user', 'time'",
    ),
    ({"user_id": "u"}, "line 3: at: it is missing or null, and every event needs its event time"),
    ({**GOOD, "amount": "1.5"}, "line 3: amount: '1.5' is not a number of type double"),
]


@pytest.mark.parametrize(("wrong", "said"), FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_a_row_that_is_no_event_ends_it_and_nothing_after_it_is_sent(place: Place, wrong: Any, said: str) -> None:
    path = place.lines([GOOD, GOOD, wrong, GOOD, GOOD])

    done = place.call(place.topic, path)

    assert done.exit_code == 1
    assert done.output.startswith(f"error: {path}, {said}")
    assert done.output.endswith("leave such rows out with --skip-bad; 2 events were sent before\n")
    assert len(place.records()) == 2


def test_rows_that_are_no_events_are_left_out_counted_and_shown(place: Place) -> None:
    wrong = [wrong for wrong, _ in FAULTS]
    path = place.lines([GOOD, *wrong, GOOD, *wrong, GOOD])

    done = place.call(place.topic, path, "--skip-bad")

    assert done.exit_code == 0
    assert re.search(rf"3 events sent to {place.topic} \(3 partitions\) in .* s, 14 left out\n", done.output)
    assert done.output.count(f"left out: {path}, line ") == 5
    assert "left out: 9 more\n" in done.output
    assert len(place.records()) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("user_id,amount,status,at\nu,1,completed\n", "line 2: it has 3 cells, and the first line names 4"),
        ('user_id,amount,status,at\nu,1,"x"y,1\n', "line 2: it is not CSV"),
        ("user_id,amount,status,at\nu,much,completed,1483272000000\n", "line 2: amount: 'much' is not a number"),
        ('user_id,amount,status,at\n"u\n",1,completed,1483272000000\nu,,completed,1\n', "line 4: amount: '' is not"),
        (
            "user_id;amount;status;at\nu;1;completed;1483272000000\n",
            "it has 'user_id;amount;status;at'; name them as the schema does, and separate them with commas",
        ),
        ("user_id,user_id\nu,u\n", "its first line is not a list of different names"),
    ],
)
def test_a_fault_in_csv_names_its_line(place: Place, content: str, said: str) -> None:
    path = place.folder / "events.csv"
    path.write_text(content)

    done = place.call(place.topic, str(path))

    assert done.exit_code == 1
    assert said in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope", "events.jsonl"), "no stream reads a topic 'nope'; topics and streams are"),
        (("purchases", "nowhere.jsonl"), "nowhere.jsonl is not a file that is there"),
        (("purchases", "events.xml"), "events.xml has a format that is not known; give JSON lines"),
        (("purchases",), "give TOPIC and FILE"),
        (("--sample", "purchases", "purchases", "events.jsonl"), "give either it or FILE"),
        (("--sample", "purchases", "--over", "99999d"), "--over 99999d begins before the year 1900"),
        (("--sample", "purchases", "--over", "long"), "--over: 'long' is not a duration"),
        (("purchases", "-", "--shift-to-now"), "standard input comes once; give a file"),
        (("--sample", "purchases", "other"), "stream purchases does not read topic 'other'"),
    ],
)
def test_a_wrong_request_says_what_to_do(place: Place, arguments: tuple[str, ...], said: str) -> None:
    done = place.call(*arguments)

    assert done.exit_code in {1, 2}
    assert said in done.output


def test_a_topic_that_is_not_there_is_an_error_and_is_not_created(place: Place) -> None:
    (place.folder / "views.py").write_text(DEFINITIONS.format(topic="missing"))

    done = place.call("missing", place.lines([GOOD]))

    assert done.exit_code == 1
    assert "has no topic 'missing'; correct the name, or create it first" in done.output
    assert "--create-topic PARTITIONS" in done.output
    again = place.call("missing", place.lines([GOOD]))
    assert again.exit_code == 1


def test_a_broker_that_is_away_is_an_error() -> None:
    definitions = str(ROOT / "examples" / "complete_journey")
    done = CliRunner().invoke(
        main,
        ["produce", "--sample", "page_views", "--definitions", definitions, "--bootstrap-servers", "127.0.0.1:1"],
    )

    assert done.exit_code == 1
    assert "name its address with --bootstrap-servers" in done.output


@pytest.mark.needs_broker("topic ids")
def test_a_topic_is_created_with_so_many_partitions_if_it_is_missing(place: Place) -> None:
    (place.folder / "views.py").write_text(DEFINITIONS.format(topic=f"{place.topic}-new"))

    first = place.call(f"{place.topic}-new", place.lines([GOOD]), "--create-topic", "5")
    second = place.call(f"{place.topic}-new", place.lines([GOOD]), "--create-topic", "2")

    assert f"created topic {place.topic}-new with 5 partitions" in first.output
    assert "(5 partitions)" in first.output
    assert "created" not in second.output
    assert "(5 partitions)" in second.output


@pytest.mark.needs_broker("topics of any size")
def test_a_record_that_the_broker_refuses_is_an_error_that_says_how_many_it_has(place: Place) -> None:
    huge = {**GOOD, "status": "x" * 20_000_000}

    done = place.call(place.topic, place.lines([GOOD, huge]))

    assert done.exit_code == 1
    assert "did not take 1 records" in done.output
    assert "Message size too large" in done.output
    assert "1 event was sent before" in done.output


def test_a_broker_in_memory_gets_no_event_that_could_push_others_out(place: Place, mock_broker: EmbeddedBroker) -> None:
    mock_broker.create_topic(place.topic, 1)
    there = replace(place, bootstrap=mock_broker.bootstrap)
    huge = {**GOOD, "status": "x" * 3_000_000}

    done = there.call(there.topic, there.lines([GOOD, huge]), "--create-topic", "1")

    assert done.exit_code == 1
    assert re.search(r"line 2: it has 3,000,\d\d\d bytes as a message, .* takes 1,000,000 at most", done.output)
    assert "1 event was sent before" in done.output


def test_a_broker_in_memory_does_not_create_a_topic_and_that_is_said_at_once(
    place: Place, mock_broker: EmbeddedBroker
) -> None:
    there = replace(place, bootstrap=mock_broker.bootstrap)

    done = there.call(there.topic, there.lines([GOOD]), "--create-topic", "1")

    assert done.exit_code == 1
    assert "creates no topics when it is asked to" in done.output


def test_lines_from_standard_input_are_sent_as_they_come_and_ctrl_c_ends_it(place: Place) -> None:
    running = place.process(place.topic, "-")
    assert running.stdin is not None
    running.stdin.write(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    running.stdin.flush()
    deadline_s = time.monotonic() + 60
    while len(place.records()) < 2:
        assert time.monotonic() < deadline_s
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)

    assert running.returncode == 130, errors
    assert output.startswith(f"stopped: 2 events sent to {place.topic} (3 partitions) in ")
    assert errors == ""


def test_standard_input_that_ends_is_sent_to_its_last_line(place: Place) -> None:
    running = place.process(place.topic, "-")
    output, errors = running.communicate(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD), timeout=60)

    assert (running.returncode, errors) == (0, "")
    assert output.startswith("2 events sent")


def test_killed_by_sigint_in_the_middle_of_a_file_it_says_what_the_broker_has(place: Place) -> None:
    running = place.process(place.topic, place.lines(rows(5_000)), "--rate", "200")
    deadline_s = time.monotonic() + 60
    while len(place.records()) < 20:
        assert time.monotonic() < deadline_s
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)

    assert running.returncode == 130
    (said,) = re.findall(r"stopped: ([\d,]+) events sent", output)
    assert int(said.replace(",", "")) == len(place.records()) < 5_000


def test_so_many_rows_are_sent_and_those_that_are_left_out_do_not_count(place: Place) -> None:
    done = place.call(place.topic, place.lines([GOOD, "{", *rows(30)]), "-n", "7", "--skip-bad", "--rate", "1000")

    assert done.exit_code == 0
    assert len(place.records()) == 7


def test_event_times_are_moved_by_one_time_so_that_the_latest_is_the_present(place: Place) -> None:
    given = [{**GOOD, "at": NOON_MS + ms} for ms in (5_000, 90_000, 0)]
    before_ms = time.time_ns() // 1_000_000

    done = place.call(place.topic, place.lines(list(given)), "--shift-to-now")

    assert done.exit_code == 0, done.output
    first, middle, last = times_ms(place)
    assert (middle - first, last - middle) == (5_000, 85_000)
    assert before_ms <= last <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("step_ms", [10, 10_000])
def test_with_a_rate_no_event_lies_in_the_future_when_it_is_sent(place: Place, step_ms: int) -> None:
    done = place.call(place.topic, place.lines(rows(20, step_ms)), "--shift-to-now", "--rate", "40")

    assert done.exit_code == 0, done.output
    records = place.records()
    ahead_ms = [int(event(each)["at"].timestamp() * 1000) - each.timestamp()[1] for each in records]
    times = times_ms(place)
    # Of those that are sent together, the last one is due a little later than the first.
    assert max(ahead_ms) <= 2 / 40 * 1000 + 1
    assert [other - one for one, other in itertools.pairwise(times)] == [step_ms] * 19


def test_records_are_stamped_with_their_event_times_if_wanted(place: Place) -> None:
    done = place.call(place.topic, place.lines(rows(5)), "--timestamps", "event-time")

    assert done.exit_code == 0
    assert sorted(each.timestamp()[1] for each in place.records()) == [NOON_MS + n * 1000 for n in range(5)]


def test_messages_carry_the_schema_id_that_the_topic_began_with(place: Place) -> None:
    first = place.call(place.topic, place.lines([GOOD]), "--schema-id", "7")
    second = place.call(place.topic, place.lines([GOOD]))

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert {each.value()[:5] for each in place.records()} == {b"\0\0\0\0\7"}


def test_a_sample_is_the_same_for_a_seed_has_few_keys_and_what_filters_look_for(place: Place) -> None:
    before_ms = time.time_ns() // 1_000_000
    for seed in ("1", "1", "2"):
        done = place.call("--sample", "purchases", "-n", "200", "--keys", "5", "--over", "10min", "--seed", seed)
        assert done.exit_code == 0, done.output

    by_time = sorted(place.records(), key=lambda each: (each.timestamp()[1], event(each)["at"]))
    without_times = Counter(tuple(list(event(each).values())[:3]) for each in by_time)
    assert {event(each)["user_id"] for each in by_time} == {f"user-{number}" for number in range(1, 6)}
    assert Counter(event(each)["status"] for each in by_time)["completed"] > 60
    # Two of three are the same.
    assert sum(n % 2 == 0 for n in without_times.values()) > 150
    times = times_ms(place)
    assert before_ms - 600_000 <= times[0] < times[-1] <= time.time_ns() // 1_000_000


def test_the_pipeline_counts_what_was_produced_and_has_no_dead_letters(
    place: Place, redis_url: str, tmp_path: Path
) -> None:
    assert place.call("--sample", "purchases", "-n", "300").exit_code == 0
    expected = Counter(event(each)["user_id"] for each in place.records() if event(each)["status"] == "completed")
    folders = {name: tmp_path / name for name in ("log", "archive", "state")}
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "unskew", "run", "--apply", "--idle", "none", "--end", "now"),
            *(word for name, path in folders.items() for word in (f"--{name}", str(path))),
            *("--redis-url", redis_url, "--progress", "none"),
        ],
        env={**os.environ, **place.environment()},  # noqa: TID251 - the command's own
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr

    from unskew import FeatureStore

    store = FeatureStore(redis_url=redis_url)
    users = sorted(expected)
    found = store.get_online_features(["user_purchases:n"], entity_rows=[{"user_id": user} for user in users])
    assert dict(zip(users, found.to_dict()["n"], strict=True)) == dict(expected)
    assert not list((tmp_path / "dead_letters").rglob("*.parquet"))


def test_the_commands_of_the_documentation_run(broker: EmbeddedBroker, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "produce.md").read_text("utf-8")
    commands = [line for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    definitions = ROOT / "examples" / "complete_journey"
    for topic in ("transactions", "page_views"):
        broker.create_topic(topic, 4)
    event = {"view_id": 1, "household_id": 7, "product_id": 3, "device": "web", "dwell_s": 1.5, "event_time": NOON_MS}
    (tmp_path / "events.jsonl").write_text(f"{json.dumps(event)}\n" * 3)
    pl.DataFrame([event]).write_csv(tmp_path / "events.csv")
    pl.DataFrame([event]).write_parquet(tmp_path / "events.parquet")
    (tmp_path / "unskew").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unskew "$@"\n')
    (tmp_path / "unskew").chmod(0o755)
    environment = {
        **os.environ,  # noqa: TID251 - the command's own
        "PATH": f"{tmp_path}:{os.environ['PATH']}",  # noqa: TID251
        "UNSKEW_BOOTSTRAP_SERVERS": broker.bootstrap,
        "UNSKEW_DEFINITIONS": str(definitions),
    }
    kafka = not isinstance(broker, EmbeddedBroker)

    said = []
    for command in commands:
        # librdkafka's mock creates no topics on request.
        run = command if kafka else command.replace(" --create-topic 4", "")
        done = subprocess.run(
            ["/bin/sh", "-c", run],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), (command, done)
        said.append(done.stdout)

    assert len(commands) == 6
    assert [re.sub(r" in .*", "", each.splitlines()[-1]) for each in said] == [
        "1,000 events sent to transactions (4 partitions)",
        "100 events sent to transactions (4 partitions)",
        "3 events sent to page_views (4 partitions)",
        "1 event sent to page_views (4 partitions)",
        "1 event sent to page_views (4 partitions)",
        "2 events sent to page_views (4 partitions)",
    ]
    assert load(definitions).streams.keys() >= {"transactions", "page_views"}
