"""Names of views, features and services for a shell that completes a word: what the log and the registry have."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from unskew.features.registry import Published
    from unskew.features.versions import Versions
    from unskew.features.view import View

# Somebody has pressed a key and waits.
_TIMEOUT_S = 0.5


def views(context: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    """Return the views that begin as typed, with their versions if there is only one."""
    return _beginning(typed, (name for known in _views(context) for name in _of(known)))


def features(context: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    """Return the views, services and on-demand features that begin as typed, with features if there is only one."""
    names: list[str] = []
    for known in _views(context):
        names += _of(known)
        names += [f"{name}:{one.name}" for name in _of(known) for one in known[name].features]
    for published in _published(context):
        names += [*published.services, *published.on_demand]
        names += [f"{name}:{one.name}" for name, on_demand in published.on_demand.items() for one in on_demand.features]
    return _beginning(typed, names)


def _beginning(typed: str, names: Iterable[str]) -> list[str]:
    found = {name for name in names if name.startswith(typed)}
    # What goes on with @ or : is a crowd, where it is not asked for.
    short = {name for name in found if not any(sign in name for sign in "@:" if sign not in typed)}
    return sorted(found if len(short) <= 1 else short)


def _of(known: "Versions[View]") -> list[str]:
    """Return what views are called: bare names, and names with a version."""
    return [name for name in (*known.names, *(view.id for view in known.values())) if name in known]


def _views(context: click.Context) -> "Iterator[Versions[View]]":
    yield from (published.views for published in _published(context))
    log = context.params.get("log")
    # Whatever is wrong with it, the command itself says it.
    with suppress(Exception):
        if type(log) is type(Path()) and log.is_dir():
            from unskew.offline.logged import all_logged

            yield all_logged(log)


def _published(context: click.Context) -> "Iterator[Published]":
    """Yield what is published in the Redis that the command would read, if it would read one."""
    url = context.params.get("redis_url")
    with suppress(Exception):
        if url:
            from unskew.serving.online import OnlineReader

            reader = OnlineReader(url, context.params["prefix"], timeout_s=_TIMEOUT_S)
            try:
                found = reader.published()
            finally:
                reader.close()
            yield found
