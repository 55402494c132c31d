"""Tables that people read."""

from rich.markup import escape
from rich.table import Table

from unskew.features.registry import RegisteredFeature, RegisteredView
from unskew.features.time import format_duration


def view_table(view: RegisteredView) -> Table:
    """Give a view as a table of its features, with what they share above it."""
    keys = ", ".join(f"{key} {dtype}" for key, dtype in zip(view.entity.keys, view.entity.types, strict=True))
    partitioned = ", partitioned by the entity" if view.partitioned else ""
    lines = [
        f"[bold]{view.id}[/bold]" + (f"  {escape(view.description)}" if view.description else ""),
        f"entity {escape(view.entity.name)} ({escape(keys)}), stream {escape(view.stream)} (topic {view.topic}{partitioned})",
        f"owner {escape(view.owner or '-')}",
        f"state {view.state_fingerprint}",
    ]
    if view.where:
        lines.insert(2, f"where {escape(view.where)}")
    table = Table(title="\n".join(lines), title_justify="left", title_style="", header_style="bold")
    for column in ("feature", "type", "aggregation", "window", "hop", "default", "owner", "description"):
        table.add_column(column, overflow="fold")
    for feature in view.features:
        table.add_row(*(escape(cell) for cell in _cells(view, feature)))
    return table


def _cells(view: RegisteredView, feature: RegisteredFeature) -> tuple[str, ...]:
    window = view.window_of(feature)
    shown, hop = {
        "sliding": (format_duration(window.extent_us), format_duration(window.hop_us)),
        "tumbling": (f"running {format_duration(window.extent_us)}", format_duration(window.hop_us)),
        "calendar": (f"day in {window.tz}", "midnight"),
    }[window.kind]
    aggregation = f"{feature.function}({feature.value or ''})" + (f" where {feature.filter}" if feature.filter else "")
    default = "-" if feature.default is None else str(feature.default)
    return (
        feature.name,
        feature.type,
        aggregation,
        shown,
        hop,
        default,
        feature.owner or "-",
        feature.description or "-",
    )
