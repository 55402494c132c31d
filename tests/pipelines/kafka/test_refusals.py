"""Records past the present: how many it takes to alarm, and whose clock is named."""

import numpy as np
import pytest

from tests.support.sources import NOON, SECOND
from unskew.pipelines.kafka.refusals import Refusals


class Stream:
    """Polls of records whose timestamps lie so many seconds ahead of the present, and a clock to judge them by."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.refusals = Refusals("payments", 5 * SECOND, lambda: self.now_s)

    def poll(self, partition, *ahead_s):
        stamps = NOON + (np.array(ahead_s) * SECOND).astype(np.int64)
        self.refusals.note(partition, stamps, stamps > NOON + 5 * SECOND, NOON)

    def later(self):
        self.now_s += 10
        self.refusals.judge()
        return self.refusals.reason


def test_a_slow_host_is_distinguished_from_fast_producers():
    host, producers, one_partition = Stream(), Stream(), Stream()
    for partition in ("t/0", "t/1"):
        host.poll(partition, *[60.0, 60.2, 61.0] * 10)
        producers.poll(partition, *[60.0, -0.2, -0.1] * 10)
    one_partition.poll("t/0", *[60.0] * 10)
    one_partition.poll("t/1", *[-0.1] * 10)

    slow = host.later()
    assert "60 of 60 records were refused in 10 s" in slow
    assert "lie 60.0 to 61.0 s past this host's present, and max_ahead is 5s" in slow
    assert "the clock of this host is probably slow" in slow
    assert (
        "in t/0, t/1 only, or beside records that are not, so clocks of producers are probably fast"
        in producers.later()
    )
    assert "in t/0 only" in one_partition.later()


@pytest.mark.parametrize(("refused", "alarms"), [(0, False), (1, False), (10, False), (11, True)])
def test_it_takes_more_than_one_in_a_hundred_to_alarm(refused, alarms, caplog):
    stream = Stream()
    stream.poll("t/0", *[6.0] * refused, *[0.0] * (1_000 - refused))

    assert stream.refusals.reason is None
    assert (stream.later() is not None) == alarms
    assert len(caplog.records) == alarms
    assert stream.refusals.count == refused


def test_it_is_said_once_when_it_begins_and_once_when_it_ends(caplog):
    stream = Stream()
    for _ in range(5):
        stream.poll("t/0", 6.0)
        stream.later()
    stream.later()
    assert stream.refusals.reason is not None
    stream.poll("t/0", 0.0)

    assert stream.later() is None
    assert [record.message.split(":")[0] for record in caplog.records] == ["stream payments"] * 2
    assert "no longer refused" in caplog.text
