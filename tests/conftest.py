"""What every test shares."""

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.support.fuzz import FOUND
from tests.support.naming import case_name
from tests.support.servers import choice
from tests.support.servers.broker import Broker
from tests.support.servers.kafka import ApacheKafka, jars
from tests.support.servers.objects import BUCKET, SeaweedFS, reaching
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.sinks.objects import ObjectPath
from unskew.sinks.redis.keyspace import connect

# As for most users: what is imported may be kept beside it, and is read from there.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # noqa: TID251 - Python's own setting
sys.dont_write_bytecode = False

MOST_WORKERS = 4
# Their tests share what takes long to set up, so one worker runs them all; any other test goes to whoever is free.
TOGETHER = {
    "tests/agreement/test_marketplace.py",
    "tests/demo/test_demo.py",
    "tests/demo/test_topics.py",
    "tests/pipelines/kafka/test_security.py",
}

# The first example of a test may compile the kernel, so no time limit; no test asserts a time.
settings.register_profile("unskew", deadline=None, derandomize=True, database=None)
settings.register_profile(
    "fuzz",
    deadline=None,
    database=DirectoryBasedExampleDatabase(FOUND / "examples"),
    max_examples=300,
    print_blob=True,
)
settings.load_profile("unskew")

KAFKA = pytest.StashKey[choice.Choice]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KAFKA] = choice.of_kafka(dict(os.environ))  # noqa: TID251 - the package's settings are not the tests'


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which servers the tests run against, and which tests are left out."""
    left_out = "left out; make check runs them" if config.option.markexpr == "not long" else "included"
    return [
        f"broker: {config.stash[KAFKA]}",
        f"redis: {choice.of_redis(dict(os.environ))}",  # noqa: TID251
        f"long tests: {left_out}",
    ]


def pytest_make_parametrize_id(val: object, argname: str) -> str:
    return case_name(val, argname)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return the number of workers: one for each core, at most four, or none if servers are given.

    Each worker starts a broker and a Redis of its own; servers that are given would be shared.
    """
    shared = choice.are_given(dict(os.environ))  # noqa: TID251
    return 0 if shared else min(os.cpu_count() or 1, MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what is in ``TOGETHER``; the plugin's own groups need a pytest before 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if module in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Fetch what workers share before there are any: Maven's cache is not safe against two writers."""
    if choice.are_given(dict(os.environ)):  # noqa: TID251
        raise pytest.UsageError(
            f"{choice.BOOTSTRAP} or {choice.REDIS_URL} is given, which workers would share: WORKERS=0"
        )
    if config.stash[KAFKA].kind == "Apache Kafka":
        jars()


def pytest_runtest_setup(item: pytest.Item) -> None:
    found = item.config.stash[KAFKA]
    for marker in item.iter_markers("needs_broker"):
        if lacking := sorted(set(marker.args) - found.abilities):
            pytest.skip(f"needs a broker with {', '.join(lacking)}; this run has {found}")


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A command that runs in this process ignores signals from its end on, and child processes would inherit that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with SeaweedFS(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def bucket(object_server: SeaweedFS) -> Iterator[ObjectPath]:
    """An address under which there are no objects yet, in a store that keeps the conditions of writes."""
    with reaching(object_server.environment):
        yield ObjectPath("s3:", BUCKET, uuid.uuid4().hex)


@pytest.fixture
def own_objects(tmp_path: Path) -> Iterator[SeaweedFS]:
    """An object store of the test's own, which it may kill."""
    with SeaweedFS(tmp_path / "objects") as server, reaching(server.environment):
        yield server
