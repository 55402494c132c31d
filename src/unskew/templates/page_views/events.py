"""What an event looks like: one look of some visitor at some page."""

import datetime as dt
import random


def event(rng: random.Random, number: int, happened: dt.datetime) -> dict[str, object]:
    """Return an event, some visitors and pages more often than others."""
    return {
        "view_id": number,
        "visitor_id": f"v-{min(int(rng.paretovariate(0.8)), 100)}",
        "page_id": f"/page/{min(int(rng.paretovariate(0.8)), 50)}",
        "device": rng.choices(["phone", "desktop", "tablet"], weights=[6, 3, 1])[0],
        "dwell_s": None if rng.random() < 0.1 else round(rng.expovariate(1 / 40), 1),
        "event_time": happened.isoformat(),
    }
