"""Reads of the same features that come in one turn of an event loop, made as one: a read costs more than its rows."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from unskew.features.errors import StoreUnavailable
from unskew.serving.request import Request, ViewAnswer

MOST_ROWS = 64
"""Rows that are read together: each waits for the replies to all. A read that has more than half of them is alone."""
ALONE_S = 10.0
"""So long all reads of a cluster are alone after one that some of its servers failed: those whose rows other servers
have would wait until all attempts have failed, each time."""


class Reading(NamedTuple):
    """A read to be made.

    ``known``: what its request was compiled for. ``keys``: of each view's rows, canonical, None for a row without one.
    """

    known: Any
    request: Request
    keys: Sequence[Sequence[str | None]]


class Found(NamedTuple):
    """The values of each view, and the instant at which they were read, by this machine's clock."""

    answers: list[ViewAnswer]
    read_us: int

    def part(self, rows: slice) -> "Found":
        """Return what was found for some of the rows."""
        return Found([answer.part(rows) for answer in self.answers], self.read_us)


Joint = asyncio.Future[Found | None]


class Reads:
    """Joins the reads of coroutines.

    ``read``: makes one; None if its request must be compiled again. ``are_on_way``: whether a loop waits for replies.
    ``has_servers``: whether some servers may answer while others do not.
    A read leaves at once if there are no others; else it waits for the end of the turn, which leaves time for more.
    """

    def __init__(
        self,
        read: Callable[[Reading], Awaitable[Found | None]],
        are_on_way: Callable[[asyncio.AbstractEventLoop], bool],
        *,
        has_servers: bool,
    ) -> None:
        self._read = read
        self._are_on_way = are_on_way
        self._has_servers = has_servers
        self._alone_until_s = -math.inf
        self._waiting: dict[tuple[asyncio.AbstractEventLoop, Request], _Waiting] = {}
        self._are_many = False
        self._tasks: set[asyncio.Task[None]] = set()

    def joined(self, one: Reading) -> Joint | None:
        """Return what becomes the answer; None, also as the answer, if the caller must read it alone.

        Raises ``StoreUnavailable`` of a single server for all who waited; what is wrong with the rows of one, or with
        the server that has them, is found when it reads alone.
        """
        loop = asyncio.get_running_loop()
        n_rows = len(one.keys[0]) if one.keys else 0
        if not (0 < n_rows <= MOST_ROWS // 2 and (self._are_many or self._are_on_way(loop))):
            return None
        if self._has_servers and time.monotonic() < self._alone_until_s:
            return None
        place = loop, one.request
        waiting = self._waiting.get(place)
        if waiting is None or waiting.n_rows + n_rows > MOST_ROWS:
            waiting = self._waiting[place] = _Waiting()
            loop.call_soon(self._leave, place, waiting)
        joint: Joint = loop.create_future()
        waiting.reads.append((one, joint))
        waiting.n_rows += n_rows
        return joint

    def _leave(self, place: tuple[asyncio.AbstractEventLoop, Request], waiting: "_Waiting") -> None:
        if self._waiting.get(place) is waiting:
            del self._waiting[place]
        self._are_many = len(waiting.reads) > 1
        if self._are_many:
            task = place[0].create_task(self._make(waiting.reads))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, waiting.reads))
        elif not (joint := waiting.reads[0][1]).done():
            joint.set_result(None)

    async def _make(self, reads: Sequence[tuple[Reading, Joint]]) -> None:
        of_views = zip(*[one.keys for one, _ in reads], strict=True)
        keys = [[key for its in of_view for key in its] for of_view in of_views]
        found: Found | None = None
        unavailable: StoreUnavailable | None = None
        try:
            found = await self._read(reads[0][0]._replace(keys=keys))
        except StoreUnavailable as error:
            if self._has_servers:
                self._alone_until_s = time.monotonic() + ALONE_S
            else:
                unavailable = error
        except Exception:  # noqa: BLE001, S110 - whoever caused it meets it again when reading alone
            pass
        first = 0
        for one, joint in reads:
            last = first + len(one.keys[0])
            if joint.done():
                pass
            elif unavailable is not None:
                joint.set_exception(unavailable)
            else:
                joint.set_result(None if found is None else found.part(slice(first, last)))
            first = last

    def _ended(self, reads: Sequence[tuple[Reading, Joint]], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # Whoever stops may end all tasks of a loop, this one too, perhaps before it began.
        for _, joint in reads:
            if not joint.done():
                joint.set_result(None)


class _Waiting:
    """Reads of one request that leave together, and the number of their rows."""

    def __init__(self) -> None:
        self.reads: list[tuple[Reading, Joint]] = []
        self.n_rows = 0
