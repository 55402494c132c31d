"""What the features are of a few events. `pytest` runs this without servers."""

import datetime as dt
from pathlib import Path

from unskew.testing import assert_features

DEFINITIONS = Path(__file__).parents[1] / "definitions"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def payment(minutes: float, amount: float, status: str = "completed") -> dict[str, object]:
    happened = NOON + dt.timedelta(minutes=minutes)
    return {
        "transaction_id": 1, "user_id": "u-42", "merchant_id": 7, "amount": amount, "status": status, "event_time": happened,
    }  # fmt: skip


def test_a_payment_counts_for_an_hour_and_a_declined_one_does_not() -> None:
    events = [payment(0, 10.0), payment(30, 30.0), payment(31, 500.0, "declined")]

    assert_features(
        "user_payments",
        events,
        {
            NOON: {"payments_1h": 1, "spend_30d": 10.0},
            NOON + dt.timedelta(minutes=45): {"payments_1h": 2, "spend_30d": 40.0, "mean_amount_30d": 20.0},
            NOON + dt.timedelta(hours=2): {"payments_1h": 0, "spend_30d": 40.0},
        },
        entity="u-42",
        definitions=DEFINITIONS,
    )


def test_a_merchant_has_its_declined_payments_of_ten_minutes() -> None:
    events = [payment(0, 10.0), payment(1, 20.0, "declined")]

    assert_features(
        "merchant_payments",
        events,
        {NOON + dt.timedelta(minutes=5): {"payments_10m": 2, "declined_10m": 1}},
        entity=7,
        definitions=DEFINITIONS,
    )
