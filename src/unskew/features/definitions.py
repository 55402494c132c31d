"""What users write: frozen structs that only hold the words; ``compile`` checks them and gives them meaning."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from unskew.features.agg import Aggregation, Expression
from unskew.features.plan import KeyType, Scalar, ValueType

Duration = str | timedelta | int
Schema = str | Path | Mapping[str, Any]


class Entity(msgspec.Struct, frozen=True):
    """What features are about, told apart by one or several key columns.

    ``type``: ``"int64"`` or ``"string"``, one for each key column; where it is left out the stream's schema decides.
    """

    name: str
    key: str | Sequence[str]
    type: KeyType | Sequence[KeyType] | None = None
    description: str = ""
    owner: str = ""


class Stream(msgspec.Struct, frozen=True):
    """A Kafka topic and how its records are read.

    ``schema``: the Avro reader schema: a path (relative to the definition file), JSON text, or the parsed JSON.
    ``event_time``: the column that says when the event happened (timestamp-millis or timestamp-micros).
    ``partitioned_by``: the key column(s) by which the producer partitions the topic, where it does.
    ``event_id``: the column that tells events apart; recorded, duplicates still count.
    ``settle``: how far behind the present a caught-up reader announces its clock: 500 ms if left out, which
    a live topic on producer timestamps (CreateTime) may not do.
    ``max_age``: older events are dead letters. ``aliases``: other names by which views may call the stream.
    """

    name: str
    topic: str
    schema: Schema
    event_time: str
    partitioned_by: str | Sequence[str] | None = None
    event_id: str | None = None
    owner: str = ""
    description: str = ""
    aliases: Sequence[str] = ()
    settle: Duration | None = None
    max_age: Duration | None = None


class Window(msgspec.Struct, frozen=True):
    """Base of all windows."""


class Sliding(Window, frozen=True):
    """The last ``extent``, up to now; its old edge moves in steps of ``hop``, which divides it.

    ``hop``: a round one of at most 1/288 of the extent if left out.
    """

    extent: Duration
    hop: Duration | None = None


class Tumbling(Window, frozen=True):
    """The running period of length ``extent``, aligned to the epoch."""

    extent: Duration
    closed: bool = False


class Calendar(Window, frozen=True):
    """The running local day, begun at midnight in ``tz`` (an IANA name), 23 or 25 hours long where clocks change."""

    unit: Literal["day"]
    tz: str = "UTC"


class Feature(msgspec.Struct, frozen=True):
    """One number: an aggregation over a window.

    ``filter``: SQL text or a Polars expression; only events for which it is true count. ``where`` is the same thing.
    ``default``: stands in for null at reading, never stored. ``type``: checked against the result's type.
    """

    name: str
    aggregation: Aggregation
    window: Window
    filter: Expression | None = None
    where: Expression | None = None
    default: Scalar | None = None
    description: str = ""
    owner: str = ""
    type: ValueType | None = None


class FeatureView(msgspec.Struct, frozen=True):
    """Features of one entity over one stream.

    ``entity``: an ``Entity``, or its name or key column. ``stream``: a ``Stream``, or its name or an alias.
    ``where``: events for which it is not true do not exist for this view. ``filter`` is the same thing.
    """

    name: str
    entity: Entity | str | Sequence[str]
    stream: Stream | str
    features: Sequence[Feature]
    where: Expression | None = None
    filter: Expression | None = None
    owner: str = ""
    description: str = ""
    version: int = 1


Definition = Entity | Stream | FeatureView
