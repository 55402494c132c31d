"""The words of definitions: frozen structs that only hold what users write; ``compile`` checks and interprets them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from unskew.features.definitions.agg import Aggregation, Duration, Expression
from unskew.features.plan import Envelope, History, KeyFormat, Operation, OtherOperations, PayloadFormat
from unskew.features.view import CalendarUnit, KeyType, Scalar

Schema = str | Path | Mapping[str, Any]


class Entity(msgspec.Struct, frozen=True):
    """The subject of features, identified by one or several key columns.

    ``type``: ``"int64"`` or ``"string"``, one for each key column; if left out, the stream's schema decides.
    ``tags``: text by name.
    """

    name: str
    key: str | Sequence[str]
    type: KeyType | Sequence[KeyType] | None = None
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = {}


class Stream(msgspec.Struct, frozen=True):
    """A Kafka topic, or several, and how their records are read.

    ``topic``: a topic, a list of topics, or a pattern, which begins with ^ as in Kafka's own subscriptions and means
    all topics that it matches; new ones join while the pipeline runs. The partitions of several topics are numbered one
    after the other, topic by topic, and archived together under the stream's name.
    ``schema``: the Avro reader schema: a path (relative to the definition file), JSON text, or the parsed JSON. With
    ``format="json"``, it may also be a JSON Schema; with ``format="protobuf"``, which needs a Schema Registry, it names
    the columns that are read of Protobuf messages. Fields of types that have no column (arrays, for example) are left
    out.
    ``event_time``: the column that says when the event happened, a timestamp.
    ``key_column``: a column, besides those of the schema, that holds the record key. ``key_format``: ``"string"``
    (UTF-8), ``"int64"`` or ``"int32"`` (big-endian, as Kafka's own serializers write them). ``headers``: further
    columns from record headers (UTF-8 text, null if a record lacks the header): a mapping from column to header, or a
    list of names that are both.
    ``partitioned_by``: the key column(s) by which the producer partitions the topic, if it does.
    ``event_id``: the column that identifies events. With ``dedupe_within``, an event is dropped if its entity has had
    an event of the same id at most that long before (by arrival); without it, duplicates count.
    ``settle``: how far behind the present a reader that has caught up announces its clock. If left out it is 500 ms;
    for a live topic with producer timestamps (CreateTime) it must be given.
    ``max_age``: older events become dead letters. ``max_ahead``: a record becomes a dead letter if its producer's
    timestamp (CreateTime) lies further than this past the present; if left out it is 5 s. It has no effect on
    timestamps of the broker (LogAppendTime).
    ``aliases``: other names by which views may refer to the stream. ``tags``: text by name.
    ``schema_ids``: for Avro and Protobuf, the schema ids of messages that may be events; any other is a dead letter.
    If left out, and without a Schema Registry, that is the id with which a partition begins. ``records``: with a Schema
    Registry, the name(s) of the record types that are events, with or without namespace; if left out, the name of
    ``schema`` and its aliases. Records of other types are ignored and counted.
    ``fields``: columns whose values lie elsewhere in a message: a mapping from column to path, with dots between the
    names (``{"lat": "geo.lat", "id": "_id"}``). Such a field has no other column; a column inside something that is
    null or missing is null.
    ``read_as``: how values are read whose type the schema leaves open, a mapping from column to one of ``unix-s``,
    ``unix-ms``, ``unix-us``, ``unix-ns`` (a number, or a number as text, is an instant), ``iso`` (a text is an instant;
    ``iso Europe/Berlin``: without an offset, in that zone), ``int64``, ``float64``, ``decimal(38,2)`` (a number, or a
    number as text).
    ``envelope``: ``"connect"`` for JSON of Kafka Connect with schemas (the event is the ``payload``); ``"debezium"``
    for change events, whose rows (``after``) are the events, if their operation is one of ``operations``: c (insert,
    the default), r (read by a snapshot), u (update), m (message). ``other_operations``: ``ignore`` (they are counted),
    or ``dead_letter``.
    """

    name: str
    topic: str | Sequence[str]
    schema: Schema
    event_time: str
    format: PayloadFormat = "avro"
    key_column: str | None = None
    key_format: KeyFormat = "string"
    headers: Mapping[str, str] | Sequence[str] = ()
    partitioned_by: str | Sequence[str] | None = None
    event_id: str | None = None
    dedupe_within: Duration | None = None
    owner: str = ""
    description: str = ""
    aliases: Sequence[str] = ()
    settle: Duration | None = None
    max_age: Duration | None = None
    max_ahead: Duration | None = None
    schema_ids: int | Sequence[int] = ()
    records: str | Sequence[str] | None = None
    fields: Mapping[str, str] = {}
    read_as: Mapping[str, str] = {}
    envelope: Envelope | None = None
    operations: Sequence[Operation] = ("c",)
    other_operations: OtherOperations = "ignore"
    tags: Mapping[str, str] = {}


class Table(msgspec.Struct, frozen=True):
    """A table whose rows are events, and which is read on a schedule (``unskew materialize``).

    ``path``: Parquet, CSV, newline-delimited JSON or Arrow IPC files, folders of them, or a Delta table (relative to
    the definition file); or a Polars LazyFrame. ``schema``: the Avro or JSON Schema of the columns, as for a stream.
    ``event_time``: the column that says when the event happened.
    Either ``delay`` or ``arrival`` says when a row became available: so long after its event time, or at the instant in
    that column. A model cannot have known it before.
    ``zone``: the time zone of times that have none (``"UTC"``). ``columns``: where the table's names differ, a mapping
    from column to column of the table. ``read_as``, ``event_id``, ``dedupe_within``, ``max_age``, ``aliases``,
    ``tags``: as for a stream.
    """

    name: str
    path: Any
    schema: Schema
    event_time: str
    delay: Duration | None = None
    arrival: str | None = None
    zone: str | None = None
    columns: Mapping[str, str] = {}
    read_as: Mapping[str, str] = {}
    event_id: str | None = None
    dedupe_within: Duration | None = None
    max_age: Duration | None = None
    owner: str = ""
    description: str = ""
    aliases: Sequence[str] = ()
    tags: Mapping[str, str] = {}


class Window(msgspec.Struct, frozen=True):
    """The base of all windows."""


class Sliding(Window, frozen=True):
    """The last ``extent`` up to now; its old edge moves in steps of ``hop``, which divides the extent.

    ``hop``: if left out, a round duration of at most 1/288 of the extent.
    """

    extent: Duration
    hop: Duration | None = None


class Tumbling(Window, frozen=True):
    """The running period of length ``extent``, aligned to the epoch.

    ``closed``: the last complete period instead; a late event still corrects it.
    """

    extent: Duration
    closed: bool = False


class Calendar(Window, frozen=True):
    """The running local day, week (from Monday), month, quarter or year, from midnight in ``tz`` (an IANA name).

    It has its local length: a day has 23 or 25 hours when clocks change.
    """

    unit: CalendarUnit
    tz: str = "UTC"


class Lifetime(Window, frozen=True):
    """Everything since the view began. Its entities are never forgotten."""


class Session(Window, frozen=True):
    """The running session: events that follow one another by less than ``gap``; empty after ``gap`` without an event.

    ``hop``: the steps in which the end of the gap is noticed, as for ``Sliding``; it divides the gap. An earlier event
    joins the running session if it is less than the gap before the session's first event; otherwise it is too late.
    """

    gap: Duration
    hop: Duration | None = None


class Sessions(msgspec.Struct, frozen=True):
    """The closed sessions of each entity as a stream: a view over it aggregates sessions, not events.

    A session closes when the clock has passed the gap after its last event. That instant is its event time and its
    arrival. Its columns: the entity's keys, ``start`` and ``end`` (the times of its first and last event), ``length_s``
    (float64 seconds between them), ``events`` (their number), and ``values``: a column for each aggregation over the
    session's events.
    ``where``: events for which it is not true belong to no session. ``filter`` is the same thing. ``tags``: text by
    name.
    """

    name: str
    stream: Stream | Table | str
    gap: Duration
    hop: Duration | None = None
    values: Mapping[str, Aggregation] = {}
    where: Expression | None = None
    filter: Expression | None = None
    owner: str = ""
    description: str = ""
    tags: Mapping[str, str] = {}


class Feature(msgspec.Struct, frozen=True):
    """One number: an aggregation over a window.

    ``filter``: SQL text or a Polars expression; only events for which it is true count. ``where`` is the same thing.
    ``default``: what readers get in place of null; it is never stored. ``type``: checked against the result's type.
    ``deprecated``: what to read in its place, as text: ``"use spend_7d"``.
    """

    name: str
    aggregation: Aggregation
    window: Window
    filter: Expression | None = None
    where: Expression | None = None
    default: Scalar | None = None
    description: str = ""
    owner: str = ""
    type: str | None = None
    deprecated: str = ""


class Derived(msgspec.Struct, frozen=True):
    """A number derived from others: an expression over features of the same view, null if it is not finite.

    ``expression``: SQL text or a Polars expression, evaluated row by row: ``"returns_90d / purchases_90d"``.
    ``deprecated``: as for a feature.
    """

    name: str
    expression: Expression
    default: Scalar | None = None
    description: str = ""
    owner: str = ""
    type: str | None = None
    deprecated: str = ""


class FeatureView(msgspec.Struct, frozen=True):
    """Features of one entity over one stream.

    ``entity``: an ``Entity``, or its name or key columns. ``stream``: a ``Stream``, ``Table`` or ``Sessions``, or its
    name or an alias.
    ``where``: events for which it is not true do not exist for this view. ``filter`` is the same thing.
    ``history``: what a view knows when it is new to a running pipeline: "archive", every event that is archived;
    "none", only what comes from then on.
    ``version``: several versions of a view may be defined and are computed side by side; ``view@2:feature`` names one.
    ``serving``: whether the bare name ``view:feature`` means this version; of several versions, exactly one says so.
    ``tags``: text by name. ``deprecated``: what to read in place of this version, as text: ``"use purchases@2"``.
    """

    name: str
    entity: Entity | str | Sequence[str]
    stream: Stream | Table | Sessions | str
    features: Sequence[Feature | Derived]
    where: Expression | None = None
    filter: Expression | None = None
    owner: str = ""
    description: str = ""
    version: int = 1
    history: History = "archive"
    serving: bool = False
    tags: Mapping[str, str] = {}
    deprecated: str = ""


class OnDemand(msgspec.Struct, frozen=True):
    """Features that are computed when they are asked for: from columns of the request, features of views, and ``now``.

    ``inputs``: columns of the request, or of the labels, and their types: ``{"lat": "float64"}``. ``features``:
    ``Derived`` features whose expressions are SQL text over inputs, ``view:feature`` or ``view@2:feature``, and
    ``now``, the instant of the request or of the label. ``tags``: text by name.
    """

    name: str
    inputs: Mapping[str, str]
    features: Sequence[Derived]
    version: int = 1
    owner: str = ""
    description: str = ""
    tags: Mapping[str, str] = {}


def haversine(lat: str, lon: str, other_lat: str, other_lon: str) -> str:
    """Return the text of the distance in kilometres between two places, whose degrees are SQL text."""
    return f"haversine({lat}, {lon}, {other_lat}, {other_lon})"


class Service(msgspec.Struct, frozen=True):
    """The features that one model reads, by one name and in the order of its columns.

    ``features``: references ``view:feature``, which mean the version that serves when the service is published, and
    ``view@2:feature``. The service keeps these versions until it is published again. ``tags``: text by name.
    """

    name: str
    features: Sequence[str]
    owner: str = ""
    description: str = ""
    tags: Mapping[str, str] = {}


Definition = Entity | Stream | Table | Sessions | FeatureView | OnDemand | Service
