"""The cluster that the tests of sinks share."""

from tests.support.servers.valkey import cluster  # noqa: F401 - a fixture
