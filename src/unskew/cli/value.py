"""``unskew value``: what features cost, what they earn, and which ones to retire."""

import datetime as dt
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.known import telling_services
from unskew.cli.screen import Screen, phases, say_json, styled
from unskew.features.errors import RequestError
from unskew.features.nearest import nearest

if TYPE_CHECKING:
    from unskew.features.folding import Rows
    from unskew.features.plan import Plan
    from unskew.features.versions import Versions
    from unskew.features.view import View
    from unskew.monitoring.value.worth import FeatureValue, Labels, Readers, ViewValue

READ_DAYS = 7
_UNKNOWN = "?"


@click.command()
@click.argument("features", metavar="[VIEW[:FEATURE]]...", nargs=-1, shell_complete=naming.features)
@settings.optional_log
@settings.optional_archive
@settings.some_definitions
@click.option(
    "--labels",
    type=settings.LocalPath(),
    metavar="FILE",
    help="Parquet or CSV file with labels: requests whose outcome is known.",
)
@click.option(
    "--target", metavar="COLUMN", help="Column of the labels that a model predicts: two classes, or a number."
)
@click.option(
    "--timestamp",
    default="event_timestamp",
    show_default=True,
    metavar="COLUMN",
    help="Column with the labels' instants.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=settings.LocalPath(),
    metavar="MANIFEST",
    help="Manifest of a training set: its model reads these features; may be given several times.",
)
@click.option("--usage", is_flag=True, help=f"Count how often services were read in {READ_DAYS} days, from Redis.")
@settings.redis_url
@settings.prefix
@click.option(
    "--requests", "n_requests", type=click.IntRange(100), default=10_000, show_default=True,
    help="Most requests that are joined and given to a model.",
)  # fmt: skip
@click.option(
    "--events", "n_events", type=click.IntRange(1), default=100_000, show_default=True,
    help="Most archived events that are replayed to measure the kernel time.",
)  # fmt: skip
@click.option(
    "--runs", "n_runs", type=click.IntRange(2, 100), default=5, show_default=True,
    help="Number of replays with and without each feature.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def value(
    features: tuple[str, ...],
    log: Path | None,
    archive: Path | None,
    definitions: tuple[Path, ...],
    labels: Path | None,
    target: str | None,
    timestamp: str,
    models: tuple[Path, ...],
    usage: bool,
    redis_url: str,
    prefix: str,
    n_requests: int,
    n_events: int,
    n_runs: int,
    as_json: bool,
) -> None:
    """Show what each feature costs and what it earns, candidates to retire first.

    VIEW stands for all of its features; without any, all views are shown. Costs are taken from the log and measured on
    the archive. Without --labels, requests are instants of the log at which an event came. A figure that is not known
    is a "?", and a line says what makes it known; nothing is written.

    \b
    Columns of the table:
        rows of its own  share of the view's log rows that are there for it alone
        Redis bytes      bytes of an entity in Redis, on average
        kernel time      with it / without it, and half of the spread
        differs 1 h old  requests at which it differs from its value then
        loss             score that a model loses when its values are shuffled
        loss 1 h old     the same of a model whose features are all so old
        read by          services, and models of --model

    A candidate to retire is a feature whose loss cannot be told from chance or is at most 0.001, or, without a model,
    one that nobody reads; and so are all that are derived of it. Of two features that say the same, neither seems to
    matter: retire one, then look again.

    \b
    Examples:
        unskew value household_purchases --log data/log --archive data/archive \\
            --definitions definitions/
        unskew value user_purchases:spend_30d --log data/log \\
            --labels labels.parquet --target bought
    """
    from unskew.features.definitions.load import load
    from unskew.features.local import existing_folder
    from unskew.monitoring.value.worth import values_of
    from unskew.stopping import stopping_on_signals

    for option, column in (("--timestamp", timestamp), ("--target", target)):
        if column == "":
            raise RequestError(f"{option} is empty; name a column of the labels")
    if log is None and archive is None:
        raise RequestError("there is nothing to look at: give --log, --archive, or both")
    if labels is not None and log is None:
        raise RequestError("labels get their features from the log: give --log")
    if labels is None and target is not None:
        raise RequestError("--target is a column of the labels: give --labels")
    if log is not None:
        existing_folder(log, "--log")
    if archive is not None:
        existing_folder(archive, "--archive")
    plan = load(*definitions) if definitions else None
    with telling_services(features, plan, log):
        asked, known = _asked(features, plan, log)
    stop = threading.Event()
    with stopping_on_signals(stop), phases("value") as progress:
        found = values_of(
            asked,
            known,
            {} if plan is None else {view.id: view for view in plan.views.values()},
            log=log,
            archive=archive,
            readers=_readers(plan, models, redis_url if usage else None, prefix),
            labels=None if labels is None else _labels(labels, [known[one] for one in asked], timestamp, target),
            n_requests=n_requests,
            n_events=n_events,
            n_runs=n_runs,
            stop=stop,
            progress=progress,
        )
    if as_json:
        say_json({"views": [_plain(one) for one in found]}, indent=2)
        return
    screen = Screen()

    def say_unknown(line: str) -> None:
        screen.print(styled(f"not known: {line}", "dim"))

    everywhere = [line for line in found[0].unknown if all(line in one.unknown for one in found)]
    for number, one in enumerate(found):
        if number:
            screen.print()
        for line in _about(one):
            screen.print(line)
        screen.print(_table(one))
        screen.print()
        for feature in one.features:
            screen.print(_sentence(feature))
        for line in one.unknown:
            if line not in everywhere:
                say_unknown(line)
    if everywhere and len(found) > 1:
        screen.print()
    for line in everywhere:
        say_unknown(line)


def _asked(
    features: Sequence[str], plan: "Plan | None", log: Path | None
) -> "tuple[dict[str, list[str]], dict[str, View]]":
    """Return the features that were named, by view id, and the views."""
    from unskew.features.references import named_views
    from unskew.offline.logged import all_logged, with_logged

    published = None if plan is None else plan.published
    views: Versions[View]
    if not features:
        if published is None and log is None:
            raise RequestError("no view is known: give --definitions, or a --log, which holds its own")
        views = all_logged(log) if published is None and log is not None else published  # type: ignore[assignment]
        features = [view.id for view in views.values()]
    elif log is not None:
        views = with_logged(log, named_views(features), published)
    elif published is None:
        raise RequestError(
            "features are read by their definitions: give --definitions, or a --log, which holds its own"
        )
    else:
        views = published
    asked: dict[str, list[str]] = {}
    known: dict[str, View] = {}
    for one in features:
        name, colon, feature = one.partition(":")
        view = views.find(name)
        names = [each.name for each in view.features]
        if colon and feature not in names:
            raise RequestError(f"{name} has no feature {feature!r}; {nearest(feature, names, 'its features are')}")
        known[view.id] = view
        wanted = asked.setdefault(view.id, [])
        wanted += [each for each in ([feature] if colon else names) if each not in wanted]
    if not asked:
        raise RequestError("there are no views; define one")
    return asked, known


def _labels(path: Path, views: "Sequence[View]", timestamp: str, target: str | None) -> "Labels":
    import polars as pl

    from unskew.features.frames import read_table
    from unskew.monitoring.value.worth import Labels
    from unskew.offline.join import instants_of
    from unskew.offline.labels import read_labels

    frame = read_labels(path, views, timestamp)
    if not frame.height:
        raise RequestError(f"{path} has no rows; give at least one label")
    # Refuses a column that does not hold instants, before anything is read.
    instants_of(read_table(frame), timestamp)
    if target is not None and target not in frame.columns:
        raise RequestError(
            f"the labels have no column {target!r}; {nearest(target, frame.columns, 'their columns are')}; name the column to "
            "predict with --target"
        )
    assert isinstance(frame.schema[timestamp], pl.Datetime)
    return Labels(frame=frame, timestamp=timestamp, target=target)


def _readers(plan: "Plan | None", models: Sequence[Path], redis_url: str | None, prefix: str) -> "Readers | None":
    """Return who reads features; None if nobody is known."""
    from unskew.monitoring.value.worth import Readers
    from unskew.offline.manifest import Manifest

    services = {} if plan is None else dict(plan.services)
    if redis_url is not None and not services:
        raise RequestError("--usage counts reads of services: give --definitions with services")
    if not services and not models:
        return None
    return Readers(
        services=services,
        models={str(path): Manifest.read(path) for path in models},
        reads=None if redis_url is None else _reads(redis_url, prefix, list(services)),
    )


def _reads(redis_url: str, prefix: str, services: Sequence[str]) -> Mapping[str, int]:
    from unskew.sinks.redis.server import Server
    from unskew.sinks.redis.usage import reads

    since = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=READ_DAYS)
    server = Server(redis_url)
    try:
        with server.reaching() as client:
            return reads(client, prefix, services, since)
    finally:
        server.close()


def _about(one: "ViewValue") -> Iterator[Any]:
    from unskew.monitoring.value.freshness import NOW

    about = [one.view.id]
    if one.rows is not None:
        a_day = one.rows.rows_a_day
        about.append(
            f"{one.rows.n_rows:,} rows of {one.rows.n_entities:,} entities"
            + (f", {a_day:,.{0 if a_day >= 10 else 1}f} a day" if a_day else "")
        )
    yield styled(": ".join(about), "bold")
    if one.requests is not None:
        kind = "labels" if one.requests.source == "labels" else "instants of the log at which an event came"
        outside = one.requests.n - one.requests.n_within
        yield f"  requests: {one.requests.n:,} {kind}" + (
            f", {outside:,} of them outside of the log" if outside else ""
        )
    if (model := one.model) is not None:
        scores = ", ".join(
            f"{score:.4f} {'with features as they are' if age == NOW else f'{age} old'}"
            for age, score in model.scores.items()
        )
        yield f"  model of {model.target}: {model.metric} {scores} ({model.n_train:,} labels train, {model.n_test:,} later ones score)"


def _table(one: "ViewValue") -> "Rows":
    from unskew.features.folding import Rows, number, prose
    from unskew.monitoring.value.freshness import AGES, NOW
    from unskew.monitoring.value.worth import percent

    ages = (f"differs {age} old" for age in AGES)
    numbers = ("rows of its own", "Redis bytes", "kernel time", *ages, "loss", "loss 1 h old", "loss 1 d old")
    table = Rows("feature", *map(number, numbers), prose("read by"))
    for feature in one.features:
        time_ = feature.kernel_time
        shares = [
            _UNKNOWN
            if (found := feature.differences.get(age)) is None or found.share is None
            else f"{percent(found.share)}%"
            for age in AGES
        ]
        losses = [
            _UNKNOWN if (loss := feature.importances.get(age)) is None else f"{loss.mean:.4f}"
            for age in (NOW, "1 h", "1 d")
        ]
        table.add(
            styled(feature.name, "bold red" if feature.is_candidate else ""),
            _UNKNOWN if feature.row_share is None else f"{percent(feature.row_share)}%",
            _UNKNOWN if feature.redis_bytes is None else f"{feature.redis_bytes:.0f}",
            _UNKNOWN
            if time_ is None
            else f"{time_.median:.2f}±{(time_.most - time_.least) / 2:.2f}".replace("±0.", "±."),
            *shares,
            *losses,
            ", ".join(feature.readers) or "nobody" if feature.readers is not None else _UNKNOWN,
        )
    return table


def _sentence(feature: "FeatureValue") -> Any:
    from rich.text import Text

    from unskew.monitoring.value.worth import sentence

    return Text.assemble(styled(feature.name, "bold"), " ", styled(sentence(feature)))


def _plain(one: "ViewValue") -> dict[str, Any]:
    return {
        "view": one.view.id,
        "rows": None if one.rows is None else one.rows.n_rows,
        "rows_a_day": None if one.rows is None else one.rows.rows_a_day,
        "entities": None if one.rows is None else one.rows.n_entities,
        "requests": None
        if one.requests is None
        else {"from": one.requests.source, "n": one.requests.n, "within": one.requests.n_within},
        "model": None
        if one.model is None
        else {
            "target": one.model.target,
            "metric": one.model.metric,
            "n_train": one.model.n_train,
            "n_test": one.model.n_test,
            "scores": one.model.scores,
        },
        "not_known": one.unknown,
        "features": [_plain_feature(feature) for feature in one.features],
    }


def _plain_feature(one: "FeatureValue") -> dict[str, Any]:
    from unskew.monitoring.value.worth import sentence

    time_ = one.kernel_time
    return {
        "feature": one.name,
        "candidate_to_retire": one.is_candidate,
        "rows_alone": one.rows_alone,
        "row_share": one.row_share,
        "redis_bytes_per_entity": one.redis_bytes,
        "kernel_time": None
        if time_ is None
        else {
            "median": time_.median,
            "least": time_.least,
            "most": time_.most,
            "runs": len(time_.ratios),
            "events": time_.n_events,
        },
        "read_by": one.readers,
        "derived": one.derived,
        "differs_from": {
            age: {
                "requests": found.n,
                "differing": found.n_differing,
                "share": found.share,
                "mean_absolute_change": found.mean_change,
            }
            for age, found in one.differences.items()
        },
        "importance": {age: {"mean": found.mean, "std": found.std} for age, found in one.importances.items()},
        "sentence": sentence(one),
    }
