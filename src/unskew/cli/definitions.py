"""``unskew check`` and ``unskew describe``: look at definitions without running a pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from unskew import settings
from unskew.cli.screen import Screen, say, say_json

if TYPE_CHECKING:
    from unskew.features.plan import Plan, ViewPlan
    from unskew.features.versions import Versions


@click.command()
@settings.definition_paths
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object: what there is, and faults and warnings with file and line.",
)
def check(paths: tuple[Path, ...], as_json: bool) -> None:
    """Compile definitions: print a line for each view, on-demand name and service, or every fault and exit with 1.

    A fault is printed with the file and the line of what is wrong. Warnings, such as a comparison with a value that an
    enum does not have, do not change the exit status.

    PATH is a Python or YAML file, or a folder of them. Python files are executed. Without PATH, the command reads
    UNSKEW_DEFINITIONS.

    \b
    Example:
        unskew check examples/complete_journey
    """
    from unskew.features.definitions.enums import never_equal
    from unskew.features.definitions.load import NAMED, load, with_places
    from unskew.features.definitions.places import taken_apart
    from unskew.features.errors import DefinitionError

    try:
        plan = load(*paths)
    except DefinitionError as error:
        if not as_json:
            raise
        say_json({"faults": [taken_apart(fault) for fault in error.faults], "warnings": []}, indent=2)
        click.get_current_context().exit(1)
    warnings = with_places([*_without_settle(plan), *never_equal(plan)], paths)
    if as_json:
        say_json({"faults": [], "warnings": [taken_apart(one) for one in warnings], **_listed(plan)}, indent=2)
        return
    ids = [*(view.id for view in plan.views.values()), *(one.id for one in plan.on_demand.values())]
    width = max(map(len, [*ids, *plan.services]), default=0)
    for view in plan.views.values():
        say(
            f"ok  {view.id:<{width}}  {_counted(len(view.outputs))}  "
            f"state {view.state_fingerprint[:16]}  presentation {view.presentation_fingerprint[:16]}"
            f"{_serving(plan.views, view)}"
        )
    for one in plan.on_demand.values():
        say(f"ok  {one.id:<{width}}  {_counted(len(one.features))}  on demand  {one.fingerprint[:16]}")
    for service in plan.services.values():
        say(f"ok  {service.name:<{width}}  {_counted(len(service.features))}  service")
    for warning in warnings:
        say(f"warning: {warning}", err=True)
    if not plan.views:
        streams = f"streams {', '.join(plan.streams)}" if plan.streams else "entities"
        say(f"ok, but there are no views, only {streams}; {NAMED}")


def _without_settle(plan: "Plan") -> list[str]:
    """Return what to say of streams that a live run may refuse."""
    return [
        f"stream {stream.name}: it has no settle, so unskew run refuses its topic unless the broker stamps the "
        'records (LogAppendTime); give one, as in settle="2s"'
        for stream in {view.stream.name: view.stream for view in plan.views.values()}.values()
        if stream.table is None and stream.settle_us is None
    ]


def _listed(plan: "Plan") -> dict[str, Any]:
    """Return what ``check`` prints of sound definitions, for JSON."""
    return {
        "views": [
            {
                "id": view.id,
                "features": len(view.outputs),
                "state": view.state_fingerprint,
                "presentation": view.presentation_fingerprint,
                "serves": view.serving,
            }
            for view in plan.views.values()
        ],
        "on_demand": [
            {"id": one.id, "features": len(one.features), "fingerprint": one.fingerprint}
            for one in plan.on_demand.values()
        ],
        "services": [{"name": service.name, "features": len(service.features)} for service in plan.services.values()],
    }


def _counted(n_features: int) -> str:
    return f"{n_features} feature{'s' if n_features > 1 else ''}".ljust(11)


def _serving(views: "Versions[ViewPlan]", view: "ViewPlan") -> str:
    """Return whether a view serves, where there are several versions of it."""
    if len(views.versions(view.name)) == 1:
        return ""
    return "  serves" if view.serving else "  does not serve"


@click.command()
@settings.optional_definition_paths
@click.option(
    "--live", is_flag=True, help="Show the running views, from Redis: clocks, lag, late events. Takes no PATH."
)
@settings.redis_url
@settings.prefix
@settings.pipeline
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: the registry that readers get, or the running views."
)
@click.pass_context
def describe(
    context: click.Context,
    paths: tuple[Path, ...],
    live: bool,
    redis_url: str,
    prefix: str,
    pipeline: str,
    as_json: bool,
) -> None:
    """Show compiled definitions: each view's entity, stream and owner, and its features with window, hop and type.

    Of a service, its features in their order, each with the view version that it reads.

    PATH is a Python or YAML file, or a folder of them. Without PATH, UNSKEW_DEFINITIONS is read.

    With --live, show how far each running view has come, since when it counts, and how many events came too late for
    each window, and by how much. This reads Redis only.

    \b
    Examples:
        unskew describe examples/complete_journey
        unskew describe --json examples/complete_journey | jq '.views[].name'
        unskew describe --live
    """
    if live:
        if context.get_parameter_source("paths") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--live shows what the pipeline published; give no PATH with it")
        from unskew.cli.live import show

        show(redis_url, prefix, pipeline, as_json=as_json)
        return
    if not paths:
        raise click.UsageError(
            "there is no PATH; give one, set UNSKEW_DEFINITIONS, or show the running views with --live"
        )
    from unskew.features.definitions.load import load
    from unskew.features.registry import describe as registry_of

    plan = load(*paths)
    if as_json:
        say_json(registry_of(plan), indent=2)
        return

    from unskew.cli.tables import on_demand_table, service_table, view_table
    from unskew.sinks.redis.compactness import LONGEST_COMPACT_BYTES, long_features

    console = Screen()
    for view in plan.views.values():
        console.print(view_table(view.published))
        if long := long_features(view.published):
            console.print(
                f"warning: values of {', '.join(long)} may be longer than {LONGEST_COMPACT_BYTES} bytes, and such a value doubles "
                "the memory of its hash in Redis; raise hash-max-listpack-value there"
            )
        console.print()
    for one in plan.on_demand.values():
        console.print(on_demand_table(one))
        console.print()
    for service in plan.services.values():
        console.print(service_table(service))
        console.print()
