"""What can be read, as JSON: each feature with the reference and the keys that a request names, and each service."""

from collections.abc import Iterator
from typing import Any

from unskew.features.on_demand import OnDemandView, is_reference
from unskew.features.registry import Published, json_scalar
from unskew.features.service import Service
from unskew.features.view import View, ViewFeature


def listing(published: Published) -> dict[str, list[dict[str, Any]]]:
    """Return the features of all views and versions, those on demand, and the services, each sorted by name.

    A feature of the version that serves has a reference without a version. ``keys``, ``inputs``: the columns that a
    request has, each with its type; of a service, those of all that it reads. ``default``: what is read in place of
    null, as the registry has it in JSON.
    """
    views = sorted(published.views.values(), key=lambda view: (view.name, view.version))
    on_demand = [published.on_demand[name] for name in sorted(published.on_demand)]
    return {
        "features": [
            *(row for view in views for row in _of_view(published, view)),
            *(row for one in on_demand for row in _on_demand(published, one)),
        ],
        "services": [_service(published, published.services[name]) for name in sorted(published.services)],
    }


def _of_view(published: Published, view: View) -> Iterator[dict[str, Any]]:
    named = view.name if published.views.serving(view.name) is view else view.id
    for feature in view.features:
        window = view.window_text(feature)
        yield _row(view, feature, f"{named}:{feature.name}", window) | {
            "entity": view.entity.name,
            "keys": _keys(view),
            "inputs": {},
        }


def _on_demand(published: Published, view: OnDemandView) -> Iterator[dict[str, Any]]:
    for feature in view.features:
        names = [name.partition(":")[0] for name in feature.inputs if is_reference(name)]
        read = [published.views[name] for name in names if name in published.views]
        yield _row(view, feature, f"{view.name}:{feature.name}", "") | {
            "entity": ", ".join(dict.fromkeys(one.entity.name for one in read)),
            "keys": _keys(*read),
            "inputs": _inputs(view, feature),
        }


def _row(view: View | OnDemandView, feature: ViewFeature, reference: str, window: str) -> dict[str, Any]:
    return {
        "reference": reference,
        "view": view.id,
        "type": feature.type,
        "function": feature.function,
        "window": window,
        "default": json_scalar(feature.default),
        "description": feature.description or view.description,
        "owner": feature.owner or view.owner,
    }


def _service(published: Published, service: Service) -> dict[str, Any]:
    read = [published.views[one.view] for one in service.of_views if one.view in published.views]
    inputs: dict[str, str] = {}
    for one in service.features:
        view = published.on_demand.get(one.view.partition("@")[0])
        feature = None if view is None else view.feature(one.feature)
        if view is not None and feature is not None:
            inputs |= _inputs(view, feature)
    return {
        "name": service.name,
        "features": [{"reference": one.reference, "view": one.view, "type": one.type} for one in service.features],
        "keys": _keys(*read),
        "inputs": inputs,
        "description": service.description,
        "owner": service.owner,
        "tags": dict(service.tags),
    }


def _inputs(view: OnDemandView, feature: ViewFeature) -> dict[str, str]:
    return {name: kind for name, kind in view.inputs.items() if name in feature.inputs}


def _keys(*views: View) -> dict[str, str]:
    return {key: kind for view in views for key, kind in zip(view.entity.keys, view.entity.types, strict=True)}
