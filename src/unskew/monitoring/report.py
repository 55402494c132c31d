"""The audit as a table and lines for people."""

from collections.abc import Iterable

from unskew.features.folding import Rows, number
from unskew.features.on_demand import OnDemandView
from unskew.monitoring.outcome import AuditReport


def audit_table(report: AuditReport) -> Rows:
    """Return a table with a row for each view and one for all, which shows how much was compared.

    The column ``served`` appears only if there was a sample of it, and ``left out`` only if something was.
    """
    columns = {
        "events": [view.events for view in report.views],
        "log samples": [view.samples for view in report.views],
        "at arrivals": [view.on_arrivals for view in report.views],
        "at hops": [view.on_hops for view in report.views],
        "1 µs off": [view.beside for view in report.views],
        "whole rows": [view.rows for view in report.views],
        "with events": [view.non_empty for view in report.views],
        "Redis entities": [view.entities for view in report.views],
        "with a row": [view.entities_present for view in report.views],
    }
    if any(view.served for view in report.views):
        columns["served"] = [view.served for view in report.views]
    left_out = [view.provisional + view.ahead + view.unknown for view in report.views]
    if any(left_out):
        columns["left out"] = left_out
    table = Rows("view", *map(number, columns), heading=["compared bit for bit with a recount of the raw events"])
    for view, *row in zip((view.view for view in report.views), *columns.values(), strict=True):
        table.add(view if row[0] else f"{view} (no events)", *(f"{n:,}" for n in row))
    table.section()
    table.add("all", *(f"{sum(cells):,}" for cells in columns.values()))
    return table


def on_demand_lines(on_demand: Iterable[OnDemandView]) -> list[str]:
    """Return a line about on-demand features, of which there is nothing to compare."""
    names = ", ".join(one.id for one in on_demand)
    if not names:
        return []
    compared = "no value is stored, so none is compared; the features of views that they read are, and one function"
    return [f"on demand: {names}: {compared} evaluates them for training and for serving"]


def unaudited_lines(report: AuditReport) -> list[str]:
    """Return a line for everything that could not be compared, or was not evaluated independently."""
    counts = {
        "provisional": sum(view.provisional for view in report.views),
        "ahead": sum(view.ahead for view in report.views),
        "unknown": sum(view.unknown for view in report.views),
    }
    said = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    lines = [f"left out: {said}"] if said else []
    lines += [f"not compared: {view.view} {one}" for view in report.views for one in view.unaudited]
    lines += [f"{view.view}: {note}" for view in report.views for note in view.notes]
    texts = {text: why for view in report.views for text, why in view.dependent.items()}
    return lines + [f"not evaluated independently: {text}: {why}" for text, why in texts.items()]


def difference_lines(report: AuditReport) -> list[str]:
    """Return a line for each kind of difference, with its count, and one for each of its examples."""
    lines = []
    for one in report.differences:
        lines.append(f"difference {one}")
        lines += [f"  {example}" for example in one.examples]
        lines += [f"  and {one.count - len(one.examples):,} more"] if one.count > len(one.examples) else []
    return lines


def verdict(report: AuditReport) -> str:
    """Return a line with the share of differences; only 0 passes."""
    n = sum(one.count for one in report.differences)
    return f"{n:,} differences in {report.values:,} compared values: {report.per_million:,.6g} per million"


def engines_line(report: AuditReport) -> str:
    """Return a line that says which engines evaluated filters and values in the recount."""
    engines = [engine for view in report.views for engine in view.engines.values()]
    counts = [
        f"{engines.count(engine)} by {name}"
        for engine, name in (("duckdb", "DuckDB"), ("polars", "Polars"))
        if engine in engines
    ]
    return f"expressions in the recount: {', '.join(counts) or 'none'}"
