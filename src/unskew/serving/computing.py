"""On-demand features of reads whose replies have come, evaluated together: an evaluation costs more than its rows."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.on_demand import NOW
from unskew.features.on_request import OnRequest
from unskew.features.types import Type
from unskew.sinks.redis.texts import column_of

MOST_ROWS = 10_000
"""Rows that are evaluated together, unless one read alone has more: meanwhile, an event loop answers nobody."""
_NOW = Type("timestamp")


class Computing(NamedTuple):
    """The on-demand features of one read, still to be evaluated.

    ``columns``: inputs, and features of views by their references, as ``texts.column_of`` takes them. ``now_us``: the
    instant that ``now`` is in every row.
    """

    on_request: OnRequest
    columns: Mapping[str, Sequence[Any]]
    dtypes: Mapping[str, Type]
    n_rows: int
    now_us: int

    def done(self) -> list[list[Any]]:
        """Return the values of each feature, as ``texts.column_of`` takes them. Raises ``RequestError``."""
        return _evaluated([self])[0]


class Together:
    """Evaluates what the coroutines of an event loop ask for in one of its turns."""

    def __init__(self) -> None:
        self._waiting: dict[
            tuple[asyncio.AbstractEventLoop, OnRequest], list[tuple[Computing, asyncio.Future[list[list[Any]]]]]
        ] = {}

    async def done(self, one: Computing) -> list[list[Any]]:
        """Return what ``Computing.done`` returns. A row that fails is an error of its read alone."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault((loop, one.on_request), [])
        if not waiting:
            # Replies that came with those of this read wake their coroutines before this is called.
            loop.call_soon(self._evaluate, loop, one.on_request)
        found: asyncio.Future[list[list[Any]]] = loop.create_future()
        waiting.append((one, found))
        return await found

    def _evaluate(self, loop: asyncio.AbstractEventLoop, on_request: OnRequest) -> None:
        for part in _parts(self._waiting.pop((loop, on_request))):
            try:
                values = _evaluated([one for one, _ in part])
            except RequestError as error:
                if len(part) > 1:
                    values = None
                else:
                    _fail(part[0][1], error)
                    continue
            for number, (one, found) in enumerate(part):
                try:
                    its = one.done() if values is None else values[number]
                except RequestError as error:
                    _fail(found, error)
                    continue
                if not found.done():
                    found.set_result(its)


def _fail(found: asyncio.Future[list[list[Any]]], error: RequestError) -> None:
    if not found.done():
        found.set_exception(error)


_Waiting = Sequence[tuple[Computing, asyncio.Future[list[list[Any]]]]]


def _parts(waiting: _Waiting) -> Iterator[_Waiting]:
    first, n_rows = 0, 0
    for at, (one, _) in enumerate(waiting):
        if n_rows and n_rows + one.n_rows > MOST_ROWS:
            yield waiting[first:at]
            first, n_rows = at, 0
        n_rows += one.n_rows
    yield waiting[first:]


def _evaluated(reads: Sequence[Computing]) -> list[list[list[Any]]]:
    """Return, for each read of the same on-demand features, the values of each feature."""
    first = reads[0]
    columns: dict[str, pl.Series] = {}
    for name, dtype in first.dtypes.items():
        values = first.columns[name]
        if len(reads) > 1:
            values = [value for one in reads for value in one.columns[name]]
        columns[name] = column_of(name, values, dtype)
    columns[NOW] = column_of(NOW, [one.now_us for one in reads for _ in range(one.n_rows)], _NOW)
    found = zip(first.on_request(columns), first.on_request.dtypes, strict=True)
    lists = [(column.cast(pl.Int64) if dtype.scalar == "timestamp" else column).to_list() for column, dtype in found]
    if len(reads) == 1:
        return [lists]
    ends, end = [], 0
    for one in reads:
        end += one.n_rows
        ends.append(end)
    return [[values[end - one.n_rows : end] for values in lists] for one, end in zip(reads, ends, strict=True)]
