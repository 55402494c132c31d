"""The cluster that the tests of sinks share."""

from tests.servers.valkey import cluster  # noqa: F401 - a fixture
