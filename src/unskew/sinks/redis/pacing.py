"""Pacing of sends: one batch is in flight at a time, and rows added meanwhile are gathered for the next batch.

The longer rows are gathered, the fewer are sent, because only the last row of each key is sent. So the interval between
two batches grows with the lag: a pipeline that keeps up sends at once, and one that catches up sends large batches.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from unskew.sinks.redis.batch import Batch

LONGEST_INTERVAL_US = 1_000_000
LAG_PER_INTERVAL = 16
"""The lag divided by the interval between flushes: 1 ms at 16 ms of lag, 1 s at 16 s of lag and more."""

MOST_ROWS_WAITING = 200_000
CLOCKS_INTERVAL_US = 20_000
"""The least time between two flushes of clocks without rows, unless the flow rests: many shards' clocks go together."""
LEAST_ROWS_ASIDE = 1_000
"""The least number of rows sent in another thread; sending fewer takes less time than waking that thread."""


class Pacing:
    """The batch that is being gathered and the batch in flight; for use by one thread.

    ``bring``: sends a batch, given the present in microseconds, and returns once it is acknowledged. An error that it
    raises is raised again by the method that awaits the batch; the batch's rows then wait again, before newer rows.
    """

    def __init__(self, bring: Callable[[Batch, int], None]) -> None:
        self.gathered = Batch()
        self._bring = bring
        self._aside: ThreadPoolExecutor | None = None
        self._sending: tuple[Batch, Future[None]] | None = None
        self._flushed_at_us: int | None = None

    @property
    def n_waiting(self) -> int:
        """The number of rows not yet acknowledged; gathered rows are not conflated yet."""
        sending = self._sending  # Read once, because metrics read this from another thread.
        return self.gathered.n_rows + (0 if sending is None else sending[0].n_rows)

    @property
    def has_work(self) -> bool:
        """Whether anything waits, or a batch in flight is to be awaited."""
        return self._sending is not None or bool(self.gathered.clocks)

    def interval_us(self, now_us: int) -> int:
        """Return how long rows are gathered before they are sent: it grows with the newest clock's lag, up to 1 s."""
        if self.gathered.newest_clock_us is None:
            return 0
        lag_us = max(0, now_us - self.gathered.newest_clock_us)
        return min(LONGEST_INTERVAL_US, lag_us // LAG_PER_INTERVAL)

    def flush_if_due(self, now_us: int, *, resting: bool = False) -> bool:
        """Begin a flush if the interval since the last one is over or very many rows wait; return true if it began.

        ``resting``: nothing comes soon that should go with what waits.

        While a batch is in flight, no other is begun; if very many rows wait, the batch in flight is awaited first.
        """
        if self._sending is not None and self._sending[1].done():
            self._finish()
        if not self.gathered.clocks:
            return False
        full = self.n_waiting >= MOST_ROWS_WAITING
        # A wall clock that has gone back does not say how long ago the last flush was.
        interval_us = self.interval_us(now_us)
        if not (resting or self.gathered.has_rows):
            interval_us = max(interval_us, CLOCKS_INTERVAL_US)
        due = self._flushed_at_us is None or not 0 <= now_us - self._flushed_at_us < interval_us
        if not (full or (due and self._sending is None)):
            return False
        self._finish()
        if self.gathered.n_rows < LEAST_ROWS_ASIDE:
            self.flush(now_us)
            return True
        if self._aside is None:
            self._aside = ThreadPoolExecutor(1, "unskew-redis")
        batch, self.gathered = self.gathered, Batch()
        self._sending = batch, self._aside.submit(self._bring, batch, now_us)
        self._flushed_at_us = now_us
        return True

    def flush(self, now_us: int) -> None:
        """Send all waiting rows in this thread, and return once they are acknowledged."""
        self._finish()
        if not self.gathered.clocks:
            return
        self._bring(self.gathered, now_us)
        self.gathered = Batch()
        self._flushed_at_us = now_us

    def close(self) -> None:
        """Await the batch in flight, and discard the gathered rows."""
        if self._aside is not None:
            self._aside.shutdown()

    def _finish(self) -> None:
        if self._sending is None:
            return
        batch, sent = self._sending
        try:
            sent.result()
        except Exception:
            self.gathered = batch.then(self.gathered)
            self._flushed_at_us = self._sending = None
            raise
        self._sending = None
