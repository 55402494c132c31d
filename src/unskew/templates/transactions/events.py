"""What an event looks like: one payment of some user at some merchant."""

import datetime as dt
import random


def event(rng: random.Random, number: int, happened: dt.datetime) -> dict[str, object]:
    """Return an event, some users and merchants more often than others."""
    return {
        "transaction_id": number,
        "user_id": f"u-{min(int(rng.paretovariate(0.8)), 100)}",
        "merchant_id": min(int(rng.paretovariate(0.8)), 30),
        "amount": round(rng.lognormvariate(3, 1), 2),
        "status": rng.choices(["completed", "declined"], weights=[9, 1])[0],
        "event_time": happened.isoformat(),
    }
