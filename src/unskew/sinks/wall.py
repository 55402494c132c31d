"""The wall clock, the default where no other clock is given."""

import time


def wall_us() -> int:
    """Return the present in microseconds since the epoch."""
    return time.time_ns() // 1000
