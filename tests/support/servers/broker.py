"""What tests do with a broker beside producing and consuming, wherever it came from."""

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic


class Broker:
    """A running Kafka. ``client``: what a client needs beside ``bootstrap.servers``."""

    def __init__(self, bootstrap: str = "", client: Mapping[str, Any] | None = None) -> None:
        self.bootstrap = bootstrap
        self.client = dict(client or {})

    def admin(self) -> AdminClient:
        """A client for administration; its futures are forgotten with it."""
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, **self.client})

    def create_topic(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        """Create a topic that keeps everything, and wait for all leaders. An existing topic is not changed."""
        admin = self.admin()
        # Histories of tests lie years back, and poison may be long.
        kept = {"retention.ms": "-1", "retention.bytes": "-1", "max.message.bytes": "16777216", **(config or {})}
        future = admin.create_topics([NewTopic(name, partitions, 1, config=kept)])[name]
        try:
            future.result(30)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            found = admin.list_topics(name, timeout=10).topics[name].partitions
            if len(found) >= partitions and all(part.leader >= 0 for part in found.values()):
                return
            time.sleep(0.02)
        raise TimeoutError(f"topic {name} has no leaders")

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Forget a partition's records up to an offset, as retention does."""
        admin = self.admin()
        for future in admin.delete_records([TopicPartition(topic, partition, before)]).values():
            future.result(30)

    def add_partitions(self, name: str, n_partitions: int) -> None:
        """Give a topic more partitions: so many then."""
        admin = self.admin()
        admin.create_partitions([NewPartitions(name, n_partitions)])[name].result(30)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its records."""
        admin = self.admin()
        admin.delete_topics([name])[name].result(30)

    def create_again(self, name: str, partitions: int) -> None:
        """Delete a topic and create another one of this name."""
        before = self._id_of(name)
        self.delete_topic(name)
        # The broker may go on to show the old one for a moment.
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            self.create_topic(name, partitions)
            if self._id_of(name) not in {None, before}:
                return
            time.sleep(0.05)
        raise TimeoutError(f"topic {name} is still the one that was deleted")

    def _id_of(self, name: str) -> str | None:
        admin = self.admin()
        try:
            return str(admin.describe_topics(TopicCollection([name]))[name].result(30).topic_id)
        except KafkaException:
            return None
