"""Sending records to a topic that is there, and knowing which ones the broker has."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ClusterMetadata, NewTopic  # type: ignore[attr-defined]  # not in its __all__
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from unskew.features.errors import RequestError, StoreUnavailable
from unskew.pipelines.kafka.consumer import passes
from unskew.pipelines.kafka.poll import FRAME_BYTES

ANSWER_S = 10.0
_DELIVERY_S = 60.0
_POLL_S = 0.05
_TURN_S = 0.5
_LARGEST_BYTES = 1_000_000_000
# As Kafka's own default. A broker in memory keeps 5 MiB of a partition, so larger ones could push each other out.
_LARGEST_IN_MEMORY_BYTES = 1_000_000
# That of the broker.
_DEFAULT_REPLICATION = -1


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A record to send. ``timestamp_ms``: the producer's timestamp; None for the instant at which it is sent."""

    partition: int
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_ms: int | None = None


class Sender:
    """Sends records to one topic of several partitions. ``delivered``: how many records the broker has acknowledged.

    ``largest_bytes``: how large a value may be; only a broker in memory, as that of ``unskew dev``, says so before.
    ``config``: further settings of the client. Each record is sent once, and those of a partition stay in their order.
    Raises ``StoreUnavailable`` if Kafka does not answer, and ``RequestError`` if there is no such topic.
    """

    def __init__(self, topic: str, bootstrap: str, config: Mapping[str, Any] | None = None) -> None:
        self.topic = topic
        self.delivered = 0
        self.largest_bytes: int | None = None
        self._bootstrap = bootstrap
        self._config = dict(config or {})
        self._why_away = ""
        self._failures: list[str] = []
        self._n_failed = 0
        self._producer = Producer(
            {
                # Its own log would repeat what is reported here.
                "log_level": 0,
                "linger.ms": 5,
                "message.timeout.ms": int(_DELIVERY_S * 1000),
                "message.max.bytes": _LARGEST_BYTES,
                **self._config,
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "error_cb": self._note_error,
            }
        )
        self.n_partitions = self._partitions()

    def send(self, records: Sequence[Outgoing]) -> None:
        """Hand records over to be sent; waits while too many are on their way.

        Raises ``StoreUnavailable`` if the broker refused any record so far.
        """
        for record in records:
            while True:
                try:
                    self._produce(record)
                    break
                except BufferError:
                    self._producer.poll(_POLL_S)
                except KafkaException as error:
                    self._n_failed += 1
                    self._failures.append(str(error.args[0].str()))
                    break
        self._producer.poll(0)
        self._raise_failures()

    def flush(self) -> None:
        """Wait until the broker has everything. Raises ``StoreUnavailable`` if it does not take all of it in time."""
        left = 1
        # In turns, so that a handler of signals is called meanwhile; each record times out by itself.
        for _ in range(int((_DELIVERY_S + ANSWER_S) / _TURN_S)):
            left = self._producer.flush(_TURN_S)
            if not left:
                break
        if left:
            self._n_failed += left
            self._failures.append("no acknowledgement")
        self._raise_failures()

    def first_schema_id(self) -> int | None:
        """Return the schema id of the oldest record that has one, of the first partition that has such a record."""
        consumer = Consumer(
            {
                "log_level": 0,
                **self._config,
                "bootstrap.servers": self._bootstrap,
                "group.id": "unskew-produce",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )
        # A topic that was created a moment ago may have partitions without a leader.
        asking = Retrying(
            retry=retry_if_exception(passes),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            stop=stop_after_delay(ANSWER_S),
            reraise=True,
        )
        try:
            for partition in range(self.n_partitions):
                place = TopicPartition(self.topic, partition)
                first, end = asking(consumer.get_watermark_offsets, place, timeout=ANSWER_S)
                if first == end:
                    continue
                consumer.assign([TopicPartition(self.topic, partition, first)])
                message = consumer.poll(ANSWER_S)
                value = None if message is None or message.error() is not None else message.value()
                if value is not None and value[:1] == b"\0" and len(value) >= FRAME_BYTES:
                    return int.from_bytes(value[1:FRAME_BYTES], "big")
        except KafkaException as error:
            raise self._away(error) from error
        finally:
            consumer.close()
        return None

    def _produce(self, record: Outgoing) -> None:
        more: dict[str, Any] = {} if record.timestamp_ms is None else {"timestamp": record.timestamp_ms}
        self._producer.produce(
            self.topic,
            record.value,
            record.key,
            record.partition,
            headers=list(record.headers),
            on_delivery=self._note_delivery,
            **more,
        )

    def _note_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self.delivered += 1
            return
        self._n_failed += 1
        if not self._failures:
            self._failures.append(error.str())

    def _note_error(self, error: KafkaError) -> None:
        self._why_away = error.str()

    def _raise_failures(self) -> None:
        if self._failures:
            why = f"{self._failures[0]}, {self._why_away}" if self._why_away else self._failures[0]
            raise StoreUnavailable(
                f"Kafka at {self._bootstrap} did not take {self._n_failed:,} records for {self.topic}: {why}"
            )

    def _partitions(self) -> int:
        try:
            # Of all topics: asking for one by its name makes some brokers create it.
            about = self._producer.list_topics(timeout=ANSWER_S)
            found = about.topics.get(self.topic)
        except KafkaException as error:
            raise self._away(error) from error
        if found is None:
            raise RequestError(
                f"Kafka at {self._bootstrap} has no topic {self.topic!r}; correct the name, or create it first: `unskew "
                "produce` does so with --create-topic PARTITIONS"
            )
        if found.error is not None or not found.partitions:
            why = found.error.str() if found.error is not None else "it has no partitions"
            raise StoreUnavailable(f"Kafka at {self._bootstrap}, topic {self.topic}: {why}; try again")
        if _is_in_memory(about):
            self.largest_bytes = _LARGEST_IN_MEMORY_BYTES
        return len(found.partitions)

    def _away(self, error: KafkaException) -> StoreUnavailable:
        self._producer.poll(0)
        why = self._why_away or error.args[0].str()
        return StoreUnavailable(f"Kafka at {self._bootstrap}: {why}; name its address with --bootstrap-servers")


def _is_in_memory(about: ClusterMetadata) -> bool:
    """Return whether metadata is that of librdkafka's mock, by the name that it gives its clusters."""
    return str(about.cluster_id).startswith("mockCluster")


def create_topic(name: str, n_partitions: int, bootstrap: str, config: Mapping[str, Any] | None = None) -> bool:
    """Create a topic with the broker's settings, and return true; false if there is one of that name.

    Records can be sent to it at once. Raises ``StoreUnavailable`` if the broker does not create it.
    """
    admin = AdminClient({"log_level": 0, **(config or {}), "bootstrap.servers": bootstrap})
    try:
        # Before it is asked for: not everybody may create topics, and a broker in memory does not answer that.
        about = admin.list_topics(timeout=ANSWER_S)
    except KafkaException as error:
        raise StoreUnavailable(
            f"Kafka at {bootstrap}: {error.args[0].str()}; name its address with --bootstrap-servers"
        ) from error
    if name in about.topics:
        return False
    if _is_in_memory(about):
        raise RequestError(
            f"Kafka at {bootstrap} is one in memory, as unskew dev has it, and creates no topics when it is asked to, such as "
            f"{name!r}; unskew dev makes those of the streams in its definitions: save the stream there, and leave --create-topic "
            "out"
        )
    wanted = NewTopic(name, n_partitions, _DEFAULT_REPLICATION)
    try:
        admin.create_topics([wanted], request_timeout=ANSWER_S)[name].result(2 * ANSWER_S)
    except (KafkaException, NoAnswer) as error:
        if isinstance(error, KafkaException) and error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        why = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
        raise StoreUnavailable(f"Kafka at {bootstrap} does not create topic {name!r}: {why}") from error
    for _ in range(int(ANSWER_S / _POLL_S)):
        found = admin.list_topics(timeout=ANSWER_S).topics.get(name)
        if found is not None and found.partitions and all(each.leader >= 0 for each in found.partitions.values()):
            break
        time.sleep(_POLL_S)
    return True
