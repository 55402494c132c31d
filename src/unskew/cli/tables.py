"""Tables for people."""

from rich.text import Text

from unskew.cli.screen import styled
from unskew.features.folding import Rows, prose
from unskew.features.on_demand import OnDemandView
from unskew.features.printing import pairs, printable
from unskew.features.service import Service
from unskew.features.showing import shown
from unskew.features.time import format_duration
from unskew.features.view import View, ViewFeature, ViewWindow


def view_table(view: View) -> Rows:
    """Return a table of a view's features, with what they have in common above it."""
    keys = ", ".join(f"{key} {dtype}" for key, dtype in zip(view.entity.keys, view.entity.types, strict=True))
    partitioned = ", partitioned by the entity" if view.partitioned else ""
    heading: list[str | Text] = [
        styled(view.id, "bold").append(printable(f"  {view.description}" if view.description else ""), "not bold"),
        f"entity {view.entity.name} ({keys}), stream {view.stream} (topic {view.topic}{partitioned})",
        f"owner {view.owner or '-'}",
        f"state {view.state_fingerprint}",
    ]
    if view.sessions is not None:
        gap, hop = (format_duration(n_us) for n_us in (view.sessions.window.extent_us, view.sessions.window.hop_us))
        where = f", of events where {view.sessions.where}" if view.sessions.where else ""
        columns = ", ".join(column.name for column in view.sessions.columns)
        heading.insert(2, f"over closed sessions (gap {gap}, hop {hop}){where}, with {columns}")
    if view.tags:
        heading.insert(-1, f"tags {pairs(view.tags)}")
    if view.deprecated:
        heading.insert(1, f"deprecated: {view.deprecated}")
    if view.where:
        heading.insert(-2, f"where {view.where}")
    if not view.serving:
        heading.insert(1, f"another version serves: {view.name}:feature does not mean this one")
    table = Rows(
        *("feature", "type", prose("aggregation"), "window", "hop", prose("default"), "owner", prose("description")),
        heading=heading,
    )
    for feature in view.features:
        table.add(*_cells(view, feature))
    return table


def on_demand_table(one: OnDemandView) -> Rows:
    """Return a table of on-demand features, with their inputs above it."""
    heading: list[str | Text] = [
        styled(one.id, "bold").append(printable(f"  {one.description}" if one.description else ""), "not bold"),
        f"on demand, from {', '.join(f'{name} {kind}' for name, kind in one.inputs.items()) or 'no inputs'}",
        f"owner {one.owner or '-'}",
        f"fingerprint {one.fingerprint}",
    ]
    if one.tags:
        heading.append(f"tags {pairs(one.tags)}")
    table = Rows(
        *("feature", "type", prose("expression"), prose("default"), "owner", prose("description")), heading=heading
    )
    for feature in one.features:
        table.add(
            feature.name,
            feature.type,
            feature.value or "",
            shown(feature.default),
            feature.owner or "-",
            feature.description or "-",
        )
    return table


def service_table(service: Service) -> Rows:
    """Return a table of a service's features, in the order of its columns."""
    heading: list[str | Text] = [
        styled(f"service {service.name}", "bold").append(
            printable(f"  {service.description}" if service.description else ""), "not bold"
        ),
        f"owner {service.owner or '-'}",
    ]
    if service.tags:
        heading.append(f"tags {pairs(service.tags)}")
    table = Rows("feature", "type", "read from", prose("default"), heading=heading)
    for one in service.features:
        table.add(one.reference, one.type, one.view, shown(one.default))
    return table


def _cells(view: View, feature: ViewFeature) -> tuple[str, ...]:
    window, hop = ("-", "-") if feature.window is None else _window(view.windows[feature.window])
    return (
        feature.name,
        feature.type,
        _aggregation(feature),
        window,
        hop,
        shown(feature.default),
        feature.owner or "-",
        "; ".join(
            part for part in (feature.deprecated and f"deprecated: {feature.deprecated}", feature.description) if part
        )
        or "-",
    )


def _aggregation(feature: ViewFeature) -> str:
    if feature.function == "derived":
        return f"= {feature.value}"
    arguments = [] if feature.value is None else [feature.value]
    arguments += [] if feature.by is None else [f"by {feature.by}"]
    arguments += [f"{name}={list(it) if isinstance(it, tuple) else it}" for name, it in feature.parameters.items()]
    return f"{feature.function}({', '.join(arguments)})" + (f" where {feature.filter}" if feature.filter else "")


def _window(window: ViewWindow) -> tuple[str, str]:
    """Return what the window covers, and the steps in which it moves."""
    extent, hop = format_duration(window.extent_us), format_duration(window.hop_us)
    return {
        "sliding": (extent, hop),
        "tumbling": (f"running {extent}", hop),
        "closed": (f"last whole {extent}", hop),
        "calendar": (f"{window.unit or 'day'} in {window.tz}", "midnight"),
        "lifetime": ("lifetime", "-"),
        "session": (f"session, gap {extent}", hop),
    }[window.kind]
