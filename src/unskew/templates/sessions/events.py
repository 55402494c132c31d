"""What an event looks like: one click of some user on some screen."""

import datetime as dt
import random

SCREENS = ["home", "search", "product", "cart", "account"]


def event(rng: random.Random, number: int, happened: dt.datetime) -> dict[str, object]:
    """Return an event, some users more often than others, so that there are long and short visits."""
    return {
        "click_id": number,
        "user_id": f"u-{min(int(rng.paretovariate(0.8)), 100)}",
        "screen": rng.choices(SCREENS, weights=[4, 3, 5, 1, 1])[0],
        "event_time": happened.isoformat(),
    }
