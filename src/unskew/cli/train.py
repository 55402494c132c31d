"""``unskew train``: labels with the features of their instants, and the manifest that makes them again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.known import telling_services
from unskew.cli.screen import Screen, say, styled
from unskew.features.errors import RequestError

if TYPE_CHECKING:
    from unskew.features.registry import Published
    from unskew.offline.training_set import HistoricalFeatures

# The options that a manifest has already.
_SHAPING = (
    "features",
    "service",
    "timestamp",
    "inclusive",
    "outside",
    "max_age",
    "as_served",
    "full_feature_names",
    "with_status",
    "source",
    "versions",
)


@click.command()
@click.argument("labels", type=settings.LocalPath())
@click.option(
    "-f",
    "--feature",
    "features",
    multiple=True,
    metavar="VIEW[:FEATURE]",
    shell_complete=naming.features,
    help="Feature, or all features of a view or of an on-demand name; may be given several times.",
)
@click.option(
    "--service",
    metavar="NAME",
    help="All features of this service, in its order and the versions that it has pinned; needs --definitions.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=settings.LocalPath(),
    metavar="FILE",
    help="Parquet file to write; its manifest lies beside it, out.manifest.json beside out.parquet.",
)
@settings.some_definitions
@settings.optional_log
@settings.optional_archive
@settings.umask
@click.option(
    "--reproduce",
    type=settings.LocalPath(),
    metavar="MANIFEST",
    help="Make the training set of this manifest again, to the last bit. It has features and options.",
)
@click.option(
    "--timestamp",
    default="event_timestamp",
    show_default=True,
    metavar="COLUMN",
    help="Column with the labels' instants.",
)
@click.option("--inclusive", is_flag=True, help="Count also what became available at exactly the label's instant.")
@click.option(
    "--outside",
    type=click.Choice(["error", "null"]),
    default="error",
    show_default=True,
    help="What becomes of labels before the log's first event, and after it is complete.",
)
@click.option("--max-age", metavar="DURATION", help="Leave out values that last changed longer before their label.")
@click.option(
    "--as-served",
    is_flag=True,
    help="Compare labels with the wall clock at which values were written: about what was read.",
)
@click.option("--full-feature-names", is_flag=True, help="Call the columns VIEW__FEATURE.")
@click.option("--with-status", is_flag=True, help="Add a column FEATURE__status beside each feature.")
@click.option(
    "--source",
    type=click.Choice(["log", "events", "both"]),
    default="log",
    show_default=True,
    help="Read what was served; or compute it from the archived events; or do both and compare.",
)
@click.option(
    "--versions",
    multiple=True,
    metavar="VIEW=1,2",
    help="Let these versions answer for VIEW: each label by the highest whose history had begun. For several views, give it again.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE and its manifest if they are there.")
@click.pass_context
def train(
    context: click.Context,
    labels: Path,
    features: tuple[str, ...],
    service: str | None,
    output: Path,
    definitions: tuple[Path, ...],
    log: Path | None,
    archive: Path | None,
    reproduce: Path | None,
    timestamp: str,
    inclusive: bool,
    outside: str,
    max_age: str | None,
    as_served: bool,
    full_feature_names: bool,
    with_status: bool,
    source: str,
    versions: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write a training set: each row of LABELS with the values that its features had right before its instant.

    LABELS is a Parquet or CSV file with the views' key columns, a column of instants, the inputs of on-demand features,
    and any others. Each row of it is one row of the output, in the same order.

    The manifest beside the output holds definitions, fingerprints, the position in the log, counts and distributions.
    With --reproduce, the same labels and the same log, it makes the same output again, whatever was written to the log
    since then, and also after compaction.

    \b
    Examples:
        unskew train labels.parquet -f user_purchases -o train.parquet \\
            --definitions definitions/ --log data/log
        unskew train labels.parquet --reproduce train.manifest.json \\
            -o again.parquet --log data/log
    """
    from unskew.features.definitions.load import load
    from unskew.features.local import existing_folder
    from unskew.features.on_request import wanted, with_read
    from unskew.features.references import named_views
    from unskew.features.registry import Published
    from unskew.offline.labels import read_labels
    from unskew.offline.logged import with_logged
    from unskew.offline.manifest import Manifest
    from unskew.offline.training_set import writable
    from unskew.offline.version_spans import candidates, each_version, newest_serving
    from unskew.store import FeatureStore

    if max_age is not None:
        settings.duration_us("--max-age", max_age)
    if output.exists() and labels.exists() and output.samefile(labels):
        raise RequestError(f"-o {output} are the labels themselves; choose another name")
    writable(output, overwrite=overwrite)
    if log is not None:
        existing_folder(log, "--log")
    if archive is not None:
        existing_folder(archive, "--archive")
    if reproduce is not None:
        _refuse_shaping(context)
        manifest = Manifest.read(reproduce)
        views = [part.view(str(reproduce)) for part in manifest.views]
        given = read_labels(labels, views, manifest.join.timestamp, manifest.inputs)
        store = FeatureStore(definitions or None, log=log, archive=archive)
        found = store.reproduce(given, reproduce, progress=True)
    else:
        if features and service is not None:
            raise RequestError("-f and --service exclude each other: a service has its features")
        if not features and service is None:
            raise RequestError(
                "no features are requested: give -f VIEW or -f VIEW:FEATURE, a --service, or --reproduce a manifest"
            )
        if service is not None and not definitions:
            raise RequestError("the features of a service are in its definition: give --definitions")
        if not definitions and log is None:
            raise RequestError(
                "features are read by their definitions: give --definitions, or a --log, which holds its own"
            )
        spans = dict(map(_span, versions))
        plan = load(*definitions) if definitions else None
        store = FeatureStore(plan, log=log, archive=archive)
        references: list[str] | str
        if service is not None:
            assert plan is not None
            references, request = service, wanted(service, Published.of(plan), full_feature_names=True)
        else:
            on_demand = {} if plan is None else plan.on_demand
            known = None if plan is None else plan.published
            with telling_services(features, plan, log, "give --service {name} in place of -f, and --definitions"):
                if log is not None:
                    read = each_version(with_read(features, on_demand), spans)
                    known = with_logged(log, named_views(read), known)
                assert known is not None
                serving = Published(views=newest_serving(known, candidates(known, spans)), on_demand=on_demand)
                references = _references(features, serving)
                request = wanted(references, serving, full_feature_names=True)
        inputs = {} if request.on_request is None else request.on_request.inputs
        found = store.get_historical_features(
            read_labels(labels, [one.view for one in request.of_views], timestamp, inputs),
            references,
            timestamp=timestamp,
            inclusive=inclusive,
            outside=outside,  # type: ignore[arg-type]  # one of its choices
            max_age=max_age,
            as_served=as_served,
            full_feature_names=full_feature_names,
            with_status=with_status,
            source=source,  # type: ignore[arg-type]  # one of its choices
            versions=spans or None,
            progress=True,
        )
    if not found.given.n_rows:
        raise RequestError(f"{labels} has no rows; give at least one label")
    beside = found.to_parquet(output, overwrite=overwrite)
    _show(found)
    how = "reproduced: the values are the same to the last bit" if reproduce is not None else "written"
    say(f"{output} and {beside.name} {how}")


def _refuse_shaping(context: click.Context) -> None:
    """Refuse options that a manifest has already."""
    default = click.core.ParameterSource.DEFAULT
    given = [name for name in _SHAPING if context.get_parameter_source(name) is not default]
    if given:
        option = "-f" if given[0] == "features" else f"--{given[0].replace('_', '-')}"
        raise RequestError(f"--reproduce and {option} exclude each other: the manifest has features and options")


def _span(text: str) -> tuple[str, list[int]]:
    """Return a view and versions from ``VIEW=1,2``."""
    name, _, numbers = text.partition("=")
    parts = numbers.split(",")
    if not name or not all(part.isascii() and part.isdecimal() for part in parts):
        raise RequestError(f"--versions {text}: write a view and its versions, for example user_purchases=1,2")
    return name, list(map(int, parts))


def _references(given: Sequence[str], known: "Published") -> list[str]:
    """Return the references that the options name; a name without a feature means all of its features."""
    references = []
    for one in given:
        if ":" in one:
            references.append(one)
        else:
            whole = known.on_demand.get(one) or known.views.find(one)
            references += [f"{one}:{feature.name}" for feature in whole.features]
    return references


def _show(found: "HistoricalFeatures") -> None:
    from unskew.features.folding import Column, Rows

    head, rows = found.overview()
    table = Rows(*(Column(name=name, right=at >= 3) for at, name in enumerate(head)))
    for row in rows:
        table.add(*row)
    console = Screen()
    first, *others = found.headline()
    console.print(styled(first, "bold"))
    for line in others:
        console.print(line)
    console.print(table)
    for warning in found.warnings:
        say(f"warning: {warning}", err=True)
