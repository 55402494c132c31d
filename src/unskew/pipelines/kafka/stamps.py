"""Who stamps a topic's records: their producers (CreateTime, Kafka's default) or the broker (LogAppendTime)."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # not in its __all__

from unskew.features.errors import DefinitionError
from unskew.features.plan import StreamPlan

_TYPE = "message.timestamp.type"

_log = logging.getLogger("unskew.kafka")


def settle_needed(stream: StreamPlan) -> DefinitionError:
    """Compose the error for a live topic with producer timestamps whose stream has no settle."""
    return DefinitionError(
        f"Topic {stream.topic!r} carries producer timestamps (CreateTime), so the stream must declare how "
        f'late a record may be: declare `settle` on stream {stream.name!r}, for example settle="2s", '
        "or set the topic to message.timestamp.type=LogAppendTime"
    )


def check_stamps(
    stream: StreamPlan, topics: Sequence[str], bootstrap: str, config: Mapping[str, Any], timeout_s: float
) -> None:
    """Raise ``DefinitionError`` if any topic has producer timestamps, where the stream has no settle.

    A broker that does not say who stamps the records is logged; the first record decides then.
    """
    # librdkafka's own lines about settings that are for consumers only would alarm without cause.
    client = AdminClient({"log_level": 2, **config, "bootstrap.servers": bootstrap})
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
    try:
        answers = client.describe_configs(resources, request_timeout=timeout_s)
        found = [answer.result(timeout_s)[_TYPE].value for answer in answers.values()]
    except (KafkaException, NoAnswer, KeyError) as error:
        said = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
        _log.warning(
            "%s: the broker does not say who stamps the records of %s (%s). If their producers do (CreateTime, Kafka's default), "
            "this run will end with the first record: declare settle on the stream",
            stream.name,
            ", ".join(topics),
            said,
        )
        return
    if "CreateTime" in found:
        raise settle_needed(stream)
