"""What every test shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from unskew.features import kernel
from unskew.pipelines.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.sinks.keyspace import connect

# The first example of a test may compile the kernel, so no time limit; no test asserts a time.
settings.register_profile("unskew", deadline=None)
settings.load_profile("unskew")


def pytest_sessionstart() -> None:
    """Forget compiled functions that are older than any source of the kernel.

    A cached function knows the time of its own file alone, and not of the files whose functions were compiled into it.
    """
    folder = Path(kernel.__file__).parent
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    cached = list(folder.glob("__pycache__/*.nb[ic]"))
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
def broker() -> Iterator[EmbeddedBroker]:
    """An embedded Kafka; a test creates topics of its own in it."""
    with EmbeddedBroker() as started:
        yield started
