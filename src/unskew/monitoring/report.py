"""The audit as a table for people."""

from rich.table import Table

from unskew.monitoring.audit import AuditReport


def audit_table(report: AuditReport) -> Table:
    """Give a row for each view and one for all: what was compared, so that agreement can be weighed."""
    table = Table(
        header_style="bold",
        title="compared bit for bit with a recount of the raw events",
        title_justify="left",
        title_style="",
    )
    table.add_column("view", overflow="fold")
    headings = (
        "events",
        "log samples",
        "on arrivals",
        "on hops",
        "1 µs beside",
        "not empty",
        "Redis entities",
        "present",
        "ahead",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    rows = [
        (
            view.events,
            view.samples,
            view.on_arrivals,
            view.on_hops,
            view.beside,
            view.non_empty,
            view.entities,
            view.entities_present,
            view.ahead,
        )
        for view in report.views
    ]
    for view, row in zip(report.views, rows, strict=True):
        table.add_row(view.view, *(f"{n:,}" for n in row))
    table.add_section()
    table.add_row("all", *(f"{sum(column):,}" for column in zip(*rows, strict=True)))
    return table


def engines_line(report: AuditReport) -> str:
    """Say who evaluated filters and values in the recount."""
    engines = [engine for view in report.views for engine in view.engines.values()]
    counts = [
        f"{engines.count(engine)} by {name}"
        for engine, name in (("duckdb", "DuckDB"), ("polars", "Polars"))
        if engine in engines
    ]
    return f"expressions in the recount: {', '.join(counts) or 'none'}"
