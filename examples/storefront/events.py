"""What the events of each stream look like: few users come often, carts fill and are emptied, some products go back."""

import datetime as dt
import random
from collections.abc import Callable

Event = dict[str, object]


def page_view(rng: random.Random) -> Event:
    return {"user_id": _user(rng), "page": rng.choice(["home", "search", "product", "cart"])}


def transaction(rng: random.Random) -> Event:
    status = rng.choices(["completed", "declined", "returned"], weights=[17, 1, 2])[0]
    return {"user_id": _user(rng), "product_id": _product(rng), "status": status, "amount": _price(rng)}


def cart_event(rng: random.Random) -> Event:
    """Return a product that enters a cart, or the one that entered it last time, as it leaves again."""
    user = _user(rng)
    cart = _carts.setdefault(user, [])
    if cart and rng.random() < 0.4:
        product, price = cart.pop()
        return {"user_id": user, "product_id": product, "amount": -price}
    cart.append((_product(rng), _price(rng)))
    product, price = cart[-1]
    return {"user_id": user, "product_id": product, "amount": price}


def seller_answer(rng: random.Random) -> Event:
    return {"seller_id": min(int(rng.paretovariate(0.8)), 20), "response_s": round(rng.lognormvariate(7, 1), 1)}


def login(rng: random.Random) -> Event:
    return {"user_id": _user(rng), "lat": round(rng.gauss(52.5, 0.2), 5), "lon": round(rng.gauss(13.4, 0.3), 5)}


STREAMS: dict[str, Callable[[random.Random], Event]] = {
    "page_views": page_view,
    "transactions": transaction,
    "cart_events": cart_event,
    "seller_answers": seller_answer,
    "logins": login,
}
_carts: dict[str, list[tuple[int, float]]] = {}


def event(stream: str, rng: random.Random, happened: dt.datetime) -> Event:
    """Return the next event of a stream."""
    return {**STREAMS[stream](rng), "event_time": happened.isoformat()}


def _user(rng: random.Random) -> str:
    return f"u-{min(int(rng.paretovariate(0.8)), 50)}"


def _product(rng: random.Random) -> int:
    return min(int(rng.paretovariate(0.8)), 30)


def _price(rng: random.Random) -> float:
    return round(rng.lognormvariate(3, 1), 2)
