"""The metrics of ``unskew monitor`` for Prometheus; docs/monitoring.md explains each.

They are those of the last look. Labels come from the log's definitions and from the names of the baselines alone.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from unskew.monitoring.watch import Look

_Samples = Iterable[tuple[tuple[str, ...], float | None]]
_FEATURE = ["view", "feature", "baseline", "of"]


class Exposed(Collector):
    """What a process that looks again and again shows of itself: its last look, and what went wrong since."""

    def __init__(self) -> None:
        self._look: Look | None = None
        self._failures = 0
        self._reasons: list[str] = []

    def show(self, look: Look) -> None:
        """Show a look from now on."""
        self._look = look
        self._reasons = [str(error) for error in look.refused]
        self._failures += bool(self._reasons)

    def failed(self, error: Exception) -> None:
        """Note that a look could not be taken; what is shown stays."""
        self._reasons = [str(error)]
        self._failures += 1

    def registry(self) -> CollectorRegistry:
        """Return a registry of these metrics, and those of the process."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        return registry

    def dead_reasons(self) -> list[str]:
        """Return nothing: a look takes as long as the log is large, and one that fails is taken again."""
        return []

    def unready_reasons(self) -> list[str]:
        """Return why the figures are not those of the present."""
        return ["no look is complete yet"] if self._look is None else self._reasons

    def facts(self) -> dict[str, object]:
        """Return what is over its limit, and the views that were looked at."""
        look = self._look
        return {
            "views": [] if look is None else [one.view for one in look.views],
            "over": [] if look is None else [str(one) for one in look.over],
        }

    @override
    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("unskew_monitor", "The running version.", {"version": version("unskew")})
        yield _counter(
            "unskew_monitor_failures",
            "Looks that could not be taken, of all views or of one.",
            [],
            [((), self._failures)],
        )
        look = self._look
        if look is None:
            return
        yield _gauge(
            "unskew_monitor_look_timestamp_seconds",
            "When the figures were read, Unix time in seconds.",
            [],
            [((), look.at_us / 1e6)],
        )
        yield from _of_views(look)
        yield from _of_features(look)


def _of_views(look: Look) -> Iterator[Metric]:
    yield _gauge(
        "unskew_view_entities",
        "Entities that have a row in the view's log.",
        ["view"],
        (((one.view,), one.entities) for one in look.views),
    )
    yield _gauge(
        "unskew_view_event_age_seconds",
        "How long ago the last event came that the view's log counts, seconds.",
        ["view"],
        (((one.view,), _seconds(one.event_age_us)) for one in look.views),
    )
    yield _gauge(
        "unskew_log_published_age_seconds",
        "How far the view's published log is behind the present, seconds.",
        ["view"],
        (((one.view,), _seconds(one.published_age_us)) for one in look.views),
    )
    yield _counter(
        "unskew_compared",
        "Served rows that were compared with the log.",
        ["view"],
        [((one.view,), one.compared) for one in look.views],
    )
    yield _counter(
        "unskew_mismatches",
        "Served rows that differ from the log at the same instant.",
        ["view"],
        [((one.view,), one.mismatches) for one in look.views],
    )


def _of_features(look: Look) -> Iterator[Metric]:
    yield _gauge(
        "unskew_feature_missing_ratio",
        "The share of nulls among a feature's values.",
        ["view", "feature", "of"],
        {(view.view, one.feature, one.of): one.missing for view in look.views for one in view.features}.items(),
    )
    judged = [
        ((view.view, one.feature, one.baseline, one.of), one, one.distance)
        for view in look.views
        for one in view.features
        if one.baseline is not None and one.distance is not None
    ]
    yield _gauge(
        "unskew_feature_psi",
        "Population stability index of a feature's values against a baseline.",
        _FEATURE,
        [(labels, far.psi) for labels, _, far in judged],
    )
    yield _gauge(
        "unskew_feature_kl",
        "Kullback-Leibler divergence of a feature's values from a baseline, in nats.",
        _FEATURE,
        [(labels, far.kl) for labels, _, far in judged],
    )
    yield _gauge(
        "unskew_feature_js",
        "Jensen-Shannon divergence of a feature's values and a baseline, in nats.",
        _FEATURE,
        [(labels, far.js) for labels, _, far in judged],
    )
    yield _gauge(
        "unskew_feature_psi_limit",
        "The PSI above which it is a drift and not noise; absent where there are too few values.",
        _FEATURE,
        [(labels, one.limit) for labels, one, _ in judged if one.state != "too few"],
    )
    yield _gauge(
        "unskew_feature_missing_limit",
        "The share of nulls that is too much, given the baseline; absent where there are too few values.",
        _FEATURE,
        [(labels, one.missing_limit) for labels, one, _ in judged if one.state != "too few"],
    )


def _seconds(age_us: int | None) -> float | None:
    return None if age_us is None else age_us / 1e6


def _gauge(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), samples)


def _counter(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: _Samples) -> Metric:
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family
