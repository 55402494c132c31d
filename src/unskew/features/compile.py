"""Definitions to a plan: every check is made here, once, and all faults are reported together."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import polars as pl

from unskew.features.definitions import Definition, Entity, Feature, FeatureView, Stream
from unskew.features.errors import DefinitionError
from unskew.features.expressions import unknown_column
from unskew.features.fingerprints import presentation_fingerprint, state_fingerprint
from unskew.features.plan import MAX_FEATURES, EntityPlan, KeyType, Plan, StreamPlan, ViewPlan
from unskew.features.slots import Slots, did_you_mean, text_faults
from unskew.features.streams import column_names, plan_stream

RESERVED_VIEWS = frozenset({"registry", "clock"})
LOG_COLUMNS = frozenset(
    {"available_at", "event_time", "partition", "offset", "cause", "written_at", "shard", "seq"},
)

_VIEW_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_FEATURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


def compile(*definitions: Definition | Iterable[Definition]) -> Plan:  # noqa: A001 - the word that users know
    """Check definitions and number them: views with everything they refer to.

    Takes entities, streams and views, or iterables of them. Entities and streams that views hold need not be given beside
    them. Raises one ``DefinitionError`` with every fault found, each saying what, where, and what to do.
    """
    faults: list[str] = []
    entities, streams, views = _sorted(definitions, faults)
    stream_plans: dict[str, StreamPlan] = {}
    for name, stream in streams.items():
        try:
            stream_plans[name] = plan_stream(stream)
        except DefinitionError as error:
            faults += [f"stream {name}: {fault}" for fault in error.faults]
    faults += _shared_topics(stream_plans.values())
    view_plans: dict[str, ViewPlan] = {}
    for view in views:
        plan = _ViewCompiler(view, entities, streams, stream_plans, faults).plan()
        if plan is not None:
            view_plans[plan.name] = plan
    if faults:
        raise DefinitionError(list(dict.fromkeys(faults)))
    return Plan(streams=stream_plans, views=view_plans)


def _flat(definitions: Iterable[Any]) -> Iterable[Any]:
    for each in definitions:
        if isinstance(each, Iterable) and not isinstance(each, (str, Mapping)):
            yield from _flat(each)
        else:
            yield each


def _sorted(
    definitions: Iterable[Any], faults: list[str]
) -> tuple[dict[str, Entity], dict[str, Stream], list[FeatureView]]:
    entities: dict[str, Entity] = {}
    streams: dict[str, Stream] = {}
    views: dict[str, FeatureView] = {}
    found: list[Any] = []
    for each in _flat(definitions):
        found.append(each)
        if isinstance(each, FeatureView):
            found += [part for part in (each.entity, each.stream) if isinstance(part, (Entity, Stream))]
    for each in found:
        if not isinstance(each, (Entity, Stream, FeatureView)):
            faults.append(f"{each!r} is no definition; give Entity, Stream and FeatureView objects")
            continue
        kind = "entity" if isinstance(each, Entity) else "stream" if isinstance(each, Stream) else "view"
        if not isinstance(each.name, str) or not each.name.strip():
            faults.append(f"{kind} {each.name!r}: it has no name; give it one")
            continue
        tables: dict[str, dict[str, Any]] = {"entity": entities, "stream": streams, "view": views}
        known = tables[kind]
        # The same definition met twice (held by two views, imported by two files) is one.
        if known.setdefault(each.name, each) is not each and not _same(known[each.name], each):
            faults.append(f"{kind} {each.name}: it is defined twice, differently; rename one or remove it")
    return entities, streams, list(views.values())


def _shared_topics(streams: Iterable[StreamPlan]) -> list[str]:
    """Faults of streams that read one topic: it is archived once, by one schema."""
    first: dict[str, str] = {}
    return [
        f"stream {stream.name}: its topic {stream.topic} is already that of the stream {first[stream.topic]}; use that one, or an alias of it"
        for stream in streams
        if first.setdefault(stream.topic, stream.name) != stream.name
    ]


def _same(one: Any, other: Any) -> bool:
    """Whether two definitions say the same; expressions do not compare to a truth value themselves."""
    if isinstance(one, pl.Expr) or isinstance(other, pl.Expr):
        return isinstance(one, pl.Expr) and isinstance(other, pl.Expr) and one.meta.eq(other)
    if isinstance(one, msgspec.Struct):
        fields = one.__struct_fields__
        return type(one) is type(other) and all(_same(getattr(one, field), getattr(other, field)) for field in fields)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


class _ViewCompiler:
    """One view: resolves its entity and stream, and collects its faults."""

    def __init__(
        self,
        view: FeatureView,
        entities: Mapping[str, Entity],
        streams: Mapping[str, Stream],
        stream_plans: Mapping[str, StreamPlan],
        faults: list[str],
    ) -> None:
        self._view = view
        self._entities = entities
        self._streams = streams
        self._stream_plans = stream_plans
        self._faults = faults

    def plan(self) -> ViewPlan | None:
        view = self._view
        n_faults = len(self._faults)
        self._check_view()
        stream = self._stream()
        entity = self._entity(stream)
        slots = Slots(stream.columns if stream else None, self._faults)
        where = slots.condition(view.name, view.where, view.filter)
        features = [
            slots.feature(f"{view.name}.{feature.name}", feature, view.owner) for feature in self._features(entity)
        ]
        if len(self._faults) > n_faults or stream is None or entity is None:
            return None
        parts: dict[str, Any] = {
            "entity": entity,
            "stream": stream,
            "where": where,
            "filters": slots.filters,
            "values": slots.values,
            "windows": slots.windows,
            "features": tuple(feature for feature in features if feature is not None),
        }
        return ViewPlan(
            name=view.name,
            version=view.version,
            **parts,
            state_fingerprint=state_fingerprint(**parts),
            presentation_fingerprint=presentation_fingerprint(
                description=view.description, owner=view.owner, features=parts["features"]
            ),
            owner=view.owner,
            description=view.description,
        )

    def _fault(self, where: str, error: DefinitionError | str) -> None:
        for fault in [error] if isinstance(error, str) else error.faults:
            self._faults.append(f"{where}: {fault}")

    def _check_view(self) -> None:
        view = self._view
        if not _VIEW_NAME.fullmatch(view.name):
            self._fault(view.name, "the name is not allowed; use lower-case letters, digits and _, begin with a letter")
        if view.name in RESERVED_VIEWS:
            self._fault(view.name, f"the name is reserved; rename the view, for example {view.name}_features")
        if isinstance(view.version, bool) or not isinstance(view.version, int) or view.version < 1:
            self._fault(view.name, f"version {view.version!r} is no positive whole number; count versions from 1")
        self._faults += text_faults(view.name, view)

    def _stream(self) -> StreamPlan | None:
        wanted = self._view.stream
        if isinstance(wanted, Stream):
            return self._stream_plans.get(wanted.name)
        names = [*self._streams, *(alias for s in self._streams.values() for alias in column_names(s.aliases) or ())]
        matches = [s.name for s in self._streams.values() if wanted == s.name]
        matches = matches or [s.name for s in self._streams.values() if wanted in (column_names(s.aliases) or ())]
        if not matches:
            self._fault(self._view.name, f"no stream is called {wanted!r}; {did_you_mean(str(wanted), names)}")
            return None
        if len(matches) > 1:
            self._fault(self._view.name, f"{wanted!r} is an alias of several streams ({', '.join(matches)}); name one")
            return None
        return self._stream_plans.get(matches[0])

    def _entity_definition(self) -> Entity | None:
        wanted = self._view.entity
        if isinstance(wanted, Entity):
            return wanted
        if isinstance(wanted, str) and wanted in self._entities:
            return self._entities[wanted]
        by_key = [entity for entity in self._entities.values() if column_names(entity.key) == column_names(wanted)]
        if len(by_key) == 1:
            return by_key[0]
        if by_key:
            names = ", ".join(entity.name for entity in by_key)
            self._fault(self._view.name, f"{wanted!r} is the key of several entities ({names}); name one")
            return None
        keys = [key for entity in self._entities.values() for key in column_names(entity.key) or ()]
        self._fault(
            self._view.name,
            f"no entity has the name or key {wanted!r}; {did_you_mean(str(wanted), [*self._entities, *keys])}",
        )
        return None

    def _entity(self, stream: StreamPlan | None) -> EntityPlan | None:
        entity = self._entity_definition()
        if entity is None:
            return None
        place = f"{self._view.name}: entity {entity.name}"
        keys = column_names(entity.key)
        if keys is None or len(set(keys)) < len(keys):
            self._fault(place, f"key {entity.key!r} is no column name; give one, or a list of different ones")
            return None
        for key in sorted(LOG_COLUMNS.intersection(keys)):
            self._fault(
                place, f"the key column {key!r} has the name of a column of the log; rename it in the reader schema"
            )
        if stream is None:
            return None
        types: list[KeyType] = []
        for key in keys:
            dtype = stream.columns.get(key)
            if dtype is None:
                self._fault(place, f"key: {unknown_column(key, stream.columns)}")
            elif dtype.is_integer():
                types.append("int64")
            elif dtype == pl.String():
                types.append("string")
            else:
                self._fault(place, f"the key column {key!r} is {dtype}; keys are whole numbers or strings")
        declared = column_names(entity.type)
        if len(types) < len(keys):
            return None
        if entity.type is not None and declared != tuple(types):
            self._fault(
                place,
                f"its type is declared {entity.type!r}, but the stream has {', '.join(types)}; correct one of them",
            )
        return EntityPlan(name=entity.name, keys=keys, types=tuple(types))

    def _features(self, entity: EntityPlan | None) -> list[Feature]:
        view = self._view
        if isinstance(view.features, (str, Mapping)) or not isinstance(view.features, Iterable):
            self._fault(view.name, f"features={view.features!r} is no list; give a list of Feature objects")
            return []
        features: list[Feature] = []
        for feature in view.features:
            if isinstance(feature, Feature):
                features.append(feature)
            else:
                self._fault(view.name, f"{feature!r} is no feature; give Feature objects")
        if not features:
            self._fault(view.name, "it has no features; give it at least one")
        if len(features) > MAX_FEATURES:
            self._fault(view.name, f"it has {len(features)} features, more than {MAX_FEATURES}; make two views of them")
        names: dict[str, str] = {}
        for feature in features:
            name = feature.name
            place = f"{view.name}.{name}"
            if not isinstance(name, str) or not _FEATURE_NAME.fullmatch(name):
                self._fault(place, "the name is not allowed; use letters, digits and _, begin with a letter")
                continue
            if name in LOG_COLUMNS:
                self._fault(place, f"the name is that of a column of the log; rename it, for example feature_{name}")
            if entity is not None and name in entity.keys:
                self._fault(place, "the name is that of an entity key column; rename the feature")
            # Tools that read the log may not tell upper from lower case.
            if (first := names.get(name.lower())) is not None:
                again = "twice" if first == name else f"beside {first}, which differs only in upper and lower case"
                self._fault(place, f"the name is there {again}; rename one")
            names.setdefault(name.lower(), name)
        return features
