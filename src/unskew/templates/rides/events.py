"""What an event looks like: one ride that has ended."""

import datetime as dt
import random

ZONES = ["airport", "centre", "harbour", "north", "station", "west"]


def event(rng: random.Random, number: int, happened: dt.datetime) -> dict[str, object]:
    """Return an event; every third ride is not rated."""
    return {
        "ride_id": number,
        "driver_id": rng.randint(1, 40),
        "zone": rng.choices(ZONES, weights=[2, 6, 1, 2, 4, 1])[0],
        "fare": round(4 + rng.gammavariate(2, 5), 2),
        "rating": None if rng.random() < 1 / 3 else rng.choices([1, 3, 4, 5], weights=[1, 2, 5, 12])[0],
        "event_time": happened.isoformat(),
    }
