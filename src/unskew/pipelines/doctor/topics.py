"""Kafka as a run would find it: the broker, and each stream's topics with their settings, ends and clocks."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.features.plan import Plan, StreamPlan
from unskew.features.printing import counted
from unskew.features.time import DAY_US, format_duration, format_instant
from unskew.pipelines.doctor.asked import LACKS_DEFINITIONS, Asked
from unskew.pipelines.doctor.finding import Finding, NotChecked, failed, made, not_checked
from unskew.pipelines.doctor.folders import Here
from unskew.pipelines.kafka.client_settings import read_kafka_config
from unskew.pipelines.kafka.consumer import offsets_gone, past_the_end
from unskew.pipelines.kafka.host_clock import DISAGREE_US
from unskew.pipelines.kafka.source import KafkaSource, SourceOptions
from unskew.pipelines.kafka.stamps import STAMPED_BY, settings_of
from unskew.pipelines.kafka.watermarks import Origin, offsets, watermarks
from unskew.pipelines.state.folder import RECOVERY
from unskew.pipelines.state.known_topics import partitions_added
from unskew.pipelines.state.saved import Saved, read_saved
from unskew.sinks.wall import wall_us

ANSWER_S = 5.0
_FOREVER = -1
_SHORT_US = DAY_US

_log = logging.getLogger("unskew.doctor")

_Answer = TypeVar("_Answer")

_Ends = Mapping[int, tuple[int, int]]
"""The first and the next offset of each partition."""


def examine(asked: Asked, plan: Plan | None, here: Here) -> list[Finding]:
    """Look at the broker, then at each stream's topics, then at the places where the state goes on."""
    config: dict[str, Any] = {}

    def answers() -> str:
        if asked.kafka_config is not None:
            config.update(read_kafka_config(asked.kafka_config))
        return _answers(asked.bootstrap, config)

    found = made("Kafka", answers)
    if plan is None:
        return [*found, *not_checked("topics", LACKS_DEFINITIONS)]
    streams = {view.stream.topic: view.stream for view in plan.of_topics.views.values()}
    away = failed(found)
    ends: dict[str, tuple[Sequence[tuple[str, int]], _Ends]] = {}
    for stream in streams.values():
        about = f"topic {stream.topic}"
        if away:
            found += not_checked(about, "Kafka does not answer")
        else:
            looked = made(about, lambda stream=stream: _topic(asked, plan, here, stream, config, ends))  # type: ignore[misc]
            found += looked
    return [*found, *made("positions", lambda: _positions(here, ends))]


def _answers(bootstrap: str, config: Mapping[str, Any]) -> str:
    said: list[str] = []
    ours: dict[str, Any] = {"log_level": 0, **config, "bootstrap.servers": bootstrap}
    ours["error_cb"] = lambda error: said.append(error.str())
    client = AdminClient(ours)
    try:
        about = client.list_topics(timeout=ANSWER_S)
    except KafkaException as error:
        # Errors of connections come through the callback.
        client.poll(0)
        why = said[-1] if said else error.args[0].str()
        raise StoreUnavailable(
            f"Kafka at {bootstrap} did not answer within {ANSWER_S:g} s ({why}): start it, or correct --bootstrap-servers or the "
            "settings of --kafka-config"
        ) from error
    return f"{counted(len(about.brokers), 'broker')} at {bootstrap}"


def _topic(
    asked: Asked,
    plan: Plan,
    here: Here,
    stream: StreamPlan,
    config: Mapping[str, Any],
    ends: dict[str, tuple[Sequence[tuple[str, int]], _Ends]],
) -> str:
    """Return what the broker says of a stream's topics; raise and log what a run would."""
    views = [view for view in plan.of_topics.views.values() if view.stream.topic == stream.topic]
    before = None if here.state is None else here.state.topics.get(stream.topic)
    by_partition = list(dict.fromkeys(view.name for view in views if view.partitioned))
    options = SourceOptions(
        bootstrap=asked.bootstrap,
        group=f"{asked.prefix}-{asked.pipeline}",
        idle=asked.idle,
        stop=threading.Event(),
        timeout_s=ANSWER_S,
        partitions=asked.partitions,
        config=config,
        known=before,
    )
    source = KafkaSource(stream, options)
    try:
        source.list_parts()
        origins, known = source.origins, source.known
    finally:
        source.close()
    if before is not None and by_partition and len(before.partitions) < len(origins):
        title = f"Topic {stream.topic!r}"
        raise LayoutError(partitions_added(title, len(before.partitions), len(origins), by_partition))
    ends[stream.topic] = origins, _ends(asked.bootstrap, config, origins)
    n_records = sum(high - low for low, high in ends[stream.topic][1].values())
    facts = [counted(len(origins), "partition")]
    # A broker without ids, as librdkafka's mock, lets a question for settings wait.
    if any(known.ids.values()):
        longest_us = max((window.extent_us for view in views for window in view.published.windows), default=0)
        is_new = here.state is not None and not here.state.ran
        facts += _settings(asked, sorted(known.ids), config, longest_us, is_new=is_new)
        _compare_stamps(asked, stream, origins, config)
    return ", ".join([*facts, counted(n_records, "record")])


def _ends(bootstrap: str, config: Mapping[str, Any], origins: Sequence[Origin]) -> _Ends:
    found = _said(bootstrap, lambda: watermarks(_client(bootstrap, config), origins, ANSWER_S, config))
    return {number: found[origin] for number, origin in enumerate(origins)}


def _client(bootstrap: str, config: Mapping[str, Any]) -> AdminClient:
    return AdminClient({"log_level": 0, **config, "bootstrap.servers": bootstrap})


def _said(bootstrap: str, ask: Callable[[], _Answer]) -> _Answer:
    try:
        return ask()
    except KafkaException as error:
        raise StoreUnavailable(
            f"Kafka at {bootstrap} does not say where its partitions end ({error.args[0].str()}): try again"
        ) from error


def _settings(
    asked: Asked, topics: Sequence[str], config: Mapping[str, Any], longest_us: int, *, is_new: bool
) -> Iterator[str]:
    try:
        found = settings_of(topics, asked.bootstrap, config, ANSWER_S)
    except (KafkaException, TimeoutError) as error:
        why = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
        _log.warning(
            "the broker does not show the settings of %s (%s), so retention is not checked: allow this client DescribeConfigs",
            ", ".join(topics),
            why,
        )
        return
    stamped = {one.get(STAMPED_BY, "CreateTime") for one in found.values()}
    yield "stamped by " + " and ".join(
        "the broker (LogAppendTime)" if one == "LogAppendTime" else "producers (CreateTime)" for one in sorted(stamped)
    )
    kept_ms = [int(one.get("retention.ms", _FOREVER)) for one in found.values()]
    by_size = any(int(one.get("retention.bytes", _FOREVER)) != _FOREVER for one in found.values())
    bounded = [n_ms * 1_000 for n_ms in kept_ms if n_ms != _FOREVER]
    if not bounded:
        yield "kept until they are too many bytes" if by_size else "kept for ever"
        return
    kept_us = min(bounded)
    yield f"kept for {format_duration(kept_us)}{' or until they are too many bytes' if by_size else ''}"
    if kept_us < _SHORT_US:
        _log.warning(
            "the broker keeps records for %s (retention.ms): a pipeline that stands still for longer loses events, and refuses to go on. "
            "Raise it to several days",
            format_duration(kept_us),
        )
    if is_new and longest_us > kept_us:
        _log.warning(
            "the broker keeps records for %s, and the longest window of these views is %s: values are warming until the pipeline has run "
            "for so long; unskew import brings earlier events",
            format_duration(kept_us),
            format_duration(longest_us),
        )


def _compare_stamps(
    asked: Asked, stream: StreamPlan, origins: Sequence[tuple[str, int]], config: Mapping[str, Any]
) -> None:
    """Log that records are stamped ahead of this host's clock. A broker does not tell its clock in any other way."""
    try:
        client = _client(asked.bootstrap, config)
        latest = _said(asked.bootstrap, lambda: offsets(client, origins, OffsetSpec.max_timestamp(), ANSWER_S))
    except StoreUnavailable:
        # Kafka before 3.0 does not know the question.
        return
    stamp_us = max(one.timestamp for one in latest.values()) * 1_000
    ahead_us = stamp_us - wall_us()
    if ahead_us > max(stream.max_ahead_us, DISAGREE_US):
        _log.warning(
            "the latest record is stamped %s, %.1f s ahead of this host's clock, and such records become dead letters: correct the "
            "clock of the producer, of the broker, or of this host",
            format_instant(stamp_us),
            ahead_us / 1e6,
        )


def _positions(here: Here, ends: Mapping[str, tuple[Sequence[tuple[str, int]], _Ends]]) -> str:
    """Return how far the state is behind the topics; raise that records before its places are gone."""
    if here.state is None or not here.state.ran:
        raise NotChecked("there is no state that goes on")
    if here.is_held:
        raise NotChecked("a process works on the state, and knows them; see its metrics")
    if not ends:
        raise NotChecked("no topic answered")
    saved: Saved = read_saved(here.state.folder / RECOVERY, {topic: len(of) for topic, (of, _) in ends.items()})
    behind = 0
    for topic, (origins, between) in ends.items():
        for number, place in saved.places[topic].items():
            low, high = between[number]
            name = "/".join(map(str, origins[number]))
            if place["offset"] < low:
                raise LayoutError(offsets_gone(name, place["offset"], low))
            if place["offset"] > high:
                raise LayoutError(past_the_end(name, place["offset"], high))
            behind += high - place["offset"]
    return f"the state goes on {counted(behind, 'record')} before the ends of the topics"
