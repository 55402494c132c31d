"""``unskew doctor``: what a run would find, said before it runs; real servers, and each of them wrong in turn."""

import contextlib
import json
import os
import socket
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.pipeline import SCHEMA, Bench, history
from tests.support.schema_registry import Registry
from tests.support.servers.objects import BUCKET
from tests.support.servers.valkey import Valkey, cluster  # noqa: F401 - a fixture
from unskew.cli import main
from unskew.sinks.lease import Lease, Owner
from unskew.sinks.redis.keyspace import owners_key, registry_key
from unskew.sinks.redis.writer import RedisWriter

DEFINITIONS = """
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg

purchases = Stream("purchases", topic={topic!r}, schema={schema!r}, event_time="at", settle="1s", partitioned_by="user"{more})
by_user = FeatureView("by_user", entity=Entity("user", key="user"), stream=purchases,
                      features=[Feature("n", agg.count(), Sliding({window!r}))])
"""
RECORDS = history(60, seed=5, n_partitions=2)


class Deployed:
    """A deployment in which everything is right, until a test makes something wrong."""

    def __init__(self, bench: Bench, topic: str, folder: Path) -> None:
        self.bench, self.topic, self.folder = bench, topic, folder
        self.options = {
            "--bootstrap-servers": bench.broker.bootstrap,
            "--redis-url": bench.redis_url,
            "--prefix": "doctor",
            **{f"--{name}": str(folder / name) for name in ("log", "archive", "state")},
        }
        self.define()

    def define(self, *, window="1h", more="", **changes):
        fields = {"topic": self.topic, "schema": json.dumps(SCHEMA), "window": window, "more": more, **changes}
        (self.folder / "definitions.py").write_text(DEFINITIONS.format(**fields))

    def command(self, name, *more):
        options = [text for pair in self.options.items() for text in pair]
        return CliRunner().invoke(main, [name, *more, *options])

    def examined(self, *more, status):
        shown = self.command("doctor", str(self.folder / "definitions.py"), "--json", *more)
        assert shown.exit_code == status, shown.output
        found = json.loads(shown.stdout)
        assert found["errors"] == sum(one["level"] == "error" for one in found["findings"])
        assert (found["errors"] > 0) == (status == 1)
        return Findings(found["findings"])

    def run(self):
        done = self.command(
            "run", "--definitions", str(self.folder / "definitions.py"), "--apply", "--idle", "none", "--end", "now",
            "--progress", "none",
        )  # fmt: skip
        assert done.exit_code == 0, done.output


class Findings(list):
    def levels(self, about):
        return [one["level"] for one in self if one["about"] == about]

    def text(self, level, about):
        return "\n".join(one["text"] for one in self if (one["level"], one["about"]) == (level, about))

    def errors(self):
        return {one["about"] for one in self if one["level"] == "error"}


@pytest.fixture
def deployed(broker, redis_url, tmp_path):
    bench = Bench(broker, redis_url, tmp_path)
    return Deployed(bench, bench.produce(RECORDS, 2), tmp_path)


def test_a_sound_deployment_has_no_error_and_nothing_is_changed(deployed, redis_client):
    found = deployed.examined(status=0)

    assert found.errors() == set()
    assert "1 view version over 1 stream" in found.text("ok", "definitions")
    assert "2 partitions" in found.text("ok", f"topic {deployed.topic}")
    assert "60 records" in found.text("ok", f"topic {deployed.topic}")
    assert "noeviction" in found.text("ok", "Redis")
    assert "nothing was applied yet" in found.text("warning", "applied")
    assert [path.name for path in deployed.folder.iterdir()] == ["definitions.py"]
    assert redis_client.keys() == []


def test_after_a_run_it_says_what_is_published_and_where_the_state_goes_on(deployed):
    deployed.run()
    deployed.bench.append(deployed.topic, RECORDS[:7])

    found = deployed.examined(status=0)

    assert found.errors() == set()
    assert f"published, by pipeline 'main' on {deployed.folder / 'state'}" in found.text("ok", "published")
    assert "this state's" in found.text("ok", "owner")
    assert "the definitions are those of revision 1" in found.text("ok", "applied")
    assert "7 records before the ends" in found.text("ok", "positions")

    deployed.define(window="2h")
    assert "not what was applied" in deployed.examined(status=0).text("warning", "applied")
    deployed.options["--state"] = str(deployed.folder / "other")
    assert "belong to pipeline 'main'" in deployed.examined(status=1).text("error", "owner")


def _hanging(stack):
    """A server that takes connections and never answers."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"127.0.0.1:{listening.getsockname()[1]}"


def test_servers_that_are_away_or_hang_are_errors_with_their_address_and_without_passwords(deployed):
    with contextlib.ExitStack() as stack:
        hanging = _hanging(stack)
        deployed.options |= {
            "--bootstrap-servers": hanging,
            "--redis-url": f"redis://user:hidden@{hanging}/0",
            "--schema-registry": "http://user:hidden@127.0.0.1:1",
        }
        found = deployed.examined(status=1)

    assert found.errors() == {"Kafka", "Redis", "Schema Registry"}
    for about, address in (("Kafka", hanging), ("Redis", hanging), ("Schema Registry", "127.0.0.1:1")):
        assert address in found.text("error", about)
        assert "start it, or correct" in found.text("error", about)
    assert "hidden" not in json.dumps(found)
    assert found.levels(f"topic {deployed.topic}") == found.levels("clock") == ["not checked"]


def test_faults_of_folders_are_errors_and_a_lease_names_its_owner(deployed):
    (deployed.folder / "log").write_text("a file")
    owner = Owner(text="pipeline 'other' on elsewhere", group="g", member=0)
    lease = Lease(deployed.folder / "state", "--state", owner, frozenset({"the state"}))
    try:
        found = deployed.examined("--dead-letters", "/proc/dead", status=1)
    finally:
        lease.release()

    assert "is in use by pipeline 'other' on elsewhere" in found.text("error", "--state")
    assert "it is not a folder; name another --log" in found.text("error", "--log")
    assert found.levels("--archive") == ["ok"]
    assert found.levels("--dead-letters")[0] in {"error", "ok"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_state_in_which_another_user_may_write_is_an_error(deployed):
    state = deployed.folder / "state"
    state.mkdir()
    os.chown(state, 65534, 65534)

    found = deployed.examined(status=1)

    assert "belongs to the user 65534" in found.text("error", "state")
    assert "belongs to the user 65534" in found.text("warning", "--state")


def test_all_faults_of_definitions_are_errors_and_servers_are_looked_at_all_the_same(deployed):
    (deployed.folder / "definitions.py").write_text(
        DEFINITIONS.format(topic="t", schema=json.dumps(SCHEMA), window="1h", more=", max_age='x', max_ahead='y'")
    )

    found = deployed.examined(status=1)

    assert found.levels("definitions") == ["error", "error"]
    assert found.levels("Redis") == found.levels("Kafka") == ["ok"]
    assert found.levels("topics") == found.levels("owner") == ["not checked"]


def test_what_redis_holds_or_does_wrong_is_an_error(deployed, redis_client):
    redis_client.set(registry_key("doctor"), json.dumps({"format": 99, "views": []}))
    redis_client.hset(owners_key("doctor"), mapping={"by_user@1/p0.0": "other", "#other": "pipeline 'b' on /b, host"})
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        refused = deployed.examined(status=1)
        allowed = deployed.examined("--allow-eviction", status=1)
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")

    assert refused.errors() == {"eviction", "published", "owner"}
    assert "maxmemory-policy allkeys-lru" in refused.text("error", "eviction")
    assert "has format 99" in refused.text("error", "published")
    assert "belong to pipeline 'b' on /b, host" in refused.text("error", "owner")
    assert allowed.levels("eviction") == ["ok"]


def test_a_replica_and_a_server_at_its_maxmemory_are_told_of(deployed, tmp_path_factory):
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        deployed.options["--redis-url"] = server.url
        with server.demoted():
            replica = deployed.examined(status=1)
        with server.out_of_memory():
            full = deployed.examined(status=0)

    assert "is a replica, which takes no writes: give the address" in replica.text("error", "eviction")
    assert "raise maxmemory" in full.text("warning", "Redis")


def test_each_master_of_a_cluster_is_looked_at(deployed, cluster):  # noqa: F811
    deployed.options["--redis-url"] = cluster.url

    found = deployed.examined(status=0)

    assert found.text("ok", "Redis").count("noeviction") == 3
    assert found.levels("published") == found.levels("owner") == found.levels("clock") == ["ok"]


def test_an_object_store_that_answers_is_sound_and_one_that_does_not_is_an_error(deployed, own_objects):
    deployed.options |= {"--log": f"s3://{BUCKET}/log", "--registry": str(deployed.folder / "registry")}

    sound = deployed.examined(status=0)
    own_objects.kill()
    away = deployed.examined(status=1)

    assert "answers, and holds nothing yet" in sound.text("ok", "--log")
    assert away.errors() == {"--log"}
    assert "set AWS_" in away.text("error", "--log")


def test_a_topic_that_is_not_there_and_a_config_that_cannot_be_read_are_errors(deployed, broker):
    if hasattr(broker, "client"):
        deployed.define(topic="never-created")
        assert "is not on the broker" in deployed.examined(status=1).text("error", "topic never-created")
    deployed.define()

    found = deployed.examined("--kafka-config", "nowhere", status=1)

    assert "--kafka-config nowhere" in found.text("error", "Kafka")
    assert "correct the partitions" in deployed.examined("--partitions", "0,7", status=1).text(
        "error", f"topic {deployed.topic}"
    )


def test_the_latest_schema_in_the_registry_is_read_with_the_streams(deployed):
    registry = Registry()
    try:
        registry.answers["/subjects"] = []
        deployed.options["--schema-registry"] = f"http://{registry.address}"
        subject = f"{deployed.topic}-value"
        absent = deployed.examined(status=0)
        latest = f"/subjects/{subject}/versions/latest"
        for number, schema in ((7, SCHEMA), (8, {**SCHEMA, "fields": SCHEMA["fields"][:1]})):
            registry.put(number, schema)
            registry.answers[latest] = {"subject": subject, "version": 1, "id": number, "schema": json.dumps(schema)}
            found = deployed.examined(status=0 if number == 7 else 1)
            if number == 7:
                assert f"reads {subject} (id 7)" in found.text("ok", "schema of purchases")
    finally:
        registry.server.shutdown()
        registry.server.server_close()

    assert f"no subject {subject}" in absent.text("warning", "schema of purchases")
    assert "become dead letters" in found.text("error", "schema of purchases")


def test_it_looks_on_beside_a_process_that_works_there(deployed, redis_url):
    state = deployed.folder / "state"
    owner = Owner(text=f"pipeline 'main' on {state.absolute()}, process 1 on here", group="g", member=0)
    lease = Lease(state, "--state", owner, frozenset({"the state"}))
    writer = RedisWriter(redis_url, "doctor", "main", "history")
    try:
        writer.look()
        found = deployed.examined(status=0)
        # Whoever takes over cuts the connections of the one before; who only looks does not.
        writer.look()
        lease.check()
    finally:
        writer.close()
        lease.release()

    assert "in use by pipeline 'main'" in found.text("ok", "--state")


def test_people_get_a_line_for_each_check_and_a_count(deployed):
    shown = deployed.command("doctor", str(deployed.folder / "definitions.py"))

    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[-1].startswith("0 errors, ")
    assert threading.active_count() < 50


@pytest.mark.needs_broker("log append time", "topic ids")
def test_settings_of_topics_are_judged_as_a_run_would(deployed, broker):
    def judged(window="1h", more="", **config):
        name = f"{deployed.topic}-{len(config)}-{'-'.join(config.values())}"
        broker.create_topic(name, 1, {key.replace("_", "."): value for key, value in config.items()})
        deployed.define(topic=name, window=window, more=more)
        shown = deployed.command("doctor", str(deployed.folder / "definitions.py"), "--json")
        found = Findings(json.loads(shown.stdout)["findings"])
        return {level: found.text(level, f"topic {name}") for level in ("ok", "warning", "error")}

    short = judged(retention_ms="3600000", window="2h")
    assert "kept for 1h" in short["ok"]
    assert "loses events" in short["warning"]
    assert "longest window of these views is 2h" in short["warning"]
    compacted = judged(cleanup_policy="compact", message_timestamp_type="LogAppendTime")
    assert "the broker compacts" in compacted["warning"]
    assert "stamped by the broker (LogAppendTime)" in compacted["ok"]


@pytest.mark.needs_broker("deleted records")
def test_records_that_are_gone_before_the_state_read_them_are_an_error(deployed, broker):
    deployed.run()
    deployed.bench.append(deployed.topic, RECORDS)
    for partition in (0, 1):
        broker.delete_records(deployed.topic, partition, 50)

    found = deployed.examined(status=1)

    assert "are gone from the broker" in found.text("error", "positions")
