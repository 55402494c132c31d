"""JSON messages of one poll as typed Polars columns, and dead letters for those that are not events.

msgspec reads each message by itself, so its neighbours cannot change its meaning. Python's ``json`` reads the messages
that msgspec refuses, and the few that msgspec reads differently (equal keys, a zero with a sign): ``json`` decides, and
gives the reason.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
import polars as pl
from typing_extensions import override

from unskew.features.definitions.inputs import row_of
from unskew.features.definitions.json_schema import JsonField, json_fields
from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.features.selecting import framed
from unskew.pipelines.decoding.columns import Refusals, Unit, typed
from unskew.pipelines.decoding.conversions import days, instants
from unskew.pipelines.decoding.decoder import (
    BadMessage,
    Decoder,
    Ignored,
    Read,
    merged,
    one_by_one,
    other_operation,
)
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.poll import FRAME_BYTES, Poll

_INT64 = (-(2**63), 2**63 - 1)
_INT32 = (-(2**31), 2**31 - 1)
_TYPES: dict[str, tuple[Any, pl.DataType]] = {
    "integer": (Annotated[int, msgspec.Meta(ge=_INT64[0], le=_INT64[1])], pl.Int64()),
    "number": (float, pl.Float64()),
    "string": (str, pl.String()),
    "boolean": (bool, pl.Boolean()),
}
_WORDS = {bool: "a boolean", str: "a string", dict: "an object", list: "an array", type(None): "null"}

# msgspec reads this integer into a float column without its sign.
_MINUS_ZERO = r"-0\s*[,}\]]"
# From a key's first escape to its colon.
_ESCAPED_KEY = r'\\.(?:[^"\\]|\\.)*"\s*:'
# A key that is written without escapes and cannot share a quote with its neighbours, as ``","`` and ``":x"`` do in
# ``"a",":x":1``.
_PLAIN_KEY = re.compile(r'[^"\\\s:\x00-\x1f][^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_CONNECT_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_SCALE = re.compile(r"-?[0-9]{1,4}")
_DIGITS = 38
# More than so many bytes have more than 38 digits, whatever their sign.
_MOST_OCTETS = 16
_LIMIT = Decimal(10) ** _DIGITS
_EXACT = Context(prec=100)
_MOST_SCHEMAS = 256
"""So many texts of schemas in messages are remembered."""
_string = msgspec.json.Decoder(str).decode
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class JsonDecoder(Decoder):
    """The decoder of messages that are JSON objects, bare or in Confluent's frame, whose schema id is ignored."""

    def __init__(self, stream: StreamPlan) -> None:
        super().__init__(stream)
        schema = row_of(stream.schema) if stream.envelope == "debezium" else stream.schema
        self._fields = json_fields(schema, stream.paths)
        self._tree = _tree(self._fields)
        self._read_names = self._tree.names()
        self._nests = any(isinstance(inside, _Tree) for inside in self._tree.inside.values())
        self._shape = {
            field.name: pl.String() if field.name in stream.read_as else _TYPES[field.kind][1] for field in self._fields
        }
        keys = {key for field in self._fields for key in _path(field)}
        # Polars refuses a very long regular expression.
        self._schemas: dict[bytes, Mapping[str, int]] = {}
        self._quick = all(map(_PLAIN_KEY.fullmatch, keys)) and sum(map(len, keys)) < 100_000
        if self._quick:
            self._event = msgspec.json.Decoder(_event(self._tree, frozenset(stream.read_as))).decode
            names = "|".join(map(pl.escape_regex, sorted(keys)))
            self._counted = rf'"(?:{names})"\s*:|{_ESCAPED_KEY}|{_MINUS_ZERO}'

    @override
    def _read(self, poll: Poll, reasons: dict[int, Rejection]) -> Read:
        values = poll.values
        rows = np.arange(len(values))
        parts = [self._read_quickly(values)] if self._quick else []
        rest = np.setdiff1d(rows, parts[0][0]) if parts else rows
        if len(rest):
            read, records = one_by_one(rest, values.at(rest), reasons, self._read_one)
            parts.append((read, pl.DataFrame(records, schema=self._shape, orient="row")))
        rows, frame = merged(parts, pl.DataFrame(schema=self._shape))
        refusals = Refusals(rows, reasons)
        return refusals.of(framed([self._column(field, frame, refusals) for field in self._fields]))

    def _read_quickly(self, values: Blobs) -> Read:
        """Read the messages that msgspec accepts and reads as ``_read_one`` does."""
        texts = [_text(value) for value in values]
        scales: Sequence[Mapping[str, int]] = [{}] * len(texts)
        if self._stream.envelope is not None:
            opened = [self._event_text(text) for text in texts]
            texts, scales = [text for text, _ in opened], [each for _, each in opened]
        # A key that occurs twice makes this greater than the number of keys. There are other causes, so look closer.
        counts = pl.Series(texts, dtype=pl.String).str.count_matches(self._counted).to_list()
        rows, events = [], []
        for row, (text, count, found) in enumerate(zip(texts, counts, scales, strict=True)):
            try:
                event, n_keys = self._leaves(msgspec.structs.astuple(self._event(text)), found)
                # Whether an object inside has equal keys, only the other reader sees.
                if count != n_keys and (self._nests or _is_odd(text)):
                    continue
            except (ValueError, RecursionError, BadMessage):
                continue
            rows.append(row)
            events.append(event)
        columns = [
            pl.Series(name, [None if item is msgspec.UNSET else item for item in column], dtype=self._shape[name])
            for name, column in zip(self._read_names, zip(*events, strict=True), strict=bool(events))
        ]
        return np.array(rows, np.int64), pl.DataFrame(columns).select(list(self._shape) if events else [])

    def _event_text(self, text: str) -> tuple[str, Mapping[str, int]]:
        """Return the text of the event in its envelope, and the scales of its decimals, as ``_scales`` returns them.

        The text is empty unless ``_opened`` certainly finds it there.
        """
        try:
            parts = _alone(text)
            debezium = self._stream.envelope == "debezium"
            scales: Mapping[str, int] = {}
            if not debezium or ("payload" in parts and "op" not in parts):
                if self._stream.read_as and "schema" in parts:
                    scales = self._known_scales(bytes(parts["schema"]))
                text = bytes(parts["payload"]).decode()
                parts = _alone(text) if debezium else parts
            if not debezium:
                return text, scales
            row = bytes(parts["after"]).decode() if _string(parts["op"]) in self._stream.operations else ""
        except (ValueError, KeyError, RecursionError, BadMessage):
            return "", {}
        else:
            return row, scales

    def _known_scales(self, schema: bytes) -> Mapping[str, int]:
        """Return ``_scales`` of a schema's text, which is the same in most messages."""
        if schema not in self._schemas:
            if len(self._schemas) >= _MOST_SCHEMAS:
                self._schemas.clear()
            self._schemas[schema] = self._scales(json.loads(schema))
        return self._schemas[schema]

    def _scales(self, schema: Any) -> dict[str, int]:
        """Return the scales of the columns of ``read_as`` that are decimals as bytes, by Kafka Connect's schema.

        Raises ``BadMessage`` if a decimal has no scale.
        """
        scales: dict[str, int] = {}
        for field in self._fields:
            if field.name not in self._stream.read_as:
                continue
            part = schema
            for name in (*(("after",) if self._stream.envelope == "debezium" else ()), *_path(field)):
                inside = _part(part, "fields")
                found = inside if isinstance(inside, list) else []
                part = next((each for each in found if _part(each, "field") == name), None)
            if _part(part, "name") == _CONNECT_DECIMAL:
                scales[field.name] = _scale_of(field, _part(_part(part, "parameters"), "scale"))
        return scales

    def _leaves(self, event: tuple[Any, ...], scales: Mapping[str, int]) -> tuple[Sequence[Any], int]:
        """Return the values of an event's columns, as ``_read_names``, and the number of keys that it has.

        ``scales``: as ``_scales`` returns them.
        """
        if not self._nests and not self._stream.read_as:
            return event, len(event) - event.count(msgspec.UNSET)
        values: list[Any] = []
        return values, self._gather(event, self._tree, values, scales)

    def _gather(self, event: tuple[Any, ...], tree: "_Tree", values: list[Any], scales: Mapping[str, int]) -> int:
        n_keys = len(event) - event.count(msgspec.UNSET)
        for item, inside in zip(event, tree.inside.values(), strict=True):
            if isinstance(inside, JsonField):
                values.append(_raw_text(item, inside, scales) if type(item) is msgspec.Raw else item)
            elif item is None or item is msgspec.UNSET:
                values += [None] * inside.n_leaves()
            else:
                n_keys += self._gather(msgspec.structs.astuple(item), inside, values, scales)
        return n_keys

    def _read_one(self, value: bytes | None) -> tuple[Any, ...]:
        if value is None:
            raise self._no_row()
        try:
            pairs: Any = json.loads(
                _body(value).decode(),
                object_pairs_hook=_Pairs,
                parse_constant=_refuse,
                parse_int=_Integer,
                parse_float=_Number,
            )
        except UnicodeDecodeError as error:
            raise BadMessage("encoding", "invalid UTF-8") from error
        except RecursionError as error:
            raise BadMessage("malformed", "nested too deeply") from error
        except ValueError as error:
            raise BadMessage("malformed", f"not JSON: {error}") from error
        if not isinstance(pairs, _Pairs):
            raise BadMessage("malformed", "not a JSON object")
        scales: Mapping[str, int] = {}
        if self._stream.envelope is not None:
            whole = pairs
            pairs = self._opened(pairs)
            if self._stream.read_as and whole.has("schema") and whole.has("payload"):
                scales = self._scales(whole.one("schema"))
        found: dict[str, Any] = {}
        self._take(pairs, self._tree, found, scales)
        return tuple(found.get(field.name) for field in self._fields)

    def _take(self, pairs: "_Pairs", tree: "_Tree", found: dict[str, Any], scales: Mapping[str, int]) -> None:
        """Put the values of an object into ``found``, by column; ``scales``: as ``_scales`` returns them."""
        met: set[str] = set()
        for key, item in pairs:
            inside = tree.inside.get(key)
            if inside is None:
                continue
            if key in met:
                raise BadMessage("malformed", f"the key {key!r} is there twice")
            met.add(key)
            if isinstance(inside, JsonField):
                if inside.name not in self._stream.read_as:
                    found[inside.name] = _checked(inside, item)
                elif self._stream.envelope is not None and isinstance(item, _Pairs):
                    found[inside.name] = _variable_decimal(inside, item)
                else:
                    found[inside.name] = _text_of(inside, item, scales)
            elif isinstance(item, _Pairs):
                self._take(item, inside, found, scales)
            elif item is not None or not inside.nullable:
                raise BadMessage("type", f"{key} is {_word(item)}, not an object")
        for key, inside in tree.inside.items():
            if key not in met and inside.required:
                raise BadMessage("type", f"{inside.name if isinstance(inside, JsonField) else key} is missing")

    def _opened(self, pairs: "_Pairs") -> "_Pairs":
        """Return the event in its envelope."""
        debezium = self._stream.envelope == "debezium"
        if not debezium or (pairs.has("payload") and not pairs.has("op")):
            payload = pairs.one("payload")
            if payload is None:
                raise self._no_row()
            if not isinstance(payload, _Pairs):
                raise BadMessage("malformed", f"its payload is {_word(payload)}, not an object")
            pairs = payload
        if not debezium:
            return pairs
        operation = pairs.one("op")
        if type(operation) is not str:
            raise BadMessage("type", f"op is {_word(operation)}, not of type string")
        if operation not in self._stream.operations:
            raise other_operation(self._stream, operation)
        row = pairs.one("after")
        if not isinstance(row, _Pairs):
            raise BadMessage("type", f"after is {_word(row)}, not an object")
        return row

    def _no_row(self) -> Exception:
        """Return what a message without a row is: Debezium puts one after each delete."""
        if self._stream.envelope == "debezium" and not self._stream.refuses_others:
            return Ignored()
        return BadMessage("tombstone", "empty value (tombstone)")

    def _column(self, field: JsonField, frame: pl.DataFrame, refusals: Refusals) -> pl.Series:
        values = frame[field.name]
        if field.name in self._stream.read_as:
            return values
        event_time = field.name == self._event_time
        unit = Unit(field.logical)
        if field.symbols:
            refusals.refuse(
                values.is_not_null() & ~values.is_in(field.symbols),
                "range",
                lambda at: f"{field.name}: {values[at]!r} is not one of the allowed values",
            )
        if field.dtype == pl.Int32:
            outside = ~values.is_between(*_INT32)
            refusals.refuse(outside, "range", lambda at: f"{field.name}: {values[at]} does not fit its type")
            return values.cast(field.dtype, strict=False)
        # A date of an Avro schema is a number in JSON too.
        if field.kind == "string" and field.logical in {"date-time", "date"}:
            texts = values
            values = days(texts) if field.logical == "date" else instants(texts)
            refusals.refuse(
                values.is_null() & texts.is_not_null(),
                "time" if event_time else "range",
                lambda at: f"{field.name}: {texts[at]!r} is not a {field.logical} as in RFC 3339",
            )
            unit = Unit("timestamp-micros" if field.logical == "date-time" else "date")
        return typed(values, unit, field.dtype, refusals, event_time=event_time)


class _Pairs(list[Any]):
    """An object as its keys and values, in the order in which they came."""

    def has(self, key: str) -> bool:
        """Return true if there is such a key."""
        return any(name == key for name, _ in self)

    def one(self, key: str) -> Any:
        """Return the value of a key. Raises ``BadMessage`` unless the key is there once."""
        found = [item for name, item in self if name == key]
        if len(found) != 1:
            raise BadMessage("malformed", f"the key {key!r} is there twice" if found else f"{key} is missing")
        return found[0]


@dataclass(frozen=True, slots=True)
class _Tree:
    """What is read inside an object, by key; ``nullable``, ``required``: as for ``JsonField``."""

    inside: "dict[str, JsonField | _Tree]"
    nullable: bool = False
    required: bool = True

    def names(self) -> list[str]:
        """Return the columns that are read, in order."""
        return [
            name
            for inside in self.inside.values()
            for name in (inside.names() if isinstance(inside, _Tree) else [inside.name])
        ]

    def n_leaves(self) -> int:
        """Return the number of columns that are read."""
        return len(self.names())


class _Integer(str):
    """A number without fraction or exponent, as written."""

    __slots__ = ()


class _Number(str):
    """Any other number."""

    __slots__ = ()


def _event(tree: _Tree, as_text: frozenset[str]) -> type[msgspec.Struct]:
    """Return the keys that are read, as msgspec's type of an event; a missing key is ``UNSET``.

    ``as_text``: the columns of which the text is needed, of numbers too.
    """
    declared: list[tuple[str, Any, Any]] = []
    for number, inside in enumerate(tree.inside.values()):
        default = msgspec.NODEFAULT if inside.required else msgspec.UNSET
        if isinstance(inside, _Tree):
            kind: Any = _event(inside, as_text)
        else:
            kind = msgspec.Raw if inside.name in as_text else _TYPES[inside.kind][0]
        nullable = inside.nullable and kind is not msgspec.Raw
        declared.append((f"f{number}", kind | None if nullable else kind, msgspec.field(default=default)))
    names = {f"f{number}": key for number, key in enumerate(tree.inside)}
    return msgspec.defstruct("Event", declared, rename=names, kw_only=True, frozen=True, gc=False)


def _path(field: JsonField) -> tuple[str, ...]:
    return field.path or (field.name,)


def _tree(fields: Sequence[JsonField]) -> _Tree:
    root = _Tree({})
    for field in fields:
        *outer, last = _path(field)
        tree = root
        for key, (nullable, required) in zip(outer, field.outer, strict=True):
            inner = tree.inside.setdefault(key, _Tree({}, nullable, required))
            assert isinstance(inner, _Tree)
            tree = inner
        tree.inside[last] = field
    return root


def _body(value: bytes) -> bytes:
    """Return the message without Confluent's frame, if it has one."""
    return value[FRAME_BYTES:] if len(value) > FRAME_BYTES and value[0] == 0 else value


def _text(value: bytes | None) -> str:
    """Return the message's text; if it has none, the empty text, which is not JSON."""
    try:
        return _body(value or b"").decode()
    except UnicodeDecodeError:
        return ""


def _is_odd(text: str) -> bool:
    """Return true if an object may have equal keys, or a zero with a sign."""
    return _may_repeat(text, _parts(text)) or re.search(_MINUS_ZERO, text) is not None


def _alone(text: str) -> dict[str, msgspec.Raw]:
    """Return the parts of an object. Raises ``ValueError`` if it may have equal keys."""
    parts = _parts(text)
    if _may_repeat(text, parts):
        raise ValueError(text)
    return parts


def _may_repeat(text: str, parts: dict[str, msgspec.Raw]) -> bool:
    # Only the last of equal keys is among the parts, so the quotes of the others are missing.
    return 2 * len(parts) + b"".join(parts.values()).count(b'"') != text.count('"')


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _checked(field: JsonField, item: Any) -> Any:
    """Return the value as its column holds it, if it is of the field's type."""
    if item is None and field.nullable:
        return None
    if field.kind == "integer" and isinstance(item, _Integer):
        # Longer texts are not an int64, and are slow to convert.
        number = int(item) if len(item) <= 20 else _INT64[1] + 1
        if not _INT64[0] <= number <= _INT64[1]:
            raise BadMessage("range", f"{field.name}: {item[:30]} does not fit its type")
        return number
    if field.kind == "number" and isinstance(item, (_Integer, _Number)):
        real = float(item)
        if not math.isfinite(real):
            raise BadMessage("range", f"{field.name}: {item[:30]} does not fit its type")
        return real
    if field.kind == "boolean" and isinstance(item, bool):
        return item
    if field.kind == "string" and type(item) is str:
        if not _is_text(item):
            raise BadMessage("encoding", f"{field.name} has half a surrogate pair")
        return item
    raise BadMessage("type", f"{field.name} is {_word(item)}, not of type {field.kind}")


def _raw_text(raw: msgspec.Raw, field: JsonField, scales: Mapping[str, int]) -> str | None:
    """Return what ``_text_of`` gives of the same value; raises ``ValueError`` where that refuses it."""
    octets = bytes(raw)
    if octets == b"null" and field.nullable:
        return None
    if octets[:1] == b'"':
        text = _string(octets)
        return _decimal(field, text, scales[field.name]) if field.name in scales else text
    if _NUMBER.fullmatch(octets):
        return octets.decode()
    raise ValueError(field.name)


def _text_of(field: JsonField, item: Any, scales: Mapping[str, int]) -> str | None:
    """Return a number as it is written, or a text; for a decimal as bytes, the number that they mean."""
    if item is None and field.nullable:
        return None
    if not isinstance(item, str):
        raise BadMessage("type", f"{field.name} is {_word(item)}, neither a number nor a text")
    if type(item) is str and not _is_text(item):
        raise BadMessage("encoding", f"{field.name} has half a surrogate pair")
    return _decimal(field, item, scales[field.name]) if type(item) is str and field.name in scales else str(item)


def _decimal(field: JsonField, text: str, scale: int) -> str:
    """Return a decimal that Kafka Connect wrote as the bytes of its unscaled number, in base64."""
    try:
        octets = base64.b64decode(text, validate=True)
    except ValueError:
        octets = b""
    if not octets:
        raise BadMessage("type", f"{field.name}: {text[:40]!r} is not a decimal as bytes in base64")
    number = Decimal(int.from_bytes(octets[: _MOST_OCTETS + 1], "big", signed=True)).scaleb(-scale, _EXACT)
    if len(octets) > _MOST_OCTETS or abs(number) >= _LIMIT:
        raise BadMessage("range", f"{field.name} has more than {_DIGITS} digits")
    return format(number, "f")


def _variable_decimal(field: JsonField, pairs: _Pairs) -> str:
    """Return a decimal that has its scale beside it, as Debezium writes those of columns without one."""
    if sorted(key for key, _ in pairs) != ["scale", "value"] or type(pairs.one("value")) is not str:
        raise BadMessage("type", f"{field.name} is an object, neither a number nor a text nor a VariableScaleDecimal")
    return _decimal(field, pairs.one("value"), _scale_of(field, pairs.one("scale")))


def _scale_of(field: JsonField, scale: Any) -> int:
    if not isinstance(scale, (str, int)) or not _SCALE.fullmatch(str(scale)) or abs(int(scale)) > _DIGITS:
        raise BadMessage(
            "schema", f"{field.name} is a decimal with the scale {str(scale)[:40]!r}, not one of up to {_DIGITS}"
        )
    return int(scale)


def _part(item: Any, key: str) -> Any:
    """Return the last value of a key of an object, as either reader returns objects; None if it is not there."""
    if isinstance(item, _Pairs):
        return next((part for name, part in reversed(item) if name == key), None)
    return item.get(key) if isinstance(item, Mapping) else None


def _word(item: Any) -> str:
    return "a number" if isinstance(item, (_Integer, _Number)) else _WORDS.get(type(item), "an object")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
