"""A real Apache Kafka for tests: one process that is broker and controller (KRaft), from Apache's own jars.

Maven fetches the jars once into ``.cache`` in the checkout; a machine needs ``mvn`` and a JDK of version 17 or later.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Consumer, KafkaException

from tests.support.servers.broker import Broker

HERE = Path(__file__).parent
POM = HERE / "pom.xml"
CACHE = HERE.parents[2] / ".cache"
START_TIMEOUT_S = 60.0

# The shell owns the broker: it ends it when the owner closes the pipe, or dies and so closes it, however that happens.
_KEEPER = """
exec 3<&0
"$@" </dev/null 3<&- & server=$!
trap '' INT HUP TERM
echo $server
read _ <&3
kill -9 "$server" 2>/dev/null; wait "$server" 2>/dev/null
"""

_LOG4J = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c %m%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=CLIENTS://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENTS://127.0.0.1:{clients}
inter.broker.listener.name=CLIENTS
listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENTS:{protocol}
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
num.replica.fetchers=1
log.cleaner.enable=false
controlled.shutdown.enable=false
broker.heartbeat.interval.ms=300
broker.session.timeout.ms=1500
log.message.timestamp.after.max.ms=9223372036854775807
"""


class KafkaMissing(RuntimeError):
    """Apache Kafka cannot run here; the text says why and what to do."""


def jars() -> Path:
    """The folder of Apache Kafka's jars, fetched where they are not there yet. Raises ``KafkaMissing``."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise KafkaMissing(f"there is no {tool}: install a JDK of 17 or later and Maven")
    folder = CACHE / f"kafka-{uuid.uuid5(uuid.NAMESPACE_OID, POM.read_text()).hex[:12]}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix="fetching-", dir=CACHE))
    done = subprocess.run(
        ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0 or not any(fetched.glob("kafka_2.13-*.jar")):
        shutil.rmtree(fetched)
        raise KafkaMissing(f"Maven could not fetch Apache Kafka: {(done.stdout + done.stderr).strip()[-500:]}")
    try:
        fetched.rename(folder)
    except OSError:
        # Another run was quicker.
        shutil.rmtree(fetched)
    return folder


class ApacheKafka(Broker):
    """A broker on a free loopback port; after a stop or a kill, it starts again on the same port with the same data.

    ``properties``: further settings of the broker. ``protocol``: the protocol of the clients' listener. ``client``: the
    settings that a client needs in addition to ``bootstrap.servers``.
    """

    def __init__(
        self,
        *,
        properties: Mapping[str, str] | None = None,
        protocol: str = "PLAINTEXT",
        client: Mapping[str, Any] | None = None,
    ) -> None:
        self._properties = dict(properties or {})
        super().__init__(client=client)
        self._protocol = protocol
        self._folder: Path | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self) -> Self:
        """Start, for the first time or again, and wait until it answers."""
        if self._folder is None:
            self._folder = self._prepared()
        java = ["java", "-Xmx384m", "-Xms96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
        command = [*java, f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}", "-cp", f"{jars()}/*"]
        with (self._folder / "output").open("ab") as output:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "keeper", *command, "kafka.Kafka", str(self._folder / "properties")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        assert self._keeper.stdout is not None
        self._pid = int(self._keeper.stdout.readline())
        self._await_answer()
        return self

    def pause(self) -> None:
        """Let it answer nobody, as a machine that hangs."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9``; ``start`` brings it back."""
        if self._keeper is not None:
            self._keeper.communicate()
            self._keeper = None

    def lose(self, topic: str, partition: int) -> None:
        """After a kill, lose all records of a partition, as a disk does whose writes were not durable."""
        assert self._keeper is None
        assert self._folder is not None
        shutil.rmtree(self._folder / "data" / f"{topic}-{partition}")

    def stop(self) -> None:
        """End it for good."""
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepared(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        clients, controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{clients}"
        settings = _PROPERTIES.format(
            clients=clients, controller=controller, protocol=self._protocol, data=folder / "data"
        )
        settings += "".join(f"{name}={value}\n" for name, value in self._properties.items())
        (folder / "properties").write_text(settings)
        (folder / "log4j2.xml").write_text(_LOG4J)
        # Without TTY output of its own, and its cluster's name is of no interest.
        subprocess.run(
            [
                *("java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
                f"-Dlog4j2.configurationFile={folder / 'log4j2.xml'}",
                *("-cp", f"{jars()}/*", "kafka.tools.StorageTool", "format"),
                *("-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", str(folder / "properties")),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        return folder

    def _await_answer(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        host, port = self.bootstrap.split(":")
        while time.monotonic() < deadline_s:
            try:
                socket.create_connection((host, int(port)), 1).close()
            except OSError:
                time.sleep(0.05)
                continue
            consumer = Consumer(
                {"bootstrap.servers": self.bootstrap, "group.id": "probe", "log_level": 0, **self.client}
            )
            try:
                found = consumer.list_topics(timeout=5)
                # After a kill its partitions have no leader until the controller has let it in again.
                parts = [part for topic in found.topics.values() for part in topic.partitions.values()]
                if found.brokers and all(part.leader == 1 for part in parts):
                    return
                time.sleep(0.05)
            except KafkaException:
                time.sleep(0.05)
            finally:
                consumer.close()
        assert self._folder is not None
        said = (self._folder / "output").read_text(errors="replace")[-2000:]
        self.stop()
        raise KafkaMissing(f"Apache Kafka did not answer within {START_TIMEOUT_S:.0f} s: {said}")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
