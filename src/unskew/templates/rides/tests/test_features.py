"""What the features are of a few events. `pytest` runs this without servers."""

import datetime as dt
from pathlib import Path

from unskew.testing import assert_features

DEFINITIONS = Path(__file__).parents[1] / "definitions"
EVENING = dt.datetime(2026, 3, 1, 23, tzinfo=dt.UTC)


def ride(minutes: float, fare: float, rating: int | None = None) -> dict[str, object]:
    happened = EVENING + dt.timedelta(minutes=minutes)
    return {
        "ride_id": 1, "driver_id": 7, "zone": "centre", "fare": fare, "rating": rating, "event_time": happened,
    }  # fmt: skip


def test_fares_begin_anew_at_midnight_and_rides_count_for_an_hour() -> None:
    events = [ride(0, 10.0, 5), ride(30, 20.0, 4), ride(75, 40.0)]

    assert_features(
        "driver_rides",
        events,
        {
            EVENING + dt.timedelta(minutes=30): {"rides_1h": 2, "fares_today": 30.0, "mean_rating_30d": 4.5},
            EVENING + dt.timedelta(minutes=80): {"rides_1h": 2, "fares_today": 40.0, "mean_rating_30d": 4.5},
        },
        entity=7,
        definitions=DEFINITIONS,
    )


def test_a_zone_has_the_rides_of_a_quarter_of_an_hour() -> None:
    events = [ride(0, 10.0), ride(10, 30.0)]

    assert_features(
        "zone_demand",
        events,
        {
            EVENING + dt.timedelta(minutes=12): {"rides_15m": 2, "mean_fare_1h": 20.0},
            EVENING + dt.timedelta(minutes=20): {"rides_15m": 1, "mean_fare_1h": 20.0},
        },
        entity="centre",
        definitions=DEFINITIONS,
    )
