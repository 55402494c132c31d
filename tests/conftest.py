"""What every test shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from tests.support.servers import choice
from tests.support.servers.broker import Broker
from tests.support.servers.kafka import ApacheKafka
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.features import jit, kernel, text_buffers
from unskew.sinks.redis.keyspace import connect

# The first example of a test may compile the kernel, so no time limit; no test asserts a time.
settings.register_profile("unskew", deadline=None)
settings.load_profile("unskew")

KAFKA = pytest.StashKey[choice.Choice]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs_broker(*abilities): skipped where the broker of this run lacks one of them"
    )
    config.stash[KAFKA] = choice.of_kafka(dict(os.environ))  # noqa: TID251 - the package's settings are not the tests'


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which servers the tests run against."""
    return [f"broker: {config.stash[KAFKA]}", f"redis: {choice.of_redis(dict(os.environ))}"]  # noqa: TID251


def pytest_runtest_setup(item: pytest.Item) -> None:
    found = item.config.stash[KAFKA]
    for marker in item.iter_markers("needs_broker"):
        if lacking := sorted(set(marker.args) - found.abilities):
            pytest.skip(f"needs a broker with {', '.join(lacking)}; this run has {found}")


def pytest_sessionstart() -> None:
    """Forget compiled functions that are older than any source of the kernel, or of what is compiled into it.

    A cached function knows the time of its own file alone, and not of the files whose functions were compiled into it.
    """
    folder = Path(kernel.__file__).parent
    sources = [*folder.glob("*.py"), Path(jit.__file__), Path(text_buffers.__file__)]
    newest = max(source.stat().st_mtime for source in sources)
    cached = [*folder.glob("__pycache__/*.nb[ic]"), *folder.parent.glob("__pycache__/*.nb[ic]")]
    if any(file.stat().st_mtime < newest for file in cached):
        for file in cached:
            file.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a server that tests may empty: UNSKEW_TEST_REDIS_URL, else one of our own."""
    if given := os.environ.get("UNSKEW_TEST_REDIS_URL"):  # noqa: TID251 - the package's settings are not the tests'
        yield given
        return
    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of an empty Redis."""
    with connect(redis_server) as client:
        client.flushdb()
    return redis_server


@pytest.fixture
def redis_client(redis_url: str) -> Iterator["redis.Redis"]:
    """A client of an empty Redis."""
    with connect(redis_url) as client:
        yield client


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config) -> Iterator["Broker | EmbeddedBroker"]:
    """A Kafka, the best that is there; a test creates topics of its own in it."""
    with choice.started(pytestconfig.stash[KAFKA]) as started:
        yield started


@pytest.fixture(scope="session")
def mock_broker() -> Iterator[EmbeddedBroker]:
    """librdkafka's mock, for claims about it alone."""
    with EmbeddedBroker() as started:
        yield started


@pytest.fixture
def own_broker(pytestconfig: pytest.Config) -> Iterator[ApacheKafka]:
    """An Apache Kafka of the test's own, which it may kill and pause."""
    if pytestconfig.stash[KAFKA].kind != "Apache Kafka":
        pytest.skip(f"needs a broker that can be killed: {pytestconfig.stash[KAFKA]}")
    with ApacheKafka() as started:
        yield started
