"""The published registry: what a reader that has nothing but Redis must know about the views.

``describe`` returns it as data that can be written as JSON, and ``parse`` reads it back. A field that a newer version
adds is ignored. In JSON, an empty value or default that is a decimal is text; one that is a timestamp is a number of
microseconds.
"""

import datetime as dt
import json
from collections.abc import Callable, Container, Sequence
from decimal import Decimal, DecimalException
from typing import Any

import msgspec

from unskew.features.errors import DefinitionError, LayoutError
from unskew.features.plan import Plan
from unskew.features.time import instant_us, moment_of
from unskew.features.types import Type
from unskew.features.view import Scalar, View, ViewFeature

FORMAT = 1


class _Registry(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    views: tuple[View, ...]


def describe(plan: Plan) -> dict[str, Any]:
    """Return the registry of all views as data that ``json.dumps`` takes: ``{"format": 1, "views": [...]}``."""
    registry = _Registry(format=FORMAT, views=tuple(map(_written, plan.published.values())))
    described: dict[str, Any] = msgspec.to_builtins(registry)
    return described


def merge(stored: str | bytes | None, text: str) -> str:
    """Return the stored registry with the views of ``text``, which replace those of the same names; both are JSON.

    A stored registry that cannot be read, or has another format, is replaced as a whole. Views that stay keep fields
    that this version does not know.
    """
    new = json.loads(text)
    try:
        old = {} if stored is None else json.loads(stored)
        if old.get("format") != new.get("format"):
            return text
        views = {view["name"]: view for view in old["views"]}
    except (ValueError, TypeError, AttributeError, KeyError):
        return text
    views.update((view["name"], view) for view in new["views"])
    return json.dumps({**new, "views": [views[name] for name in sorted(views)]})


def without(stored: str | bytes | None, view_ids: Container[str]) -> str | None:
    """Return the stored registry without these view versions; None if it has none of them, or cannot be read."""
    try:
        registry = {} if stored is None else json.loads(stored)
        kept = [view for view in registry["views"] if f"{view['name']}@{view['version']}" not in view_ids]
        n_views = len(registry["views"])
    except (ValueError, TypeError, KeyError):
        return None
    return None if len(kept) == n_views else json.dumps({**registry, "views": kept})


def parse(published: str | bytes | dict[str, Any]) -> dict[str, View]:
    """Read a registry from JSON text or data: view name -> view.

    Raises ``LayoutError`` if this version cannot read it.
    """
    try:
        if isinstance(published, dict):
            registry = msgspec.convert(published, _Registry)
        else:
            registry = msgspec.json.decode(published, type=_Registry)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LayoutError(
            f"the published registry cannot be read: {error}; publish it again with unskew run"
        ) from error
    if registry.format != FORMAT:
        raise LayoutError(
            f"the published registry has format {registry.format}, but this version reads {FORMAT}; "
            "use the version of unskew that published it, or publish it again with unskew run"
        )
    return {view.name: _typed(view) for view in registry.views}


def _written(view: View) -> View:
    """Return the view with its scalars as JSON values."""

    def written(value: Scalar | None, _type: str) -> Scalar | None:
        match value:
            case dt.datetime():
                return instant_us(value)
            case Decimal():
                return format(value, "f")
            case _:
                return value

    return _with_scalars(view, written)


def _typed(view: View) -> View:
    """Return a view that ``_written`` wrote with its scalars in their own types."""

    def typed(value: Any, name: str) -> Any:
        try:
            dtype = Type.parse(name)
        except DefinitionError as error:
            raise LayoutError(
                f"the published registry has a feature of type {name!r} in {view.id}, which this version does not know; "
                "use the version of unskew that published it"
            ) from error
        if value is None or dtype.nesting:
            return value
        try:
            match dtype.scalar:
                case "float64":
                    # JSON has one kind of number: another writer may write 0 for 0.0.
                    return float(value)
                case "timestamp":
                    return moment_of(value)
                case "decimal":
                    return Decimal(value)
                case "int64" | "bool" | "string":
                    return value
        except (ValueError, TypeError, OverflowError, DecimalException) as error:
            raise LayoutError(
                f"the published registry cannot be read: {value!r} in {view.id} is not of type {dtype}; "
                "publish it again with unskew run"
            ) from error

    return _with_scalars(view, typed)


def _with_scalars(view: View, change: Callable[[Any, str], Any]) -> View:
    def changed(features: Sequence[ViewFeature]) -> tuple[ViewFeature, ...]:
        return tuple(
            msgspec.structs.replace(f, empty=change(f.empty, f.type), default=change(f.default, f.type))
            for f in features
        )

    sessions = view.sessions
    if sessions is not None:
        sessions = msgspec.structs.replace(sessions, columns=changed(sessions.columns))
    return msgspec.structs.replace(view, features=changed(view.features), sessions=sessions)
