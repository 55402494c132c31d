"""What the features are of a few events. `pytest` runs this without servers."""

import datetime as dt
from pathlib import Path

from unskew.testing import assert_features

DEFINITIONS = Path(__file__).parents[1] / "definitions"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def look(minutes: float, dwell_s: float | None = None, device: str = "phone") -> dict[str, object]:
    happened = NOON + dt.timedelta(minutes=minutes)
    return {
        "view_id": 1, "visitor_id": "v-1", "page_id": "/", "device": device, "dwell_s": dwell_s, "event_time": happened,
    }  # fmt: skip


def test_a_view_leaves_the_window_of_five_minutes_and_stays_in_that_of_an_hour() -> None:
    events = [look(0), look(4, device="desktop")]

    assert_features(
        "visitor_activity",
        events,
        {
            NOON + dt.timedelta(minutes=4): {"views_5m": 2, "views_1h": 2, "last_device": "desktop"},
            NOON + dt.timedelta(minutes=6): {"views_5m": 1, "views_1h": 2},
            NOON + dt.timedelta(minutes=30): {"views_5m": 0, "views_1h": 2},
        },
        entity="v-1",
        definitions=DEFINITIONS,
    )


def test_a_view_without_a_dwell_time_is_a_view_and_not_in_the_mean() -> None:
    events = [look(0, 10.0), look(1, 30.0), look(2)]

    assert_features(
        "page_popularity",
        events,
        {NOON + dt.timedelta(minutes=3): {"views_1h": 3, "mean_dwell_s_1h": 20.0}},
        entity="/",
        definitions=DEFINITIONS,
    )
