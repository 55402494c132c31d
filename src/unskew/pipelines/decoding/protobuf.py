"""Messages in Protobuf as typed columns, read with the message types of their writer's schema.

A schema is one or several files of descriptors, from which message classes are made while the program runs. What a
stream reads of a message type is described as an Avro record (``Resolution``), so the columns of a Protobuf message are
resolved and converted as those of any other.

Protobuf's encoding says little about what it holds: a message that is cut between two fields, or followed by another
of the same type, is a valid message. Everything else that its schema does not explain is refused.
"""

import datetime as dt
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.definitions.avro_schema import AvroField, avro_fields, spell
from unskew.features.extras import needed
from unskew.features.rejection import Kind, Rejection
from unskew.pipelines.decoding.avro_walk import RAW
from unskew.pipelines.decoding.branching import Place, Target
from unskew.pipelines.decoding.columns import Refusals
from unskew.pipelines.decoding.decoder import BadMessage, Read, one_by_one
from unskew.pipelines.decoding.reading import Accepted, Reads, read_by_choice
from unskew.pipelines.decoding.resolve import Incompatible, Resolution
from unskew.pipelines.decoding.writers import Files
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.poll import FRAME_BYTES

with needed("format protobuf", "google.protobuf"):
    from google.protobuf import (
        descriptor_pb2,
        descriptor_pool,
        json_format,
        message_factory,
        text_format,
        unknown_fields,
    )
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import DecodeError, EncodeError, Message

_INT64 = (-(2**63), 2**63 - 1)
# Files that every registry knows without a reference.
_BUILT_IN = re.compile(r"(google/(?:protobuf|type)|confluent(?:/types?)?)/([a-z_]+)\.proto")
_DEEPEST_INDEX = 64
_LONGEST_VARINT = 5
_ROOT = "unskew/root.proto"
_DAYS_TO_1970 = dt.date(1970, 1, 1).toordinal()
_MOST_SHOWN = 100

_KINDS: Mapping[int, str] = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT32: "int",
    FieldDescriptor.TYPE_SINT32: "int",
    FieldDescriptor.TYPE_SFIXED32: "int",
    FieldDescriptor.TYPE_UINT32: "long",
    FieldDescriptor.TYPE_FIXED32: "long",
    FieldDescriptor.TYPE_INT64: "long",
    FieldDescriptor.TYPE_SINT64: "long",
    FieldDescriptor.TYPE_SFIXED64: "long",
    FieldDescriptor.TYPE_UINT64: "long",
    FieldDescriptor.TYPE_FIXED64: "long",
    FieldDescriptor.TYPE_BOOL: "boolean",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
}
_UNSIGNED = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
_DECIMAL = "confluent.type.Decimal"
# More digits and more bits than any decimal has that a column holds.
_MOST_DIGITS = 80
_MOST_BITS = 512
_WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


def messages_of(files: Files, target: Target) -> "Messages | None":
    """Return how messages of a schema are read; None if none of its message types are events of the stream.

    Raises ``Incompatible`` if they are and cannot be read.
    """
    types = _Types(files)
    ways: dict[str, Reads | Rejection] = {}
    faults = []
    for name in types.names():
        if target.means({"name": name}):
            try:
                ways[name] = _Reading(types.descriptor(name), target)
            except Incompatible as fault:
                faults.append(f"{name}: {fault}")
                ways[name] = Rejection("schema", faults[-1])
    if faults and all(isinstance(way, Rejection) for way in ways.values()):
        raise Incompatible("; ".join(faults))
    return Messages(types, ways) if ways else None


class Messages:
    """The way from messages of one schema, each of which says which of the schema's message types it has."""

    def __init__(self, types: "_Types", ways: Mapping[str, Reads | Rejection]) -> None:
        self._types = types
        self._ways = ways

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return columns of the stream; see ``Reads``. Messages of other types are neither read nor refused."""
        numbers: dict[tuple[int, ...] | None, int] = {}
        opened = [_opened(value or b"") for value in values]
        choices = np.array([numbers.setdefault(index, len(numbers)) for index, _ in opened], np.int64)
        lengths = np.array([len(body) for _, body in opened], np.int64)
        bodies = Blobs.cut(values.data, values.edges[1:] - lengths, lengths)
        indices = list(numbers)
        return read_by_choice(choices, lambda number: self._way(indices[number]), rows, bodies, reasons, accepted)

    def _way(self, index: tuple[int, ...] | None) -> Reads | Rejection | None:
        name = self._types.name_at(index)
        return name if isinstance(name, Rejection) else self._ways.get(name)


def as_data(files: Files, value: bytes) -> Any:
    """Return a message as JSON-able data. Raises ``ValueError`` if it cannot be read."""
    index, body = _opened(value)
    message = _class_at(files, index).FromString(body)
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def encoded(files: Files, value: bytes, data: Any) -> bytes:
    """Return a message of the type that ``value`` says it has, made from data as ``as_data`` returns it.

    Raises ``ValueError`` if it does not fit the type.
    """
    index, body = _opened(value)
    message = json_format.ParseDict(data, _class_at(files, index)())
    octets: bytes = message.SerializeToString()
    return value[: len(value) - len(body)] + octets


def event_type(files: Files, target: Target) -> tuple[Any, bytes]:
    """Return the class of the first message type of a schema that is an event, and the index that says so in a message.

    Raises ``Incompatible`` if there is none.
    """
    types = _Types(files)
    for index, name in sorted(types.indices()):
        if target.means({"name": name}):
            octets = b"\0" if index == (0,) else b"".join(_written(number) for number in (len(index), *index))
            return message_factory.GetMessageClass(types.descriptor(name)), octets
    raise Incompatible(f"none of its message types is called {' or '.join(target.records)}")


def _written(number: int) -> bytes:
    """Return a number as ``_varint`` reads it."""
    rest, found = number << 1, bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*found, rest])


def _class_at(files: Files, index: tuple[int, ...] | None) -> Any:
    types = _Types(files)
    name = types.name_at(index)
    if isinstance(name, Rejection):
        raise ValueError(name.reason)  # noqa: TRY004 - what it was read from is wrong
    return message_factory.GetMessageClass(types.descriptor(name))


def _opened(value: bytes) -> tuple[tuple[int, ...] | None, bytes]:
    """Return the index of a framed message's type, and the message itself; None as the index if it cannot be read.

    The index has a number for each level of nested types, the first one among those of the file. In front of them is
    how many there are; none means the first type. Each is a varint with a sign.
    """
    if value[FRAME_BYTES : FRAME_BYTES + 1] == b"\0":
        return (0,), value[FRAME_BYTES + 1 :]
    count, at = _varint(value, FRAME_BYTES)
    if not 0 < count <= _DEEPEST_INDEX:
        return None, b""
    index = []
    for _ in range(count):
        number, at = _varint(value, at)
        if number < 0:
            return None, b""
        index.append(number)
    return tuple(index), value[at:]


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """Return a number and the place after it; -1 if it is not a number of 32 bits that is not negative."""
    found = 0
    for shift, octet in enumerate(value[at : at + _LONGEST_VARINT]):
        found |= (octet & 0x7F) << 7 * shift
        if octet < 0x80:
            return -1 if found & 1 or found >= 2**32 else found >> 1, at + shift + 1
    return -1, at


class _Types:
    """The message types of a schema. Raises ``Incompatible`` if its files cannot be used."""

    def __init__(self, files: Files) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        self._files: dict[str, Any] = {}
        self._added: set[str] = set()
        for name, octets in files:
            try:
                self._files[name or _ROOT] = descriptor_pb2.FileDescriptorProto.FromString(octets)
            except DecodeError as error:
                raise Incompatible("it is not a schema in serialized form") from error
            self._files[name or _ROOT].name = name or _ROOT
        self._root = self._files[_ROOT]
        try:
            self._add(_ROOT)
        # The pool raises TypeError for descriptors that contradict each other; what else it may raise, nobody says.
        except Exception as error:
            if isinstance(error, Incompatible):
                raise
            raise Incompatible(f"it is not a valid schema ({type(error).__name__}: {error})") from error

    def _add(self, name: str) -> None:
        """Add a file to the pool, after those that it imports."""
        if name in self._added:
            return
        self._added.add(name)
        file = self._files.get(name) or _built_in(name)
        for imported in file.dependency:
            self._add(imported)
        self._pool.AddSerializedFile(file.SerializeToString())

    def names(self) -> Iterator[str]:
        """Yield the names of the schema's message types, nested ones included."""
        return (name for _, name in self.indices())

    def indices(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yield each message type's index in the schema, the types of maps counted too, and its name."""
        waiting: list[tuple[tuple[int, ...], str, Any]] = [
            ((number,), self._prefix(), each) for number, each in enumerate(self._root.message_type)
        ]
        while waiting:
            index, prefix, each = waiting.pop()
            if not each.options.map_entry:
                yield index, prefix + each.name
                waiting += [
                    ((*index, number), f"{prefix}{each.name}.", inside)
                    for number, inside in enumerate(each.nested_type)
                ]

    def descriptor(self, name: str) -> Any:
        """Return the descriptor of a message type."""
        return self._pool.FindMessageTypeByName(name)

    def name_at(self, index: tuple[int, ...] | None) -> str | Rejection:
        """Return the name of the message type at an index."""
        if index is None:
            return Rejection("frame", "its message index cannot be read")
        found = {self._walked(index, entries=entries) for entries in (True, False)}
        if len(found) > 1:
            # Protobuf makes a type for each map. Clients in Java do not count them, others do.
            return Rejection(
                "schema", f"message index {list(index)} is ambiguous, because there is a map before the type"
            )
        name = found.pop()
        return name or Rejection("schema", f"message index {list(index)} is not one of its schema")

    def _walked(self, index: tuple[int, ...], *, entries: bool) -> str | None:
        prefix, types = self._prefix(), self._root.message_type
        for number in index:
            types = [each for each in types if entries or not each.options.map_entry]
            if number >= len(types):
                return None
            name = prefix + types[number].name
            prefix, types = f"{name}.", types[number].nested_type
        return name  # type: ignore[possibly-undefined]  # an index is never empty

    def _prefix(self) -> str:
        return f"{self._root.package}." if self._root.package else ""


def _built_in(name: str) -> Any:
    """Return a file that comes with a library. Raises ``Incompatible`` if there is no such file."""
    if found := _BUILT_IN.fullmatch(name):
        folder = found[1].replace("/", ".")
        package = f"confluent_kafka.schema_registry.{folder}" if folder.startswith("confluent") else folder
        try:
            module = importlib.import_module(f"{package}.{found[2]}_pb2")
        except ImportError:
            pass
        else:
            return descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    raise Incompatible(f"it imports {name}, to which it does not refer in the registry")


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One value that is read: ``path`` are the fields that lead to it; ``column``: what it is read into.

    ``known``: how a message is read that stands for one value; None for any other field.
    """

    column: AvroField
    path: tuple[Any, ...]
    known: "_Known | None" = None


class _Reading:
    """The way from messages of one type, without their frames, to columns of a stream. Raises ``Incompatible``."""

    def __init__(self, descriptor: Any, target: Target) -> None:
        self._name = descriptor.full_name
        self._class = message_factory.GetMessageClass(descriptor)
        # A message may have a field of any name, so methods are not looked up in it.
        self._size = _method(self._class, "ByteSize")
        self._discard = _method(self._class, "DiscardUnknownFields")
        self._has = _method(self._class, "HasField")
        self._event_time = target.event_time
        leaves = list(_leaves(descriptor, target.places))
        fields = [{"name": leaf.column.name, "type": _avro_of(leaf)} for leaf in leaves]
        writer = {"type": "record", "name": "Message", "fields": fields}
        self._resolution = Resolution(writer, target.reader, target.event_time)
        self._writer = {field.name: field for field in avro_fields(writer)}
        self._leaves = [leaf for leaf in leaves if leaf.column.name in self._resolution.wanted]

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,  # noqa: ARG002 - a registry says what ids mean
    ) -> Read:
        """Return columns of the stream; see ``Reads``."""
        read, found = one_by_one(rows, values, reasons, self._parsed)
        messages = [message for (message,) in found]
        refusals = Refusals(read, reasons)
        columns = [self._column(leaf, messages, refusals) for leaf in self._leaves]
        # A frame without columns has no rows either.
        frame = pl.DataFrame([pl.Series("", [None] * len(messages), dtype=pl.Null), *columns])
        return refusals.of(self._resolution.apply(frame, refusals)) if len(read) else (read, pl.DataFrame())

    def _parsed(self, body: bytes | None) -> tuple[Any]:
        try:
            message = self._class.FromString(body)
            self._discard(message)
            size = self._size(message)
        except (DecodeError, EncodeError) as error:
            why = str(error)
            kind: Kind = "encoding" if "UTF-8" in why else "malformed"
            raise BadMessage(kind, f"not a message of type {self._name}: {why}") from error
        # If it has the same length when it is written again, nothing was discarded.
        if size != len(body or b""):
            for descriptor, number in _unknown(self._class.FromString(body)):
                _check_unknown(descriptor, number)
        return (message,)

    def _column(self, leaf: _Leaf, messages: Sequence[Any], refusals: Refusals) -> pl.Series:
        """Return the raw values of a column, as ``Resolution`` takes them; refuse those that it cannot hold."""
        name, field = leaf.column.name, leaf.path[-1]
        kind = self._writer[name].kind
        values = self._values(leaf, messages, refusals)
        if field.type == FieldDescriptor.TYPE_ENUM:
            symbols = {number: value.name for number, value in field.enum_type.values_by_number.items()}
            unknown = [number is not None and number not in symbols for number in values]
            if any(unknown) and leaf.column.symbol is None:
                refusals.refuse(
                    np.array(unknown),
                    "range",
                    lambda at: f"{name}: {values[at]} is not the number of a symbol of {field.enum_type.full_name}",
                )
            values = [None if number is None else symbols.get(number, leaf.column.symbol) for number in values]
        elif leaf.known is not None:
            values = self._converted(name, values, leaf.known, refusals)
        elif field.type in _UNSIGNED or _is(field, "google.protobuf.UInt64Value"):
            wide = [number is not None and number > _INT64[1] for number in values]
            if any(wide):
                refusals.refuse(np.array(wide), "range", lambda at: f"{name}: {values[at]} does not fit its type")
                values = [None if outside else number for number, outside in zip(values, wide, strict=True)]
        return pl.Series(name, values, dtype=RAW[kind])

    def _converted(self, name: str, values: Sequence[Any], known: "_Known", refusals: Refusals) -> list[Any]:
        found = [None if value is None else known.convert(value) for value in values]
        invalid = [number is None and value is not None for number, value in zip(found, values, strict=True)]
        if any(invalid):
            refusals.refuse(
                np.array(invalid),
                "time" if name == self._event_time else "range",
                lambda at: known.fault(name, values[at]),
            )
        return found

    def _values(self, leaf: _Leaf, messages: Sequence[Any], refusals: Refusals) -> list[Any]:
        """Return the value of every message; None where it, or anything around it, is absent and has no default."""
        found: list[Any] = list(messages)
        for field in leaf.path[:-1]:
            found = self._each(found, field.name, None, presence=True)
        field = leaf.path[-1]
        default = field.default_value if field.has_default_value else None
        found = self._each(found, field.name, default, presence=field.has_presence)
        # Texts of proto2 need not be UTF-8. Those that are not come as bytes.
        if field.type == FieldDescriptor.TYPE_STRING:
            odd = [type(value) is bytes for value in found]
            if any(odd):
                refusals.refuse(np.array(odd), "encoding", lambda _: f"{leaf.column.name} is not UTF-8")
                found = [None if type(value) is bytes else value for value in found]
        if _is(field, *_WRAPPERS):
            return self._each(found, "value", None, presence=False)
        return found

    def _each(self, messages: Sequence[Any], name: str, default: Any, *, presence: bool) -> list[Any]:
        if not presence:
            return [None if message is None else getattr(message, name) for message in messages]
        has = self._has
        return [
            None if message is None else getattr(message, name) if has(message, name) else default
            for message in messages
        ]


def _method(made: Any, name: str) -> Any:
    """Return a method of all message classes."""
    return next(vars(each)[name] for each in made.__mro__ if each is not made and name in vars(each))


def _is(field: Any, *names: str) -> bool:
    return field.message_type is not None and field.message_type.full_name in names


def _leaves(descriptor: Any, places: Sequence[Place], outer: tuple[Any, ...] = ()) -> Iterator[_Leaf]:
    """Yield what is read of a message type; a field that it does not have is left out."""
    fields = descriptor.fields_by_name
    for place in places:
        field = next((fields[name] for name in place.names if name in fields), None)
        if field is None:
            continue
        path = (*outer, field)
        if field.is_repeated:
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            kind = "a map, and maps" if is_map else "repeated, and lists"
            raise Incompatible(f"its field {field.name!r} is {kind} have no column and no fields inside")
        if place.column is not None:
            leaf = _Leaf(place.column, path, _known(field, place.column))
            if field.message_type is not None and leaf.known is None and not _is(field, *_WRAPPERS):
                raise Incompatible(
                    f"its field {field.name!r} is a {field.message_type.full_name}, which cannot be read as "
                    f"{spell(place.column.avro)}; `fields` reads what is inside it"
                )
            yield leaf
            continue
        if field.message_type is None:
            raise Incompatible(f"its field {field.name!r} is {spell(_plain_type(field))}, which has no fields inside")
        yield from _leaves(field.message_type, place.inside, path)


def _avro_of(leaf: _Leaf) -> Any:
    """Return the Avro type of what is read, with null if it may be absent."""
    field = leaf.path[-1]
    avro = _plain_type(field) if leaf.known is None else leaf.known.avro
    nullable = len(leaf.path) > 1 or (field.has_presence and not field.has_default_value and not field.is_required)
    return ["null", avro] if nullable else avro


def _plain_type(field: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        names = [value.name for value in field.enum_type.values]
        return {"type": "enum", "name": field.enum_type.full_name, "symbols": names}
    if _is(field, *_WRAPPERS):
        return _KINDS[field.message_type.fields_by_name["value"].type]
    return _KINDS[field.type]


@dataclass(frozen=True, slots=True)
class _Known:
    """How a message that stands for one value is read: the Avro type that it has.

    ``convert`` returns the number or bytes of that type; None if the message is not valid. ``fault`` returns why, from
    the column's name and the message.
    """

    avro: Any
    convert: Callable[[Any], int | bytes | None]
    fault: Callable[[str, Any], str]


def _known(field: Any, column: AvroField) -> _Known | None:
    if field.message_type is None:
        return None
    if field.message_type.full_name == _DECIMAL and column.logical == "decimal":
        avro = {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": column.scale}
        return _Known(
            avro,
            partial(_unscaled, scale=column.scale),
            lambda name, _: f"{name} has more than {column.scale} digits after the point",
        )
    return _KNOWN.get(field.message_type.full_name)


def _instant(value: Any) -> int | None:
    """Return microseconds since 1970; what lies below one is cut off."""
    sound = abs(value.seconds) < 2**40 and 0 <= value.nanos < 1_000_000_000
    return value.seconds * 1_000_000 + value.nanos // 1000 if sound else None


def _duration(value: Any) -> int | None:
    """Return microseconds; what lies below one is cut off, towards 0."""
    total = value.seconds * 1_000_000_000 + value.nanos
    sound = abs(value.seconds) < 2**40 and abs(value.nanos) < 1_000_000_000 and value.seconds * value.nanos >= 0
    micros = abs(total) // 1000
    return (micros if total >= 0 else -micros) if sound else None


def _date(value: Any) -> int | None:
    """Return days since 1970. A date may lack its year, month or day, which are 0 then; such a date is not valid."""
    try:
        return dt.date(value.year, value.month, value.day).toordinal() - _DAYS_TO_1970
    except (ValueError, OverflowError):
        return None


def _time_of_day(value: Any) -> int | None:
    """Return microseconds since midnight; what lies below one is cut off."""
    sound = (
        0 <= value.hours < 24
        and 0 <= value.minutes < 60
        and 0 <= value.seconds < 60
        and 0 <= value.nanos < 1_000_000_000
    )
    seconds = value.hours * 3600 + value.minutes * 60 + value.seconds
    return seconds * 1_000_000 + value.nanos // 1000 if sound else None


def _unscaled(value: Any, scale: int) -> bytes | None:
    """Return a decimal's number of units of 10^-``scale``, big-endian; None if that is not whole.

    A number that no column holds is one that is too large.
    """
    number, gained = int.from_bytes(value.value, "big", signed=True), scale - value.scale
    if number.bit_length() > _MOST_BITS or (number and gained > _MOST_DIGITS):
        number = 1 << _MOST_BITS
    elif number and gained > 0:
        number *= 10**gained
    elif number and gained < 0:
        # 10 to a power beyond that is more than any number of so few bits.
        number, lost = divmod(number, 10 ** min(-gained, _MOST_BITS))
        if lost:
            return None
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _shown(message: Message) -> str:
    """Return a message that is not valid as text of one line, cut off where it is long."""
    text = text_format.MessageToString(message, as_one_line=True).strip()
    return f"{text[:_MOST_SHOWN]}..." if len(text) > _MOST_SHOWN else text or "an empty message"


def _is_not(what: str) -> Callable[[str, Any], str]:
    return lambda name, message: f"{name}: {_shown(message)} is not {what}"


_KNOWN: Mapping[str, _Known] = {
    "google.protobuf.Timestamp": _Known(
        {"type": "long", "logicalType": "timestamp-micros"}, _instant, _is_not("a valid Timestamp")
    ),
    "google.protobuf.Duration": _Known("long", _duration, _is_not("a valid Duration")),
    "google.type.Date": _Known({"type": "int", "logicalType": "date"}, _date, _is_not("a whole date")),
    "google.type.TimeOfDay": _Known(
        {"type": "long", "logicalType": "time-micros"}, _time_of_day, _is_not("a time of day")
    ),
}


def _unknown(message: Message) -> Iterator[tuple[Any, int]]:
    """Yield the numbers of fields that a type does not have, in a message and in those inside it, each with its type.

    They are nested no deeper than Protobuf reads, which is 100 levels.
    """
    for field in unknown_fields.UnknownFieldSet(message):
        yield message.DESCRIPTOR, field.field_number
    for field, value in _method(type(message), "ListFields")(message):
        if field.message_type is None:
            continue
        if not field.is_repeated:
            yield from _unknown(value)
        elif not field.message_type.GetOptions().map_entry:
            for each in value:
                yield from _unknown(each)
        elif field.message_type.fields_by_name["value"].message_type is not None:
            for each in value.values():
                yield from _unknown(each)


def _check_unknown(descriptor: Any, number: int) -> None:
    """Raise ``BadMessage`` if nothing explains that a message has a field that could not be read."""
    field = descriptor.fields_by_number.get(number)
    if field is None:
        if any(begin <= number < end for begin, end in descriptor.extension_ranges):
            return
        raise BadMessage("malformed", f"not a message of type {descriptor.full_name}: it has no field {number}")
    if field.enum_type is not None and field.enum_type.is_closed:
        raise BadMessage("range", f"{field.name}: its number is not that of a symbol of {field.enum_type.full_name}")
    raise BadMessage("malformed", f"not a message of type {descriptor.full_name}: field {number} has another type")
