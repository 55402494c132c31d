"""Requests and answers as Feast's feature server has them, so that its own client reads unskew.

https://docs.feast.dev/reference/feature-servers/python-feature-server describes the protocol. Besides, an answer has
in its metadata ``now`` and for each view its version and, row by row, ``as_of``, ``status`` and ``provisional``.

Values: a float64 has a decimal point, instants are RFC 3339 with microseconds, decimals are strings, empty lists and
maps are null, because Feast's client cannot take them.

| unskew | Feast's status |
|---|---|
| a value | PRESENT |
| null, and the entity has a row | NULL_VALUE |
| null, and it has none | NOT_FOUND |
| the clock is too far behind (``max_lag``) | OUTSIDE_MAX_AGE |
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, zip_longest
from typing import NamedTuple

import msgspec

from unskew.features.errors import RequestError, UnknownName, UnskewError
from unskew.features.frames import Columns
from unskew.features.nearest import nearest
from unskew.features.references import is_service
from unskew.serving.clocks import UNKNOWN
from unskew.serving.online import Answered, Asking, OnlineReader
from unskew.serving.request import LAGGING, Request, ViewAnswer
from unskew.sinks.redis.texts import rfc3339

_Cell = int | float | str | bool | None
_NO_INSTANT = b'"1970-01-01T00:00:00Z"'
_PRESENT, _NULL, _NOT_FOUND, _OUTSIDE = b'"PRESENT"', b'"NULL_VALUE"', b'"NOT_FOUND"', b'"OUTSIDE_MAX_AGE"'
_NOTHING = frozenset({b"[]", b"{}"})
_COMMA = b","
_ABOUT = b'%b,"as_of":[%b],"status":%b,"provisional":%b}'
_BETWEEN = b'],"statuses":[%b],"event_timestamps":[%b]},{"values":['
_RESULT = b'{"values":[%b],"statuses":[%b],"event_timestamps":[%b]}'


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for features."""

    entities: dict[str, list[_Cell]]
    features: list[str] | None = None
    feature_service: str | None = None
    given_full_names: bool | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="full_feature_names")
    now: str | None = None
    include_feature_view_version_metadata: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def full_feature_names(self) -> bool:
        """Whether columns are called ``view__feature``."""
        return self.given_full_names is True


_decode = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.encode
_FIELDS = [field.encode_name for field in msgspec.structs.fields(Body)]
_UNKNOWN_FIELD = re.compile("Object contains unknown field `(.*)`")


def read_body(data: bytes, most_rows: int) -> Body:
    """Return a request. Raises ``RequestError`` that says what is wrong with it."""
    try:
        body = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        known = _UNKNOWN_FIELD.fullmatch(str(error))
        unknown = "" if known is None else f" ({nearest(known[1], _FIELDS, 'there are')})"
        raise RequestError(
            f'the body is not a request: {error}{unknown}; send {{"entities": {{"user_id": ["u-42"]}}, "features": ["view:feature"]}}'
        ) from error
    # The decoder takes the last of several values with one name. Hardly any body has them, and looking for them costs.
    if data.count(b":") != _n_colons(body) or (b"\\" in data and b"\\u003" in data):
        json.loads(data, object_pairs_hook=_refuse_doubled, parse_int=len, parse_float=len)
    if not body.entities:
        raise RequestError("no entities are given; name a list of values for each key column in entities")
    if (body.features is None) is (body.feature_service is None):
        both = "both features and a feature_service are" if body.features is not None else "no features are"
        raise RequestError(f"{both} requested; name features, as view:feature, or a feature_service")
    n_rows, *others = set(map(len, body.entities.values()))
    if others:
        lengths = {name: len(values) for name, values in body.entities.items()}
        raise RequestError(f"the lists of entities have different lengths: {lengths}")
    if n_rows > most_rows:
        raise RequestError(f"{n_rows:,} entities are more than this server reads at once ({most_rows:,}); ask in parts")
    return body


def _n_colons(body: Body) -> int:
    """Return how many colons the body's text has if no name stands twice: one for each name, and one in each reference.

    There may be more of them in keys and inputs.
    """
    n_colons = 1 + len(body.entities)
    if body.features is not None:
        n_colons += 1 + len(body.features)
    if body.feature_service is not None:
        n_colons += 1
    if body.now is not None:
        n_colons += 1 + body.now.count(":")
    if body.given_full_names is not msgspec.UNSET:
        n_colons += 1
    if body.include_feature_view_version_metadata is not msgspec.UNSET:
        n_colons += 1
    return n_colons


def _refuse_doubled(pairs: list[tuple[str, object]]) -> None:
    seen = set[str]()
    for name, _ in pairs:
        if name in seen:
            raise RequestError(f"the name {name!r} stands twice in the body; give each name once")
        seen.add(name)


def asking(reader: OnlineReader, body: Body) -> Asking[Answered]:
    """Return what a request asks of a reader."""
    wanted: list[str] | str | None = body.features
    if wanted is None:
        assert body.feature_service is not None
        if not is_service(body.feature_service):
            raise RequestError(f"{body.feature_service!r} is a reference, not a feature_service; name it in features")
        wanted = body.feature_service
    return reader.asking(
        wanted, Columns(body.entities), full_feature_names=body.full_feature_names, as_json=True, now=body.now
    )


def answer(answered: Answered, body: Body) -> bytes:
    """Return the answer to a request."""
    request, n_rows = answered.request, answered.rows.n_rows
    shape = _shape(request, tuple(body.entities))
    all_present = b",".join([_PRESENT] * n_rows)
    no_instants = b",".join([_NO_INSTANT] * n_rows)
    results = []
    for cells in body.entities.values():
        its = b",".join([_NULL if cell is None else _PRESENT for cell in cells]) if None in cells else all_present
        results.append(_RESULT % (_encode(cells)[1:-1], its, no_instants))
    about, times = [], []
    for head, found in zip_longest(shape.heads, answered.answers):
        placed = found.placed
        its_times = _COMMA.join(map(_stamp, placed.as_of))
        if head is not None:
            # On-demand features come after all views.
            as_of = its_times
            if UNKNOWN in placed.as_of:
                as_of = _COMMA.join([b"null" if one == UNKNOWN else _stamp(one) for one in placed.as_of])
            about.append(_ABOUT % (head, as_of, _encode(found.status), _encode(placed.provisional)))
        times.append(its_times)
    for view_number, numbers, may_be_nothing in shape.runs:
        found, its_times = answered.answers[view_number], times[view_number]
        if found.is_whole and not may_be_nothing and LAGGING not in found.status:
            between = _BETWEEN % (all_present, its_times)
            values = between.join(map(_COMMA.join, map(found.values.__getitem__, numbers)))
            results.append(_RESULT % (values, all_present, its_times))
        else:
            each = (_values_and_statuses(found, found.values[number]) for number in numbers)
            results.extend(_RESULT % (*both, its_times) for both in each)
    return b'{"metadata":{"feature_names":%b,"now":"%b","views":{%b}},"results":[%b]}' % (
        shape.feature_names,
        rfc3339(answered.now_us),
        b",".join(about),
        b",".join(results),
    )


class _Shape(NamedTuple):
    """What the answers to a request have in common.

    ``heads``: of what is said of each view. ``runs``: features that follow each other and are of one view: the number
    of the view, those of its columns, and whether one may be an empty list or map.
    """

    feature_names: bytes
    heads: list[bytes]
    runs: list[tuple[int, list[int], bool]]


@lru_cache(maxsize=256)
def _shape(request: Request, entities: tuple[str, ...]) -> _Shape:
    runs: list[tuple[int, list[int], bool]] = []
    for view, places in groupby(request.places, lambda place: place[0]):
        numbers = [number for _, number in places]
        if view < len(request.views):
            columns = request.views[view].columns
            may_be_nothing = any(columns[number].dtype.nesting is not None for number in numbers)
        else:
            may_be_nothing = True
        runs.append((view, numbers, may_be_nothing))
    heads = [b'%b:{"version":%d' % (_encode(view.named), view.view.version) for view in request.views]
    return _Shape(_encode([*entities, *(one.column for one in request.asked)]), heads, runs)


@lru_cache(maxsize=4_096)
def _stamp(instant_us: int) -> bytes:
    return _NO_INSTANT if instant_us == UNKNOWN else b'"%b"' % rfc3339(instant_us)


def _values_and_statuses(found: ViewAnswer, values: Sequence[bytes | None]) -> tuple[bytes, bytes]:
    written, statuses = [], []
    for value, status, is_present in zip(values, found.status, found.is_present, strict=True):
        is_null = value is None or value in _NOTHING
        written.append(b"null" if value is None or is_null else value)
        if status == LAGGING:
            statuses.append(_OUTSIDE)
        elif is_null:
            statuses.append(_NULL if is_present else _NOT_FOUND)
        else:
            statuses.append(_PRESENT)
    return b",".join(written), b",".join(statuses)


_OF_UNKNOWN = {
    "view": "FeatureViewNotFoundException",
    "version": "FeatureViewVersionNotFound",
    "feature": "FeastObjectNotFoundException",
    "service": "FeatureServiceNotFoundException",
}


def error(message: str, cause: UnskewError | None = None) -> bytes:
    """Return an error as Feast's client reads it: JSON of a text that is JSON and names a class of ``feast.errors``."""
    name = _OF_UNKNOWN[cause.kind] if isinstance(cause, UnknownName) else "FeastError"
    return _encode(json.dumps({"module": "feast.errors", "class": name, "message": message}))
