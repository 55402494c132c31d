"""What can be read, as JSON: each feature with the reference and the keys that a request names, and each service."""

from typing import Any

from unskew.features.registry import Published, json_scalar
from unskew.features.view import View


def listing(published: Published) -> dict[str, list[dict[str, Any]]]:
    """Return the features of all views and versions, and the services, each sorted by name.

    A feature of the version that serves has a reference without a version. ``keys``: the columns that a request has,
    each with its type; of a service, those of all views that it reads. ``default``: what is read in place of null, as
    the registry has it in JSON.
    """
    views = sorted(published.views.values(), key=lambda view: (view.name, view.version))
    return {
        "features": [row for view in views for row in _rows(published, view)],
        "services": [_service(published, name) for name in sorted(published.services)],
    }


def _rows(published: Published, view: View) -> list[dict[str, Any]]:
    named = view.name if published.views.serving(view.name) is view else view.id
    return [
        {
            "reference": f"{named}:{feature.name}",
            "view": view.id,
            "type": feature.type,
            "entity": view.entity.name,
            "keys": _keys(view),
            "function": feature.function,
            "window": ", ".join(window.text for window in view.windows_of(feature)),
            "default": json_scalar(feature.default),
            "description": feature.description or view.description,
            "owner": feature.owner or view.owner,
        }
        for feature in view.features
    ]


def _service(published: Published, name: str) -> dict[str, Any]:
    service = published.services[name]
    read = (published.views.get(one.view) for one in service.features)
    return {
        "name": name,
        "features": [{"reference": one.reference, "view": one.view, "type": one.type} for one in service.features],
        "keys": {key: kind for view in read if view is not None for key, kind in _keys(view).items()},
        "description": service.description,
        "owner": service.owner,
        "tags": dict(service.tags),
    }


def _keys(view: View) -> dict[str, str]:
    return dict(zip(view.entity.keys, view.entity.types, strict=True))
