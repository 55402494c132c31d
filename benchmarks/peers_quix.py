"""Run Quix Streams' own windows on the events of bench_peers, in a separate process and environment.

This module does not import unskew, because Quix needs an older confluent-kafka. In its favour: there are no changelog
topics, nothing is produced, and only closed windows are emitted, whereas requesting the current ones would emit every
window that an event changes.
"""

import argparse
import json
import time
from io import BytesIO
from typing import Any

from fastavro import schemaless_reader
from quixstreams import Application
from quixstreams.dataframe.windows import Count, Max, Sum
from quixstreams.models import Deserializer
from quixstreams.models.topics import TopicAdmin, TopicConfig, TopicManager

FRAME_BYTES = 5


class Framed(Deserializer):
    """A deserializer of Avro behind Confluent's frame, like Quix's own AvroDeserializer, but without a registry."""

    def __init__(self, schema: Any) -> None:
        super().__init__()
        self._schema = schema

    def __call__(self, value: bytes, ctx: Any) -> Any:  # noqa: ARG002 - the name it is called by
        return schemaless_reader(BytesIO(value[FRAME_BYTES:]), self._schema, None)


class Admin(TopicAdmin):
    """An admin client without DescribeConfigs, which Quix requests for every topic and the embedded broker lacks."""

    def inspect_topics(self, topic_names: list[str], timeout: float = 30) -> dict[str, TopicConfig | None]:
        known = self.list_topics(timeout=timeout)
        config = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
        return {
            name: TopicConfig(len(known[name].partitions), 1, extra_config=config) if name in known else None
            for name in topic_names
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", type=json.loads, help="JSON from bench_peers")
    task = parser.parse_args().task
    group = f"peers-{task['kind']}"
    app = Application(
        broker_address=task["bootstrap"],
        consumer_group=group,
        auto_offset_reset="earliest",
        state_dir=task["state"],
        use_changelog_topics=False,
        loglevel="ERROR",
        topic_manager=TopicManager(Admin(task["bootstrap"]), group, auto_create_topics=False),
    )
    topic = app.topic(
        task["topic"],
        value_deserializer=Framed(task["schema"]),
        key_deserializer="str",
        # Quix's windows have millisecond precision, and the times of the events are whole milliseconds.
        timestamp_extractor=lambda value, *_: round(value["at"].timestamp() * 1000),
    )
    marks: list[tuple[float, float]] = []
    seen = 0

    def count(_value: Any) -> None:
        nonlocal seen
        if seen in {0, task["n_events"]}:
            marks.append((time.perf_counter(), time.process_time()))
        seen += 1
        if seen == task["n_events"] + task["n_closing"]:
            app.stop()

    stream = app.dataframe(topic).update(count)
    values: list[list[Any]] = []
    grace_ms = task["lateness_ms"] + 1000
    for name, (extent_ms, hop_ms) in task["windows"].items():
        sums = {"count": Count(), "sum": Sum("amount"), "max": Max("amount")}
        if task["kind"] == "each event":
            out = stream.sliding_window(extent_ms, grace_ms, name=name).agg(**sums).current()
        elif extent_ms == hop_ms:
            out = stream.tumbling_window(extent_ms, grace_ms, name=name).agg(**sums).final()
        else:
            # A window with an exact new edge and an old edge that moves by hops is the content so far of one a hop
            # longer.
            out = stream.hopping_window(extent_ms + hop_ms, hop_ms, grace_ms, name=name).agg(**sums).final()
        wanted = None
        if task["kind"] != "each event":
            wanted = task["end_ms"] // hop_ms * hop_ms - (extent_ms if extent_ms != hop_ms else 0)

        def keep(window: Any, key: Any, _timestamp: int, _headers: Any, name: str = name, wanted: Any = wanted) -> None:
            if wanted is None or window["start"] == wanted:
                values.append([int(key), name, window["count"], window["sum"], window["max"], window["end"]])

        out.update(keep, metadata=True)
    app.clear_state()
    app.run()
    (began, began_processor), (ended, ended_processor) = marks
    print(json.dumps({"seconds": ended - began, "processor": ended_processor - began_processor, "values": values}))


if __name__ == "__main__":
    main()
