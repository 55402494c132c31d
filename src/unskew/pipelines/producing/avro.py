"""Rows as records of an Avro schema: their bytes, or what a JSON message of the same schema holds.

A union takes the first of its types that a value fits; as in Avro's own JSON, an object whose only key is the name of a
type says which one is meant. A field that a row lacks has its default; without one, it is null where it may be.
"""

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import fastavro

from unskew.features.nearest import nearest
from unskew.pipelines.producing import scalars
from unskew.pipelines.producing.scalars import INT32, INT64, Fit, Unfit, big_endian, not_a

_PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_PER_SECOND = {"millis": 1_000, "micros": 1_000_000, "nanos": 1_000_000_000}


def fit_of(schema: Any, *, text: bool, as_json: bool = False, record: str | None = None) -> Fit:
    """Return what makes a record of a row: its bytes, without a frame.

    ``text``: values are texts, as in CSV. ``as_json``: return what a JSON message holds in place of bytes. ``record``:
    the name of the record that rows are, where the schema is a union of several.
    """
    parsed: Any = fastavro.parse_schema(schema)
    types = _Types(text=text, as_json=as_json)
    if not isinstance(parsed, list):
        return types.fit(parsed)
    fits = [types.fit(each) for each in parsed]
    names = [str(each["name"]) for each in parsed]
    at = next((at for at, name in enumerate(names) if record in {name, name.rpartition(".")[2]}), 0)
    return lambda row: _varint(at) + fits[at](row)


class _Types:
    """The fits of a schema's types; a named type is known by its name from then on."""

    def __init__(self, *, text: bool, as_json: bool) -> None:
        self._text = text
        self._as_json = as_json
        self._named: dict[str, Fit] = {}

    def fit(self, avro: Any) -> Fit:
        if isinstance(avro, list):
            return self._union(avro)
        if isinstance(avro, str):
            return self._plain(avro, {}) if avro in _PRIMITIVES else self._met(avro)
        kind = avro["type"]
        if isinstance(kind, (Mapping, list)):
            return self.fit(kind)
        if kind in {"record", "error"}:
            found = self._record(avro)
        elif kind == "array":
            return self._array(self.fit(avro["items"]))
        elif kind == "map":
            return self._map(self.fit(avro["values"]))
        elif kind == "enum":
            found = self._symbol(tuple(avro["symbols"]))
        elif kind not in _PRIMITIVES and kind != "fixed":
            return self.fit(kind)
        else:
            found = self._plain(kind, avro)
        if "name" in avro:
            self._named[avro["name"]] = found
        return found

    def _met(self, name: str) -> Fit:
        # A type that contains itself is named before it is known.
        return lambda value: self._named[name](value)  # noqa: PLW0108

    def _plain(self, kind: str, avro: Mapping[str, Any]) -> Fit:
        text, logical = self._text, str(avro.get("logicalType"))
        size = int(avro["size"]) if kind == "fixed" else None
        meaning, _, unit = logical.removeprefix("local-").partition("-")
        if kind == "long" and meaning == "timestamp" and unit in _PER_SECOND:
            return self._as(_varint, scalars.instant(f"a {logical}", _PER_SECOND[unit], text=text))
        if meaning == "time" and unit in _PER_SECOND and kind == ("int" if unit == "millis" else "long"):
            return self._as(_varint, scalars.time_of_day(f"a {logical}", _PER_SECOND[unit]))
        if kind == "int" and logical == "date":
            return self._as(_varint, scalars.day("a date"))
        if kind in {"bytes", "fixed"} and logical == "decimal" and avro.get("precision"):
            return self._decimal(int(avro["precision"]), int(avro.get("scale", 0)), size)
        match kind:
            case "null":
                return self._as(lambda _: b"", _null)
            case "boolean":
                return self._as(lambda flag: b"\1" if flag else b"\0", scalars.boolean("a boolean", text=text))
            case "int" | "long":
                bounds = INT32 if kind == "int" else INT64
                return self._as(_varint, scalars.integer(f"a number of type {kind}", bounds, text=text))
            case "float" | "double":
                short, unusual = kind == "float", not self._as_json
                pack = struct.Struct("<f" if short else "<d").pack
                return self._as(pack, scalars.real(f"a number of type {kind}", text=text, unusual=unusual, short=short))
            case "bytes" | "fixed":
                found = scalars.octets("bytes" if size is None else "a fixed", size)
                if self._as_json:
                    return lambda value: base64.b64encode(found(value)).decode()
                return found if kind == "fixed" else self._as(_long, found)
        return self._as(lambda words: _long(words.encode()), scalars.string("a text"))

    def _as(self, encode: Callable[[Any], bytes], fit: Fit) -> Fit:
        return fit if self._as_json else lambda value: encode(fit(value))

    def _decimal(self, precision: int, scale: int, size: int | None) -> Fit:
        units = scalars.unscaled(f"a decimal({precision}, {scale})", precision, scale)
        if self._as_json:
            return lambda value: Decimal(units(value)).scaleb(-scale)

        def fit(value: Any) -> bytes:
            try:
                found = big_endian(units(value), size)
            except OverflowError as error:
                raise Unfit(f"{scalars.written(value)} does not fit {size} bytes") from error
            return _long(found) if size is None else found

        return fit

    def _symbol(self, symbols: tuple[str, ...]) -> Fit:
        known = {symbol: _varint(at) for at, symbol in enumerate(symbols)}

        def fit(value: Any) -> Any:
            if not isinstance(value, str):
                raise not_a(value, f"one of {', '.join(symbols)}")
            if value not in known:
                raise Unfit(
                    f"{scalars.written(value)} is not a symbol of the schema; {nearest(value, symbols, 'they are')}"
                )
            return value if self._as_json else known[value]

        return fit

    def _record(self, avro: Mapping[str, Any]) -> Fit:
        fits: dict[str, Fit] = {}
        absent: dict[str, Any] = {}
        for field in avro["fields"]:
            name = field["name"]
            fits[name] = self.fit(field["type"])
            if "default" in field:
                absent[name] = _of_default(field["type"], field["default"])
            elif field["type"] == "null" or (isinstance(field["type"], list) and "null" in field["type"]):
                absent[name] = None
        what = f"a record {avro['name']}"

        def fit(value: Any) -> Any:
            value = scalars.of_cell(value) if self._text else value
            if not isinstance(value, Mapping):
                raise not_a(value, what)
            if not value.keys() <= fits.keys():
                unknown = next(name for name in value if name not in fits)
                raise Unfit(f"the schema has no field {unknown!r}; {nearest(str(unknown), fits, 'it has')}")
            found = {}
            for name, inside in fits.items():
                try:
                    if name in value:
                        found[name] = inside(value[name])
                    elif name in absent:
                        found[name] = inside(absent[name])
                    else:
                        raise Unfit("it is missing, and has no default in the schema")  # noqa: TRY301
                except Unfit as fault:
                    if not (self._text and value.get(name) == "" and name in absent):
                        raise fault.inside(name) from fault
                    found[name] = inside(absent[name])
            return found if self._as_json else b"".join(found.values())

        return fit

    def _array(self, item: Fit) -> Fit:
        def fit(value: Any) -> Any:
            value = scalars.of_cell(value) if self._text else value
            if not isinstance(value, list):
                raise not_a(value, "an array")
            items = [_inside(item, f"[{at}]", each) for at, each in enumerate(value)]
            return items if self._as_json else _block(items)

        return fit

    def _map(self, item: Fit) -> Fit:
        def fit(value: Any) -> Any:
            value = scalars.of_cell(value) if self._text else value
            # As columns of files have it.
            if isinstance(value, list) and all(
                isinstance(each, Mapping) and set(each) == {"key", "value"} for each in value
            ):
                value = {each["key"]: each["value"] for each in value}
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise not_a(value, "a map")
            items = {key: _inside(item, key, each) for key, each in value.items()}
            return items if self._as_json else _block([_long(key.encode()) + each for key, each in items.items()])

        return fit

    def _union(self, branches: Sequence[Any]) -> Fit:
        fits = [self.fit(branch) for branch in branches]
        names = [_name(branch) for branch in branches]
        by_name = {word: at for at, name in enumerate(names) for word in (name, name.rpartition(".")[2])}
        others = [at for at, name in enumerate(names) if name != "null"]

        def chosen(at: int, value: Any) -> Any:
            found = fits[at](value)
            return found if self._as_json else _varint(at) + found

        def fit(value: Any) -> Any:
            if "null" in by_name and (value is None or (self._text and value == "")):
                return chosen(by_name["null"], None)
            if isinstance(value, Mapping) and len(value) == 1 and (at := by_name.get(next(iter(value)))) is not None:
                return chosen(at, next(iter(value.values())))
            if len(others) == 1:
                return chosen(others[0], value)
            for at in others:
                try:
                    return chosen(at, value)
                except Unfit:
                    continue
            raise not_a(value, f"one of {', '.join(names[at] for at in others)}")

        return fit


def _inside(fit: Fit, name: str, value: Any) -> Any:
    try:
        return fit(value)
    except Unfit as fault:
        raise fault.inside(name) from fault


def _of_default(avro: Any, default: Any) -> Any:
    """Return a default as a row has it. Bytes stand in a schema as text of code points below 256."""
    branches = avro if isinstance(avro, list) else [avro]
    kinds = {each["type"] if isinstance(each, Mapping) else each for each in branches}
    octets = kinds & {"bytes", "fixed"} and not kinds & {"string", "enum"}
    return default.encode("latin-1") if octets and isinstance(default, str) else default


def _name(branch: Any) -> str:
    return str(branch.get("name", branch["type"])) if isinstance(branch, Mapping) else str(branch)


def _null(value: Any) -> None:
    if value is not None:
        raise not_a(value, "null")


def _varint(number: int) -> bytes:
    """Return a number as Avro writes it: zig-zag, then seven bits a byte, lowest first."""
    rest = (number << 1) ^ (number >> 63)
    found = bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    found.append(rest)
    return bytes(found)


def _long(octets: bytes) -> bytes:
    return _varint(len(octets)) + octets


def _block(items: Sequence[bytes]) -> bytes:
    return b"".join([_varint(len(items)), *items, b"\0"]) if items else b"\0"
