"""The clocks of this host, the defaults where no others are given."""

import time


def wall_us() -> int:
    """Return the present in microseconds since the epoch."""
    return time.time_ns() // 1000


def steady_us() -> int:
    """Return microseconds of a clock that nobody sets, from an arbitrary origin; a suspended host counts where it can.

    Linux's CLOCK_MONOTONIC stands still while a laptop sleeps, and its wall clock does not; CLOCK_BOOTTIME goes on.
    """
    return (
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic_ns()
    ) // 1000
