"""The storefront's nine features are what a naive count in plain Python gives, event by event."""

import datetime as dt
import importlib.util
import itertools
import math
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from unskew.features.definitions.load import load
from unskew.testing import values

HOME = Path(__file__).parents[2] / "examples" / "storefront"
DEFINITIONS = load(HOME / "definitions")
BERLIN = ZoneInfo("Europe/Berlin")
# Summer time begins in the night to 29 March.
BEGIN = dt.datetime(2026, 3, 27, 20, tzinfo=dt.UTC)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SECOND, MINUTE, HOUR, DAY = (dt.timedelta(seconds=n) for n in (1, 60, 3_600, 86_400))

Event = dict[str, Any]


def made(stream: str, n: int, mean_s: float, seed: int = 7) -> list[Event]:
    """Events of the example's own generator, some of them seconds and some hours apart."""
    spec = importlib.util.spec_from_file_location("storefront_events", HOME / "events.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = random.Random(seed)
    happened, found = BEGIN, []
    for _ in range(n):
        happened += dt.timedelta(microseconds=int(rng.lognormvariate(math.log(mean_s), 2) * 1e6))
        one = module.event(stream, rng, happened)
        one["event_time"] = happened
        if "amount" in one:
            one["amount"] = Decimal(str(one["amount"]))
        found.append(one)
    return found


def floor(moment: dt.datetime, hop: dt.timedelta) -> dt.datetime:
    return moment - (moment - EPOCH) % hop


def since(events: list[Event], at: dt.datetime, extent: dt.timedelta, hop: dt.timedelta) -> list[Event]:
    edge = floor(at, hop) - extent
    return [one for one in events if edge <= one["event_time"] <= at]


def mean(numbers: list[Any]) -> float | None:
    return float(sum(map(Fraction, numbers)) / len(numbers)) if numbers else None


def visits(events: list[Event]) -> list[tuple[list[Event], dt.datetime]]:
    """Events that follow one another, with the instant at which it is known that they ended."""
    found: list[tuple[list[Event], dt.datetime]] = []
    for one in events:
        ends = floor(one["event_time"], MINUTE) + MINUTE + 30 * MINUTE
        if found and one["event_time"] < found[-1][1]:
            found[-1] = ([*found[-1][0], one], ends)
        else:
            found.append(([one], ends))
    return found


def views_5m(events: list[Event], at: dt.datetime) -> int:
    return len(since(events, at, 5 * MINUTE, SECOND))


def avg_amount_today(events: list[Event], at: dt.datetime) -> float | None:
    today = at.astimezone(BERLIN).date()
    paid = [one for one in events if one["event_time"] <= at and one["status"] == "completed"]
    return mean([one["amount"] for one in paid if one["event_time"].astimezone(BERLIN).date() == today])


def cart_value(events: list[Event], at: dt.datetime) -> Decimal:
    running = [joined for joined, ends in visits([one for one in events if one["event_time"] <= at]) if at < ends]
    return sum((one["amount"] for joined in running for one in joined), Decimal(0))


def avg_length_s_30d(events: list[Event], at: dt.datetime) -> float | None:
    ended = [(joined, ends) for joined, ends in visits(events) if floor(at, DAY) - 30 * DAY <= ends <= at]
    return mean([(one[-1]["event_time"] - one[0]["event_time"]).total_seconds() for one, _ in ended])


def return_rate_90d(events: list[Event], at: dt.datetime) -> float | None:
    of_status = [one["status"] for one in since(events, at, 90 * DAY, DAY)]
    bought = of_status.count("completed")
    return of_status.count("returned") / bought if bought else None


def avg_response_s_week(events: list[Event], at: dt.datetime) -> float | None:
    week = at.astimezone(BERLIN).isocalendar()[:2]
    answers = [one for one in events if one["event_time"] <= at]
    return mean(
        [one["response_s"] for one in answers if one["event_time"].astimezone(BERLIN).isocalendar()[:2] == week]
    )


@pytest.mark.parametrize(
    ("view", "stream", "mean_s", "naive"),
    [
        ("user_page_views", "page_views", 30, views_5m),
        ("user_transactions", "transactions", 600, avg_amount_today),
        ("user_cart", "cart_events", 60, cart_value),
        ("user_visits", "page_views", 900, avg_length_s_30d),
        ("product_returns", "transactions", 4_000, return_rate_90d),
        ("seller_answer_times", "seller_answers", 3_000, avg_response_s_week),
    ],
    ids=lambda one: one.__name__ if callable(one) else "",
)
def test_a_feature_of_a_view_is_what_a_naive_count_gives(
    view: str, stream: str, mean_s: float, naive: Callable[[list[Event], dt.datetime], Any]
) -> None:
    events = made(stream, 400, mean_s)
    (key,) = DEFINITIONS.views[view].entity.keys
    moments = [one["event_time"] for one in events]
    rng = random.Random(1)
    steps = [
        dt.timedelta(0),
        SECOND,
        299 * SECOND,
        301 * SECOND,
        29 * MINUTE,
        32 * MINUTE,
        11 * HOUR,
        31 * DAY,
        92 * DAY,
    ]
    instants = [rng.choice(moments) + step for step in steps for _ in range(12)]

    found = values(view, events, at=instants, definitions=DEFINITIONS)

    seen = set()
    for at in instants:
        for entity, features in found[at].items():
            expected = naive([one for one in events if one[key] == entity], at)
            assert features[naive.__name__] == expected, (entity, at)
            seen.add(expected)
    # A count that is always the same would show little.
    assert len(seen) > 5


LOGINS = made("logins", 60, 7_200)


@pytest.mark.parametrize(
    ("lat", "lon", "query"), [(52.52, 13.405, "shoes"), (-33.87, 151.21, "größe 42 👟"), (0.0, 180.0, "")]
)
def test_features_of_the_request_are_what_its_own_words_and_the_last_login_give(
    lat: float, lon: float, query: str
) -> None:
    mine = [one for one in LOGINS if one["user_id"] == "u-1"]
    for last, following in itertools.pairwise(mine):
        at = last["event_time"] + (following["event_time"] - last["event_time"]) / 2

        found = values(
            "request",
            LOGINS,
            at=at,
            entity="u-1",
            inputs={"lat": lat, "lon": lon, "query": query},
            definitions=DEFINITIONS,
        )

        assert found["since_login_s"] == pytest.approx((at - last["event_time"]).total_seconds(), abs=1e-6)
        assert found["distance_km"] == pytest.approx(great_circle_km(lat, lon, last["lat"], last["lon"]), abs=1e-3)
        assert found["query_length"] == len(query)
    assert len(mine) > 5


def test_nothing_is_known_of_the_login_of_a_user_who_never_logged_in() -> None:
    found = values(
        "request",
        [],
        at=BEGIN + DAY,
        entity="nobody",
        inputs={"lat": 1.0, "lon": 2.0, "query": "hat"},
        definitions=DEFINITIONS,
    )

    assert found == {"since_login_s": None, "distance_km": None, "query_length": 3}


def great_circle_km(lat: float, lon: float, other_lat: float, other_lon: float) -> float:
    """By the angle between two vectors, and not by haversines."""

    def vector(north: float, east: float) -> tuple[float, float, float]:
        north, east = math.radians(north), math.radians(east)
        return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)

    a, b = vector(lat, lon), vector(other_lat, other_lon)
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return 6371.0088 * math.atan2(math.hypot(*cross), sum(x * y for x, y in zip(a, b, strict=True)))


def test_the_service_reads_all_nine() -> None:
    assert [one.reference for one in DEFINITIONS.services["ranking"].features] == [
        "user_page_views:views_5m",
        "user_transactions:avg_amount_today",
        "user_cart:cart_value",
        "user_visits:avg_length_s_30d",
        "product_returns:return_rate_90d",
        "seller_answer_times:avg_response_s_week",
        "request:since_login_s",
        "request:distance_km",
        "request:query_length",
    ]
