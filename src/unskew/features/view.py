"""A view as it is published: everything that a reader must know about it, as data that converts to JSON and back.

Compiling makes a ``View``; ``plan.ViewPlan`` holds it together with what only computing needs.
"""

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, TypedDict

import msgspec
import polars as pl

from unskew.features.types import Type

KeyType = Literal["int64", "string"]
AggregationName = Literal[
    "count",
    "sum",
    "mean",
    "var",
    "std",
    "min",
    "max",
    "first",
    "last",
    "first_n",
    "last_n",
    "first_time",
    "last_time",
    "count_distinct",
    "approx_count_distinct",
    "mode",
    "top_k",
    "histogram",
    "quantile",
    "decayed_count",
    "decayed_sum",
]
WindowKind = Literal["sliding", "tumbling", "closed", "calendar", "lifetime", "session"]
CalendarUnit = Literal["day", "week", "month", "quarter", "year"]
Scalar = int | float | bool | str | dt.datetime | Decimal


class Parameters(TypedDict, total=False):
    """The parameters of an aggregation besides its value; it has those that its function takes.

    ``n``: the most items of ``first_n``, ``last_n``, ``top_k``. ``ddof``: for ``var``, ``std``. ``q``: for
    ``quantile``, in [0, 1]. ``bits``: the number of mantissa bits that ``quantile`` keeps of a value, or of bits that
    choose a register of ``approx_count_distinct``. ``edges``: for ``histogram``, ascending. ``half_life_hops``: for
    the decayed aggregations. ``keys``: the most keys of a map.
    """

    n: int
    ddof: int
    q: float
    bits: int
    edges: tuple[float, ...]
    half_life_hops: int
    keys: int


class ViewEntity(msgspec.Struct, frozen=True, kw_only=True):
    """One or several key columns, in order, each with its type."""

    name: str
    keys: tuple[str, ...]
    types: tuple[KeyType, ...]

    @property
    def columns(self) -> dict[str, pl.DataType]:
        """The key columns with their Polars types."""
        return {key: Type.parse(kind).polars for key, kind in zip(self.keys, self.types, strict=True)}


class ViewWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window as whole tiles.

    Tile ``k`` of a fixed grid covers effective times ``[k*hop_us, (k+1)*hop_us)``; tile ``k`` of a calendar covers the
    k-th local period. A tile is in the window from its first instant until tile ``k+span+1`` begins, and then leaves.

    ``kind``: ``closed`` is the last complete tumbling period: a tile counts from the end of its period, and leaves one
    period later. ``lifetime`` has one tile, which never leaves. ``session`` is the running session, which is one tile,
    numbered by its latest event: it ends when the tile of that number would leave a sliding window of ``extent_us``
    (the gap) and ``hop_us``.
    ``span``: the number of whole tiles before the running one: ``L/h`` for sliding and session, 1 for closed, else 0.
    ``text``: canonical text, equal for equal windows; part of the fingerprint.
    ``hop_us`` and ``extent_us`` of a calendar are nominal (1, 7, 30, 91 or 365 days); the real ones follow from
    ``unit`` (a day if None) and ``tz``. Those of a lifetime are 0.
    """

    text: str
    kind: WindowKind
    hop_us: int
    extent_us: int
    span: int
    tz: str | None = None
    unit: CalendarUnit | None = None


class ViewFeature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One feature.

    ``window``: the index into the view's windows; None for a derived feature, whose ``value`` is the expression over
    the features that ``inputs`` names. ``by``: the expression of a map's keys. ``empty``: the value of a window without
    events: 0 for counts and sums, else None. ``default``: what readers get in place of null; it is never stored.
    ``empty`` and ``default`` are scalars of ``type``, which is the name of ``dtype``. ``deprecated``: what should be
    read in its place; empty if it is not.
    """

    name: str
    type: str
    function: AggregationName | Literal["derived"]
    window: int | None
    value: str | None
    filter: str | None
    empty: Any
    default: Any
    description: str
    owner: str
    by: str | None = None
    parameters: Parameters = {}
    inputs: tuple[str, ...] = ()
    deprecated: str = ""

    @property
    def dtype(self) -> Type:
        """The type of the values."""
        return Type.parse(self.type)


class ViewSessions(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions that a view aggregates in place of events: the gap as a window, their columns as features in it."""

    window: ViewWindow
    where: str | None
    columns: tuple[ViewFeature, ...]

    @staticmethod
    def of(inner: "View") -> "ViewSessions":
        """Return the sessions that an inner view keeps: its only window, and its features."""
        return ViewSessions(window=inner.windows[0], where=inner.where, columns=inner.features)


class View(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One view; ``features`` are the columns of its values in the order of log and Redis, derived ones last.

    ``partitioned``: true if the stream is partitioned by exactly the view's entity.
    ``state_fingerprint``: the hex digest of everything that stored state depends on.
    ``presentation_fingerprint``: the hex digest of defaults, descriptions, owners, tags and deprecations.
    ``serving``: false for a version beside others that is not the one that the bare name means; ``Versions`` decides by
    it. ``tags``: text by name. ``deprecated``: what should be read in place of this version; empty if it is not.
    """

    name: str
    version: int
    entity: ViewEntity
    stream: str
    topic: str
    partitioned: bool
    where: str | None
    windows: tuple[ViewWindow, ...]
    features: tuple[ViewFeature, ...]
    state_fingerprint: str
    presentation_fingerprint: str
    description: str
    owner: str
    sessions: ViewSessions | None = None
    serving: bool = True
    tags: Mapping[str, str] = {}
    deprecated: str = ""

    @property
    def id(self) -> str:
        """``name@version``: the name of the view in keys, shards and paths."""
        return f"{self.name}@{self.version}"

    def feature(self, name: str) -> ViewFeature | None:
        """Return the feature of that name; None if there is none."""
        return next((feature for feature in self.features if feature.name == name), None)

    def windows_of(self, feature: ViewFeature) -> tuple[ViewWindow, ...]:
        """Return the windows of one of this view's features: its own, or those of all features it is derived from."""
        if feature.window is not None:
            return (self.windows[feature.window],)
        inputs = (self.feature(name) for name in feature.inputs)
        return tuple(dict.fromkeys(window for one in inputs if one is not None for window in self.windows_of(one)))

    def window_text(self, feature: ViewFeature) -> str:
        """Return the windows of a feature for people; empty if it has none."""
        return ", ".join(window.text for window in self.windows_of(feature))
