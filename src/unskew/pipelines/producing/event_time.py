"""The event time of a row: the instant that its value means, and the value that means an instant."""

import datetime as dt
from decimal import ROUND_FLOOR, Decimal
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from unskew.features.plan import ReadAs
from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, SECOND_US, format_instant, instant_us, moment_of
from unskew.pipelines.producing import scalars
from unskew.pipelines.producing.scalars import Unfit, not_a

_PER_SECOND = {"s": 1, "millis": 1_000, "micros": 1_000_000, "nanos": 1_000_000_000}


class EventTime:
    """The form that event times have in rows.

    ``logical``: the logical type of the field, or the format of a JSON Schema's. ``form``: how the definition reads the
    field, where it says so. ``as_number``: a time is a number in the message, and its field does not say so.
    """

    def __init__(self, logical: str, form: ReadAs | None, *, text: bool, as_number: bool) -> None:
        self._form = form
        self._text = text
        self._as_number = as_number
        self._per_second = _PER_SECOND.get(logical.rpartition("-")[2], 0) if form is None else form.per_second
        self._zone = None if form is None or form.zone is None else ZoneInfo(form.zone)

    def us(self, value: Any) -> int:
        """Return the microseconds that a value means. Raises ``Unfit`` if it means no instant that a clock reaches."""
        found = self._us(value)
        if not MIN_INSTANT_US <= found < MAX_INSTANT_US:
            raise Unfit(f"the event time {scalars.written(value)} is outside the years 1900 to 2200")
        return found

    def value(self, us: int) -> Any:
        """Return the value that means an instant, for a row; what lies below the field's unit is cut off."""
        if self._form is None:
            return us * self._per_second // SECOND_US if self._as_number else moment_of(us)
        if not self._form.per_second:
            return format_instant(us)
        if self._form.raw.is_integer():
            return us * self._per_second // SECOND_US
        exact = Decimal(us) * self._per_second / SECOND_US
        return f"{exact:f}" if self._form.raw == pl.String() else exact

    def is_other(self, value: Any) -> bool:
        """Return whether a row's value is not what the message holds, so that ``value`` must replace it."""
        return self._as_number if self._form is None else isinstance(value, dt.datetime)

    def _us(self, value: Any) -> int:
        is_digits = isinstance(value, str) and value.removeprefix("-").isdecimal()
        if self._per_second and not isinstance(value, dt.datetime):
            texts = self._form is not None or (self._text and is_digits)
            if not isinstance(value, str) or texts:
                number = scalars.number(value, "an event time", text=texts)
                if self._form is None and number != int(number):
                    raise not_a(value, "an event time")
                whole = Decimal(number) * SECOND_US / self._per_second
                return int(whole.to_integral_value(ROUND_FLOOR))
        if self._zone is None:
            return scalars.us_of(value, "an event time")
        try:
            found = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(value)
        except (TypeError, ValueError) as error:
            raise not_a(value, "an event time") from error
        return instant_us(found if found.tzinfo is not None else found.replace(tzinfo=self._zone))
