"""Evaluation of a view's filters and values over a batch of decoded events: once per batch, the same everywhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from unskew.features.keys import encode_keys
from unskew.features.plan import ValuePlan, ViewPlan
from unskew.features.selecting import filtered, framed, select
from unskew.features.types import Type

# Exact sums hold |x| < 2**62 (see the kernel's arithmetic).
FLOAT_LIMIT = 2.0**62
# A decimal has no more units below zero than above.
_LEAST = -(2**63)
_MINUS_ZERO = -(2**63)
"""The bits of the float."""

PARTITION, OFFSET, ARRIVAL, EVENT_TIME = "_partition", "_offset", "_arrival", "_event_time"
_BAD = "_bad"
_INEXACT = "has a whole number beyond 64 bits"
_WIDE: Mapping[pl.DataType, pl.DataType] = {
    **dict.fromkeys([pl.Int8(), pl.Int16(), pl.Int32(), pl.UInt8(), pl.UInt16(), pl.UInt32()], pl.Int64()),
    pl.Float32(): pl.Float64(),
}
_FAILURES = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


@dataclass(frozen=True)
class Evaluated:
    """A view's events from one batch, in its order.

    ``events``: ``key`` String; ``effective``, ``arrival``, ``event_time`` Int64 microseconds; ``partition`` Int32,
    ``offset`` Int64; ``event_id`` String, if the stream drops repeats; ``f0…`` Boolean, one per filter; ``v0…``
    Float64, String, or Int64, one per value (booleans as 0 and 1, timestamps as microseconds, decimals in units of
    their last digit). ``rejected``: ``_partition``, ``_offset``, ``kind``, ``reason`` of events that the view cannot
    take; they change nothing.
    """

    events: pl.DataFrame
    rejected: pl.DataFrame


class Evaluator:
    """A view's filters and values as expressions, built once and run over every batch.

    For a view over sessions, they are those of the inner view, which keeps the sessions. Whole numbers are int64 and
    floats float64 before an expression sees them, whatever the stream's schema says. An event on which an expression
    has no exact result is rejected.
    """

    def __init__(self, view: ViewPlan) -> None:
        view = view.sessions or view
        self._view = view
        expressions = [each.expr for each in view.filters] + [each.expr for each in view.values]
        expressions += [] if view.where is None else [view.where.expr]
        self._read = sorted({name for expr in expressions for name in expr.meta.root_names()})
        self._where = None if view.where is None else _true(view.where.expr)
        self._tests: list[tuple[pl.Expr, str]] = []
        if self._where is not None and view.where is not None and view.where.fails is not None:
            self._where |= view.where.fails
            self._tests.append((view.where.fails, f"{view.name}: where {_INEXACT}"))
        self._columns: dict[str, pl.Expr] = {}
        self._event_id = None if view.stream.dedupe_within_us is None else str(view.stream.event_id)
        if self._event_id is not None:
            self._columns["event_id"] = pl.col(self._event_id).cast(pl.String)
        filters = [_true(filter_.expr.cast(pl.Boolean)) for filter_ in view.filters]
        values = [_number(value) for value in view.values]
        self._columns |= {f"f{index}": filter_ for index, filter_ in enumerate(filters)}
        self._columns |= {f"v{index}": value for index, value in enumerate(values)}
        # Values that are what one column has, by name, with that column's name.
        columns = {f"v{index}": _column_of(value) for index, value in enumerate(view.values)}
        self._as_they_are = {
            f"v{index}": (column, value.dtype)
            for index, value in enumerate(view.values)
            if (column := columns[f"v{index}"]) is not None and not value.dtype.is_decimal
        }
        # The columns of float64 values, and of decimals of one column, whose tests mostly need not be run. The other
        # tests always are.
        self._floats: list[str] = []
        self._decimals: dict[str, str] = {}
        always = [test for test, _ in self._tests]
        for feature in view.features:
            place = f"{view.name}.{feature.name}"
            if feature.filter >= 0 and (fails := view.filters[feature.filter].fails) is not None:
                self._tests.append((fails, f"{place}: its filter {_INEXACT}"))
                always.append(fails)
            for word, at in (("value", feature.value), ("by", feature.by)):
                if at >= 0 and (fails := view.values[at].fails) is not None:
                    passes = fails & filters[feature.filter] if feature.filter >= 0 else fails
                    self._tests.append((passes, f"{place}: its {word} {_INEXACT}"))
                    always.append(passes)
            if feature.value < 0:
                continue
            value = view.values[feature.value]
            number, name = values[feature.value], f"v{feature.value}"
            if value.dtype.scalar == "float64":
                bad = number.is_nan() | (number.abs() >= FLOAT_LIMIT)
                reason = f"{place}: value is NaN, infinite or beyond 2^62"
                self._floats.append(name)
            elif value.dtype.is_decimal:
                bad = number.is_null() & value.expr.is_not_null()
                reason = f"{place}: value is beyond 2^63 - 1 units of its last digit"
                if (column := columns[name]) is not None:
                    self._decimals[name] = column
            else:
                continue
            if feature.filter >= 0:
                bad &= filters[feature.filter]
            bad = _true(bad)
            self._tests.append((bad, reason))
            if value.dtype.scalar != "float64" and name not in self._decimals:
                always.append(bad)
        self._floats = list(dict.fromkeys(self._floats))
        # Features of one value have equal tests, and Polars would run each of them.
        self._bad = None if not self._tests else pl.any_horizontal(_distinct(test for test, _ in self._tests))
        self._tests_always = bool(always)
        if always:
            self._columns[_BAD] = pl.any_horizontal(_distinct(always))

    def text(self) -> tuple[object, ...]:
        """Return all that the evaluated events depend on; evaluators with equal texts give equal ``events``.

        What ``rejected`` says names the view, and so differs.
        """
        entity = self._view.entity
        conditions = [] if self._where is None else [self._where]
        exprs = [*conditions, *self._columns.values(), *(test for test, _ in self._tests)]
        serialized = tuple(expr.meta.serialize() for expr in exprs)
        return tuple(entity.keys), tuple(entity.types), len(conditions), tuple(self._columns), serialized

    def __call__(self, decoded: pl.DataFrame) -> Evaluated:
        """Filter and evaluate decoded events; those for which an expression fails are rejected."""
        narrow = [column for column in map(decoded.get_column, self._read) if column.dtype in _WIDE]
        if narrow:
            wide = {column.name: column.cast(_WIDE[column.dtype]) for column in narrow}
            decoded = framed([wide.get(column.name, column) for column in decoded.get_columns()])
        return self._in_halves(decoded)

    def _in_halves(self, decoded: pl.DataFrame) -> Evaluated:
        try:
            return self._evaluated(decoded)
        except _FAILURES as error:
            # Compiling a view tries every expression on the known difficult values. An event with an unknown one must
            # not take its neighbours with it.
            if decoded.height > 1:
                half = decoded.height // 2
                found = [self._in_halves(decoded[:half]), self._in_halves(decoded[half:])]
                return Evaluated(pl.concat(each.events for each in found), pl.concat(each.rejected for each in found))
            reason = f"{self._view.name}: an expression fails on it: {str(error).partition(chr(10))[0]}"
            rejected = decoded.select(
                PARTITION, OFFSET, pl.lit("expression").alias("kind"), pl.lit(reason).alias("reason")
            )
            return Evaluated(self._evaluated(decoded.clear()).events, rejected)

    def _evaluated(self, decoded: pl.DataFrame) -> Evaluated:
        if self._where is not None:
            chosen = select(decoded, self._where).to_series()
            decoded = decoded if chosen.all() else filtered(decoded, chosen)
        keys = encode_keys(decoded, self._view.entity)
        events = self._selected(decoded, keys)
        bad = events.drop_in_place(_BAD) if self._tests_always else None
        if self._bad is not None and not self._fit(decoded, events):
            bad = select(decoded, self._bad.alias(_BAD)).to_series()
        if not keys.null_count() and (bad is None or not bad.any()):
            return Evaluated(events, NOTHING_REJECTED)
        flags = keys.is_null() if bad is None else keys.is_null() | bad
        return Evaluated(events.filter(~flags), self._rejected(decoded, keys).filter(flags))

    def _fit(self, decoded: pl.DataFrame, events: pl.DataFrame) -> bool:
        """Return whether no test of a number can fail that is not always run, whatever its filter."""
        return all(_fits(events.get_column(name)) for name in self._floats) and all(
            events.get_column(name).null_count() == decoded.get_column(column).null_count()
            for name, column in self._decimals.items()
        )

    def _selected(self, decoded: pl.DataFrame, keys: pl.Series) -> pl.DataFrame:
        """Return the keys, where and when events came, and what ``self._columns`` give.

        A query takes as long for a few rows as for hundreds, so it is asked only for what is not a column as it is.
        """
        # A cast, because ``Series.to_physical`` runs a query.
        arrival, event_time = (decoded.get_column(name).cast(pl.Int64) for name in (ARRIVAL, EVENT_TIME))
        found = {
            name: values
            for name, (column, dtype) in self._as_they_are.items()
            if (values := _as_it_is(decoded.get_column(column), dtype)) is not None
        }
        if self._event_id is not None:
            found["event_id"] = decoded.get_column(self._event_id).cast(pl.String)
        if asked := [expr.alias(name) for name, expr in self._columns.items() if name not in found]:
            # With a column, so that one value for all events is given for each of them.
            computed = select(decoded, [*asked, pl.col(OFFSET)])
            found |= {column.name: column for column in computed.get_columns()}
        return framed(
            [
                keys,
                pl.Series("effective", np.minimum(arrival.to_numpy(), event_time.to_numpy())),
                arrival.alias("arrival"),
                event_time.alias("event_time"),
                decoded.get_column(PARTITION).alias("partition"),
                decoded.get_column(OFFSET).alias("offset"),
                *(found[name].alias(name) for name in self._columns),
            ]
        )

    def _rejected(self, decoded: pl.DataFrame, keys: pl.Series) -> pl.DataFrame:
        """Return where each event came from and the first reason against it; null if there is none."""
        no_key = f"{self._view.name}: key {', '.join(self._view.entity.keys)} is null"
        tests = [(pl.lit(keys.is_null()), no_key), *self._tests]
        reasons = [pl.when(test).then(pl.lit(text)) for test, text in tests]
        kind = pl.when(pl.lit(keys.is_null())).then(pl.lit("key")).otherwise(pl.lit("number"))
        return decoded.select(PARTITION, OFFSET, kind.alias("kind"), pl.coalesce(reasons).alias("reason"))


def _distinct(tests: Iterable[pl.Expr]) -> list[pl.Expr]:
    return list({test.meta.serialize(): test for test in tests}.values())


def _fits(numbers: pl.Series) -> bool:
    """Return true if no number is NaN, infinite or too large, so that no test of it can fail, whatever its filter."""
    # A null is NaN there.
    return int((np.abs(numbers.to_numpy()) < FLOAT_LIMIT).sum()) == len(numbers) - numbers.null_count()


def evaluate(view: ViewPlan, decoded: pl.DataFrame) -> Evaluated:
    """Filter and evaluate one batch for a view."""
    return Evaluator(view)(decoded)


def _true(test: pl.Expr) -> pl.Expr:
    """Return the test with false where it was null. ``fill_null`` would wake Polars' threads, however few the rows."""
    return test.eq_missing(pl.lit(value=True))


def _column_of(value: ValuePlan) -> str | None:
    """Return the column of which a value is what is there, if it has the value's type; None if it is computed."""
    names = value.expr.meta.root_names()
    if len(names) != 1:
        return None
    column = pl.col(names[0])
    return names[0] if value.expr.meta.eq(column) or value.expr.meta.eq(column.cast(value.dtype.polars)) else None


def _as_it_is(column: pl.Series, dtype: Type) -> pl.Series | None:
    """Return what ``_number`` makes of a column of this type; None if only the expression does."""
    if column.dtype != dtype.polars:
        return None
    match dtype.scalar:
        case "float64":
            return None if (column.to_numpy().view(np.int64) == _MINUS_ZERO).any() else column
        case "bool" | "timestamp":
            return column.cast(pl.Int64)
    return column


def _number(value: ValuePlan) -> pl.Expr:
    match value.dtype.scalar:
        case "string":
            return value.expr
        case "timestamp":
            return value.expr.to_physical()
        case "decimal":
            # A value that does not fit becomes null, which is later distinguished from a value that was null before.
            units = value.expr.to_physical().cast(pl.Int64, strict=False)
            return pl.when(units != _LEAST).then(units)
        case "int64" | "bool":
            return value.expr.cast(pl.Int64)
        case "float64":
            number = value.expr.cast(pl.Float64)
            # -0.0 becomes 0.0. Adding 0.0 does not work: Polars considers it a no-op and removes it.
            return pl.when(number == 0.0).then(0.0).otherwise(number)


NOTHING_REJECTED = pl.DataFrame(schema={PARTITION: pl.Int32, OFFSET: pl.Int64, "kind": pl.String, "reason": pl.String})
