"""A feature repository of Feast, as text, whose views are those of a log and whose online store is `unskew serve`.

Feast's DuckDB store reads the files of the log as they are. It differs from the join of ``FeatureStore`` in this: it
takes rows up to and including a label's instant, it has null where an entity without a row has an empty value or a
default, it says nothing of instants outside of the log, and it returns rows in any order.
"""

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from unskew.features.errors import DefinitionError, RequestError
from unskew.features.registry import Published
from unskew.features.service import Service
from unskew.features.types import MAP_KEY, MAP_VALUE, ScalarName, Type
from unskew.features.versions import Versions
from unskew.features.view import View, ViewEntity, ViewFeature
from unskew.sinks.tables.layout import view_root

CONFIGURATION, DEFINITIONS = "feature_store.yaml", "unskew_features.py"
"""The files of a repository. The second has a name that no package of the user's has."""

_SCALARS: Mapping[ScalarName, str] = {
    "int64": "Int64",
    "float64": "Float64",
    "bool": "Bool",
    "string": "String",
    "timestamp": "UnixTimestamp",
    "decimal": "Decimal",
}
_OF_FOLDERS = "day"
"""DuckDB reads a column of this name from the names of the folders, whatever the files have."""
_DROPPED = "_y"
"""Feast's join drops columns whose names end so."""
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,99}")
_HEAD = '''\
"""The features of unskew, for Feast: entities, views over the log, and services. Written by `unskew export feast`.

Online reads are answered by `unskew serve`. Historical reads take the rows of the log up to and including a label's
instant, as get_historical_features(..., inclusive=True) of unskew does. Where an entity has no row or no value, they
have null; the tag null_means of a feature says what unskew has there.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.types import Array, Bool, Decimal, Float64, Int64, String, Struct, UnixTimestamp
from feast.value_type import ValueType
'''


def configuration(project: str, server: str) -> str:
    """Return ``feature_store.yaml``. ``server``: the address of `unskew serve`. Raises ``RequestError``."""
    if not _PROJECT.fullmatch(project):
        raise RequestError(f"--project {project!r}: use letters, digits and _, as Feast does, and do not begin with _")
    if not re.fullmatch(r"https?://\S+", server):
        raise RequestError(f"--server {server!r}: give the address of unskew serve, for example http://localhost:6566")
    # A text of JSON is one of YAML.
    return (
        f"project: {project}\n"
        "provider: local\n"
        "registry: data/registry.db\n"
        "online_store:\n"
        "  type: remote\n"
        f"  path: {json.dumps(server.rstrip('/'))}\n"
        "offline_store:\n"
        "  type: duckdb\n"
        "entity_key_serialization_version: 3\n"
    )


def definitions(published: Published, log: Path) -> str:
    """Return the Python text that defines the views that serve, over the log, their entities, and the services.

    Raises ``DefinitionError`` for names that Feast would read otherwise.
    """
    exported = _exported(published.views)
    if faults := [fault for view in exported for fault in _faults(view)]:
        raise DefinitionError(faults)
    entities = _Entities(view.entity for view in exported)
    services = [_service(one) for one in published.services.values() if not _others(one, exported)]
    views = [_view(view, entities, log.absolute()) for view in exported]
    return "\n".join([_HEAD, *entities.texts(), *views, *services])


def _exported(views: Versions[View]) -> list[View]:
    return [views.find(name) for name in views.names]


def _others(service: Service, exported: Iterable[View]) -> list[str]:
    """Return the versions that a service reads and that are not exported."""
    there = {view.id for view in exported}
    return sorted({one.view for one in service.features} - there)


def unread(published: Published) -> list[str]:
    """Return what Feast will not read of views and services, a sentence for each."""
    found = []
    exported = _exported(published.views)
    for meant in exported:
        name = meant.name
        found += [
            f"{view.id} is left out, because Feast has one version of a view, and {meant.id} serves; {view.id}:FEATURE is read "
            "online all the same"
            for view in published.views.versions(name)
            if view is not meant
        ]
        if dropped := [feature.name for feature in meant.features if feature.name.endswith(_DROPPED)]:
            found.append(
                f"{name}: historical reads of {', '.join(dropped)} fail, because Feast drops columns whose names end in {_DROPPED}"
            )
    found += [
        f"{name} is left out, because Feast would compute on-demand features by other code; {name}:FEATURE is read online all the same"
        for name in published.on_demand
    ]
    found += [
        f"service {service.name} is left out, because it reads {', '.join(others)}"
        for service in published.services.values()
        if (others := _others(service, exported))
    ]
    return found


def _faults(view: View) -> Iterator[str]:
    for name in (*view.entity.keys, *(feature.name for feature in view.features)):
        if name.lower() == _OF_FOLDERS:
            yield (
                f"{view.id}: Feast would read the column {name} from the names of the log's folders, which are days; rename it to "
                "export the view"
            )


class _Entities:
    """Feast's entities, each of which has one key: of an entity with several keys, one for each."""

    def __init__(self, entities: Iterable[ViewEntity]) -> None:
        self._variables: dict[tuple[str, str, str], str] = {}
        self._names: dict[tuple[str, str, str], str] = {}
        # Those of a single key have the names that users know, so they come first.
        for entity in sorted(entities, key=lambda one: len(one.keys)):
            for part in self._parts(entity):
                if part not in self._names:
                    self._names[part] = _other_than(self._names.values(), part[0])
                    variable = re.sub(r"\W", "_", self._names[part], flags=re.ASCII)
                    self._variables[part] = _other_than(self._variables.values(), f"entity_{variable}")

    @staticmethod
    def _parts(entity: ViewEntity) -> list[tuple[str, str, str]]:
        name = entity.name
        return [
            (name if len(entity.keys) == 1 else f"{name}_{key}", key, kind)
            for key, kind in zip(entity.keys, entity.types, strict=True)
        ]

    def variables(self, entity: ViewEntity) -> list[str]:
        """Return the variables that hold an entity's parts."""
        return [self._variables[part] for part in self._parts(entity)]

    def texts(self) -> Iterator[str]:
        """Yield the definition of each."""
        for part, name in self._names.items():
            _, key, kind = part
            yield (
                f"{self._variables[part]} = Entity(\n"
                f"    name={name!r}, join_keys=[{key!r}], value_type=ValueType.{'INT64' if kind == 'int64' else 'STRING'}\n"
                ")"
            )


def _other_than(taken: Iterable[str], name: str) -> str:
    """Return the name, with a number behind it if it is taken, whatever its case."""
    known = {one.lower() for one in taken}
    tries = (name if number == 1 else f"{name}_{number}" for number in range(1, len(known) + 2))
    return next(one for one in tries if one.lower() not in known)


def _view(view: View, entities: _Entities, log: Path) -> str:
    path = f"{glob.escape(str(view_root(log, view.name, view.version)))}/{_OF_FOLDERS}=*/*.parquet"
    keys = zip(view.entity.keys, view.entity.types, strict=True)
    fields = [f"Field(name={key!r}, dtype={_type(Type.parse(kind))})" for key, kind in keys]
    fields += [_field(view, feature) for feature in view.features]
    listed = "".join(f"        {field},\n" for field in fields)
    return (
        f"{view.name}_view = FeatureView(\n"
        f"    name={view.name!r},\n"
        f"    entities=[{', '.join(entities.variables(view.entity))}],\n"
        "    ttl=timedelta(0),\n"
        f"    schema=[\n{listed}    ],\n"
        f"    source=FileSource(\n"
        f"        name={view.id!r},\n"
        f"        path={path!r},\n"
        "        file_format=ParquetFormat(),\n"
        '        timestamp_field="available_at",\n'
        "    ),\n"
        f"    description={view.description!r},\n"
        f"    owner={view.owner!r},\n"
        f"    tags={ {'unskew_version': str(view.version), 'unskew_state': view.state_fingerprint}!r},\n"
        ")"
    )


def _service(service: Service) -> str:
    features: dict[str, list[str]] = {}
    for one in service.features:
        features.setdefault(one.view.partition("@")[0], []).append(one.feature)
    listed = ", ".join(f"{view}_view[{names!r}]" for view, names in features.items())
    return (
        f"{service.name}_service = FeatureService(\n"
        f"    name={service.name!r},\n"
        f"    features=[{listed}],\n"
        f"    description={service.description!r},\n"
        f"    owner={service.owner!r},\n"
        f"    tags={dict(service.tags)!r},\n"
        ")"
    )


def _field(view: View, feature: ViewFeature) -> str:
    tags = {"function": feature.function, "window": view.window_text(feature)}
    null_means = feature.default if feature.empty is None else feature.empty
    if null_means is not None:
        tags["null_means"] = json.dumps(null_means, default=str)
    if owner := feature.owner:
        tags["owner"] = owner
    return f"Field(name={feature.name!r}, dtype={_type(feature.dtype)}, description={feature.description!r}, tags={tags!r})"


def _type(dtype: Type) -> str:
    """Return a type in Feast's words; a map is, as in the log, a list of pairs."""
    scalar = _SCALARS[dtype.scalar]
    match dtype.nesting:
        case "list":
            return f"Array({scalar})"
        case "map":
            return f"Array(Struct({{{MAP_KEY!r}: String, {MAP_VALUE!r}: {scalar}}}))"
        case None:
            return scalar
