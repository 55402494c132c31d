"""``unskew diff``: compare two sets of definitions on the events that were archived."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.screen import Screen, bar, say, say_json, styled
from unskew.features.errors import RequestError
from unskew.features.nearest import nearest

if TYPE_CHECKING:
    from unskew.features.folding import Rows
    from unskew.features.plan import ViewPlan
    from unskew.pipelines.history.compared import FeatureDiff, Magnitudes, Numbers, Population
    from unskew.pipelines.history.diff import ViewDiff

_QUANTILES = (0.5, 0.9, 0.99)
_VERSION = re.compile(r"\w+@\d+")
_NULLS = ("null in OLD", "null in NEW")


@click.command()
@click.argument("old", metavar="OLD", shell_complete=naming.views)
@click.argument("new", metavar="NEW", shell_complete=naming.views)
@settings.some_definitions
@settings.archive
@click.option("--from", "begin", metavar="INSTANT", help="First instant that is compared (2026-01-31T00:00:00Z).")
@click.option("--until", metavar="INSTANT", help="End of the instants that are compared.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the entities that are compared, chosen by hash.",
)
@click.option("--entities", type=click.IntRange(1), help="Number of entities that are compared, chosen by hash.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of processes.")
@click.option(
    "--examples",
    type=click.IntRange(0, 3),
    default=1,
    show_default=True,
    help="Number of examples of each feature in the text.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def diff(
    old: str,
    new: str,
    definitions: tuple[Path, ...],
    archive: Path,
    begin: str | None,
    until: str | None,
    share: float,
    entities: int | None,
    workers: int,
    examples: int,
    as_json: bool,
) -> None:
    """Show which values change from the definitions OLD to the definitions NEW, on the archived events.

    OLD and NEW are definition files or folders, or a VIEW@VERSION of --definitions. Both are computed from the archive
    as the pipeline computes them, and compared at every instant at which a value of either side changes, as readers get
    the values: with defaults. Nothing is written, and no server is needed.

    With --from, earlier events still count for the windows that hold them. Without it, windows fill from the beginning
    of the archive on; a line says from when they are whole.

    \b
    Columns of the tables, for each feature that both sides have:
        differs       instants of entities at which the value is another one
        of instants   the share of these in all instants that were compared
        entities      entities of which a value differs
        null in OLD   of those instants: null in OLD alone; null in NEW likewise
        change        of numbers: the difference (median and 99 % within 1 %)
        relative      the difference divided by the larger of both numbers

    A second table shows the last instant alone: entities of which a value
    differs then, and the mean, median and largest change. A third one has the
    values that new features have then.

    \b
    Examples:
        unskew diff definitions/ changed/ --archive archive --from 2026-01-01
        unskew diff purchases@1 purchases@2 --definitions definitions/ \\
            --archive archive --entities 1000
    """
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from unskew.features.local import existing_folder
    from unskew.pipelines.history.diff import Sample
    from unskew.pipelines.history.diff import diff as compare
    from unskew.stopping import stopping_on_signals

    if entities is not None and share < 1:
        raise click.UsageError("--share and --entities exclude each other; give one of them")
    sides = _views(old, "OLD", definitions), _views(new, "NEW", definitions)
    if all(_VERSION.fullmatch(text) for text in (old, new)):
        # Two views that were named are compared, whatever their names.
        sides = sides[0], _named_alike(sides[1][0], sides[0][0])
    existing_folder(archive, "--archive")
    stop = threading.Event()
    with (
        stopping_on_signals(stop),
        bar(
            TextColumn("comparing"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[events]}", markup=False),
            TimeRemainingColumn(),
        ) as shown,
    ):
        task = shown.add_task("", events="", total=None)

        def report(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total, events=f"{done:,} events")

        found = compare(
            sides[0],
            sides[1],
            archive,
            from_us=settings.instant_us("--from", begin),
            until_us=settings.instant_us("--until", until),
            sample=Sample(share=share, entities=entities),
            workers=workers,
            stop=stop,
            progress=report,
        )
    if as_json:
        say_json(
            {"identical": all(one.is_identical for one in found), "views": [plain_diff(one) for one in found]}, indent=2
        )
        return
    screen = Screen()
    for one in found:
        show_diff(one, screen, examples)
    if not found:
        say("there are no views on either side")
    elif all(one.is_identical for one in found):
        screen.print(styled("identical", "bold green"))


def _views(text: str, what: str, definitions: tuple[Path, ...]) -> "list[ViewPlan]":
    from unskew.features.definitions.load import load
    from unskew.features.local import local_path

    if not _VERSION.fullmatch(text) or Path(text).exists():
        return list(load(local_path(text, what)).views.values())
    if not definitions:
        raise RequestError(
            f"{what} {text}: a view version is looked up in definitions; name their folder with --definitions"
        )
    views = {view.id: view for view in load(*definitions).views.values()}
    if text not in views:
        raise RequestError(f"{what}: there is no view {text!r}; {nearest(text, views, 'views are')}")
    return [views[text]]


def _named_alike(view: "ViewPlan", other: "ViewPlan") -> "list[ViewPlan]":
    from dataclasses import replace

    import msgspec

    return [replace(view, published=msgspec.structs.replace(view.published, name=other.name))]


def show_diff(one: "ViewDiff", screen: Screen, examples: int = 1) -> None:
    """Print what is known of one view's differences, with so many examples of each feature."""
    for line in _about(one):
        screen.print(line)
    if one.counts.differing:
        screen.print(_table(one))
        if any(feature.end.differing for feature in one.features):
            screen.print(_end_table(one))
        if examples:
            screen.print(_examples(one, examples))
    if one.populations:
        screen.print(_population_table(one))


def _about(one: "ViewDiff") -> Iterator[Any]:
    from unskew.features.time import format_instant

    if one.new is None:
        yield styled(f"{one.old}: removed, with {', '.join(one.removed)}", "red")
        return
    if one.old is None:
        yield styled(f"{one.new}: added, with {', '.join(one.added)}", "green")
        if one.why:
            yield f"  no values: {one.why}"
        if one.costs is not None and one.rows_a_day is not None:
            cost = one.costs[1]
            yield (
                f"  log rows a day: {one.rows_a_day[1]:,.0f}; Redis at the end, about: {cost.entities:,} entities, "
                f"{_each(cost.redis_bytes, cost.entities)} bytes each"
            )
        return
    name = one.new if one.old == one.new else f"{one.old} -> {one.new}"
    if one.why:
        yield styled(f"{name}: not comparable, because {one.why}", "red")
        return
    if one.unchanged:
        yield styled(f"{name}: identical, because the definition is the same")
        return
    counts = one.counts
    yield styled(
        f"{name}: {counts.differing:,} of {counts.instants:,} instants differ ({_share(counts.differing, counts.instants)}), "
        f"of {counts.changed:,} of {counts.entities:,} entities"
        if counts.differing
        else f"{name}: identical in {counts.instants:,} instants of {counts.entities:,} entities",
        "bold",
    )
    if one.cut_short:
        yield styled("  the time limit passed: later events are not in these figures", "yellow")
    if one.from_us is not None and one.upto_us is not None:
        yield f"  from {format_instant(one.from_us)} through {format_instant(one.upto_us)}; rows: {counts.old_rows:,} -> {counts.new_rows:,}"
    if one.costs is not None and one.rows_a_day is not None:
        entities, n_bytes = ([getattr(cost, word) for cost in one.costs] for word in ("entities", "redis_bytes"))
        yield (
            f"  log rows a day: {one.rows_a_day[0]:,.0f} -> {one.rows_a_day[1]:,.0f}; Redis at the end, about: {entities[0]:,} -> "
            f"{entities[1]:,} entities, {_each(n_bytes[0], entities[0])} -> {_each(n_bytes[1], entities[1])} bytes each"
        )
    if counts.only_old or counts.only_new:
        yield f"  entities with rows on one side alone: {counts.only_old:,} old, {counts.only_new:,} new"
    if one.from_us is not None and (one.whole_from_us is None or one.whole_from_us > one.from_us):
        since = "nowhere" if one.whole_from_us is None else f"from {format_instant(one.whole_from_us)} on"
        yield f"  windows are whole {since}; before, they begin with the archive"
    for word, names in (("removed", one.removed), ("added", one.added), ("of another type, not compared", one.retyped)):
        if names:
            yield f"  {word}: {', '.join(names)}"
    same = [feature.name for feature in one.features if not feature.differing]
    if same and counts.differing:
        yield f"  identical: {', '.join(same)}"


def _table(one: "ViewDiff") -> "Rows":
    from unskew.features.folding import Rows, number

    changes = ("median change", "99 % change", "max change", "median relative", "99 % relative")
    table = Rows("feature", *map(number, ("differs", "of instants", "entities", *_NULLS, *changes)))
    for feature in one.features:
        if feature.differing:
            table.add(
                feature.name,
                *map(_few, (feature.differing,)),
                _share(feature.differing, one.counts.instants),
                *map(_few, (feature.entities, feature.from_null, feature.to_null)),
                *(_number(feature.absolute.quantile(q)) for q in (0.5, 0.99)),
                _number(feature.absolute.most),
                *(_number(feature.relative.quantile(q)) for q in (0.5, 0.99)),
            )
    return table


def _end_table(one: "ViewDiff") -> "Rows":
    from unskew.features.folding import Rows, number

    changes = ("mean change", "median change", "max change")
    table = Rows("feature", *map(number, ("entities", "of all", *_NULLS, *changes)), heading=["", f"at {_end(one)}:"])
    for feature in one.features:
        end = feature.end
        if end.differing:
            table.add(
                feature.name,
                _few(end.differing),
                _share(end.differing, one.counts.entities),
                *map(_few, (end.from_null, end.to_null)),
                *map(_number, (end.changes.mean, end.changes.median, end.changes.most)),
            )
    return table


def _population_table(one: "ViewDiff") -> "Rows":
    from unskew.features.folding import Rows, number, prose
    from unskew.features.showing import shown

    columns = ("entities", "nulls", "min", "mean", "median", "max")
    table = Rows("new feature", "type", *map(number, columns), prose("examples"), heading=["", f"at {_end(one)}:"])
    for each in one.populations:
        numbers = each.numbers
        table.add(
            each.name,
            each.type,
            *map(_few, (each.entities, each.nulls)),
            *map(_number, (numbers.least, numbers.mean, numbers.median, numbers.most)),
            "" if len(numbers) else ", ".join(shown(value) for _, value in each.examples),
        )
    return table


def _end(one: "ViewDiff") -> str:
    from unskew.features.time import format_instant

    return "no instant" if one.upto_us is None else format_instant(one.upto_us)


def _examples(one: "ViewDiff", n: int) -> "Rows":
    from unskew.features.folding import Rows, prose
    from unskew.features.showing import shown
    from unskew.features.time import format_instant

    table = Rows("feature", "entity", "instant", prose("old"), prose("new"), keys=3, heading=["", "for example:"])
    for feature in one.features:
        for each in feature.examples[:n]:
            table.add(
                feature.name,
                "|".join(map(shown, each.entity)),
                format_instant(each.instant_us),
                shown(each.old),
                shown(each.new),
            )
    return table


def _few(n: int) -> str:
    """Return a count in at most six characters."""
    for unit, size in (("", 1), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if n < 100_000 * size or unit == "T":
            return f"{n / size:.0f}{unit}" if size > 1 else str(n)
    return str(n)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _each(n_bytes: int, n: int) -> str:
    return f"{n_bytes / n:,.0f}" if n else "-"


def _share(n: int, of: int) -> str:
    percent = 100 * n / of if of else 0.0
    return f"{percent:.3g}%"


def plain_diff(one: "ViewDiff") -> dict[str, Any]:
    """Return what is known of one view's differences as data for JSON."""
    return {
        "old": one.old,
        "new": one.new,
        "identical": one.is_identical,
        "computed": one.upto_us is not None,
        "cut_short": one.cut_short,
        "why_not_comparable": one.why or None,
        "removed": one.removed,
        "added": one.added,
        "retyped": one.retyped,
        "from_us": one.from_us,
        "upto_us": one.upto_us,
        "whole_windows_from_us": one.whole_from_us,
        **vars(one.counts),
        "cost": _plain_cost(one),
        "features": [_plain_feature(feature) for feature in one.features],
        "new_features": [_plain_population(each) for each in one.populations],
    }


def _plain_cost(one: "ViewDiff") -> dict[str, Any] | None:
    if one.costs is None:
        return None
    rows_a_day = one.rows_a_day or (None, None)
    sides = zip(("old", "new"), one.costs, rows_a_day, strict=True)
    return {side: {**vars(cost), "rows_a_day": a_day} for side, cost, a_day in sides}


def _plain_feature(feature: "FeatureDiff") -> dict[str, Any]:
    from unskew.features.showing import plain

    return {
        "feature": feature.name,
        "old_type": feature.old_type,
        "new_type": feature.new_type,
        "differing": feature.differing,
        "entities": feature.entities,
        "from_null": feature.from_null,
        "to_null": feature.to_null,
        "increased": feature.increased,
        "absolute": _quantiles(feature.absolute),
        "relative": _quantiles(feature.relative),
        "at_end": {
            "differing": feature.end.differing,
            "from_null": feature.end.from_null,
            "to_null": feature.end.to_null,
            "absolute": _figures(feature.end.changes),
        },
        "examples": [
            {"entity": each.entity, "instant_us": each.instant_us, "old": plain(each.old), "new": plain(each.new)}
            for each in feature.examples
        ],
    }


def _plain_population(each: "Population") -> dict[str, Any]:
    from unskew.features.showing import plain

    return {
        "feature": each.name,
        "type": each.type,
        "entities": each.entities,
        "nulls": each.nulls,
        "values": _figures(each.numbers),
        "examples": [{"entity": entity, "value": plain(value)} for entity, value in each.examples],
    }


def _figures(of: "Numbers") -> dict[str, float | int | None]:
    return {"n": len(of), "min": of.least, "mean": of.mean, "median": of.median, "max": of.most}


def _quantiles(of: "Magnitudes") -> dict[str, float | int | None]:
    quantiles = {f"p{100 * q:g}": of.quantile(q) for q in _QUANTILES}
    return {"n": of.n, **quantiles, "max": of.most}
