"""The cluster that the tests of serving share."""

from tests.support.servers.valkey import cluster  # noqa: F401 - a fixture
