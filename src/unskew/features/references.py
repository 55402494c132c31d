"""Lookup of what a request names; an error about an unknown name suggests the nearest known one."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import polars as pl

from unskew.features.errors import DefinitionError, RequestError, UnknownName
from unskew.features.frames import Given, key_column
from unskew.features.nearest import nearest, perhaps
from unskew.features.on_demand import OnDemandView
from unskew.features.registry import pin
from unskew.features.service import ServiceFeature
from unskew.features.time import duration_us
from unskew.features.versions import Versions
from unskew.features.view import View, ViewFeature

# Short enough for sums of instants.
_LONGEST_US = 2**60


@dataclass(frozen=True)
class Asked:
    """One feature of a request, and the column that holds it in the answer.

    ``named``: the view as the request names it, ``view`` or ``view@version``.
    """

    view: View
    feature: ViewFeature
    column: str
    named: str

    @property
    def reference(self) -> str:
        """The reference as the request has it."""
        return f"{self.named}:{self.feature.name}"

    @property
    def pinned(self) -> ServiceFeature:
        """The feature with all that a reader is promised of it."""
        return pin(self.reference, self.view, self.feature)


@dataclass(frozen=True)
class Demanded:
    """One on-demand feature of a request, as ``Asked`` is one of a view. ``reads``: what it reads of views."""

    view: OnDemandView
    feature: ViewFeature
    column: str
    named: str
    reads: Sequence[Asked] = ()

    @property
    def reference(self) -> str:
        """The reference as the request has it."""
        return f"{self.named}:{self.feature.name}"

    @property
    def pinned(self) -> ServiceFeature:
        """The feature with all that a reader is promised of it."""
        return pin(self.reference, self.view, self.feature, [one.pinned for one in self.reads])


def resolve(references: Sequence[str], views: Mapping[str, View], *, full_feature_names: bool = False) -> list[Asked]:
    """Look up ``view:feature`` and ``view@version:feature`` references, in order; a repeated one counts once.

    A column has the feature's name or, with ``full_feature_names``, the name ``view__feature``, or
    ``view@version__feature`` if the reference names the version. Raises ``RequestError`` for an unknown view, version
    or feature, for a bare name if nothing says which version serves, and if two columns would have the same name.
    """
    asked: dict[str, Asked] = {}
    known = Versions.of(views)
    for reference in texts(references):
        found = _resolve_one(reference, known, full_feature_names=full_feature_names)
        if found.column in asked:
            raise sharing(found.column, f"{asked[found.column].reference} and {reference}")
        if found.column in found.view.entity.keys:
            raise sharing(found.column, reference, " with the entity's key")
        asked[found.column] = found
    if not asked:
        raise RequestError("no features are requested; name them as view:feature")
    return list(asked.values())


def sharing(column: str, who: str, with_what: str = "") -> RequestError:
    """Return the error that features, or one and something else, would have the same column."""
    return RequestError(
        f"{who} would share the column {column!r}{with_what}; "
        "set full_feature_names (--full-feature-names), which gives columns view__feature"
    )


def demanded(reference: str, on_demand: Mapping[str, OnDemandView]) -> "Demanded | None":
    """Look up a reference to an on-demand feature; its column is that of full names. None if it names none of these.

    Raises ``RequestError`` for another version, and for an unknown feature.
    """
    named, _, feature_name = reference.partition(":")
    name, at, version = named.partition("@")
    found = on_demand.get(name)
    if found is None or ":" not in reference:
        return None
    if at and named != found.id:
        raise UnknownName("version", f"on-demand {name!r} has no version {version!r}; there is {found.id}")
    feature = found.feature(feature_name)
    if feature is None:
        names = [feature.name for feature in found.features]
        raise UnknownName(
            "feature", f"{named} has no feature {feature_name!r}; {nearest(feature_name, names, 'its features are')}"
        )
    return Demanded(found, feature, f"{named}__{feature.name}", named)


def is_service(features: Sequence[str] | str) -> TypeGuard[str]:
    """Return true for the name of a service; a text with a colon is a reference outside of a list, a mistake."""
    return isinstance(features, str) and ":" not in features


def named_views(references: Sequence[str]) -> list[str]:
    """Return the views that references name, each once. Raises ``RequestError`` if they are not texts."""
    return list(dict.fromkeys(reference.partition(":")[0] for reference in texts(references)))


def requested_us(duration: str | dt.timedelta, name: str) -> int:
    """Return the microseconds of a duration of a request; ``name`` is its argument. Raises ``RequestError``."""
    try:
        n_us = duration_us(duration)
    except DefinitionError as error:
        raise RequestError(f"{name}: {error}") from error
    if n_us > _LONGEST_US:
        raise RequestError(f"{name}: {duration} is longer than 30,000 years; give a shorter one, or leave it out")
    return n_us


def by_view(asked: Iterable[Asked]) -> dict[str, list[Asked]]:
    """Return the requested features of each view, by the view as the request names it."""
    grouped: dict[str, list[Asked]] = {}
    for one in asked:
        grouped.setdefault(one.named, []).append(one)
    return grouped


def key_names(view: View, rows: Given) -> list[str]:
    """Return the columns that hold the view's key, in its order; they may be missing."""
    entity = view.entity
    if rows.by_entity and len(entity.keys) == 1 and entity.keys[0] not in rows.names and entity.name in rows.names:
        return [entity.name]
    return list(entity.keys)


def key_columns(view: View, rows: Given) -> pl.DataFrame:
    """Return the view's key columns in its types; they are converted only if nothing is lost. Nulls stay.

    Raises ``RequestError`` for one that is missing or that ``key_column`` refuses.
    """
    columns = []
    for key, name, kind in zip(view.entity.keys, key_names(view, rows), view.entity.types, strict=True):
        if name not in rows.names:
            raise RequestError(
                f"{view.name} is about {view.entity.name}, whose key {name!r} is not among the given columns"
                f"; {perhaps(name, rows.names)}"
            )
        columns.append(key_column(rows.column(name), kind).alias(key))
    return pl.DataFrame(columns)


def texts(references: Sequence[str]) -> list[str]:
    """Return the references, each once. Raises ``RequestError`` for anything else than a list of texts."""
    if isinstance(references, str):
        raise RequestError(f"features must be a list of references; write [{references!r}]")
    if not isinstance(references, Iterable):
        raise RequestError(f"features must be a list of references view:feature; this is {type(references).__name__}")
    named = list(references)
    for reference in named:
        if not isinstance(reference, str):
            raise RequestError(f"{reference!r:.80} is not a feature reference; write view:feature as text")
    return list(dict.fromkeys(named))


def _resolve_one(reference: str, views: Versions[View], *, full_feature_names: bool) -> Asked:
    view_name, colon, feature_name = reference.partition(":")
    if not colon:
        raise RequestError(
            f"{reference!r} is not a feature reference; write view:feature, for example {_example(views)}"
        )
    view = views.find(view_name)
    feature = view.feature(feature_name)
    if feature is None:
        names = [feature.name for feature in view.features]
        raise UnknownName(
            "feature",
            f"{view_name} has no feature {feature_name!r}; {nearest(feature_name, names, 'its features are')}",
        )
    column = f"{view_name}__{feature.name}" if full_feature_names else feature.name
    return Asked(view, feature, column, view_name)


def _example(views: Mapping[str, View]) -> str:
    return next((f"{view.name}:{view.features[0].name}" for view in views.values()), "user_purchases:spend_30d")
