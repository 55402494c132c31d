"""Definitions to a plan: every check is made here, once, and all faults are reported together."""

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

import msgspec
import polars as pl

from unskew.features.agg import Aggregation, Expression
from unskew.features.definitions import Definition, Entity, Feature, FeatureView, Stream, Window
from unskew.features.errors import DefinitionError
from unskew.features.expressions import check_expression, unknown_column
from unskew.features.fingerprints import presentation_fingerprint, state_fingerprint
from unskew.features.plan import (
    POLARS_TYPES,
    AggregationName,
    EntityPlan,
    FeaturePlan,
    FilterPlan,
    KeyType,
    Plan,
    Scalar,
    StreamPlan,
    ValuePlan,
    ValueType,
    ViewPlan,
    WindowPlan,
)
from unskew.features.streams import column_names, plan_stream
from unskew.features.windows import plan_window

MAX_FEATURES = 64
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

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


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    if near := get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(sorted(known))}" if known else "none is defined"


class _ViewCompiler:
    """One view: collects its faults, numbers filters, values and windows as features mention them."""

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
        self._columns: Mapping[str, pl.DataType] = {}
        self._filters: dict[str, FilterPlan] = {}
        self._values: dict[str, ValuePlan] = {}
        self._windows: dict[str, WindowPlan] = {}

    def plan(self) -> ViewPlan | None:
        view = self._view
        n_faults = len(self._faults)
        self._check_view()
        stream = self._stream()
        entity = self._entity(stream)
        where: FilterPlan | None = None
        # Without columns every expression would be a fault: only the stream's own is told.
        if stream is not None:
            self._columns = stream.columns
            where = self._filter(view.name, view.where, view.filter)
        features = [self._feature(feature, has_columns=stream is not None) for feature in self._features(entity)]
        if len(self._faults) > n_faults or stream is None or entity is None:
            return None
        parts: dict[str, Any] = {
            "entity": entity,
            "stream": stream,
            "where": where,
            "filters": tuple(self._filters.values()),
            "values": tuple(self._values.values()),
            "windows": tuple(self._windows.values()),
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
            self._fault(
                view.name,
                "view names are lower-case letters, digits and underscores, begin with a letter and have at most 100",
            )
        if view.name in RESERVED_VIEWS:
            self._fault(view.name, f"the name is reserved; rename the view, for example {view.name}_features")
        if isinstance(view.version, bool) or not isinstance(view.version, int) or view.version < 1:
            self._fault(view.name, f"version {view.version!r} is no positive whole number; count versions from 1")

        self._check_texts(view.name, view)

    def _check_texts(self, place: str, definition: FeatureView | Feature) -> None:
        for word in ("description", "owner"):
            if not isinstance(text := getattr(definition, word), str):
                self._fault(place, f"{word}: {text!r} is no text; put it in quotes, or leave it out")

    def _stream(self) -> StreamPlan | None:
        wanted = self._view.stream
        if isinstance(wanted, Stream):
            return self._stream_plans.get(wanted.name)
        names = {name: name for stream in self._streams.values() for name in stream.aliases} | {
            name: name for name in self._streams
        }
        matches = [s.name for s in self._streams.values() if wanted == s.name]
        matches = matches or [s.name for s in self._streams.values() if wanted in (column_names(s.aliases) or ())]
        if not matches:
            self._fault(self._view.name, f"no stream is called {wanted!r}; {_did_you_mean(str(wanted), names)}")
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
            f"no entity has the name or key {wanted!r}; {_did_you_mean(str(wanted), [*self._entities, *keys])}",
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
        seen: dict[str, str] = {}
        for feature in features:
            name = str(feature.name)
            if not _FEATURE_NAME.fullmatch(name):
                remedy = (
                    "begin with a letter; a leading _ is reserved"
                    if name.startswith("_")
                    else "begin with a letter and have at most 100"
                )
                self._fault(f"{view.name}.{name}", f"feature names are letters, digits and underscores, {remedy}")
            if name in LOG_COLUMNS:
                self._fault(
                    f"{view.name}.{name}",
                    f"the name is that of a column of the log; rename it, for example feature_{name}",
                )
            if entity is not None and name in entity.keys:
                self._fault(f"{view.name}.{name}", "the name is that of an entity key column; rename the feature")
            if (first := seen.setdefault(name.lower(), name)) is not name or (
                first == name and _count(features, name) > 1
            ):
                again = "twice" if first == name else f"beside {first}, which differs only in upper and lower case"
                self._fault(f"{view.name}.{name}", f"the name is there {again}; rename one")
        return features

    def _feature(self, feature: Feature, *, has_columns: bool) -> FeaturePlan | None:
        view = self._view
        place = f"{view.name}.{feature.name}"
        self._check_texts(place, feature)
        window = self._window(place, feature.window)
        function = self._function(place, feature.aggregation)
        if not has_columns:
            return None
        condition = self._filter(place, feature.filter, feature.where)
        if condition is not None:
            self._filters.setdefault(condition.text, condition)
        if function is None:
            return None
        value = self._value(place, function, feature.aggregation.value)
        if window is None or (value is None and function != "count"):
            return None
        dtype = _result_type(function, value.dtype if value else None)
        if feature.type is not None and feature.type != dtype:
            known = get_args(ValueType)
            remedy = "correct the type or cast the value" if feature.type in known else f"types are {', '.join(known)}"
            self._fault(place, f"its type is declared {feature.type!r}, but {function} gives {dtype} here; {remedy}")
        empty = _empty(function, dtype)
        return FeaturePlan(
            name=feature.name,
            function=function,
            dtype=dtype,
            window=list(self._windows).index(window.text),
            filter=-1 if condition is None else list(self._filters).index(condition.text),
            value=-1 if value is None else list(self._values).index(value.text),
            empty=empty,
            default=self._default(place, feature.default, dtype, empty),
            description=feature.description,
            owner=feature.owner or view.owner,
        )

    def _window(self, place: str, window: Window) -> WindowPlan | None:
        try:
            plan = plan_window(window)
        except DefinitionError as error:
            self._fault(place, error)
            return None
        return self._windows.setdefault(plan.text, plan)

    def _function(self, place: str, aggregation: Aggregation) -> AggregationName | None:
        names = get_args(AggregationName)
        if not isinstance(aggregation, Aggregation):
            self._fault(
                place, f"{aggregation!r} is no aggregation; use one of agg.{', agg.'.join(names)}, as in agg.count()"
            )
            return None
        if aggregation.function not in names:
            self._fault(
                place,
                f"no aggregation is called {aggregation.function!r}; {_did_you_mean(str(aggregation.function), names)}",
            )
            return None
        if aggregation.function == "count" and aggregation.value is not None:
            self._fault(
                place,
                "count takes no value; count what is not null by a filter, for example filter='amount IS NOT NULL'",
            )
        if aggregation.function != "count" and aggregation.value is None:
            self._fault(place, f"{aggregation.function} needs a value; give it a column or an expression")
            return None
        return aggregation.function

    def _filter(self, place: str, one: Expression | None, other: Expression | None) -> FilterPlan | None:
        if one is not None and other is not None:
            self._fault(place, "it has both where and filter, which are the same thing; keep one, joined by AND")
            return None
        source = other if one is None else one
        if source is None:
            return None
        try:
            checked = check_expression(source, self._columns)
        except DefinitionError as error:
            self._fault(f"{place}: filter", error)
            return None
        if checked.dtype != pl.Boolean():
            self._fault(
                f"{place}: filter", f"{checked.text!r} is {checked.dtype}, not true or false; compare it with something"
            )
            return None
        return FilterPlan(text=checked.text, expr=checked.expr)

    def _value(self, place: str, function: AggregationName, source: Expression | None) -> ValuePlan | None:
        if source is None or function == "count":
            return None
        try:
            checked = check_expression(source, self._columns)
        except DefinitionError as error:
            self._fault(f"{place}: value", error)
            return None
        dtype = _value_type(checked.dtype)
        if dtype is None:
            self._fault(
                f"{place}: value",
                f"{checked.text!r} is {checked.dtype}; {function} takes int64, float64 and bool, so cast it, for example to DOUBLE",
            )
            return None
        plan = ValuePlan(text=checked.text, expr=checked.expr.cast(POLARS_TYPES[dtype]), dtype=dtype)
        return self._values.setdefault(plan.text, plan)

    def _default(self, place: str, default: object, dtype: ValueType, empty: Scalar | None) -> Scalar | None:
        if default is None:
            return None
        fits = {
            "bool": isinstance(default, bool),
            "int64": isinstance(default, int) and not isinstance(default, bool) and INT64_MIN <= default <= INT64_MAX,
            "float64": isinstance(default, (int, float)) and not isinstance(default, bool) and math.isfinite(default),
        }
        if not fits[dtype]:
            remedy = (
                "leave it out for null"
                if isinstance(default, float) and not math.isfinite(default)
                else f"give a {dtype}"
            )
            self._fault(place, f"the default {default!r} is no {dtype}; {remedy}")
            return None
        assert isinstance(default, (bool, int, float))
        if empty is not None and default != empty:
            self._fault(
                place,
                f"the default {default!r} would never show, as the value is never null ({empty} on an empty window); leave it out",
            )
        return float(default) if dtype == "float64" else default


def _count(features: Iterable[Feature], name: str) -> int:
    return sum(feature.name == name for feature in features)


def _value_type(dtype: pl.DataType) -> ValueType | None:
    if dtype == pl.Boolean():
        return "bool"
    if dtype.is_float():
        return "float64"
    return "int64" if dtype.is_integer() and dtype not in {pl.UInt64(), pl.Int128(), pl.UInt128()} else None


def _result_type(function: AggregationName, value: ValueType | None) -> ValueType:
    if function == "count" or value is None:
        return "int64"
    if function == "mean":
        return "float64"
    if function == "sum":
        return "float64" if value == "float64" else "int64"
    return value


def _empty(function: AggregationName, dtype: ValueType) -> Scalar | None:
    if function not in {"count", "sum"}:
        return None
    return 0.0 if dtype == "float64" else 0
