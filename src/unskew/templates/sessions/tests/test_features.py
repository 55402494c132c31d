"""What the features are of a few events. `pytest` runs this without servers."""

import datetime as dt
from pathlib import Path

from unskew.testing import assert_features

DEFINITIONS = Path(__file__).parents[1] / "definitions"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def click(minutes: float, screen: str = "home") -> dict[str, object]:
    return {"click_id": 1, "user_id": "u-1", "screen": screen, "event_time": NOON + dt.timedelta(minutes=minutes)}


def test_a_visit_ends_after_half_an_hour_without_a_click() -> None:
    events = [click(0), click(10, "cart"), click(60)]

    assert_features(
        "user_now",
        events,
        {
            NOON + dt.timedelta(minutes=20): {"clicks_in_visit": 2, "last_screen": "cart"},
            NOON + dt.timedelta(minutes=45): {"clicks_in_visit": 0, "last_screen": None},
            NOON + dt.timedelta(minutes=61): {"clicks_in_visit": 1, "last_screen": "home"},
        },
        entity="u-1",
        definitions=DEFINITIONS,
    )


def test_a_visit_counts_once_it_has_ended() -> None:
    events = [click(0), click(10)]

    assert_features(
        "user_visits",
        events,
        {
            NOON + dt.timedelta(minutes=20): {"visits_30d": 0, "mean_length_s_30d": None},
            NOON + dt.timedelta(minutes=50): {"visits_30d": 1, "mean_length_s_30d": 600.0},
        },
        entity="u-1",
        definitions=DEFINITIONS,
    )
