"""The present for marks and refusals, while the host's wall clock, its steady clock, Redis and records disagree."""

import itertools
import logging

import pytest

from tests.support.sources import SECOND
from unskew.pipelines.kafka.host_clock import HostClock

NOON = 1_793_102_400 * SECOND  # of a day in 2026
HOUR = 3_600 * SECOND
BOOT = 77 * SECOND


class Host:
    """A host whose clocks move only when told: ``wall`` is what its wall clock reads, right or not."""

    def __init__(self, wall=NOON) -> None:
        self.wall = wall
        self.steady = BOOT
        self.clock = HostClock(lambda: self.wall, lambda: self.steady)

    def pass_(self, seconds, *, wall_rate=1.0, look_every=1.0):
        """Let time pass, with a look at the clock every so often; ``wall_rate``: how quickly the wall clock goes."""
        for _ in range(int(seconds / look_every)):
            self.steady += int(look_every * SECOND)
            self.wall += int(look_every * SECOND * wall_rate)
            self.clock.look()

    @property
    def marks(self):
        """The present of marks, in seconds after noon."""
        return (self.clock.for_marks_us() - NOON) / SECOND

    @property
    def latest(self):
        return (self.clock.latest_us() - NOON) / SECOND

    @property
    def jumped_s(self):
        return round(self.clock.jump_us / SECOND, 1)


@pytest.mark.parametrize("jump", [-400 * 86_400 * SECOND, -HOUR, -2 * SECOND, 2 * SECOND, HOUR, 400 * 86_400 * SECOND])
def test_marks_follow_the_earlier_clock_and_refusals_the_later_until_the_wall_clock_is_back(jump, caplog):
    host = Host()
    host.pass_(10)
    host.wall += jump
    host.pass_(5)

    ahead_s = jump / SECOND
    assert (host.marks, host.latest) == (15 + min(0, ahead_s), 15 + max(0, ahead_s))
    assert host.jumped_s == ahead_s
    assert caplog.text.count("jumped and is now") == 1

    host.wall -= jump
    host.pass_(5)

    assert (host.marks, host.latest, host.jumped_s, host.clock.jumps) == (20, 20, 0, 1)
    assert caplog.text.count("is back where its steady clock carries it") == 1


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [
        pytest.param(1 + 500e-6, 86_400, id="NTP slews for a day"),
        pytest.param(1 - 500e-6, 86_400, id="NTP slews back for a day"),
        pytest.param(1 - 1 / 86_400, 86_400, id="a leap second smeared over a day"),
        pytest.param(1.0, 30 * 86_400, id="a month"),
    ],
)
def test_what_keeps_a_clock_right_is_no_jump(rate, seconds, caplog):
    host = Host()

    host.pass_(seconds, wall_rate=rate, look_every=60)

    assert not caplog.records
    assert host.clock.for_marks_us() == host.clock.latest_us() == host.wall


def test_a_laptop_that_slept_has_not_jumped():
    host = Host()
    host.steady += 8 * HOUR
    host.wall += 8 * HOUR

    assert (host.marks, host.jumped_s) == (8 * 3_600, 0)


def test_looks_far_apart_and_a_second_of_leap_are_no_jump():
    host = Host()
    host.steady += HOUR
    host.wall += HOUR - SECOND

    assert (host.jumped_s, host.marks) == (0, 3_599)


@pytest.mark.parametrize("fresh", [True, False])
def test_the_first_record_after_a_virtual_machine_stood_still_confirms_the_new_wall_clock(fresh, caplog):
    # The steady clock stood still too. wall  12:00 -> 13:00, and so says a record of 12:59:59.
    host = Host()
    host.wall += HOUR
    host.pass_(10)
    assert host.marks == 10

    host.clock.note_record(NOON + HOUR + 9 * SECOND, fresh=fresh)
    host.pass_(1)

    assert (host.marks, host.jumped_s) == (3_611, 0)
    assert "is confirmed by the timestamps of records" in caplog.text


def test_a_wrong_jump_ahead_is_not_confirmed_by_records_that_lead_on():
    host = Host()
    host.wall += HOUR
    for _ in range(100):
        host.pass_(1)
        host.clock.note_record(NOON + (host.steady - BOOT) - SECOND // 10, fresh=True)

    assert (host.marks, host.latest, host.jumped_s) == (100, 3_700, 3_600)


def test_after_a_wrong_jump_back_records_carry_the_marks_on():
    host = Host()
    host.pass_(10)
    host.wall -= HOUR
    host.pass_(1)
    assert host.marks == 11 - 3_600

    host.clock.note_record(NOON + 11 * SECOND - SECOND // 5, fresh=True)
    host.pass_(30)

    assert (host.marks, host.latest, host.jumped_s) == (40.8, 41, -3_600)


def test_a_jump_back_to_the_right_time_is_confirmed_by_fresh_records_but_not_by_a_backlog():
    # Until now the host was an hour ahead.
    host = Host(NOON + HOUR)
    host.pass_(10)
    host.wall -= HOUR
    host.pass_(1)

    host.clock.note_record(NOON - HOUR, fresh=False)
    host.pass_(1)
    assert (host.marks, host.jumped_s) == (12, -3_600)

    host.clock.note_record(NOON + 12 * SECOND, fresh=True)
    host.pass_(1)
    assert (host.marks, host.latest, host.jumped_s) == (13, 13, 0)


@pytest.mark.parametrize(("wrong", "marks", "latest"), [(HOUR, 10, 3_610), (-HOUR, -3_590, 10)])
def test_a_clock_that_redis_contradicts_at_the_start_is_not_followed_ahead(wrong, marks, latest, caplog):
    host = Host(NOON + wrong)
    host.clock.compare(NOON, "the Redis server")
    host.pass_(10)

    assert (host.marks, host.latest) == (marks, latest)
    assert "the clock of the Redis server" in caplog.text


@pytest.mark.parametrize("differs", [-4 * SECOND, 0, 4 * SECOND])
def test_a_redis_that_is_a_little_off_changes_nothing(differs, caplog):
    host = Host()
    host.clock.compare(NOON + differs, "the Redis server")
    host.pass_(10)

    assert (host.marks, host.jumped_s) == (10, 0)
    assert not caplog.records


def test_the_broker_s_timestamps_show_that_the_host_is_ahead(caplog):
    # The reader saw the end of its partition at 13:00:10 by the host, and then came a record of 12:00:10 by the broker.
    host = Host(NOON + HOUR)
    host.pass_(10)
    host.clock.note_appended(NOON + 10 * SECOND, host.wall)
    host.pass_(10)

    assert (host.marks, host.latest) == (20, 3_620)
    assert "ahead of the broker's timestamps" in caplog.text


def test_a_record_that_came_a_little_later_than_it_was_appended_shows_nothing():
    host = Host()
    host.clock.note_appended(NOON - 4 * SECOND, host.wall)

    assert host.jumped_s == 0


@pytest.mark.parametrize(("back", "stalls"), [(4 * SECOND, False), (6 * SECOND, True), (HOUR, True)])
def test_a_wall_clock_that_went_back_stalls_the_flow_until_another_begins(back, stalls):
    host = Host()
    host.pass_(10)
    host.wall -= back
    host.clock.look()

    assert host.clock.fell_back_us == (back if stalls else 0)
    host.clock.begin_flow()
    assert host.clock.fell_back_us == 0


def test_a_clock_that_was_never_set_is_named(caplog):
    caplog.set_level(logging.WARNING)
    Host(0)

    assert "the clock of this host reads 1970-01-01T00:00:00Z: it is not set" in caplog.text


def test_a_thread_that_lost_the_processor_between_two_readings_sees_no_jump():
    # Every other reading of the steady clock comes 3 s after the one before it.
    steady = itertools.accumulate(itertools.cycle([3 * SECOND, 0, 0, 0]), initial=BOOT)
    wall = Host()
    clock = HostClock(lambda: NOON + wall.steady - BOOT, lambda: _note(wall, next(steady)))
    for _ in range(50):
        clock.look()

    assert clock.jumps == 0


def _note(host, steady):
    host.steady = steady
    return steady
