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
from collections.abc import Sequence

import msgspec

from unskew.features.errors import RequestError, UnknownName, UnskewError
from unskew.features.frames import Columns
from unskew.features.references import is_service
from unskew.serving.clocks import UNKNOWN
from unskew.serving.online import Answered, Asking, OnlineReader
from unskew.serving.request import LAGGING, ViewAnswer
from unskew.sinks.redis.texts import rfc3339

_Cell = int | float | str | bool | None
_NO_INSTANT = b'"1970-01-01T00:00:00Z"'
_PRESENT, _NULL, _NOT_FOUND, _OUTSIDE = b'"PRESENT"', b'"NULL_VALUE"', b'"NOT_FOUND"', b'"OUTSIDE_MAX_AGE"'
_NOTHING = frozenset({b"[]", b"{}"})


class Body(msgspec.Struct):
    """The body of a request for features."""

    entities: dict[str, list[_Cell]]
    features: list[str] | None = None
    feature_service: str | None = None
    full_feature_names: bool = False
    now: str | None = None
    include_feature_view_version_metadata: bool = False


_decode = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.encode


def read_body(data: bytes, most_rows: int) -> Body:
    """Return a request. Raises ``RequestError`` that says what is wrong with it."""
    try:
        body = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(
            f'the body is not a request: {error}; send {{"entities": {{"user_id": ["u-42"]}}, "features": ["view:feature"]}}'
        ) from error
    if not body.entities:
        raise RequestError("no entities are given; name a list of values for each key column in entities")
    if (body.features is None) is (body.feature_service is None):
        both = "both features and a feature_service are" if body.features is not None else "no features are"
        raise RequestError(f"{both} requested; name features, as view:feature, or a feature_service")
    lengths = {name: len(values) for name, values in body.entities.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(f"the lists of entities have different lengths: {lengths}")
    n_rows = next(iter(lengths.values()), 0)
    if n_rows > most_rows:
        raise RequestError(f"{n_rows:,} entities are more than this server reads at once ({most_rows:,}); ask in parts")
    return body


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
    stamps: dict[int, bytes] = {UNKNOWN: _NO_INSTANT}
    times, about = [], []
    for number, found in enumerate(answered.answers):
        instants = []
        for placed in found.placed:
            stamp = stamps.get(placed.as_of)
            if stamp is None:
                stamp = stamps[placed.as_of] = b'"%b"' % rfc3339(placed.as_of)
            instants.append(stamp)
        times.append(b"[%b]" % b",".join(instants))
        if number >= len(answered.request.views):
            # On-demand features come after all views.
            continue
        view = answered.request.views[number]
        as_of = b",".join(b"null" if stamp is _NO_INSTANT else stamp for stamp in instants)
        provisional = b",".join(b"true" if placed.provisional else b"false" for placed in found.placed)
        about.append(
            b'%b:{"version":%d,"as_of":[%b],"status":%b,"provisional":[%b]}'
            % (_encode(view.named), view.view.version, as_of, _encode(found.status), provisional)
        )
    n_rows = answered.rows.n_rows
    no_instants = b"[%b]" % b",".join([_NO_INSTANT] * n_rows)
    results = []
    for cells in body.entities.values():
        its = b",".join(_NULL if cell is None else _PRESENT for cell in cells)
        results.append(_result(_encode(cells), b"[%b]" % its, no_instants))
    for view_number, number in answered.request.places:
        found = answered.answers[view_number]
        values, statuses = _values_and_statuses(found, found.values[number])
        results.append(_result(values, statuses, times[view_number]))
    names = [*body.entities, *(one.column for one in answered.request.asked)]
    return b'{"metadata":{"feature_names":%b,"now":"%b","views":{%b}},"results":[%b]}' % (
        _encode(names),
        rfc3339(answered.now_us),
        b",".join(about),
        b",".join(results),
    )


def _result(values: bytes, statuses: bytes, instants: bytes) -> bytes:
    return b'{"values":%b,"statuses":%b,"event_timestamps":%b}' % (values, statuses, instants)


def _values_and_statuses(found: ViewAnswer, values: Sequence[bytes | None]) -> tuple[bytes, bytes]:
    if None not in values and LAGGING not in found.status and _NOTHING.isdisjoint(values):
        there = [value for value in values if value is not None]
        return b"[%b]" % b",".join(there), b"[%b]" % b",".join([_PRESENT] * len(there))
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
    return b"[%b]" % b",".join(written), b"[%b]" % b",".join(statuses)


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
