"""A checkout with on-demand features over three views: its log, archive and Redis, and an oracle in plain Python."""

import datetime as dt
import json
import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tests.support.plans import DAY, SECOND
from tests.support.written import write_archive, write_log
from unskew import Derived, Entity, Feature, FeatureView, Lifetime, OnDemand, Service, Stream, agg, compile, haversine
from unskew.features.registry import describe
from unskew.sinks.redis.writer import RedisWriter

UTC = dt.UTC
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
T0 = 1_500_000_000 * SECOND
CLOCK = T0 + 10 * DAY
SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "kind", "type": "string"},
        {"name": "user_id", "type": ["null", "string"]},
        {"name": "chain", "type": ["null", "string"]},
        {"name": "store_id", "type": ["null", "long"]},
        {"name": "lat", "type": ["null", "double"]},
        {"name": "lon", "type": ["null", "double"]},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
STREAM = Stream("shop", topic="shop", schema=SCHEMA, event_time="at")
USER = Entity("user", key="user_id")
LOGINS = FeatureView(
    "user_logins", USER, STREAM, [Feature("last_login", agg.last_time(), Lifetime())], where="kind = 'login'"
)
STORES = FeatureView(
    "store",
    Entity("store", key=["chain", "store_id"]),
    STREAM,
    [Feature("lat", agg.last("lat"), Lifetime()), Feature("lon", agg.last("lon"), Lifetime())],
    where="kind = 'move'",
)
PURCHASES, PURCHASES_2 = (
    FeatureView(
        "user_purchases",
        USER,
        STREAM,
        [Feature("mean_amount_30d", agg.mean(value), Lifetime())],
        where="kind = 'purchase'",
        version=version,
        serving=version == 1,
    )
    for version, value in ((1, "amount"), (2, "amount * 2"))
)
CHECKOUT = OnDemand(
    "checkout",
    inputs={"lat": "float64", "lon": "float64", "query": "string", "amount": "float64"},
    features=[
        Derived("since_login_s", "seconds_between(user_logins:last_login, now)"),
        Derived("distance_km", haversine("lat", "lon", "store:lat", "store:lon")),
        Derived("query_length", "char_length(query)"),
        Derived("amount_to_mean", "amount / user_purchases:mean_amount_30d", default=0.0),
        Derived("share", "amount / 7"),
        Derived("to_second", "amount / user_purchases@2:mean_amount_30d"),
        Derived("known", "user_logins:last_login > TIMESTAMP '2017-07-15 00:00:00'"),
        Derived("last_login", "coalesce(user_logins:last_login, now)"),
    ],
    owner="checkout team",
    tags={"team": "checkout"},
)
REFERENCES = [f"checkout:{feature.name}" for feature in CHECKOUT.features]
MODEL = Service("checkout_model", ["checkout:distance_km", "user_purchases:mean_amount_30d", "checkout:amount_to_mean"])
PLAN = compile(LOGINS, STORES, PURCHASES, PURCHASES_2, CHECKOUT, MODEL)
USERS = ["anna", "bert|1", "çelik", "dora", "logged in only"]
STORE_KEYS = [("north", 1), ("north", 2), ("süd/ost", 1)]


def some_events(seed: int) -> list[dict[str, Any]]:
    """Logins, purchases and moving stores within five days; the last user never buys."""
    pick = random.Random(seed)
    at = T0
    found: list[dict[str, Any]] = []
    for number in range(300):
        at += pick.randrange(1, DAY // 60)
        event: dict[str, Any] = dict.fromkeys(("user_id", "chain", "store_id", "lat", "lon", "amount"))
        event |= {"kind": pick.choice(["login", "move", "purchase"]), "at": at, "_offset": number}
        if event["kind"] == "move":
            event["chain"], event["store_id"] = pick.choice(STORE_KEYS)
            event["lat"], event["lon"] = pick.uniform(-90, 90), pick.uniform(-180, 180)
        else:
            event["user_id"] = pick.choice(USERS if event["kind"] == "login" else USERS[:-1])
            event["amount"] = round(pick.uniform(0.01, 500), 2)
        found.append(event)
    return found


def decoded(events: list[dict[str, Any]]) -> pl.DataFrame:
    columns = PLAN.streams["shop"].columns
    frame = pl.DataFrame([{name: event[name] for name in columns} for event in events], schema=dict(columns))
    at = pl.Series([event["at"] for event in events]).cast(pl.Datetime("us", "UTC"))
    return frame.with_columns(
        at.alias("_arrival"),
        at.alias("_event_time"),
        pl.lit(0, pl.Int32).alias("_partition"),
        pl.Series("_offset", [event["_offset"] for event in events], pl.Int64),
    )


def write(root: Path, redis_url: str, events: list[dict[str, Any]]) -> None:
    """Log and archive below ``root``, and what Redis then holds, all by the kernel and complete up to ``CLOCK``."""
    frame = decoded(events)
    write_archive(root / "archive", PLAN.views["user_logins"], frame, CLOCK)
    writer = RedisWriter(redis_url, "unskew", "main")
    writer.publish_registry(json.dumps(describe(PLAN)))
    writer.expect({view.id: ["h0"] for view in PLAN.views.values()})
    for view in PLAN.views.values():
        for step in write_log(root / "log", view, frame, CLOCK):
            writer.add(step)
    writer.flush(time.time_ns() // 1000)
    writer.close()


def some_labels(seed: int, n: int, n_instants: int = 10) -> list[dict[str, Any]]:
    """Rows with inputs, also nulls, strangers and lacking keys; ``n / n_instants`` of them at each instant."""
    pick = random.Random(seed)
    instants = [T0 + 6 * DAY + pick.randrange(3 * DAY) for _ in range(n_instants)]
    found = []
    for row in range(n):
        chain, store_id = pick.choice([*STORE_KEYS, ("north", 99), (None, 1)])
        label = {
            "user_id": pick.choice([*USERS, "nobody", None]),
            "chain": chain,
            "store_id": store_id,
            "lat": pick.choice([pick.uniform(-90, 90), None, math.nan] if row % 5 == 0 else [pick.uniform(-90, 90)]),
            "lon": pick.uniform(-180, 180),
            "query": pick.choice(["", "shoes", "schöne Schuhe 👟", 'a "b" \\ \n', None]),
            "amount": pick.choice([0.0, -0.0, 7.0, pick.uniform(0, 1e3), pick.uniform(0, 1e-300), 1.7e308, None]),
            "event_timestamp": EPOCH + dt.timedelta(microseconds=instants[row * n_instants // n]),
        }
        found.append(label)
    return found


def oracle(events: list[dict[str, Any]], label: Mapping[str, Any]) -> dict[str, Any]:
    """The on-demand features of a label, from the events alone."""

    def of(kind: str, **key: Any) -> list[dict[str, Any]]:
        if None in key.values():
            return []
        return [e for e in events if e["kind"] == kind and all(e[name] == value for name, value in key.items())]

    now = label["event_timestamp"]
    lat = None if label["lat"] is None or math.isnan(label["lat"]) else label["lat"]
    logins = of("login", user_id=label["user_id"])
    last = EPOCH + dt.timedelta(microseconds=logins[-1]["at"]) if logins else None
    moves = of("move", chain=label["chain"], store_id=label["store_id"])
    amounts = [e["amount"] for e in of("purchase", user_id=label["user_id"])]
    amount = label["amount"]
    mean = math.fsum(amounts) / len(amounts) if amounts else None
    return {
        "since_login_s": (now - last).total_seconds() if last else None,
        "distance_km": _distance_km(lat, label["lon"], moves[-1]["lat"], moves[-1]["lon"])
        if moves and lat is not None
        else None,
        "query_length": None if label["query"] is None else len(label["query"]),
        "amount_to_mean": _finite(amount / mean) if mean and amount is not None else 0.0,
        "share": None if amount is None else amount / 7 + 0.0,
        "to_second": _finite(amount / (mean * 2)) if mean and amount is not None else None,
        "known": last > dt.datetime(2017, 7, 15, tzinfo=UTC) if last else None,
        "last_login": last or now,
    }


def _finite(value: float) -> float | None:
    return value + 0.0 if math.isfinite(value) else None


def _distance_km(lat: float, lon: float, other_lat: float, other_lon: float) -> float:
    """By vectors, so not the formula under test: the angle between two places as seen from the Earth's centre."""
    a, b = ((math.radians(y), math.radians(x)) for y, x in ((lat, lon), (other_lat, other_lon)))
    (ax, ay, az), (bx, by, bz) = (
        (math.cos(y) * math.cos(x), math.cos(y) * math.sin(x), math.sin(y)) for y, x in (a, b)
    )
    cross = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    return 6371.0088 * math.atan2(math.hypot(*cross), ax * bx + ay * by + az * bz)


def bits(value: object) -> str:
    """As text, in which every bit of a float shows."""
    return value.astimezone(UTC).isoformat() if isinstance(value, dt.datetime) else repr(value)
