"""What each feature of some views costs and what it earns, and which ones are candidates to retire."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import polars as pl

from unskew.features.definitions.without import with_derived
from unskew.features.errors import RequestError
from unskew.features.plan import ViewPlan
from unskew.features.service import Service
from unskew.features.view import View, ViewFeature
from unskew.monitoring.value.freshness import AGES, NOW, Aged, Differences, aged, differences
from unskew.monitoring.value.importance import Importance, Model, NoModel, model_of
from unskew.monitoring.value.kernel_time import KernelTime, NothingArchived, kernel_times
from unskew.monitoring.value.rows import LogRows, log_rows
from unskew.offline.log_reader import ViewLog
from unskew.offline.manifest import Manifest
from unskew.pipelines.kafka.consumer import Flag

NEGLIGIBLE = 0.001
"""A loss of a model's score that is not above this is not worth a feature, however surely it is measured."""
SAME_SHARE = 0.01
"""Where no more of the requests differ, an older copy would do."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Requests whose outcome is known: ``frame`` with key columns, ``timestamp`` and, if it is given, ``target``."""

    frame: pl.DataFrame
    timestamp: str
    target: str | None


@dataclass(frozen=True, kw_only=True)
class Readers:
    """Who reads features. ``services``: as they are published; ``models``: manifests of training sets by name.

    ``reads``: by service, how often it was read lately; None if that is not known.
    """

    services: Mapping[str, Service]
    models: Mapping[str, Manifest] = field(default_factory=dict)
    reads: Mapping[str, int] | None = None

    def of(self, view: View, feature: str) -> dict[str, int | None]:
        """Return the names of services and models that read a feature, with the reads of services as far as known."""
        found: dict[str, int | None] = {}
        for name, service in self.services.items():
            if any(one.view == view.id and one.feature == feature for one in service.features):
                found[name] = None if self.reads is None else self.reads.get(name, 0)
        for name, manifest in self.models.items():
            if any(one.view == view.id and one.feature == feature for one in manifest.features):
                found[name] = None
        return found


@dataclass(frozen=True, kw_only=True)
class FeatureValue:
    """One feature: its cost and its benefit. What is not known is None, or is missing from a mapping; never 0.

    ``rows_alone``: log rows that are there for it, and for what is derived of it, alone; ``n_rows``: those of its view.
    ``redis_bytes``: of an entity, on average. ``readers``: see ``Readers.of``. ``differences``, ``importances``: by
    age. ``derived``: the features that are derived of it.
    """

    feature: ViewFeature
    rows_alone: int | None
    n_rows: int | None
    redis_bytes: float | None
    kernel_time: KernelTime | None
    readers: Mapping[str, int | None] | None
    differences: Mapping[str, Differences]
    importances: Mapping[str, Importance]
    metric: str
    derived: Sequence[str]
    is_candidate: bool = False

    @property
    def name(self) -> str:
        return self.feature.name

    @property
    def row_share(self) -> float | None:
        """The share of its view's rows that are there for it alone."""
        return self.rows_alone / self.n_rows if self.rows_alone is not None and self.n_rows else None

    @property
    def is_useless(self) -> bool | None:
        """Whether the model loses nothing that could be told from chance; without a model, whether nobody reads it.

        None if neither is known.
        """
        if (now := self.importances.get(NOW)) is not None:
            return now.mean <= max(NEGLIGIBLE, 2 * now.std)
        return None if self.readers is None else not self.readers

    @property
    def sufficient_age(self) -> str | None:
        """The oldest age at which nearly all requests had the same value already; None if there is none."""
        shares = {age: one.share for age, one in self.differences.items()}
        return next(
            (age for age in reversed(list(AGES)) if (share := shares.get(age)) is not None and share <= SAME_SHARE),
            None,
        )


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Whence requests were taken, how many, and how many of them lie within the log."""

    source: Literal["labels", "log"]
    n: int
    n_within: int


@dataclass(frozen=True, kw_only=True)
class ViewValue:
    """The features of a view, candidates to retire first.

    ``requests``: None without any. ``model``: the models that were given labels. ``unknown``: figures that are not
    known, and why, or what would make them known.
    """

    view: View
    rows: LogRows | None
    requests: Requests | None
    model: Model | None
    unknown: Sequence[str]
    features: Sequence[FeatureValue]


def values_of(
    asked: Mapping[str, Sequence[str]],
    views: Mapping[str, View],
    plans: Mapping[str, ViewPlan],
    *,
    log: Path | None,
    archive: Path | None,
    readers: Readers | None,
    labels: Labels | None,
    n_requests: int,
    n_events: int,
    n_runs: int,
    now_s: Callable[[], float] = time.process_time,
    stop: Flag | None = None,
    progress: Progress = lambda _phase, _done, _all: None,
) -> list[ViewValue]:
    """Return the value of features: of each view in ``asked`` (by id) those named, judged with all of its features.

    ``views``, ``plans``: by id; a view without a plan is only known from its log. ``log``, ``archive``, ``labels``: as
    far as given; without one, what rests on it is not known. ``n_requests``: the most requests that are joined, a part
    of the labels if there are more; ``n_events``, ``n_runs``: see ``kernel_times``. A model gets all features of all
    views whose keys the labels have.

    Raises ``RequestError`` if the labels have the key of no view, and as the join and the replay do.
    """
    logs = {} if log is None else {view_id: ViewLog(log, views[view_id]) for view_id in asked}
    rows = {view_id: log_rows(one, n_requests, _of(progress, "rows")) for view_id, one in logs.items()}
    # A log that is not complete to any instant yet has no answers.
    logs = {view_id: one for view_id, one in logs.items() if one.complete_to_us is not None and not _waits(one)}
    labelled = [] if labels is None or log is None else _labelled(labels, [views[view_id] for view_id in asked], logs)
    given = None if labels is None else _some(labels.frame, n_requests)
    model: Model | NoModel | None = None
    joined: dict[str, Aged] = {}
    if labels is not None and given is not None and labelled:
        keys = list(dict.fromkeys(key for view_id in labelled for key in views[view_id].entity.keys))
        found = aged(
            {view_id: logs[view_id] for view_id in labelled},
            given.select(*keys, labels.timestamp),
            [_reference(views[view_id], one) for view_id in labelled for one in views[view_id].features],
            labels.timestamp,
            _of(progress, "requests"),
        )
        joined = dict.fromkeys(labelled, found)
        if labels.target is not None:
            types = {_column(views[view_id], one): one.dtype for view_id in labelled for one in views[view_id].features}
            model = model_of(found, types, given, labels.target, labels.timestamp, _of(progress, "model"))
    for view_id, opened in logs.items():
        if view_id not in joined and rows[view_id].requests.height:
            references = [_reference(views[view_id], one) for one in views[view_id].features]
            asked_at = rows[view_id].requests
            joined[view_id] = aged(
                {view_id: opened}, asked_at, references, "event_timestamp", _of(progress, "requests")
            )
    results = []
    for view_id, names in asked.items():
        view = views[view_id]
        times: Mapping[str, KernelTime] = {}
        why = ""
        if archive is not None and view_id in plans:
            try:
                times = kernel_times(
                    plans[view_id],
                    archive,
                    names,
                    n_events=n_events,
                    n_runs=n_runs,
                    now_s=now_s,
                    stop=stop,
                    progress=_of(progress, "replays"),
                )
            except NothingArchived as error:
                why = f"kernel time: {error}"
        else:
            missing = ["--archive"] if archive is None else []
            missing += ["--definitions"] if view_id not in plans else []
            why = f"kernel time: give {' and '.join(missing)}"
        lone = [name for name in names if name not in times]
        if not why and lone:
            why = f"kernel time of {', '.join(lone)}: nothing is left of the view without it"
        its_model = model if view_id in labelled else None
        unknown = [
            *_unknown_of_log(log, rows.get(view_id), view_id in joined),
            *([why] if why else []),
            *(["who reads them: give --definitions with services, or --model"] if readers is None else []),
            *_unknown_importance(view, labels, its_model),
        ]
        results.append(
            _value(
                view,
                names,
                rows=rows.get(view_id),
                found=joined.get(view_id),
                is_labelled=view_id in labelled,
                model=its_model if isinstance(its_model, Model) else None,
                times=times,
                readers=readers,
                unknown=unknown,
            )
        )
    return results


def _waits(log: ViewLog) -> bool:
    return log.coverage is not None and bool(log.coverage.waiting)


def _of(progress: Progress, phase: str) -> Progress:
    return lambda what, done, n_all: progress(
        f"{phase} of {what}" if phase != "model" else f"model, {what}", done, n_all
    )


def _labelled(labels: Labels, views: Sequence[View], logs: Mapping[str, ViewLog]) -> list[str]:
    """Return the views with a log whose keys the labels have. Raises ``RequestError`` if they have those of no view."""
    found = [view.id for view in views if set(view.entity.keys) <= set(labels.frame.columns)]
    if not found:
        wanted = " or ".join(dict.fromkeys(" and ".join(view.entity.keys) for view in views))
        raise RequestError(
            f"the labels have no column {wanted}; their columns are {', '.join(labels.frame.columns)}; name the columns of "
            "keys as the entities do"
        )
    return [view_id for view_id in found if view_id in logs]


def _some(frame: pl.DataFrame, n: int) -> pl.DataFrame:
    """Return the rows, or so many of them, the same ones each time."""
    return frame if frame.height <= n else frame.sample(n, seed=0)


def _reference(view: View, feature: ViewFeature) -> str:
    return f"{view.id}:{feature.name}"


def _column(view: View, feature: ViewFeature) -> str:
    return f"{view.id}__{feature.name}"


def _value(
    view: View,
    names: Sequence[str],
    *,
    rows: LogRows | None,
    found: Aged | None,
    is_labelled: bool,
    model: Model | None,
    times: Mapping[str, KernelTime],
    readers: Readers | None,
    unknown: Sequence[str],
) -> ViewValue:
    is_known = rows is not None and rows.n_rows > 0
    values = {}
    for feature in view.features:
        column = _column(view, feature)
        together = with_derived(view, feature.name)
        values[feature.name] = FeatureValue(
            feature=feature,
            rows_alone=rows.alone(together) if rows is not None and is_known else None,
            n_rows=rows.n_rows if rows is not None and is_known else None,
            redis_bytes=None if rows is None else rows.sizes.get(feature.name),
            kernel_time=times.get(feature.name),
            readers=None if readers is None else readers.of(view, feature.name),
            differences={} if found is None else differences(found, column, feature.dtype),
            importances={} if model is None else model.importances.get(column, {}),
            metric="" if model is None else model.metric,
            derived=sorted(together - {feature.name}),
        )
    useless = {name for name, one in values.items() if one.is_useless}
    # What another feature needs must stay as long as that one does.
    judged = [
        replace(one, is_candidate=name in useless and useless.issuperset(one.derived))
        for name, one in values.items()
        if name in names
    ]
    return ViewValue(
        view=view,
        rows=rows,
        requests=None
        if found is None
        else Requests(
            source="labels" if is_labelled else "log",
            n=found.frames[NOW].height,
            n_within=int(found.known[NOW][_column(view, view.features[0])].sum()),
        ),
        model=model,
        unknown=unknown,
        features=sorted(judged, key=_rank),
    )


def _rank(one: FeatureValue) -> tuple[bool, float, float, float]:
    """Candidates first, then what a model needs least; of equals, what costs most."""
    now = one.importances.get(NOW)
    return (
        not one.is_candidate,
        0.0 if one.is_candidate or now is None else now.mean,
        -(one.row_share or 0.0),
        -(one.redis_bytes or 0.0),
    )


def _unknown_of_log(log: Path | None, rows: LogRows | None, is_joined: bool) -> Iterator[str]:  # noqa: FBT001
    """Yield what is not known because of the log, and why."""
    all_of_it = "rows, Redis bytes, and whether an older copy would do"
    if log is None or rows is None:
        yield f"{all_of_it}: give --log"
    elif not rows.n_rows:
        yield f"{all_of_it}: the log has no rows of this view"
    else:
        if not rows.sizes:
            yield "Redis bytes: no entity has any value at the end of the log"
        if not is_joined:
            yield "whether an older copy would do: no row of the log was caused by an event, or the log is not complete to any instant"


def _unknown_importance(view: View, labels: Labels | None, model: Model | NoModel | None) -> Iterator[str]:
    if labels is None or labels.target is None:
        yield f"importance: give {'--labels and --target' if labels is None else '--target'}"
    elif isinstance(model, NoModel):
        yield f"importance: {model.why}"
    elif model is None:
        yield f"importance: the labels have no column {' and '.join(view.entity.keys)}, or the log is not complete to any instant"
    else:
        if lacking := [age for age in AGES if age not in model.scores]:
            yield f"importance of features {' and '.join(lacking)} old: less than half of the labels lie within the log then"
        for feature in view.features:
            if (column := _column(view, feature)) in model.unusable:
                yield f"importance of {feature.name}: {model.unusable[column]}"


def sentence(one: FeatureValue) -> str:
    """Return the value of a feature in one sentence; what is not known is left out."""
    parts = [part for part in (_costs(one), _freshness(one), _use(one), _read_by(one)) if part]
    return "; ".join(parts) + _verdict(one)


def percent(share: float) -> str:
    """Return a share in percent, which is 0 or 100 only if it is exactly that."""
    if share in {0.0, 1.0}:
        return f"{100 * share:.0f}"
    shown = min(max(100 * share, 0.01), 99.99)
    return f"{shown:.2f}" if shown < 1 or shown > 99 else f"{shown:.1f}"


def _costs(one: FeatureValue) -> str:
    costs = []
    if one.row_share is not None:
        costs.append(f"{percent(one.row_share)} % of its view's rows" if one.rows_alone else "no row of its own")
    if one.redis_bytes is not None:
        costs.append(f"{one.redis_bytes:.0f} bytes of an entity in Redis")
    if one.kernel_time is not None:
        spread = f"({one.kernel_time.least:.2f} to {one.kernel_time.most:.2f})"
        costs.append(
            f"no kernel time that could be told from noise {spread}"
            if one.kernel_time.least <= 1
            else f"{one.kernel_time.median:.2f} times the kernel time {spread}"
        )
    if not costs:
        return ""
    return f"costs {', '.join(costs[:-1])} and {costs[-1]}" if len(costs) > 1 else f"costs {costs[0]}"


def _freshness(one: FeatureValue) -> str:
    hour = one.differences.get("1 h")
    if hour is None or hour.share is None:
        return ""
    by = "" if hour.mean_change is None else f", by {hour.mean_change:.3g} on average"
    return f"1 h old it differs in {percent(hour.share)} % of requests{by}"


def _use(one: FeatureValue) -> str:
    now = one.importances.get(NOW)
    if now is None:
        return ""
    return f"a model loses {now.mean:.4f} {one.metric} (± {now.std:.4f}) when its values are shuffled"


def _read_by(one: FeatureValue) -> str:
    if one.readers is None:
        return ""
    if not one.readers:
        return "no service or model reads it"
    names = [name if n is None else f"{name} ({n:,} reads)" for name, n in one.readers.items()]
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} read{'s' * (len(names) == 1)} it"


def _verdict(one: FeatureValue) -> str:
    if one.is_candidate:
        return ": candidate to retire"
    if one.is_useless and one.derived:
        return f": needed by {', '.join(one.derived)}"
    if one.sufficient_age is not None and one.is_useless is not True:
        return f": a copy that is {one.sufficient_age} old would do"
    return ": keep" if one.is_useless is False else ""
