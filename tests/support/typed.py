"""A view with a result of every type, rows of it written out by hand, and the text that Redis must hold for them."""

import datetime as dt
from decimal import Decimal
from typing import Any

from tests.support.plans import DAY, HOUR, Wanted, WantedOfOthers, lifetime, sliding, view
from unskew.features.view import Parameters

WINDOW = sliding(DAY, HOUR)
SEEN = dt.datetime(2017, 7, 14, 2, 40, 0, 1, tzinfo=dt.UTC)
# Empty, with what ends a line of the protocol, with a NUL, with what JSON escapes, beyond ASCII and beyond 16 bits.
AWKWARD = 'a\r\n$3\r\n\0"\\/é\u2028😀'

ORDERS = view(
    Wanted("n", "count", WINDOW),
    Wanted("spend", "sum", WINDOW, "price", "decimal(38,2)"),
    Wanted("rate", "mean", WINDOW, "x"),
    Wanted("gift", "last", WINDOW, "gift", "bool"),
    Wanted("shop", "last", WINDOW, "shop", "string", default="none"),
    Wanted("dearest", "max", WINDOW, "price", "decimal(38,2)", default=Decimal("-1.00")),
    Wanted("since", "first_time", lifetime(), default=dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
    Wanted("counts", "last_n", WINDOW, "n", "int64", parameters=Parameters(n=3)),
    Wanted("rates", "last_n", WINDOW, "x", "float64", parameters=Parameters(n=3)),
    Wanted("gifts", "last_n", WINDOW, "gift", "bool", parameters=Parameters(n=3)),
    Wanted("shops", "top_k", WINDOW, "shop", "string", parameters=Parameters(n=3)),
    Wanted("prices", "last_n", WINDOW, "price", "decimal(38,2)", parameters=Parameters(n=3)),
    Wanted("times", "last_n", WINDOW, "paid_at", "timestamp", parameters=Parameters(n=3)),
    Wanted("n_by_shop", "count", WINDOW, by="shop", parameters=Parameters(keys=16)),
    Wanted("rate_by_shop", "mean", WINDOW, "x", by="shop", parameters=Parameters(keys=16)),
    Wanted("spend_by_shop", "sum", WINDOW, "price", "decimal(38,2)", by="shop", parameters=Parameters(keys=2)),
    derived=(
        WantedOfOthers("share", "rate / n", default=-0.5),
        WantedOfOthers("is_new", "n < 3", "bool"),
    ),
    name="orders",
)
NAMES = [output.name for output in ORDERS.outputs]


def pairs(*members: tuple[str, Any]) -> list[dict[str, Any]]:
    """A map as columns have it."""
    return [{"key": key, "value": value} for key, value in members]


FULL: dict[str, Any] = {
    "n": -(2**63),
    "spend": Decimal("-12.30"),
    "rate": 1e300,
    "gift": False,
    "shop": AWKWARD,
    "dearest": Decimal(2**63 - 1).scaleb(-2),
    "since": SEEN,
    "counts": [2**63 - 1, 0, -1],
    "rates": [0.1, 1e16, -5e-324],
    "gifts": [True, False],
    "shops": ["", AWKWARD],
    "prices": [Decimal("0.05"), Decimal("-0.05")],
    "times": [SEEN, dt.datetime(1960, 1, 1, tzinfo=dt.UTC)],
    "n_by_shop": pairs(("b", 2), ("a", 1), ("", 1), (AWKWARD, 1)),
    "rate_by_shop": pairs(("b", 0.30000000000000004), ("a", -1e-7)),
    "spend_by_shop": pairs(("b", Decimal("1.20")), ("a", Decimal("0.00")), ("other", Decimal("3.00"))),
    "share": 0.1,
    "is_new": True,
}
_QUOTED = r'"a\r\n$3\r\n\u0000\"\\/é' + "\u2028😀" + '"'
TEXTS: dict[str, str] = {
    "n": "-9223372036854775808",
    "spend": "-12.30",
    "rate": "1e+300",
    "gift": "0",
    "shop": AWKWARD,
    "dearest": "92233720368547758.07",
    "since": "1500000000000001",
    "counts": "[9223372036854775807,0,-1]",
    "rates": "[0.1,1e+16,-5e-324]",
    "gifts": "[true,false]",
    "shops": f'["",{_QUOTED}]',
    "prices": '["0.05","-0.05"]',
    "times": "[1500000000000001,-315619200000000]",
    "n_by_shop": f'{{"b":2,"a":1,"":1,{_QUOTED}:1}}',
    "rate_by_shop": '{"b":0.30000000000000004,"a":-1e-7}',
    "spend_by_shop": '{"b":"1.20","a":"0.00","other":"3.00"}',
    "share": "0.1",
    "is_new": "1",
}
# Of an entity with nothing in any window, as stored.
EMPTY: dict[str, Any] = {**dict.fromkeys(NAMES), "n": 0, "spend": Decimal("0.00"), "is_new": True}
# The same as it is read.
DEFAULTS: dict[str, Any] = {
    **EMPTY,
    "shop": "none",
    "dearest": Decimal("-1.00"),
    "since": dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
    "share": -0.5,
}
