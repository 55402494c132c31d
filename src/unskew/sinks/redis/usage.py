"""How often services are read, a count for each service and day (UTC) in Redis: whom a change would touch."""

import datetime as dt
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from unskew.features.errors import UnskewError
from unskew.sinks.redis.keyspace import usage_key
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.url import Client

KEPT_DAYS = 90
_EVERY_S = 10.0

_log = logging.getLogger("unskew.serve")


class Usage:
    """Counts reads in this process and adds them to Redis every 10 s and at the end, from a thread of its own.

    While Redis cannot be reached or refuses them (a replica, a user without the right), the counts of today and
    yesterday wait, which is logged once. ``today``: the day in UTC, as far as this host knows.
    """

    def __init__(self, source: Client | str, prefix: str, today: Callable[[], dt.date]) -> None:
        self._server = Server(source)
        self._prefix = prefix
        self._today = today
        self._counts: Counter[tuple[str, dt.date]] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._fails = False
        self._thread = threading.Thread(target=self._run, name="unskew-usage", daemon=True)

    def count(self, service: str) -> None:
        """Count one read of a service that exists."""
        with self._lock:
            self._counts[service, self._today()] += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._add()
        self._add()

    def _add(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        oldest = (self._today() - dt.timedelta(days=KEPT_DAYS)).isoformat()
        try:
            with self._server.reaching() as client:
                for service, day in list(counts):
                    n_reads = counts[service, day]
                    key = usage_key(self._prefix, service)
                    if client.hincrby(key, day.isoformat(), n_reads) == n_reads:
                        # The first of a day: how many days there are is bounded here.
                        old = [field for field in map(_text, client.hkeys(key)) if field < oldest]
                        if old:
                            client.hdel(key, *old)
                    # What follows may fail, and this must not count twice.
                    del counts[service, day]
        except UnskewError as error:
            yesterday = self._today() - dt.timedelta(days=1)
            with self._lock:
                self._counts.update({key: n_reads for key, n_reads in counts.items() if key[1] >= yesterday})
            if not self._fails:
                _log.warning("reads of services are not counted while this lasts: %s", error)
            self._fails = True
        else:
            self._fails = False


def reads(client: Client, prefix: str, services: Iterable[str], since: dt.date) -> dict[str, int]:
    """Return how often each service was read from that day (UTC) on; a service that was not read has 0.

    What is not a count, because somebody else wrote it, is left out. Raises what redis-py raises.
    """
    found = {}
    for service in services:
        days = client.hgetall(usage_key(prefix, service))
        found[service] = sum(
            int(n_reads) for day, n_reads in days.items() if _text(day) >= since.isoformat() and n_reads.isdigit()
        )
    return found


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
