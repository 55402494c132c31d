"""What a request asks for, with its on-demand features, and the one evaluation of these, in serving and in training.

Inputs come from columns of the request, or of the labels; in both they are read by ``input_column``. Features of views
are those that a reader gets, with defaults. An expression is checked here again, whoever published it.
"""

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, DecimalException
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from unskew.features.definitions.on_demand import computed
from unskew.features.errors import DefinitionError, LayoutError, RequestError, UnknownName
from unskew.features.frames import LARGEST_EXACT_FLOAT, Given
from unskew.features.nearest import nearest, perhaps
from unskew.features.on_demand import NOW, OnDemandView, is_reference
from unskew.features.references import Asked, Demanded, demanded, is_service, resolve, sharing, texts
from unskew.features.registry import Published
from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, instant_us
from unskew.features.types import TIMESTAMP, Type
from unskew.features.versions import Versions
from unskew.features.view import View, ViewFeature

_INT64 = 2**63
_FIRST_US = instant_us(dt.datetime.min.replace(tzinfo=dt.UTC))
_LAST_US = instant_us(dt.datetime.max.replace(tzinfo=dt.UTC))
_HEIGHT = "="
_FAILURES = (PolarsError, PanicException)


class OnRequest:
    """The on-demand features of a request, ready to be evaluated.

    ``demanded``: the features. ``reads``: the features of views that they read; the column of each is its reference.
    ``inputs``: the columns of the request that they read, and their types. Raises ``LayoutError`` for a text that this
    version refuses, or that gives another type with these views; ``RequestError`` for inputs that differ.
    """

    def __init__(self, demanded: Sequence[Demanded], views: Versions[View]) -> None:
        self.demanded: list[Demanded] = []
        self.inputs: dict[str, Type] = {}
        self._of: dict[str, str] = {}
        self._select: list[pl.Expr] = []
        read: dict[str, Asked] = {}
        for one in demanded:
            own = {name: Type.parse(text) for name, text in one.view.inputs.items()}
            try:
                found = computed(one.feature.value, own, views)
            except DefinitionError as error:
                raise LayoutError(
                    f"{one.reference} cannot be computed: {error}; correct the definition of {one.view.name}, or the views that it reads, "
                    "and publish it again"
                ) from error
            if str(found.dtype) != one.feature.type:
                raise LayoutError(
                    f"{one.reference} was published as {one.feature.type}, and gives {found.dtype} with the views of now; publish it again"
                )
            self._select.append(found.expr.alias(one.column))
            for name in found.reads:
                if name in own:
                    self._add_input(name, own[name], one.view.name)
                if is_reference(name) and name not in read:
                    (asked,) = resolve([name], views, full_feature_names=True)
                    read[name] = replace(asked, column=name)
            self.demanded.append(replace(one, reads=[read[name] for name in found.reads if is_reference(name)]))
        self.reads = list(read.values())

    def _add_input(self, name: str, dtype: Type, of: str) -> None:
        if self.inputs.setdefault(name, dtype) != dtype:
            raise RequestError(
                f"{self._of[name]} takes the input {name!r} as {self.inputs[name]}, and {of} as {dtype}; ask for them apart"
            )
        self._of.setdefault(name, of)

    @cached_property
    def dtypes(self) -> list[Type]:
        """The types of the on-demand features."""
        return [one.feature.dtype for one in self.demanded]

    def input_columns(self, rows: Given) -> dict[str, pl.Series]:
        """Return the inputs in their types, converted only if nothing is lost; null for what is not finite.

        Raises ``RequestError`` for one that is missing or does not fit.
        """
        return {name: input_column(self._given(name, rows), dtype) for name, dtype in self.inputs.items()}

    def input_values(self, rows: Given) -> dict[str, list[Any]]:
        """Return the inputs as ``input_columns`` does, as lists that ``sinks.redis.texts.column_of`` takes."""
        found: dict[str, list[Any]] = {}
        for name, dtype in self.inputs.items():
            plain = None
            if rows.of_objects and name in rows.names:
                plain = _plain(rows.values(name), dtype)
            if plain is None:
                column = input_column(self._given(name, rows), dtype)
                plain = (column.to_physical() if dtype.scalar == "timestamp" else column).to_list()
            found[name] = plain
        return found

    def _given(self, name: str, rows: Given) -> pl.Series:
        if name not in rows.names:
            raise RequestError(
                f"{self._of[name]} takes the input {name!r} ({self.inputs[name]}), which is not among the given columns; "
                f"{perhaps(name, rows.names)}"
            )
        return rows.column(name)

    def __call__(self, columns: Mapping[str, pl.Series]) -> list[pl.Series]:
        """Return each on-demand feature of rows, which do not depend on one another.

        ``columns``: the inputs, the features of views by their references, and ``now``. What is not finite is null, and
        then the default stands for null. Raises ``RequestError`` for a row on which an expression fails.
        """
        frame = pl.DataFrame([column.alias(name) for name, column in columns.items()])
        try:
            # Beside a column, a result that is the same for every row has as many rows as it.
            # One after the other: sharing a few rows among threads takes longer than computing them.
            found = frame.select_seq(*self._select, pl.col(NOW).alias(_HEIGHT))
        except _FAILURES as error:
            raise RequestError(f"{self._failed(frame)}: {str(error).partition(chr(10))[0][:300]}") from error

        return [_settled(found[one.column], one.feature) for one in self.demanded]

    def _failed(self, frame: pl.DataFrame) -> str:
        for one, expr in zip(self.demanded, self._select, strict=True):
            for row in range(frame.height):
                try:
                    frame[row : row + 1].select(expr)
                except _FAILURES:
                    return f"{one.reference} cannot be computed for row {row}"
        return "the on-demand features cannot be computed"


@dataclass(frozen=True)
class Wanted:
    """What a request asks for: features of views and on-demand features, in the order of their columns.

    ``on_request``: the on-demand features among them; None if there are none.
    """

    asked: Sequence[Asked | Demanded]
    on_request: OnRequest | None

    @property
    def of_views(self) -> list[Asked]:
        """The features of views that must be read: those asked for, then those that on-demand features read."""
        asked = [one for one in self.asked if isinstance(one, Asked)]
        return asked if self.on_request is None else [*asked, *self.on_request.reads]


def wanted(features: Sequence[str] | str, published: Published, *, full_feature_names: bool = False) -> Wanted:
    """Look up references to features of views and to on-demand features, or those of the service of that name.

    Raises ``RequestError`` as ``references.resolve`` does, and what ``OnRequest`` raises.
    """
    views = published.views
    if is_service(features):
        service = published.service(features)
        views, features = published.views_of(service), service.references
    return of_references(features, replace(published, views=views), full_feature_names=full_feature_names)


def of_references(references: Sequence[str], published: Published, *, full_feature_names: bool = False) -> Wanted:
    """Look up references to features of views and to on-demand features; a repeated one counts once."""
    named = texts(references)
    on_demand = {one.reference: one for one in _demanded(named, published, full_feature_names=full_feature_names)}
    others = [reference for reference in named if reference not in on_demand]
    try:
        asked = resolve(others, published.views, full_feature_names=full_feature_names) if others or not named else []
    except UnknownName as error:
        if error.kind != "view":
            raise
        raise UnknownName("view", _unknown(others, published)) from error
    if not on_demand:
        return Wanted(asked, None)
    on_request = OnRequest(list(on_demand.values()), published.views)
    by_reference: dict[str, Asked | Demanded] = {one.reference: one for one in asked}
    by_reference |= {one.reference: one for one in on_request.demanded}
    in_order = [by_reference[reference] for reference in named]
    seen: dict[str, str] = {}
    for one in in_order:
        if (other := seen.setdefault(one.column, one.reference)) != one.reference:
            raise sharing(one.column, f"{other} and {one.reference}")
    return Wanted(in_order, on_request)


def with_read(references: Iterable[str], on_demand: Mapping[str, OnDemandView]) -> list[str]:
    """Return the references to views: those among ``references``, and those that on-demand ones among them read.

    A name without a feature means all of its features.
    """
    found: dict[str, None] = {}
    for reference in references:
        name, _, feature = str(reference).partition(":")
        one = on_demand.get(name.partition("@")[0])
        if one is None:
            found[reference] = None
        else:
            read = one.references if not feature else getattr(one.feature(feature), "inputs", ())
            found |= dict.fromkeys(name for name in read if is_reference(name))
    return list(found)


def _demanded(references: Sequence[str], published: Published, *, full_feature_names: bool) -> Iterable[Demanded]:
    for reference in references:
        one = demanded(reference, published.on_demand)
        if one is not None:
            yield one if full_feature_names else replace(one, column=one.feature.name)


def _unknown(references: Sequence[str], published: Published) -> str:
    """Return the message about the first reference whose view there is not."""
    known = [*published.views.names, *published.on_demand]
    names = [reference.partition(":")[0].partition("@")[0] for reference in references]
    name = next(name for name in names if name not in known)
    return f"there is no view {name!r}; {nearest(name, known, 'views are')}"


def _settled(column: pl.Series, feature: ViewFeature) -> pl.Series:
    """Return a column with null in place of what is not finite or has no year, 0.0 of -0.0, the default of null."""
    if column.dtype == pl.Float64():
        # In numpy, because further expressions cost more than this one.
        values = column.to_numpy() + 0.0
        values[~np.isfinite(values)] = np.nan if feature.default is None else feature.default
        return pl.Series(column.name, values, nan_to_null=True)
    if column.dtype == TIMESTAMP and not (dated := _are_dated(column)).all():
        # Neither JSON nor Python can name the others.
        column = column.to_frame().select(pl.when(pl.lit(dated)).then(pl.col(column.name))).to_series()
    if feature.default is not None and column.null_count():
        return column.fill_null(pl.lit(feature.default, column.dtype))
    return column


def requested_instant(now: dt.datetime | str) -> int:
    """Return the microseconds of the instant of a request: a datetime, or text as RFC 3339 has it; UTC if it says none.

    Raises ``RequestError``.
    """
    try:
        found = instant_us(now)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise RequestError(
            f"now: {now!r:.80} is not an instant; write it as in 2026-03-01T12:00:00Z, or give a datetime"
        ) from error
    if not MIN_INSTANT_US <= found <= MAX_INSTANT_US:
        raise RequestError(f"now: {now} is not between the years 1900 and 2200; correct it")
    return found


def input_column(column: pl.Series, dtype: Type) -> pl.Series:
    """Return a column in the type of an input; it is converted only if nothing is lost.

    Nulls stay, and a float that is not finite becomes one. A whole number may be given as a float and the other way
    round, an instant as ISO 8601 text, a decimal as text or as a whole number. Raises ``RequestError`` for a value that
    does not convert.
    """
    if column.dtype.is_float():
        column = pl.select(pl.when(column.is_finite()).then(column)).to_series().alias(column.name)
    if column.null_count() == len(column):
        return pl.Series(column.name, [None] * len(column), dtype.polars)
    if column.dtype == dtype.polars and dtype.scalar != "timestamp":
        return column
    try:
        converted, unlike = _converted(column, dtype)
    except (PolarsError, PanicException):
        converted, unlike = column, column.is_not_null()
    if unlike.any():
        row = int(unlike.arg_max() or 0)
        # Python has no instants beyond the year 9999.
        given = column.to_physical() if isinstance(column.dtype, pl.Datetime) else column
        raise RequestError(
            f"the input {column.name!r} is {dtype}, and {given.slice(row, 1).to_list()[0]!r:.80} of row {row} ({column.dtype}) cannot be "
            f"converted to that without loss; give {_REMEDIES.get(dtype.scalar, f'values of type {dtype}')}"
        )
    return converted


_REMEDIES = {
    "timestamp": "instants, in JSON as text in RFC 3339: 2026-03-01T12:00:00Z",
    "decimal": "decimals or their texts, with no more digits after the point",
}


def _converted(column: pl.Series, dtype: Type) -> tuple[pl.Series, pl.Series]:
    """Return a column in another type, and which of its values are other ones there."""
    given, wanted = column.dtype, dtype.polars
    every = column.is_not_null()
    if dtype.scalar in {"float64", "int64"} and given.is_numeric() and not given.is_decimal():
        converted = column.cast(wanted, strict=False)
        back = converted.cast(given, strict=False).eq_missing(column)
        if given.is_float() is not (dtype.scalar == "float64"):
            # Beyond this, several whole numbers are the same float.
            floats = column if given.is_float() else converted
            back &= (floats.abs() <= LARGEST_EXACT_FLOAT).fill_null(value=True)
        return converted, every & ~back
    if dtype.scalar == "string" and isinstance(given, pl.Categorical | pl.Enum):
        return column.cast(wanted), ~every & every
    if dtype.scalar == "timestamp" and isinstance(given, pl.Datetime):
        in_utc = column.dt.replace_time_zone("UTC") if given.time_zone is None else column.dt.convert_time_zone("UTC")
        converted = in_utc.dt.cast_time_unit("us")
        return converted, every & ~_are_dated(converted)
    if dtype.scalar == "timestamp" and given == pl.String():
        instants = pl.Series(column.name, [_instant(text) for text in column.to_list()], pl.Int64).cast(TIMESTAMP)
        return instants, every & instants.is_null()
    if dtype.is_decimal and (given == pl.String() or given.is_decimal() or given.is_integer()):
        exact = pl.Series(column.name, [_decimal(value, dtype.scale) for value in column.to_list()], wanted)
        return exact, every & exact.is_null()
    return column, every


def _are_dated(instants: pl.Series) -> pl.Series:
    """Return which instants lie in the years 1 to 9999, which texts can name."""
    return instants.cast(pl.Int64).is_between(_FIRST_US, _LAST_US).fill_null(value=False)


def _instant(text: str | None) -> int | None:
    try:
        return None if text is None else instant_us(text)
    except (ValueError, OverflowError):
        return None


def _decimal(value: object, scale: int) -> Decimal | None:
    """Return a number with so many digits after the point; None if it has others, or is beyond 2^63 - 1 units."""
    try:
        found = None if value is None else Decimal(value)  # type: ignore[arg-type]
        if found is None or not found.is_finite() or abs(found.scaleb(scale)) >= _INT64:
            return None
        exact = round(found, scale)
    except (ValueError, TypeError, DecimalException):
        return None
    return exact if exact == found else None


_EXACT_KINDS: Mapping[str, type] = {"float64": float, "int64": int, "bool": bool, "string": str}


def _plain(values: Sequence[Any], dtype: Type) -> list[Any] | None:
    """Return objects that certainly fit the type of an input, as a list; None if ``input_column`` must look at them."""
    kind = _EXACT_KINDS.get(dtype.scalar)
    if kind is float:
        if all(value is None or type(value) is float or _is_exact(value) for value in values):
            return [None if value is None or not math.isfinite(value) else float(value) for value in values]
        return None
    if kind is None or not all(value is None or type(value) is kind for value in values):
        return None
    if kind is int and not all(value is None or -_INT64 <= value < _INT64 for value in values):
        return None
    if kind is str and not all(value is None or value.isascii() or _is_text(value) for value in values):
        return None
    return list(values)


def _is_exact(value: object) -> bool:
    return type(value) is int and -LARGEST_EXACT_FLOAT <= value <= LARGEST_EXACT_FLOAT


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
