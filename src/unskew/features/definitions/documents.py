"""YAML documents as definitions, with the same words as in Python.

A document is one of

- a view: ``name``, ``entity``, ``source`` (or ``stream``), ``where`` (or ``filter``), ``version``, ``serving``,
  ``history``, ``owner``, ``description`` and ``features``, a list of ``name``, ``type``, ``default``, ``description``,
  ``owner`` and ``aggregation``;
- a view of one feature, which has the view's name: the same with ``aggregation``, ``type`` and ``default`` in place of
  ``features``;
- an entity: ``entity: {name: user, key: user_id}``;
- a stream: ``stream: {name: transactions, topic: transactions, schema: transaction.avsc, event_time: event_time}``;
- a table: ``table: {name: returns, path: returns/, schema: return.avsc, event_time: returned_at, delay: 1h}``;
- sessions:
  ``sessions: {name: visits, stream: page_views, gap: 30min, values: {spend: {function: sum, value: amount}}}``;
- on-demand features:
  ``on_demand: {name: checkout, inputs: {lat: float64}, features: [{name: north, derived: lat > store:lat}]}``;
- a service: ``service: {name: checkout_model, features: [user_purchases:spend_30d, page_views@2:views_5min]}``.

``aggregation`` has ``function``, ``value``, the function's parameters (``by``, ``keys``, ``n``, ``ddof``, ``q``,
``error``, ``edges``, ``half_life``), ``filter`` (or ``where``) and ``window``: a duration for a sliding one (then also
``hop``), or ``{sliding: 30d, hop: 2h}``, ``{tumbling: 1h, closed: true}``, ``{calendar: day, tz: Europe/Berlin}``,
``{session: 30min, hop: 1min}``, ``lifetime``. A feature with ``derived`` in place of ``aggregation`` is an expression
over the other features.

Text stays text: nothing in a document is ever run.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from unskew.features.definitions.agg import Aggregation
from unskew.features.definitions.vocabulary import (
    Calendar,
    Definition,
    Derived,
    Entity,
    Feature,
    FeatureView,
    Lifetime,
    OnDemand,
    Service,
    Session,
    Sessions,
    Sliding,
    Stream,
    Table,
    Tumbling,
    Window,
)
from unskew.features.errors import DefinitionError
from unskew.features.nearest import nearest

_VIEW_KEYS = (
    *("name", "version", "serving", "entity", "stream", "source", "where", "filter", "owner", "description", "history"),
    *("tags", "deprecated"),
)
_FEATURE_KEYS = ("name", "aggregation", "derived", "type", "default", "description", "owner", "deprecated")
_ONE_FEATURE_KEYS = ("aggregation", "type", "default")
_PARAMETER_KEYS = ("keys", "n", "ddof", "q", "error", "edges", "half_life")
_VALUE_KEYS = ("function", "value", "by", *_PARAMETER_KEYS)
_AGGREGATION_KEYS = (*_VALUE_KEYS, "window", "hop", "filter", "where")
_WINDOW_KEYS = {
    "sliding": ("sliding", "hop"),
    "tumbling": ("tumbling", "closed"),
    "calendar": ("calendar", "tz"),
    "session": ("session", "hop"),
}
_Part = type[Entity] | type[Stream] | type[Table] | type[Service]
_PARTS: Mapping[str, _Part] = {"entity": Entity, "stream": Stream, "table": Table, "service": Service}
_REQUIRED: Mapping[_Part, tuple[str, ...]] = {
    Entity: ("name", "key"),
    Stream: ("name", "topic", "schema", "event_time"),
    Table: ("name", "path", "schema", "event_time"),
    Service: ("name", "features"),
}


def definition_of(document: object, unknown: list[str] | None = None) -> Definition:
    """Return the definition in one parsed YAML document. Raises ``DefinitionError`` with all faults of its form.

    ``unknown``: if given, faults of keys that a view or a part does not have are added to it and not raised, so that
    the rest is checked too.
    """
    if not isinstance(document, Mapping):
        raise DefinitionError(
            f"{document!r} is not a definition; write a view (name: ...), entity: {{...}} or stream: {{...}}"
        )
    for word, kind in _PARTS.items():
        if list(document) == [word] and isinstance(document[word], Mapping):
            return _part(kind, word, document[word], unknown)
    if list(document) == ["on_demand"] and isinstance(document["on_demand"], Mapping):
        return _on_demand(document["on_demand"])
    if list(document) == ["sessions"] and isinstance(document["sessions"], Mapping):
        return _sessions(document["sessions"])
    _refuse_flat(document)
    return _view(document, unknown)


def _refuse_flat(document: Mapping[Any, Any]) -> None:
    """Raise ``DefinitionError`` if a document is no view, but has the words of a definition in another place."""
    first = next(iter(document), None)
    if "name" in document or (first in {"entity", "stream"} and not {"features", "aggregation"}.isdisjoint(document)):
        return
    if first in {"view", "feature_view"}:
        raise DefinitionError(
            f"{first}: a view has no word above it; write its words at the top: name, entity, source and so on"
        )
    if first not in {*_PARTS, "on_demand", "sessions"}:
        return
    if isinstance(document[first], Mapping):
        others = ", ".join(str(key) for key in document if key != first)
        raise DefinitionError(
            f"{first}: there is more beside it ({others}); indent it, or begin a new document with ---"
        )
    raise DefinitionError(
        f"{first}: its words stand below it, indented; write {first}: {{name: {document[first]}, ...}}"
    )


def _sessions(fields: Mapping[Any, Any]) -> Sessions:
    place = f"sessions {fields.get('name', '')}".rstrip()
    faults = [
        *_unknown_keys(place, fields, Sessions.__struct_fields__),
        *_missing_keys(place, fields, ("name", "stream", "gap")),
    ]
    given = {key: value for key, value in fields.items() if key != "values"}
    values: dict[str, Aggregation] = {}
    if not isinstance(fields.get("values", {}), Mapping):
        faults.append(
            f"{place}: values: {fields['values']!r} is not a mapping; write the name of each column and its aggregation"
        )
    else:
        for name, entry in fields.get("values", {}).items():
            where = f"{place}: {name}"
            if not isinstance(entry, Mapping):
                faults.append(f"{where}: {entry!r} is not an aggregation; write function: and value: below it")
                continue
            faults += _unknown_keys(where, entry, _VALUE_KEYS)
            faults += _missing_keys(where, entry, ("function",))
            try:
                values[name] = _aggregation(entry)
            except DefinitionError as error:
                faults += [f"{where}: {fault}" for fault in error.faults]
    for key in ("gap", "hop"):
        try:
            _with_unit(fields.get(key))
        except DefinitionError as error:
            faults += [f"{place}: {key}: {fault}" for fault in error.faults]
    if faults:
        raise DefinitionError(faults)
    return Sessions(**given, values=values)


def _on_demand(fields: Mapping[Any, Any]) -> OnDemand:
    place = f"on-demand {fields.get('name', '')}".rstrip()
    faults = [
        *_unknown_keys(place, fields, OnDemand.__struct_fields__),
        *_missing_keys(place, fields, ("name", "inputs", "features")),
    ]
    features: list[Derived] = []
    if "features" in fields and not isinstance(fields["features"], list):
        faults.append(f"{place}: features: {fields['features']!r} is not a list; write name: and derived: for each")
    for number, entry in enumerate(fields["features"] if not faults else (), start=1):
        if not isinstance(entry, Mapping):
            faults.append(f"{place}: feature {number}: {entry!r} is not a feature; write name: and derived:")
            continue
        where = f"{place}: feature {entry.get('name', number)}"
        faults += _unknown_keys(where, entry, [key for key in _FEATURE_KEYS if key != "aggregation"])
        faults += _missing_keys(where, entry, ("name", "derived"))
        if not faults:
            features.append(_derived(where, entry))
    if faults:
        raise DefinitionError(faults)
    return OnDemand(**{**fields, "features": features})


def _aggregation(entry: Mapping[Any, Any]) -> Aggregation:
    """Return the function with its value and parameters; ``compile`` checks which of these it takes."""
    parameters = {key: entry[key] for key in _PARAMETER_KEYS if key in entry}
    try:
        _with_unit(parameters.get("half_life"))
    except DefinitionError as error:
        raise DefinitionError([f"half_life: {fault}" for fault in error.faults]) from error
    return Aggregation(
        entry.get("function"),  # type: ignore[arg-type]  # compile reports an unknown one
        _text("value", entry.get("value")),
        by=_text("by", entry.get("by")),
        **parameters,
    )


def _part(kind: _Part, word: str, fields: Mapping[Any, Any], unknown: list[str] | None) -> Definition:
    place = f"{word} {fields.get('name', '')}".rstrip()
    faults = _missing_keys(place, fields, _REQUIRED[kind])
    (faults if unknown is None else unknown).extend(_unknown_keys(place, fields, kind.__struct_fields__))
    faults += [
        f"{place}: {key}: {fields[key]!r} has no unit; write for example 500ms"
        for key in ("settle", "max_age", "max_ahead", "dedupe_within", "delay")
        if isinstance(fields.get(key), (int, float))
    ]
    if faults:
        raise DefinitionError(faults)
    return kind(**{key: fields[key] for key in fields if key in kind.__struct_fields__})


def _view(document: Mapping[Any, Any], unknown: list[str] | None) -> FeatureView:
    one_feature = "aggregation" in document
    place = f"view {document.get('name', '')}".rstrip()
    if one_feature and "features" in document:
        raise DefinitionError(
            f"{place}: it has both features and aggregation; move the aggregation into the list of features, or leave it out"
        )
    faults = _missing_keys(place, document, ("name", "entity"))
    unknown = faults if unknown is None else unknown
    unknown += _unknown_keys(place, document, [*_VIEW_KEYS, *(_ONE_FEATURE_KEYS if one_feature else ("features",))])
    sources = [document[word] for word in ("stream", "source") if word in document]
    if len(sources) != 1:
        remedy = "which are the same thing; keep one" if sources else "which names its stream; give it one"
        faults.append(f"{place}: it has {'both source and stream' if sources else 'no source'}, {remedy}")
    features: list[Feature | Derived] = []
    for where, entry in _entries(place, document, one_feature=one_feature, faults=faults, unknown=unknown):
        try:
            features.append(_feature(where, entry, unknown))
        except DefinitionError as error:
            faults += error.faults
    if faults:
        raise DefinitionError(faults)
    fields = {key: document[key] for key in _VIEW_KEYS if key in document and key not in {"stream", "source"}}
    return FeatureView(**fields, stream=sources[0], features=features)


def _entries(
    place: str, document: Mapping[Any, Any], *, one_feature: bool, faults: list[str], unknown: list[str]
) -> list[tuple[str, Mapping[Any, Any]]]:
    """Return the features of a view, each with its place in the document."""
    if one_feature:
        return [(place, {key: document[key] for key in _FEATURE_KEYS if key in document})]
    features = document.get("features")
    if not isinstance(features, list):
        faults.append(f"{place}: it has no list of features; write features:, or aggregation: for a single one")
        return []
    entries = []
    for number, entry in enumerate(features, start=1):
        if isinstance(entry, Mapping):
            where = f"{place}: feature {entry.get('name', number)}"
            unknown += _unknown_keys(where, entry, _FEATURE_KEYS)
            entries.append((where, entry))
        else:
            faults.append(f"{place}: feature {number}: {entry!r} is not a feature; write name: and aggregation:")
    return entries


def _feature(place: str, entry: Mapping[Any, Any], unknown: list[str]) -> Feature | Derived:
    if "derived" in entry:
        return _derived(place, entry)
    aggregation = entry.get("aggregation")
    if not isinstance(aggregation, Mapping):
        raise DefinitionError(f"{place}: it has no aggregation; write aggregation: with function: and window: below it")
    unknown += _unknown_keys(f"{place}: aggregation", aggregation, _AGGREGATION_KEYS)
    faults = _missing_keys(place, entry, ("name",))
    faults += _missing_keys(f"{place}: aggregation", aggregation, ("function", "window"))
    if faults:
        raise DefinitionError(faults)
    try:
        return Feature(
            **{key: entry[key] for key in _FEATURE_KEYS if key in entry and key != "aggregation"},
            aggregation=_aggregation(aggregation),
            window=_window(aggregation),
            filter=_text("filter", aggregation.get("filter")),
            where=_text("where", aggregation.get("where")),
        )
    except DefinitionError as error:
        raise DefinitionError([f"{place}: {fault}" for fault in error.faults]) from error


def _derived(place: str, entry: Mapping[Any, Any]) -> Derived:
    faults = _missing_keys(place, entry, ("name",))
    if "aggregation" in entry:
        faults.append(f"{place}: it has both derived and aggregation; keep one")
    if faults:
        raise DefinitionError(faults)
    given = {key: entry[key] for key in _FEATURE_KEYS if key in entry and key != "derived"}
    try:
        return Derived(**given, expression=_text("derived", entry["derived"]))
    except DefinitionError as error:
        raise DefinitionError([f"{place}: {fault}" for fault in error.faults]) from error


def _window(aggregation: Mapping[Any, Any]) -> Window:
    window = aggregation["window"]
    if window == "lifetime":
        if "hop" in aggregation:
            raise DefinitionError("a lifetime has no hop; leave it out")
        return Lifetime()
    if not isinstance(window, Mapping):
        return Sliding(_with_unit(window), hop=_with_unit(aggregation.get("hop")))
    if "hop" in aggregation:
        raise DefinitionError("hop is beside a window that is written out; move it into the window")
    kind = next((word for word in _WINDOW_KEYS if word in window), None)
    if kind is None:
        raise DefinitionError(
            "the window has no kind; write window: 30d, {tumbling: 1h}, {calendar: day, tz: Europe/Berlin}, {session: 30min} "
            "or lifetime"
        )
    if faults := _unknown_keys("window", window, _WINDOW_KEYS[kind]):
        raise DefinitionError(faults)
    match kind:
        case "sliding":
            return Sliding(_with_unit(window["sliding"]), hop=_with_unit(window.get("hop")))
        case "tumbling":
            return Tumbling(_with_unit(window["tumbling"]), closed=window.get("closed", False))
        case "session":
            return Session(_with_unit(window["session"]), hop=_with_unit(window.get("hop")))
        case _:
            return Calendar(window["calendar"], tz=window.get("tz", "UTC"))


def _with_unit(duration: Any) -> Any:
    """Refuse a bare number: in Python it means microseconds, but in a document nobody would read it that way."""
    if isinstance(duration, (int, float)):
        raise DefinitionError(f"{duration!r} has no unit; write for example 30d, 5min or 10s")
    return duration


def _text(word: str, value: Any) -> Any:
    """Return a bare ``true`` or number as the SQL text it stands for; ``compile`` reports what is wrong with it."""
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    if value is not None and not isinstance(value, str):
        raise DefinitionError(f"{word}: {value!r} is not SQL text; put it in quotes")
    return value


def _unknown_keys(place: str, given: Iterable[Any], known: Iterable[str]) -> list[str]:
    known = list(known)
    return [
        f"{place}: unknown key {key!r}; {nearest(str(key), known, 'known keys are')}"
        for key in given
        if key not in known
    ]


def _missing_keys(place: str, given: Mapping[Any, Any], required: Iterable[str]) -> list[str]:
    return [f"{place}: it has no {key}; give it one" for key in required if given.get(key) is None]
