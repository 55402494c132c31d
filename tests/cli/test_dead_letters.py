"""``unskew dead-letters`` over what a real pipeline left: seen, mended, sent again, counted once."""

import base64
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer

from tests.support.pipeline import SCHEMA, START, Bench, Record
from unskew.cli import main
from unskew.demo.embedded import EmbeddedBroker
from unskew.features.definitions.load import load
from unskew.offline.dead_letters import Wanted, find, letters
from unskew.pipelines.run import run

STAMP_MS = START // 1000
GOOD = Record(0, STAMP_MS, "ann", 1, 2.5, True, START)
CUT = GOOD.value()[:-3]
LATE = Record(0, STAMP_MS + 9, "ann", 1, 4.0, True, START + 9000)
NAN = Record(1, STAMP_MS, "bob", 1, float("nan"), True, START)
HUGE = b"\0\0\0\0\7" + b"\xff" * 3_000_000
DEFINITIONS = """\
stream: {{name: purchases, topic: {topic}, schema: purchase.avsc, event_time: at, partitioned_by: user}}
---
entity: {{name: user, key: user}}
---
name: spend
entity: user
source: purchases
features:
  - {{name: n, aggregation: {{function: count, window: lifetime}}}}
  - {{name: spend, aggregation: {{function: sum, value: amount, window: lifetime}}}}
---
name: visits
entity: user
source: purchases
features:
  - {{name: n, aggregation: {{function: count, window: lifetime}}}}
"""


@dataclass
class Scene:
    bench: Bench
    topic: str
    definitions: Path
    deployment: object

    def run(self) -> None:
        run(load(self.definitions), self.deployment, stop=threading.Event())

    def counted(self, view: str) -> dict[str, int]:
        import polars as pl

        files = sorted((self.deployment.log / view).glob("v1/day=*/*.parquet"))
        rows = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
        return dict(
            rows.sort("shard", "seq").group_by("user", maintain_order=True).last().select("user", "n").iter_rows()
        )

    def call(self, *words: str) -> Result:
        root = self.deployment.dead_letters
        more = ["--dead-letters", str(root)]
        if words[0] != "list" and "--log" not in words:
            more += ["--definitions", str(self.definitions)]
        if words[0] == "replay":
            more += ["--bootstrap-servers", self.bench.broker.bootstrap]
        return CliRunner().invoke(main, ["dead-letters", *words, *more])


@pytest.fixture
def scene(broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> Scene:
    """Four letters: one truncated, with headers; a tombstone; one that a view cannot take; one too long to be kept."""
    bench = Bench(broker, redis_url, tmp_path)
    topic = bench.produce([GOOD], 2)
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "enable.idempotence": True,
            "message.max.bytes": 9_000_000,
            "log_level": 0,
        }
    )
    for partition, value, headers in (
        (0, CUT, [("trace", b"\xff"), ("empty", None)]),
        (0, None, None),
        (0, HUGE, None),
    ):
        producer.produce(topic, value, b"ann", partition=partition, timestamp=STAMP_MS + 5, headers=headers)
    assert producer.flush(20) == 0
    bench.append(topic, [LATE, NAN])
    (tmp_path / "purchase.avsc").write_text(json.dumps(SCHEMA))
    definitions = tmp_path / "views.yaml"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    made = Scene(bench, topic, definitions, bench.deployment())
    made.run()
    return made


def test_letters_are_seen_mended_sent_and_counted_once(scene: Scene, tmp_path: Path) -> None:
    topic = scene.topic
    file = tmp_path / "letters.jsonl"

    listed = scene.call("list")
    assert listed.exit_code == 0, listed.output
    for place, kind in ((f"{topic}/0/1", "truncated"), (f"{topic}/0/2", "tombstone"), (f"{topic}/1/0", "number")):
        assert any(place in line and kind in line for line in listed.output.splitlines()), (place, listed.output)
    assert "4 letters" in listed.output
    only = scene.call("list", "--reason", "tombstone").output
    assert (f"{topic}/0/2" in only, f"{topic}/0/1" in only) == (True, False)
    assert "no such" in scene.call("list", "--until", "2001-01-01").output

    found = json.loads(scene.call("list", "-n", "1", "--json").stdout)
    assert (found["n_letters"], len(found["letters"]), sum(one["letters"] for one in found["counts"])) == (4, 1, 4)
    assert json.loads(scene.call("list", "--until", "2001-01-01", "--json").stdout)["letters"] == []
    assert [one["offset"] for one in json.loads(scene.call("show", f"{topic}/0/1", "--json").stdout)] == [1]

    shown = scene.call("show", f"{topic}/0/1")
    assert CUT.hex(" ") in shown.output
    assert "header trace" in shown.output
    assert "ff" in shown.output

    assert scene.call("show", "--reason", "truncated", "--topic", topic, "--output", str(file)).exit_code == 0
    lines = {line["offset"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert base64.b64decode(lines[1]["value"]) == CUT
    file.write_text(json.dumps(lines[1]))
    refused = scene.call("replay", str(file), "--yes")
    assert refused.exit_code == 1
    assert f"{topic}/0/1: refused: truncated" in refused.output
    assert "nothing was sent" in refused.output

    mended = {"user": "ann", "item": 1, "amount": 2.0, "gift": False, "at": START + 7000}
    file.write_text(json.dumps(lines[1] | {"mended": mended}))
    assert "1 letters would be sent" in scene.call("replay", str(file)).output
    assert "1 letters would be sent" in scene.call("replay", str(file), "--log", str(scene.deployment.log)).output
    scene.run()
    # The last instant of each partition is still open.
    assert scene.counted("visits") == {"ann": 1}
    sent = scene.call("replay", str(file), "--yes")
    assert (sent.exit_code, "1 letters sent" in sent.output) == (0, True), sent.output
    second = scene.call("replay", str(file), "--yes")
    assert (second.exit_code, "was sent again already" in second.output) == (1, True)
    assert "sent" in next(line for line in scene.call("list").output.splitlines() if f"{topic}/0/1" in line)

    # One more, so that the instant of the replayed one closes.
    scene.bench.append(topic, [Record(0, time.time_ns() // 1_000_000 + 1, "cid", 1, 1.0, True, START)])
    scene.run()
    assert scene.counted("visits")["ann"] == 3


def test_a_replayed_record_has_its_key_its_headers_and_its_partition(scene: Scene) -> None:
    deployment = scene.deployment
    (before,) = letters(deployment.dead_letters, find(deployment.dead_letters, Wanted(places=[f"{scene.topic}/0/1"])))
    producer = Producer({"bootstrap.servers": scene.bench.broker.bootstrap, "enable.idempotence": True})
    producer.produce(scene.topic, b"{", b"\x00\xff", partition=1, headers=[("a", b"1"), ("a", b"2"), ("b", None)])
    assert producer.flush(20) == 0
    scene.run()
    found = find(deployment.dead_letters, Wanted(reason="frame"))
    (letter,) = letters(deployment.dead_letters, found)

    assert (before.key, before.value, before.headers) == (b"ann", CUT, (("trace", b"\xff"), ("empty", None)))
    assert (letter.key, letter.value, letter.headers, letter.partition) == (
        b"\x00\xff",
        b"{",
        (("a", b"1"), ("a", b"2"), ("b", None)),
        1,
    )


def test_a_letter_too_long_to_be_kept_whole_is_refused_until_it_is_mended(scene: Scene) -> None:
    deployment = scene.deployment
    (letter,) = letters(deployment.dead_letters, find(deployment.dead_letters, Wanted(places=[f"{scene.topic}/0/3"])))
    assert letter.cut
    assert letter.value == HUGE[: 1 << 20]
    assert letter.value_bytes == len(HUGE)

    refused = scene.call("replay", "--place", letter.place, "--yes")

    assert refused.exit_code == 1
    assert "only a part of it was kept" in refused.output


def test_a_letter_that_other_views_counted_is_not_counted_twice_by_mistake(scene: Scene, tmp_path: Path) -> None:
    place = f"{scene.topic}/1/0"
    file = tmp_path / "letters.jsonl"
    assert scene.call("show", place, "--output", str(file)).exit_code == 0
    line = json.loads(file.read_text())
    assert line["views"] == ["spend@1"]
    mended = {"user": "bob", "item": 1, "amount": 3.0, "gift": True, "at": START}
    file.write_text(json.dumps(line | {"mended": mended, "views": []}))

    refused = scene.call("replay", str(file), "--yes")
    allowed = scene.call("replay", str(file), "--twice")

    assert (refused.exit_code, "visits@1 counted it" in refused.output) == (1, True), refused.output
    assert (allowed.exit_code, "1 letters would be sent" in allowed.output) == (0, True), allowed.output


def test_what_was_not_acknowledged_is_an_error_and_is_known_to_be_open(scene: Scene) -> None:
    from unskew.pipelines.replay import REPLAYED, Memory, Resend, fates, send

    record = Resend(scene.topic, scene.topic, 0, 1, b"k", b"v", None)
    with Memory(scene.deployment.dead_letters).open() as memory:
        failed = send([record], memory, {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, timeout_s=1)

    assert [each for each, _ in failed] == [record]
    assert fates(scene.deployment.dead_letters / REPLAYED) == {record.place: "sending"}
    refused = scene.call("replay", "--place", record.place, "--yes")
    assert "may have been sent" in refused.output


def test_a_letter_is_judged_by_the_schema_id_with_which_its_partition_began(scene: Scene, tmp_path: Path) -> None:
    topic, file = scene.topic, tmp_path / "letters.jsonl"
    later = Record(0, STAMP_MS + 20, "ann", 1, 1.0, True, START + 20_000)
    other = later.value()[:4] + b"\x09" + later.value()[5:]
    producer = Producer({"bootstrap.servers": scene.bench.broker.bootstrap, "log_level": 0})
    producer.produce(topic, other, b"ann", partition=0, timestamp=STAMP_MS + 20)
    assert producer.flush(20) == 0
    scene.run()
    reason = "unknown schema id 9; the partition began with"
    assert reason in scene.call("list", "--reason", "schema").output

    # As the pipeline judges it, with the state beside the letters or the one that is named.
    for more in ((), ("--state", str(scene.deployment.state))):
        refused = scene.call("replay", "--reason", "schema", *more)
        assert (refused.exit_code, reason in refused.output) == (1, True), refused.output
    nowhere = scene.call("replay", "--reason", "schema", "--state", str(tmp_path))
    assert (nowhere.exit_code, "holds no state; name the --state" in nowhere.output) == (1, True), nowhere.output

    # What is mended is written with the stream's schema, so it carries the id that means it; a tombstone has none.
    assert scene.call("show", f"{topic}/0/2", "--reason", "", "--output", str(tmp_path / "two")).exit_code == 0
    assert scene.call("show", "--reason", "schema", "--output", str(file)).exit_code == 0
    lines = [json.loads(line) for path in (tmp_path / "two", file) for line in path.read_text().splitlines()]
    mended = {"user": "dan", "item": 1, "amount": 2.0, "gift": False, "at": START + 30_000}
    file.write_text("\n".join(json.dumps(line | {"mended": mended}) for line in lines))
    sent = scene.call("replay", str(file), "--yes")
    assert (sent.exit_code, "2 letters sent" in sent.output) == (0, True), sent.output
    scene.bench.append(topic, [Record(0, time.time_ns() // 1_000_000 + 1, "cid", 1, 1.0, True, START)])
    scene.run()
    assert scene.counted("visits")["dan"] == 2


def test_a_partition_that_has_not_begun_must_begin_as_the_others_did(tmp_path: Path) -> None:
    from unskew.pipelines.replay import Checks, Resend
    from unskew.pipelines.state.journal import Journal, Placed

    (tmp_path / "deployment.json").write_text(json.dumps({"id": "one"}))
    journal = Journal(tmp_path / "journal", "one", durably=lambda work: work(), still_ours=lambda: None)
    (tmp_path / "journal").mkdir()
    journal.ensure(journal.note(Placed("orders orders/0", 0, 5, START, schema_id=7)))
    journal.close()
    (tmp_path / "purchase.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "views.yaml").write_text(DEFINITIONS.format(topic="orders"))
    checks = Checks(load(tmp_path / "views.yaml"), None, tmp_path)

    for partition in (0, 1):
        record = Resend("orders", "orders", partition, 9, None, b"\0\0\0\0\7" + GOOD.value()[5:], None)
        other = Resend("orders", "orders", partition, 9, None, b"\0\0\0\0\x08" + GOOD.value()[5:], None)

        assert checks.fault(record, twice=False) is None
        assert str(checks.fault(other, twice=False)).startswith("unknown schema id 8; the partition began with 7")
