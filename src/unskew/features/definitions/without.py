"""A view as if some of its features had never been defined: what the others alone cost and give."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import msgspec

from unskew.features.definitions.fingerprints import presentation_fingerprint, state_fingerprint
from unskew.features.plan import FeaturePlan, ViewPlan
from unskew.features.view import View, ViewFeature


def with_derived(view: View, name: str) -> frozenset[str]:
    """Return a feature of a view and those that are derived of it, which cannot be without it."""
    return frozenset({name, *(one.name for one in view.features if name in one.inputs)})


def without(view: ViewPlan, names: Collection[str]) -> ViewPlan | None:
    """Return the view that compiles from its definition without these features, and without those derived of them.

    None if no feature is left.
    """
    gone = {each for name in names for each in with_derived(view.published, name)}
    kept = [feature for feature in view.features if feature.name not in gone]
    if not kept:
        return None
    # As in a definition, what features share is numbered in the order in which they mention it.
    windows = list(dict.fromkeys(one.window for one in kept))
    filters = list(dict.fromkeys(one.filter for one in kept if one.filter >= 0))
    values = list(dict.fromkeys(each for one in kept for each in (one.value, one.by) if each >= 0))
    features = tuple(_numbered(one, windows, filters, values) for one in kept)
    derived = tuple(one for one in view.derived if one.name not in gone)
    columns: tuple[ViewFeature, ...] = tuple(one.published for one in (*features, *derived))
    left = replace(
        view,
        features=features,
        derived=derived,
        filters=tuple(view.filters[number] for number in filters),
        values=tuple(view.values[number] for number in values),
    )
    published = msgspec.structs.replace(
        view.published,
        windows=tuple(view.windows[number] for number in windows),
        features=columns,
        presentation_fingerprint=presentation_fingerprint(
            description=view.published.description,
            owner=view.published.owner,
            features=columns,
            tags=view.published.tags,
            deprecated=view.published.deprecated,
        ),
    )
    fingerprint = state_fingerprint(
        entity=view.entity,
        stream=view.stream,
        where=view.where,
        filters=left.filters,
        values=left.values,
        windows=published.windows,
        features=features,
        derived=derived,
        sessions=view.sessions,
    )
    return replace(left, published=msgspec.structs.replace(published, state_fingerprint=fingerprint))


def _numbered(
    feature: FeaturePlan, windows: Sequence[int], filters: Sequence[int], values: Sequence[int]
) -> FeaturePlan:
    """Return the feature with the places of what it uses in the shorter lists."""
    return replace(
        feature,
        published=msgspec.structs.replace(feature.published, window=windows.index(feature.window)),
        filter=filters.index(feature.filter) if feature.filter >= 0 else -1,
        value=values.index(feature.value) if feature.value >= 0 else -1,
        by=values.index(feature.by) if feature.by >= 0 else -1,
    )
