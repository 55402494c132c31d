"""A cluster, for what redis-py says of one."""

from tests.support.servers.valkey import cluster  # noqa: F401 - a fixture
