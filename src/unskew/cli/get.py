"""``unskew get``: the values that a model would read now."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli.screen import Screen, lines, say_json, styled
from unskew.features.errors import RequestError
from unskew.features.printing import printable
from unskew.features.view import View

if TYPE_CHECKING:
    from unskew.features.versions import Versions


_TIMEOUT_S = 2.0


@click.command()
@click.argument("features", metavar="VIEW[:FEATURE]")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@settings.redis_url
@settings.prefix
@settings.pipeline
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def get(features: str, keys: tuple[str, ...], redis_url: str, prefix: str, pipeline: str, as_json: bool) -> None:
    """Read an entity's current features from Redis, with the instant for which they are valid.

    VIEW reads all features of a view, VIEW:FEATURE one; VIEW@VERSION is one of several versions, VIEW the one that
    serves. KEY is the entity's key; an entity with several key columns
    takes a KEY for each, in their order. Needs only Redis: definitions are those that `unskew run` published.

    \b
    Status: present; default (every value is that of an entity without events);
    warming (a window begins before the pipeline's first event).
    A provisional value may still change as of its instant.

    \b
    Examples:
        unskew get household_purchases 1
        unskew get household_purchases:spend_30d 1 --json
        unskew get household_purchases@2 1
    """
    from unskew.cli.tables import plain
    from unskew.serving.online import OnlineReader

    reader = OnlineReader(redis_url, prefix, pipeline, timeout_s=_TIMEOUT_S)
    try:
        view, references = _asked(features, reader.views())
        answer = reader.read(references, [_entity_row(view, keys)], full_feature_names=True)
    finally:
        reader.close()
    row = answer.frame.row(0, named=True)
    values = {reference.partition(":")[2]: row[reference.replace(":", "__")] for reference in references}
    judged = answer.metadata[features.partition(":")[0]].row(0, named=True)
    as_of = None if judged["as_of"] is None else judged["as_of"].isoformat(timespec="microseconds")
    if as_json:
        entity = {
            name: int(row[name]) if kind == "int64" else row[name]
            for name, kind in zip(view.entity.keys, view.entity.types, strict=True)
        }
        features_found = {name: plain(value) for name, value in values.items()}
        found = {"view": view.id, "entity": entity, "features": features_found, **judged, "as_of": as_of}
        say_json(found)
        return
    _print_table(view, keys, values, as_of=as_of, status=judged["status"], provisional=judged["provisional"])


def _asked(features: str, views: "Versions[View]") -> tuple[View, list[str]]:
    from unskew.features.references import resolve

    if ":" in features:
        return resolve([features], views)[0].view, [features]
    view = views.find(features)
    return view, [f"{features}:{feature.name}" for feature in view.features]


def _entity_row(view: View, keys: tuple[str, ...]) -> dict[str, str]:
    if len(keys) != len(view.entity.keys):
        raise RequestError(
            f"{view.name} takes the key of entity {view.entity.name}, "
            f"{' '.join(name.upper() for name in view.entity.keys)}: "
            f"{len(view.entity.keys)} expected, {len(keys)} given"
        )
    return dict(zip(view.entity.keys, keys, strict=True))


def _print_table(
    view: View,
    keys: tuple[str, ...],
    values: Mapping[str, Any],
    *,
    as_of: str | None,
    status: str,
    provisional: bool,
) -> None:
    from rich.table import Table

    from unskew.cli.tables import shown

    # An empty key, or one with spaces at its ends, would not be seen.
    entity = ", ".join(
        f"{name} {key if key and key == key.strip() else repr(key)}"
        for name, key in zip(view.entity.keys, keys, strict=True)
    )
    how = f"{status}, provisional" if provisional else status
    table = Table(
        title=lines(
            [styled(view.id, "bold").append(printable(f"  {entity}"), "not bold"), f"as of {as_of or 'unknown'}  {how}"]
        ),
        title_justify="left",
        title_style="",
        header_style="bold",
    )
    table.add_column("feature", overflow="fold")
    table.add_column("value", justify="right", overflow="fold")
    table.add_column("window")
    for name, value in values.items():
        feature = view.feature(name)
        assert feature is not None
        windows = ", ".join(window.text for window in view.windows_of(feature))
        table.add_row(name, shown(value), windows)
    Screen().print(table)
