"""The metrics of a running pipeline for Prometheus; docs/operations.md explains each.

They are computed from ``Running`` on request, so nothing is counted twice and the hot path does not know of them.
Labels have few values: streams, views, partitions, stores, and kinds of dead letters.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from unskew.features.rejection import KINDS
from unskew.pipelines.progress import Durations
from unskew.pipelines.watch.running import Running

_Samples = Iterable[tuple[tuple[str, ...], float]]


def registry_of(running: Running) -> CollectorRegistry:
    """Return a registry for one pipeline, with metrics of the process.

    The latter are memory, processor, open files and garbage collection.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_PipelineCollector(running))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class _PipelineCollector(Collector):
    def __init__(self, running: Running) -> None:
        self._running = running

    @override
    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("unskew_build", "The running version.", {"version": version("unskew")})
        yield from self._of_streams()
        yield from self._of_partitions()
        yield from self._of_views()
        yield from self._of_epochs()
        yield from self._of_stores()
        yield from self._of_host()

    def _of_streams(self) -> Iterator[Metric]:
        sources, routers = self._running.sources, self._running.routers
        counters = {source.stream.name: source.counters for source in sources.values()}
        yield _counter(
            "unskew_events_consumed",
            "Records read from Kafka.",
            ["stream"],
            (((name,), count.consumed) for name, count in counters.items()),
        )
        yield _counter(
            "unskew_events_bumped",
            "Records whose own timestamp was before their partition's clock, which became their arrival.",
            ["stream"],
            (((name,), count.bumped) for name, count in counters.items()),
        )
        yield _counter(
            "unskew_events_ahead",
            "Records refused because their producers' timestamps lie past the present by more than max_ahead.",
            ["stream"],
            (((source.stream.name,), source.n_ahead) for source in sources.values()),
        )
        yield _counter(
            "unskew_records_ignored",
            "Records that are not meant to be events of their stream, such as records of another type.",
            ["stream"],
            (((sources[topic].stream.name,), router.ignored) for topic, router in routers.items()),
        )
        # Every kind is exposed from the start: a rate over a series that appears with its first letter would miss it.
        yield _counter(
            "unskew_dead_letters",
            "Dead letters, by the reason why the record could not be used.",
            ["stream", "kind"],
            (
                ((sources[topic].stream.name, kind), router.dead_by_kind.get(kind, 0))
                for topic, router in routers.items()
                for kind in KINDS
            ),
        )

    def _of_partitions(self) -> Iterator[Metric]:
        places = [place for source in self._running.sources.values() for place in source.places()]
        names = ["topic", "partition"]
        yield _gauge(
            "unskew_partition_lag_records",
            "Records between the position and the end of the partition.",
            names,
            (((place.topic, str(place.partition)), place.lag) for place in places),
        )
        yield _gauge(
            "unskew_partition_clock_timestamp_seconds",
            "The partition's clock, Unix time in seconds; absent before its first record or mark.",
            names,
            (
                ((place.topic, str(place.partition)), place.clock_us / 1e6)
                for place in places
                if place.clock_us is not None
            ),
        )

    def _of_views(self) -> Iterator[Metric]:
        progress = self._running.progress
        clocks_us = progress.clocks_by_view_us()
        present_us = self._running.clock.wall_us()
        sizes = progress.sizes_by_view()
        yield _gauge(
            "unskew_view_clock_timestamp_seconds",
            "The earliest clock of the view's shards in this process, Unix time in seconds: values are final before it.",
            ["view"],
            (((view,), clock_us / 1e6) for view, clock_us in clocks_us.items()),
        )
        yield _gauge(
            "unskew_view_freshness_seconds",
            "The present less the view's clock: how old the latest values are, seconds.",
            ["view"],
            (((view,), (present_us - clock_us) / 1e6) for view, clock_us in clocks_us.items()),
        )
        yield _counter(
            "unskew_updates", "Rows of current values made for Redis.", ["view"], _by_view(progress.updates_by_view)
        )
        yield _counter("unskew_log_rows", "Rows made for the log.", ["view"], _by_view(progress.rows_by_view))
        yield _counter(
            "unskew_events_late",
            "Events that came too late for a window, counted for each window that they missed.",
            ["view"],
            _by_view(progress.late_by_view),
        )
        yield _counter(
            "unskew_events_repeated",
            "Events dropped as repeats of others; only views of streams with dedupe_within.",
            ["view"],
            _by_view(progress.duplicates),
        )
        yield _gauge(
            "unskew_state_entities",
            "Entities in the view's state, at the last commit.",
            ["view"],
            (((view,), size.entities) for view, size in sizes.items()),
        )
        yield _gauge(
            "unskew_state_tiles",
            "Tiles (pieces of windows that hold events) in the view's state, at the last commit.",
            ["view"],
            (((view,), size.tiles) for view, size in sizes.items()),
        )
        yield _gauge(
            "unskew_state_disk_bytes",
            "Bytes on disk of the shards' states: their bases and the events since.",
            [],
            [((), self._running.changelogs.n_bytes)],
        )

    def _of_epochs(self) -> Iterator[Metric]:
        epochs = self._running.progress.epochs
        yield _histogram(
            "unskew_commit_seconds",
            "Time that the snapshots of an epoch took; nothing else is done meanwhile.",
            epochs.commits,
        )
        yield _histogram("unskew_epoch_seconds", "Time from the commit of an epoch to the next commit.", epochs.lengths)
        yield _histogram(
            "unskew_journal_wait_seconds",
            "Time that items waited until the journal held the decisions about them; the flow's thread is idle meanwhile.",
            self._running.journal.waits,
        )
        durable_at_s = epochs.durable_at_s
        yield _gauge(
            "unskew_epoch_durable_timestamp_seconds",
            "When the last epoch was found durable, Unix time in seconds; absent before the first.",
            [],
            [] if durable_at_s is None else [((), durable_at_s)],
        )
        yield _gauge(
            "unskew_ready",
            "1 where /ready answers 200, else 0.",
            [],
            [((), float(not self._running.unready_reasons()))],
        )
        yield _gauge(
            "unskew_compiling",
            "1 while the kernel is being compiled, before the first record is read, else 0.",
            [],
            [((), float(self._running.progress.compiling))],
        )

    def _of_host(self) -> Iterator[Metric]:
        clock = self._running.clock
        yield _gauge(
            "unskew_host_clock_jump_seconds",
            "How far this host's wall clock is ahead of where it should be, seconds; 0 unless it has jumped.",
            [],
            [((), clock.jump_us / 1e6)],
        )
        yield _counter("unskew_host_clock_jumps", "Jumps of this host's wall clock.", [], [((), clock.jumps)])

    def _of_stores(self) -> Iterator[Metric]:
        running, writer = self._running, self._running.writer
        yield _counter(
            "unskew_store_retries",
            "Retries after a failed attempt to reach the store.",
            ["store"],
            (((name,), count) for name, count in running.retries().items()),
        )
        yield _gauge(
            "unskew_store_away_seconds",
            "For how long the store has been unreachable, seconds; 0 while it is reachable.",
            ["store"],
            (((name,), away_s) for name, away_s in running.away_s().items()),
        )
        yield _counter("unskew_redis_rows_sent", "Rows acknowledged by Redis.", [], [((), writer.rows_sent)])
        yield _counter(
            "unskew_redis_rows_conflated",
            "Rows that were replaced by a later row of the same key before they were sent.",
            [],
            [((), writer.rows_conflated)],
        )
        yield _counter("unskew_redis_flushes", "Batches acknowledged by Redis.", [], [((), writer.flushes)])
        yield _gauge("unskew_redis_rows_waiting", "Rows not yet acknowledged by Redis.", [], [((), writer.n_waiting)])
        yield _gauge(
            "unskew_redis_rows_held",
            "Rows held back until their shard has reached its position before a crash.",
            [],
            [((), writer.n_held)],
        )
        yield _counter(
            "unskew_redis_losses",
            "How often Redis came back without rows that it had acknowledged.",
            [],
            [((), writer.lost)],
        )
        yield _counter(
            "unskew_redis_evicted_keys",
            "Keys that the servers evicted since the process began, those of other applications included.",
            [],
            [((), writer.evicted)],
        )
        yield _counter(
            "unskew_redis_strangers",
            "Keys of another type that were removed because unskew writes under their names.",
            [],
            [((), writer.strangers)],
        )
        scrub = writer.scrub
        yield _counter(
            "unskew_redis_rows_compared", "Rows of Redis that were compared with the state.", [], [((), scrub.compared)]
        )
        yield _counter(
            "unskew_redis_rows_mended",
            "Rows that Redis lacked, or held otherwise than the state, and that were rewritten.",
            ["kind"],
            [(("lacking",), scrub.lacking), (("differing",), scrub.differing)],
        )
        rounds = scrub.rounds
        yield _gauge(
            "unskew_redis_round_timestamp_seconds",
            "When the oldest of the shards' last comparisons of all rows began, Unix time in seconds; absent before one.",
            [],
            [((), min(rounds.values()) / 1e6)] if rounds else [],
        )


def _by_view(counts: Mapping[str, int]) -> _Samples:
    return [((view,), count) for view, count in dict(counts).items()]


def _counter(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    """Make a counter; ``name`` lacks the ``_total`` that Prometheus adds."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _gauge(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(name: str, text: str, durations: Durations) -> Metric:
    bounds = [("+Inf" if bound_s == float("inf") else str(bound_s), count) for bound_s, count in durations.at_most()]
    return HistogramMetricFamily(name, text, buckets=bounds, sum_value=durations.sum_s)
