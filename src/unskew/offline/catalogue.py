"""What exists: the features of all views as a table."""

from collections.abc import Iterable

import polars as pl

from unskew.features.on_demand import OnDemandView, is_reference
from unskew.features.printing import pairs
from unskew.features.versions import Versions
from unskew.features.view import View, ViewFeature

_SCHEMA = {
    "reference": pl.String(),
    "view": pl.String(),
    "version": pl.Int64(),
    "feature": pl.String(),
    "type": pl.String(),
    "function": pl.String(),
    "window": pl.String(),
    "keys": pl.List(pl.String()),
    "description": pl.String(),
    "owner": pl.String(),
    "tags": pl.String(),
    "deprecated": pl.String(),
}


def catalogue(views: Versions[View], on_demand: Iterable[OnDemandView] = ()) -> pl.DataFrame:
    """Return a row for each feature, by view and in the order of its definition; on-demand features come last.

    ``reference``: as requests name it. ``function``: the aggregation, "derived" or "on demand". ``window``: as text; of
    a derived feature, those of all features that it is derived from. ``keys``: the columns that labels need. ``owner``:
    that of the feature, else of its view. ``tags``: those of the view, as ``name=value, ...``. ``deprecated``: what
    should be read in place of the feature or of its version; empty if it is not deprecated.
    """
    rows = [
        {
            "reference": f"{name}:{feature.name}",
            "view": view.name,
            "version": view.version,
            "feature": feature.name,
            "type": feature.type,
            "function": feature.function,
            "window": view.window_text(feature),
            "keys": list(view.entity.keys),
            "description": feature.description or view.description,
            "owner": feature.owner or view.owner,
            "tags": pairs(view.tags),
            "deprecated": feature.deprecated or view.deprecated,
        }
        for name, view in sorted(views.items(), key=lambda item: (item[1].name, item[1].version))
        for feature in view.features
    ]
    rows += [
        {
            "reference": f"{one.name}:{feature.name}",
            "view": one.name,
            "version": one.version,
            "feature": feature.name,
            "type": feature.type,
            "function": "on demand",
            "window": "",
            "keys": _columns_of(one, feature, views),
            "description": feature.description or one.description,
            "owner": feature.owner or one.owner,
            "tags": pairs(one.tags),
            "deprecated": feature.deprecated,
        }
        for one in on_demand
        for feature in one.features
    ]
    return pl.DataFrame(rows, schema=_SCHEMA)


def _columns_of(one: OnDemandView, feature: ViewFeature, views: Versions[View]) -> list[str]:
    """Return the columns that labels need for an on-demand feature: keys of the views that it reads, and inputs."""
    keys = [
        key
        for name in feature.inputs
        if is_reference(name) and name.partition(":")[0] in views
        for key in views[name.partition(":")[0]].entity.keys
    ]
    return list(dict.fromkeys([*keys, *(name for name in feature.inputs if name in one.inputs)]))
