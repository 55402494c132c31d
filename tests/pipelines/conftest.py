"""What tests of sources share."""

import threading

import pytest

from tests.support import plans
from tests.support.sources import Present, Topic, clock_of
from unskew.pipelines.kafka.source import KafkaSource, SourceOptions


@pytest.fixture
def topic(broker):
    return lambda partitions=1: Topic(broker, partitions)


@pytest.fixture
def read():
    """A source's partitions by number, closed after the test."""
    opened = []

    def open_source(topic, states=None, *, settle_us=None, max_ahead_us=5_000_000, build=True, **options):
        source = KafkaSource(
            plans.stream(topic=topic.name, settle_us=settle_us, max_ahead_us=max_ahead_us),
            SourceOptions(
                **{
                    "bootstrap": topic.bootstrap,
                    "group": "group",
                    "idle": "none",
                    "clock": clock_of(options.pop("present_us", None) or Present()),
                    "stop": threading.Event(),
                    "timeout_s": 5.0,
                    **options,
                }
            ),
        )
        opened.append(source)
        source.parts = {
            int(name[1:]): source.build_part("step", name, (states or {}).get(int(name[1:])))
            for name in (source.list_parts() if build else [])
        }
        return source

    yield open_source
    for source in opened:
        source.close()
