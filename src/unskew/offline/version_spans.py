"""Training sets that span versions of a view: each label is answered by the one that could answer at its instant."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from unskew.features.errors import RequestError
from unskew.features.references import Asked, named_views, texts
from unskew.features.versions import Versions
from unskew.features.view import View

Ints = npt.NDArray[np.int64]
Spans = Mapping[str, Sequence[int]]
"""By the name of a view, the versions that answer for it."""


def check_spans(features: Sequence[str], versions: Spans) -> None:
    """Raise ``RequestError`` for ``versions`` of another form, or of views that no feature names without a version."""
    if not isinstance(versions, Mapping):
        raise RequestError(f'versions is a mapping such as {{"view": [1, 2]}}, not {versions!r:.80}')
    named = named_views(features)
    for name, numbers in _loosely(versions).items():
        if (
            isinstance(numbers, str)
            or not isinstance(numbers, Sequence)
            or not (numbers and all(map(_counts, numbers)))
        ):
            raise RequestError(f"versions of {name!r} is {numbers!r:.80}; give a list of numbers, for example [1, 2]")
        if len(set(numbers)) < len(numbers):
            raise RequestError(f"versions of {name!r} has one twice: {', '.join(map(str, numbers))}; name each once")
        if name not in named:
            raise RequestError(
                f"versions has {name!r}, but no feature is requested as {name}:feature; request one without a version, or take "
                f"{name!r} out"
            )


def each_version(features: Sequence[str], versions: Spans) -> list[str]:
    """Return the references, those of bare names that ``versions`` has once for each version."""
    found: list[str] = []
    for reference in texts(features):
        name, colon, feature = reference.partition(":")
        ids = [f"{name}@{number}" for number in versions.get(name, ())] or [name]
        found += [f"{one}{colon}{feature}" for one in ids]
    return found


def candidates(views: Versions[View], versions: Spans) -> dict[str, list[View]]:
    """Return, by the name of a view, the versions that answer for it, the lowest first; raises ``RequestError``."""
    return {name: [views.find(f"{name}@{number}") for number in sorted(numbers)] for name, numbers in versions.items()}


def refuse_lacking(features: Sequence[str], spanned: Mapping[str, Sequence[View]]) -> None:
    """Raise ``RequestError`` for a feature that some of the versions that answer for its view have, and others lack."""
    for reference in texts(features):
        name, _, feature = reference.partition(":")
        views = spanned.get(name, ())
        lacking = [view.id for view in views if view.feature(feature) is None]
        if lacking and len(lacking) < len(views):
            has = next(view for view in views if view.feature(feature) is not None)
            raise RequestError(
                f"{reference} cannot span versions: {', '.join(lacking)} {'does' if len(lacking) == 1 else 'do'} not have it; request "
                f"{has.id}:{feature} alone, or take it out"
            )


def newest_serving(views: Versions[View], spanned: Mapping[str, Sequence[View]]) -> Versions[View]:
    """Return the views with the newest of the versions that answer for a name as the one that it means."""
    return Versions(
        msgspec.structs.replace(view, serving=view.version == spanned[view.name][-1].version)
        if view.name in spanned
        else view
        for view in views.values()
    )


def of_version(one: Asked, view: View) -> Asked:
    """Return a requested feature as another version has it. Raises ``RequestError`` if that is not the same thing."""
    if (view.entity.keys, view.entity.types) != (one.view.entity.keys, one.view.entity.types):
        raise RequestError(
            f"{view.id} and {one.view.id} have other keys ({_keys(view)} and {_keys(one.view)}), so no training set can span them; "
            f"request {one.view.id}:{one.feature.name} alone"
        )
    feature = view.feature(one.feature.name)
    assert feature is not None
    if feature.type != one.feature.type:
        raise RequestError(
            f"{one.reference} cannot span versions: {view.id} has it as {feature.type}, and {one.view.id} has it as "
            f"{one.feature.type}; request {one.view.id}:{one.feature.name} alone, or leave {view.version} out of versions"
        )
    return Asked(view, feature, one.column, one.named)


def answering(sinces_us: Mapping[int, int | None], instants_us: Ints) -> Ints:
    """Return the version that answers at each instant.

    That is the highest version whose log has seen all events from that instant or an earlier one on (its ``since``, by
    version in ``sinces_us``), and the lowest version if there is none.
    """
    lowest, *others = sorted(sinces_us)
    found = np.full(len(instants_us), lowest, np.int64)
    for version in others:
        since_us = sinces_us[version]
        if since_us is not None:
            found[instants_us >= since_us] = version
    return found


def _loosely(versions: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return what a user gave, who may have given anything."""
    return versions


def _counts(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _keys(view: View) -> str:
    return ", ".join(f"{key} {kind}" for key, kind in zip(view.entity.keys, view.entity.types, strict=True))
