"""Where partitions begin and end: asked for many at once, because a request takes as long for one.

The admin client asks, over connections of its own: a broker answers the requests of a connection in turn, so behind a
fetch of a quiet partition a question waits for as long as the fetch does.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

Origin = tuple[str, int]
"""A topic and the number of one of its partitions."""


def watermarks(
    client: AdminClient, origins: Sequence[Origin], timeout_s: float, config: Mapping[str, Any]
) -> dict[Origin, tuple[int, int]]:
    """Return the low and the high watermark of partitions. Raises ``KafkaException``, also if a broker did not answer.

    ``config``: the consumer's settings: by default, the high watermark comes before what open transactions wrote.
    """
    if config.get("isolation.level") == "read_uncommitted":
        isolation = IsolationLevel.READ_UNCOMMITTED
    else:
        isolation = IsolationLevel.READ_COMMITTED
    low = offsets(client, origins, OffsetSpec.earliest(), timeout_s, isolation)
    high = offsets(client, origins, OffsetSpec.latest(), timeout_s, isolation)
    found = {origin: (low[origin].offset, high[origin].offset) for origin in origins}
    # The client answers so if the broker does not within the time.
    if any(min(between) < 0 for between in found.values()):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - public
    return found


def offsets(
    client: AdminClient,
    origins: Sequence[Origin],
    which: OffsetSpec,
    timeout_s: float,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> dict[Origin, Any]:
    """Return what the broker answers about one offset of each partition. Raises ``KafkaException``."""
    asked = {TopicPartition(topic, number): which for topic, number in origins}
    if not asked:
        return {}
    answers = client.list_offsets(asked, isolation_level=isolation, request_timeout=timeout_s)
    try:
        return {(each.topic, each.partition): answer.result(2 * timeout_s) for each, answer in answers.items()}
    except FutureTimeout as error:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error  # noqa: SLF001 - public
    except KafkaException as error:
        # What librdkafka calls that none of the partitions has a leader.
        if error.args[0].code() == KafkaError._NOENT:  # noqa: SLF001 - public
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, error.args[0].str())) from error
        raise
