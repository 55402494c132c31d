"""Settings of topics that decide what values rest on: who stamps records, and whether old ones are replaced.

Records are stamped by their producers (CreateTime, Kafka's default) or by the broker (LogAppendTime).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # not in its __all__

from unskew.features.errors import DefinitionError
from unskew.features.plan import DEFAULT_MAX_AHEAD_US, StreamPlan

STAMPED_BY = "message.timestamp.type"
_CLEANUP = "cleanup.policy"

_log = logging.getLogger("unskew.kafka")


def settle_needed(stream: StreamPlan) -> DefinitionError:
    """Compose the error for a live topic with producer timestamps whose stream has no settle."""
    return DefinitionError(
        f"Topic {stream.topic!r} carries producer timestamps (CreateTime), so the stream must declare how "
        f'late a record may be: declare `settle` on stream {stream.name!r}, for example settle="2s", '
        "or set the topic to message.timestamp.type=LogAppendTime"
    )


def settings_of(
    topics: Sequence[str], bootstrap: str, config: Mapping[str, Any], timeout_s: float
) -> dict[str, dict[str, str]]:
    """Return the settings of topics, by topic and name, as the broker says them.

    Raises ``KafkaException`` and ``TimeoutError``.
    """
    # librdkafka's own lines about settings that are for consumers only would alarm without cause.
    client = AdminClient({"log_level": 2, **config, "bootstrap.servers": bootstrap})
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
    answers = client.describe_configs(resources, request_timeout=timeout_s)
    return {
        topic: {name: str(entry.value) for name, entry in answer.result(timeout_s).items()}
        for topic, answer in zip(topics, answers.values(), strict=True)
    }


def check_topics(
    stream: StreamPlan,
    topics: Sequence[str],
    bootstrap: str,
    config: Mapping[str, Any],
    timeout_s: float,
    *,
    live: bool,
) -> None:
    """Log which topics are compacted, and which make ``max_ahead`` void.

    Raises ``DefinitionError`` if a topic has producer timestamps and needs a settle.

    ``live``: partitions without records announce marks, so a stream with producer timestamps must declare a settle. A
    broker that does not say who stamps the records is logged then; the first record decides.
    """
    needs_stamps = live and stream.settle_us is None
    try:
        settings = settings_of(topics, bootstrap, config, timeout_s)
        stamps = {name: of_topic[STAMPED_BY] for name, of_topic in settings.items()}
        compacted = [name for name, of_topic in settings.items() if "compact" in of_topic.get(_CLEANUP, "")]
    except (KafkaException, TimeoutError, KeyError) as error:
        if not needs_stamps:
            return
        said = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
        _log.warning(
            "%s: the broker does not say who stamps the records of %s (%s). If their producers do (CreateTime, Kafka's default), "
            "this run will end with the first record: declare settle on the stream",
            stream.name,
            ", ".join(topics),
            said,
        )
        return
    if compacted:
        _log.warning(
            "%s: the broker compacts %s (cleanup.policy), so it removes a record once a later one has its key. The records that are "
            "read count, and stay counted; what was removed before is never seen, so another run from the start, a replay or a view "
            "that reads the topic again may see other events than this one. Read a topic that keeps its records",
            stream.name,
            ", ".join(compacted),
        )
    by_broker = [name for name, stamped in stamps.items() if stamped == "LogAppendTime"]
    if by_broker and stream.max_ahead_us != DEFAULT_MAX_AHEAD_US:
        _log.warning(
            "%s: max_ahead has no effect on the records of %s, because the broker stamps them (LogAppendTime), and max_ahead "
            "is for timestamps of producers. Leave it out; an event_time past the arrival counts from the arrival anyway",
            stream.name,
            ", ".join(by_broker),
        )
    if needs_stamps and "CreateTime" in stamps.values():
        raise settle_needed(stream)
