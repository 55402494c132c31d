"""What a server measures of its answers, for Prometheus: of one process, or the sum of all that serve together."""

import asyncio
import fcntl
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from unskew.serving.clocks import UNKNOWN
from unskew.serving.online import Answered

_SECONDS = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0,
)  # fmt: skip
SAVE_S = 1.0
"""Seconds after which the other processes see what a process has counted."""


class Times(msgspec.Struct):
    """How long the answers of one service took: how many by the bounds ``_SECONDS``, and all together."""

    n_by_bucket: list[int] = msgspec.field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    seconds: float = 0.0


class Counts(msgspec.Struct):
    """What was counted.

    ``times``, ``n_by_code``: answers by service, the latter also by their code. ``n_rows``: rows by view and status.
    ``lags``: for each view the instant of its last answer, in microseconds, and how far its oldest row lay behind that,
    in seconds.
    """

    times: dict[str, Times] = {}
    n_redis_errors: int = 0
    n_by_code: dict[str, dict[str, int]] = {}
    n_rows: dict[str, dict[str, int]] = {}
    lags: dict[str, tuple[int, float]] = {}

    @classmethod
    def of(cls, all_counts: Sequence["Counts"]) -> "Counts":
        """Return the sum of counts."""
        total = cls({"": Times()})
        for one in all_counts:
            for service, times in one.times.items():
                its = total.times.setdefault(service, Times())
                its.n_by_bucket = [mine + n for mine, n in zip(its.n_by_bucket, times.n_by_bucket, strict=True)]
                its.seconds += times.seconds
            total.n_redis_errors += one.n_redis_errors
            for sums, counts in ((total.n_by_code, one.n_by_code), (total.n_rows, one.n_rows)):
                for first, by_second in counts.items():
                    for second, n in by_second.items():
                        _add(sums, first, second, n)
            for view, lag in one.lags.items():
                total.lags[view] = max(lag, total.lags.get(view, lag))
        return total


def _add(sums: dict[str, dict[str, int]], first: str, second: str, n: int) -> None:
    its = sums.get(first)
    if its is None:
        its = sums[first] = {}
    its[second] = its.get(second, 0) + n


class Share:
    """The place of one process among those that serve together: a file in their folder, with what it has counted.

    A process that takes the place of one that died goes on with its counts, so that no sum goes back. A sum lacks at
    most what the others counted in the last second, and what one that died counted in its last.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for number in count():
            # Held while the process lives; the next one takes it after that.
            lock = (folder / f"{number}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self._lock, self._path = lock, folder / f"{number}.json"
            break

    def begun(self) -> Counts:
        """Return what the processes before had counted in this place."""
        return _read(self._path) if self._path.exists() else Counts.of([])

    def others(self) -> list[Counts]:
        """Return what each of the other processes has counted."""
        return [_read(path) for path in self._folder.glob("*.json") if path != self._path]

    def save(self, counts: Counts) -> None:
        """Show the others what this process has counted."""
        new = self._path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(counts))
        new.replace(self._path)


def _read(path: Path) -> Counts:
    return msgspec.json.decode(path.read_bytes(), type=Counts)


class Metrics(Collector):
    """What is measured of the answers. Labels are names of views and statuses, and codes of HTTP.

    They are plain numbers, from which the client of Prometheus makes its own only when somebody asks for them.
    ``share``: the place of this process among several that serve together.
    """

    def __init__(self, share: Share | None = None) -> None:
        self._share = share
        self._is_saving = False
        self._counts = Counts.of([]) if share is None else share.begun()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def replied(self, code: int, seconds: float, service: str) -> None:
        """Count an answer. ``service``: that was read; empty if none was, or there is none of that name."""
        counts = self._counts
        _add(counts.n_by_code, service, str(code), 1)
        times = counts.times.get(service)
        if times is None:
            times = counts.times[service] = Times()
        times.n_by_bucket[bisect_left(_SECONDS, seconds)] += 1
        times.seconds += seconds
        if self._share is not None and not self._is_saving:
            self._is_saving = True
            asyncio.get_running_loop().call_later(SAVE_S, self._save, self._share)

    def redis_failed(self) -> None:
        """Count a request that failed because Redis did not answer."""
        self._counts.n_redis_errors += 1

    def answered(self, answered: Answered) -> None:
        """Count the rows of an answer."""
        # The answers of on-demand features come after all views.
        for view, found in zip(answered.request.views, answered.answers, strict=False):
            view_id, as_of = view.view.id, found.placed.as_of
            for status in set(found.status):
                _add(self._counts.n_rows, view_id, status, found.status.count(status))
            if UNKNOWN in as_of:
                as_of = [one for one in as_of if one != UNKNOWN]
            if as_of:
                self._counts.lags[view_id] = answered.read_us, max(0, answered.read_us - min(as_of)) / 1e6

    def _save(self, share: Share) -> None:
        self._is_saving = False
        share.save(self._counts)

    @override
    def collect(self) -> Iterator[Metric]:
        counts = self._counts if self._share is None else Counts.of([self._counts, *self._share.others()])
        seconds = HistogramMetricFamily(
            "unskew_request_seconds", "Time from a request's first byte to its answer", labels=["service"]
        )
        for service, times in counts.times.items():
            buckets = list(zip((*map(str, _SECONDS), "+Inf"), accumulate(times.n_by_bucket), strict=True))
            seconds.add_metric([service], buckets, times.seconds)
        requests = CounterMetricFamily("unskew_requests", "Requests for features", labels=["service", "code"])
        for service, by_code in counts.n_by_code.items():
            for code, n in by_code.items():
                requests.add_metric([service, code], n)
        rows = CounterMetricFamily("unskew_rows", "Rows that were answered", labels=["view", "status"])
        for view_id, by_status in counts.n_rows.items():
            for status, n in by_status.items():
                rows.add_metric([view_id, status], n)
        lag_s = GaugeMetricFamily(
            "unskew_read_lag_seconds",
            "How far the oldest row of the last answer lay behind the present",
            labels=["view"],
        )
        for view_id, (_, its_lag_s) in counts.lags.items():
            lag_s.add_metric([view_id], its_lag_s)
        redis_errors = CounterMetricFamily(
            "unskew_redis_errors", "Requests that failed because Redis did not answer", counts.n_redis_errors
        )
        yield from (seconds, requests, rows, lag_s, redis_errors)
