"""Writers' schemas whose messages are not simply columns one after the other.

A record inside a record is the same bytes as its fields, so it is opened: its fields take its place. A union leaves a
choice to each message: which record it is, or whether a value is null, a number or a text. Messages are grouped by what
they chose, and lose the numbers of their branches. What remains of them has a plain schema without choices, and is read
as if it had been written with that (``reading``). So such messages are read as columns too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt

from unskew.features.definitions.avro_schema import (
    AvroField,
    Unique,
    avro_fields,
    field_of,
    spell,
    without_wrapping,
)
from unskew.features.definitions.inputs import names_along, row_of
from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.avro_walk import Branches
from unskew.pipelines.decoding.decoder import Read
from unskew.pipelines.decoding.reading import Accepted, Reading, Reads, read_by_choice
from unskew.pipelines.decoding.resolve import Incompatible, mismatch
from unskew.pipelines.kafka.blobs import Blobs

_PLAIN = "Plain"
_MOST_KINDS = 256
"""So many combinations of choices of one schema are remembered."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is read at one field of a record: a column, or fields inside it.

    ``names``: the field's name, then its aliases.
    """

    names: tuple[str, ...]
    column: AvroField | None = None
    inside: "tuple[Place, ...]" = ()

    def columns(self) -> Iterator[AvroField]:
        """Yield every column that is read there."""
        if self.column is not None:
            yield self.column
        for place in self.inside:
            yield from place.columns()


@dataclass(frozen=True, kw_only=True)
class Target:
    """What messages are read into.

    ``reader``: the record schema of the stream's columns. ``places``: where they lie in a message. ``records``: the
    names of the record types that are events; a name without a dot is one in any namespace. ``event_time``: the column
    of the event time.
    """

    topic: str
    reader: Mapping[str, Any]
    records: tuple[str, ...]
    event_time: str
    places: tuple[Place, ...]
    opens: bool = False

    @staticmethod
    def of(stream: StreamPlan) -> "Target":
        """Return the target of a stream."""
        columns = [each for each in avro_fields(stream.reader) if each.dtype is not None]
        record, opens = _names_of(stream), stream.flat is not None
        row = row_of(stream.schema) if stream.envelope == "debezium" else stream.schema
        paths = [stream.paths.get(each.name, (each.name,)) for each in columns]
        places = (
            _nested(list(zip(names_along(row, paths), columns, strict=True)))
            if opens
            else tuple(Place(names=(each.name, *each.aliases), column=each) for each in columns)
        )
        return Target(
            topic=stream.topic,
            reader=stream.reader,
            records=record,
            event_time="" if stream.event_time in stream.read_as else stream.event_time,
            places=(Place(names=("after",), inside=places),) if stream.envelope == "debezium" else places,
            opens=opens,
        )

    def means(self, record: Mapping[str, Any]) -> bool:
        """Return true if a writer's record type is one of the stream's."""
        name = str(record["name"])
        if record.get("namespace") and "." not in name:
            name = f"{record['namespace']}.{name}"
        return not self.records or name in self.records or name.rpartition(".")[2] in self.records


def _names_of(stream: StreamPlan) -> tuple[str, ...]:
    """Return the names of the record types that are events: those that the stream names, else that of its schema."""
    schema = stream.schema
    if stream.records or schema.get("type") != "record":
        return stream.records
    if stream.envelope == "debezium":
        # The types of all tables are called Envelope, in a namespace of the table.
        space = str(schema.get("namespace") or str(schema["name"]).rpartition(".")[0])
        return (f"{space}.Envelope",) if space else ("Envelope",)
    return tuple(str(name).rpartition(".")[2] for name in (schema["name"], *schema.get("aliases", ())))


def _nested(found: Sequence[tuple[Sequence[tuple[str, ...]], AvroField]]) -> tuple[Place, ...]:
    """Return places from columns, each with the names (and aliases) that lead to it."""
    groups: dict[tuple[str, ...], list[tuple[Sequence[tuple[str, ...]], AvroField]]] = {}
    for path, column in found:
        groups.setdefault(path[0], []).append((path[1:], column))
    return tuple(
        Place(names=names, column=each[0][1]) if not each[0][0] else Place(names=names, inside=_nested(each))
        for names, each in groups.items()
    )


def reads_of(writer: Any, target: Target, of_record: Callable[[Mapping[str, Any]], Reads]) -> Reads | None:
    """Return how messages of a writer's schema are read; None if none of them are events of the stream.

    ``of_record``: makes this from a record schema. Raises ``Incompatible`` if they are events and cannot be read.
    """
    if isinstance(writer, list):
        return _Union.of(writer, target, of_record)
    return of_record(writer) if target.means(writer) else None


def reads_record(writer: Mapping[str, Any], target: Target) -> Reads:
    """Return how messages of a writer's record schema are read, whatever its name. Raises ``Incompatible``."""
    expanded: Any = fastavro.schema.expand_schema(dict(writer))
    unique = Unique(expanded, _PLAIN)
    fields = list(_opened(expanded, target.places, unique))
    if not target.opens and not any(_must_choose(each) for each in fields):
        return Reading(writer, target.reader, target.event_time, target.topic)
    for each in fields:
        if _must_choose(each) and each.place is not None and not any(_fits(each.place, one) for one in each.avro):
            wanted = "a record" if each.place.column is None else spell(each.place.column.avro)
            raise Incompatible(f"its field {each.name!r} is {spell(each.avro)}, which cannot be read as {wanted}")
    nothing = {"type": "record", "name": "Nothing", "fields": []}
    return _read_fields(fields, 0, target, Reading(writer, nothing, "", target.topic), _Kinds(unique))


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a writer's record, with an expanded type; ``place``: None if nothing is read there."""

    name: str
    avro: Any
    place: Place | None


def _opened(record: Mapping[str, Any], places: Iterable[Place], unique: Unique) -> Iterator[_Field]:
    """Yield the fields of a record, each with its place: the one of its name, else of an alias."""
    names = {each["name"] for each in record["fields"]}
    found = {next((name for name in place.names if name in names), ""): place for place in places}
    for each in record["fields"]:
        yield _Field(each["name"], without_wrapping(unique.copy(each["type"])), found.get(each["name"]))


def _must_choose(each: _Field) -> bool:
    """Return true if the messages must be grouped by the branch that they have in this field."""
    if each.place is None or not isinstance(each.avro, list):
        return False
    if each.place.inside:
        return True
    others = [branch for branch in each.avro if branch != "null"]
    return len(others) > 1 or not all(_fits(each.place, branch) for branch in others)


def _fits(place: Place, branch: Any) -> bool:
    """Return true if the branch of a union can be read at a place."""
    if place.column is None:
        return branch == "null" or (isinstance(branch, Mapping) and branch["type"] == "record")
    if branch == "null":
        return place.column.nullable
    return mismatch(field_of(place.column.name, branch), place.column) is None


@dataclass(slots=True)
class _Kinds:
    """The number of plain schemas that were made from one writer's, and what makes copies of its types."""

    unique: Unique
    n_made: int = 0


@dataclass(slots=True)
class _Choosing:
    """The way from messages whose next choice is a union; those before it in the message have been made.

    ``fields``: those of the message, records opened up to the choice, which is at ``at``. ``whole``: gives the reason
    for a message that does not get as far as the choice.
    """

    fields: list[_Field]
    at: int
    target: Target
    whole: Reading
    kinds: _Kinds
    choice: Branches
    chosen: dict[int, Reads | Rejection] = field(default_factory=dict)

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return columns of the stream; see ``Reads``."""
        branches, messages = self.choice.cut(values)

        def refuse(places: npt.NDArray[np.int64], why: Rejection) -> None:
            # What is wrong with the message itself comes first.
            sound = self.whole.sound(rows[places], values.at(places), reasons, accepted)
            reasons.update(dict.fromkeys(sound.tolist(), why))

        return read_by_choice(branches, self._chosen, rows, messages, reasons, accepted, refuse=refuse)

    def _chosen(self, branch: int) -> Reads | Rejection:
        if not 0 <= branch < len(self.fields[self.at].avro):
            return Rejection("malformed", "not a record of the schema")
        if branch not in self.chosen:
            if self.kinds.n_made >= _MOST_KINDS:
                self.kinds.n_made = 0
                self.chosen.clear()
            each = self.fields[self.at]
            taken = without_wrapping(each.avro[branch])
            rest = [_Field(each.name, taken, each.place)]
            if taken == "null" and each.place is not None and each.place.inside:
                rest = [_Field("", "null", Place(names=(), column=column)) for column in each.place.columns()]
            fields = [*self.fields[: self.at], *rest, *self.fields[self.at + 1 :]]
            try:
                self.chosen[branch] = _read_fields(fields, self.at, self.target, self.whole, self.kinds)
            except Incompatible as fault:
                self.chosen[branch] = Rejection("type", str(fault))
        return self.chosen[branch]


def _read_fields(fields: list[_Field], at: int, target: Target, whole: Reading, kinds: _Kinds) -> Reads:
    """Return how messages with these fields are read; those before ``at`` are plain. Raises ``Incompatible``."""
    while at < len(fields):
        each = fields[at]
        if _must_choose(each):
            choice = Branches([before.avro for before in fields[:at]])
            return _Choosing(fields, at, target, whole, kinds, choice)
        if each.place is not None and each.place.inside:
            if not isinstance(each.avro, Mapping) or each.avro["type"] != "record":
                raise Incompatible(f"its field {each.name!r} is {spell(each.avro)}, which has no fields inside")
            fields[at : at + 1] = _opened(each.avro, each.place.inside, kinds.unique)
            continue
        at += 1
    kinds.n_made += 1
    unique = Unique([each.avro for each in fields], _PLAIN)
    plain = [
        {
            "name": each.place.column.name
            if each.place is not None and each.place.column is not None
            else f".{number}",
            "type": unique.copy(each.avro),
        }
        for number, each in enumerate(fields)
    ]
    return Reading({"type": "record", "name": _PLAIN, "fields": plain}, target.reader, target.event_time, target.topic)


class _Union:
    """The way from messages that are each one of several types."""

    def __init__(self, branches: Sequence[Reads | Rejection | None]) -> None:
        self._branches = branches
        self._choice = Branches([])

    @staticmethod
    def of(writer: Sequence[Any], target: Target, of_record: Callable[[Mapping[str, Any]], Reads]) -> "_Union | None":
        """Return the way from a union; None if none of its types are events of the stream."""
        branches: list[Reads | Rejection | None] = []
        faults = []
        expanded: Any = fastavro.schema.expand_schema(list(writer))
        for branch in expanded:
            is_record = isinstance(branch, dict) and branch["type"] == "record"
            try:
                # A copy, because a type may be defined several times in an expanded schema.
                reads = is_record and target.means(branch)
                branches.append(of_record(Unique(expanded).copy(branch)) if reads else None)
            except Incompatible as fault:
                faults.append(f"{branch['name']}: {fault}")
                branches.append(Rejection("schema", faults[-1]))
        if faults and not any(branch is not None and not isinstance(branch, Rejection) for branch in branches):
            raise Incompatible("; ".join(faults))
        return _Union(branches) if any(branch is not None for branch in branches) else None

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return columns of the stream; see ``Reads``. Messages of other types are neither read nor refused."""
        branches, messages = self._choice.cut(values)
        return read_by_choice(branches, self._branch, rows, messages, reasons, accepted)

    def _branch(self, branch: int) -> Reads | Rejection | None:
        if not 0 <= branch < len(self._branches):
            return Rejection("malformed", "not a record of the schema (a union has no such branch)")
        return self._branches[branch]
