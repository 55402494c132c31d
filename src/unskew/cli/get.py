"""``unskew get``: the values that a model would read now."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.screen import Screen, say_json, styled
from unskew.features.errors import RequestError
from unskew.features.folding import Column
from unskew.features.printing import printable
from unskew.features.view import View, ViewEntity

if TYPE_CHECKING:
    import datetime as dt

    from rich.text import Text

    from unskew.features.registry import Published
    from unskew.features.types import Type
    from unskew.serving.online import OnlineReader


VALUE = Column(name="value", right=True, wraps=True)


@click.command()
@click.argument("features", metavar="VIEW[:FEATURE]|SERVICE", shell_complete=naming.features)
@click.argument("keys", metavar="KEY...", nargs=-1)
@click.option("--input", "inputs", multiple=True, metavar="NAME=VALUE", help="Input of on-demand features; for each.")
@click.option(
    "--now", metavar="INSTANT", help="Instant of on-demand features, as in 2026-03-01T12:00:00Z; now if left out."
)
@settings.redis_url
@settings.prefix
@settings.pipeline
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def get(
    features: str,
    keys: tuple[str, ...],
    inputs: tuple[str, ...],
    now: str | None,
    redis_url: str,
    prefix: str,
    pipeline: str,
    as_json: bool,
) -> None:
    """Read an entity's current features from Redis, with the instant for which they are valid.

    VIEW reads all features of a view, VIEW:FEATURE one; VIEW@VERSION is one of several versions, VIEW the one that
    serves. KEY is the entity's key, also as NAME=VALUE; an entity with several key columns takes a KEY for each, in
    their order. Needs only Redis: definitions are those that `unskew run` published.

    The name of on-demand features in place of VIEW computes them from --input and the views that they read; SERVICE
    reads the features of a service. If the views that are read have different keys, each KEY is NAME=VALUE.

    \b
    Status: present; default (every value is that of an entity without events);
    warming (a window begins before the pipeline's first event).
    A provisional value may still change as of its instant.

    \b
    Examples:
        unskew get household_purchases 1
        unskew get household_purchases:spend_30d 1 --json
        unskew get household_purchases@2 1
        unskew get checkout user_id=u-42 store_id=7 --input lat=52.1
    """
    from unskew.features.on_request import requested_instant
    from unskew.features.showing import plain
    from unskew.serving.online import OnlineReader

    pairs = [_pair("--input", text) for text in inputs]
    if now is not None:
        requested_instant(now)
    reader = OnlineReader(redis_url, prefix, pipeline, timeout_s=settings.REDIS_TIMEOUT_S)
    try:
        published = reader.published()
        if features in published.services or features.partition(":")[0].partition("@")[0] in published.on_demand:
            _compute(reader, published, features, keys, pairs, now, as_json=as_json)
            return
        if inputs or now is not None:
            raise RequestError(
                f"{features} is neither the name of on-demand features nor of a service, which alone take --input and --now"
            )
        if not keys:
            raise click.UsageError("Missing argument 'KEY...'.")
        view, references = _asked(features, published)
        entity_row = _entity_row(view, keys)
        answer = reader.read(references, [entity_row], full_feature_names=True)
    finally:
        reader.close()
    row = answer.frame.row(0, named=True)
    values = {reference.partition(":")[2]: row[reference.replace(":", "__")] for reference in references}
    judged = answer.metadata[features.partition(":")[0]].row(0, named=True)
    if as_json:
        entity = {
            name: int(row[name]) if kind == "int64" else row[name]
            for name, kind in zip(view.entity.keys, view.entity.types, strict=True)
        }
        features_found = {name: plain(value) for name, value in values.items()}
        found = {
            "view": view.id,
            "entity": entity,
            "features": features_found,
            **judged,
            "as_of": plain(judged["as_of"]),
        }
        say_json(found)
        return
    _print_table(
        view, entity_row, values, as_of=judged["as_of"], status=judged["status"], provisional=judged["provisional"]
    )


def _compute(
    reader: "OnlineReader",
    published: "Published",
    features: str,
    keys: tuple[str, ...],
    inputs: list[tuple[str, str]],
    now: str | None,
    *,
    as_json: bool,
) -> None:
    """Show on-demand features, or those of a service."""
    from unskew.features.folding import Rows, prose
    from unskew.features.on_request import wanted
    from unskew.features.references import Demanded
    from unskew.features.showing import plain, shown

    named, colon, _ = features.partition(":")
    asked: list[str] | str
    if features in published.services:
        what, title, asked = "service", features, features
    else:
        one = published.on_demand[named.partition("@")[0]]
        what, title = "on_demand", one.id
        asked = [features] if colon else [f"{named}:{feature.name}" for feature in one.features]
    request = wanted(asked, published, full_feature_names=True)
    entity = _keys_by_name([read.view.entity for read in request.of_views], features, keys)
    given = _inputs(inputs, {} if request.on_request is None else request.on_request.inputs, named)
    answer = reader.read(asked, [{**entity, **given}], full_feature_names=True, now=now)
    row = answer.columns.row(0, named=True)
    # A service may have features of one name.
    shown_as = {each.column: each.reference if what == "service" else each.feature.name for each in request.asked}
    values = {name: row[column] for column, name in shown_as.items()}
    judged = {name: frame.row(0, named=True) for name, frame in answer.metadata.items()}
    if as_json:
        views = {name: {**its, "as_of": plain(its["as_of"])} for name, its in judged.items()}
        found = {name: plain(value) for name, value in values.items()}
        say_json(
            {
                what: title,
                "entity": entity,
                "inputs": given,
                "now": plain(answer.now),
                "features": found,
                "views": views,
            }
        )
        return
    heading: list[str | Text] = [styled(title, "bold"), f"now {shown(answer.now)}"]
    heading += [printable(f"{name} {value!r}") for name, value in (entity | given).items()]
    for name, its in judged.items():
        how = f"{its['status']}{', provisional' if its['provisional'] else ''}"
        heading.append(f"{name} {_as_of(its['as_of'])}  {how}")
    texts = [(each.feature.value or "") if isinstance(each, Demanded) else "" for each in request.asked]
    table = Rows("feature", VALUE, *([prose("expression")] if any(texts) else []), heading=heading)
    for each, text in zip(request.asked, texts, strict=True):
        name = shown_as[each.column]
        table.add(name, shown(values[name]), *([text] if any(texts) else []))
    Screen().print(table)


def _keys_by_name(entities: "Sequence[ViewEntity]", of: str, keys: tuple[str, ...]) -> dict[str, str]:
    """Return the keys of entities by their columns.

    They are given as NAME=VALUE, where NAME is a key column or the name of an entity with a single one, or in their
    order if all entities have the same key columns.
    """
    names = dict.fromkeys(name for one in entities for name in one.keys)
    called = {**{one.name: one.keys[0] for one in entities if len(one.keys) == 1}, **{name: name for name in names}}
    parts = [key.partition("=") for key in keys]
    if parts and all(equals and name in called for name, equals, _ in parts):
        given = {called[name]: value for name, _, value in parts}
        if len(given) == len(keys) and given.keys() == names.keys():
            return _checked(entities, {name: given[name] for name in names})
    elif len(keys) == len(names) and len({one.keys for one in entities}) <= 1:
        return _checked(entities, dict(zip(names, keys, strict=True)))
    wanted = " ".join(f"{name}=VALUE" for name in names)
    if not names:
        raise RequestError(f"{of} reads no view, so it takes no KEY; {len(keys)} given")
    raise RequestError(f"{of} takes the key{'s' if len(names) > 1 else ''} {', '.join(names)}; give {wanted}")


def _checked(entities: "Sequence[ViewEntity]", given: dict[str, str]) -> dict[str, str]:
    """Return the keys. Raises ``RequestError`` for one that no entity can have."""
    from unskew.features.keys import OneEntity

    for one in entities:
        OneEntity.of(one, tuple(given[name] for name in one.keys))
    return given


def _inputs(given: list[tuple[str, str]], types: "Mapping[str, Type]", of: str) -> dict[str, Any]:
    """Return the inputs in values of their types. Raises ``RequestError``."""
    from unskew.features.nearest import nearest

    found: dict[str, Any] = {}
    for name, value in given:
        if name not in types:
            raise RequestError(f"--input {name}: {of} takes no such input; {nearest(name, types, 'inputs are')}")
        read = _READ.get(types[name].scalar, str)
        try:
            found[name] = read(value)
        except (ValueError, KeyError) as error:
            raise RequestError(f"--input {name}: {value!r} is not of type {types[name]}") from error
    return found


def _pair(what: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise RequestError(f"{what} {text}: write NAME=VALUE, for example lat=52.1")
    return name, value


_READ: Mapping[str, Any] = {"float64": float, "int64": int, "bool": {"true": True, "false": False}.__getitem__}


def _asked(features: str, published: "Published") -> tuple[View, list[str]]:
    from unskew.features.nearest import nearest
    from unskew.features.references import resolve

    views = published.views
    if ":" in features:
        return resolve([features], views)[0].view, [features]
    name = features.partition("@")[0]
    if name not in views.names and (others := [*published.on_demand, *published.services]):
        known = nearest(name, [*views.names, *others], "there are the views, on-demand features and services")
        raise RequestError(f"there is no {name!r}; {known}")
    view = views.find(features)
    return view, [f"{features}:{feature.name}" for feature in view.features]


def _entity_row(view: View, keys: tuple[str, ...]) -> dict[str, str]:
    entity = view.entity
    if len(keys) != len(entity.keys):
        raise RequestError(
            f"{view.name} takes the key of entity {entity.name}, "
            f"{' '.join(name.upper() for name in entity.keys)}: "
            f"{len(entity.keys)} expected, {len(keys)} given"
        )
    return _keys_by_name([entity], view.name, keys)


def _as_of(instant: "dt.datetime | None") -> str:
    from unskew.features.time import format_instant

    return "as of an instant that is not known" if instant is None else f"as of {format_instant(instant)}"


def _print_table(
    view: View,
    entity_row: Mapping[str, str],
    values: Mapping[str, Any],
    *,
    as_of: "dt.datetime | None",
    status: str,
    provisional: bool,
) -> None:
    from unskew.features.folding import Rows
    from unskew.features.showing import shown

    # An empty key, or one with spaces at its ends, would not be seen.
    entity = ", ".join(f"{name} {key if key and key == key.strip() else repr(key)}" for name, key in entity_row.items())
    how = f"{status}, provisional" if provisional else status
    heading: list[str | Text] = [
        styled(view.id, "bold").append(printable(f"  {entity}"), "not bold"),
        f"{_as_of(as_of)}  {how}",
    ]
    table = Rows("feature", VALUE, "window", heading=heading)
    for name, value in values.items():
        feature = view.feature(name)
        assert feature is not None
        windows = view.window_text(feature)
        table.add(name, shown(value), windows)
    Screen().print(table)
