"""``unskew init``: a small project that runs, to begin one's own with."""

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

import click

from unskew import settings
from unskew.cli.screen import say
from unskew.features.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class _Words:
    """What the texts of a project name. ``key``: of an entity that the generator's events are often about."""

    topic: str
    view: str
    key: str
    service: str


_TEMPLATES = {
    "transactions": _Words(topic="transactions", view="user_payments", key="u-1", service="fraud"),
    "page_views": _Words(topic="page_views", view="visitor_activity", key="v-1", service="ranking"),
    "rides": _Words(topic="rides", view="driver_rides", key="7", service="matching"),
    "sessions": _Words(topic="clicks", view="user_now", key="u-1", service="next_step"),
}
_SHARED = "shared"
_RENAMED = {"gitignore": ".gitignore"}
# These have words to fill in; all others are taken as they are.
_FILLED = {"README.md", "pyproject.toml"}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


@click.command()
@click.argument("folder", metavar="DIR", type=settings.LocalPath(file_okay=False))
@click.option(
    "--template",
    type=click.Choice(list(_TEMPLATES)),
    default="transactions",
    show_default=True,
    help="What the project begins with.",
)
def init(folder: Path, template: str) -> None:
    """Make a small project in DIR, a new or an empty folder: features of a stream, with a test and made up events.

    It has definitions (a stream with its schema, two views and a service), a generator of events, a test that needs no
    servers, a README with the next commands, and a pyproject.toml. Everything in it is there to be changed.

    \b
    transactions   payments of users at merchants
    page_views     looks of visitors at pages
    rides          rides of drivers, by zone and by day
    sessions       clicks that make visits

    \b
    Example:
        unskew init shop --template page_views
    """
    name = folder.absolute().name
    if _NAME.fullmatch(name) is None or keyword.iskeyword(name):
        raise RequestError(
            f"{folder}: the folder's name is that of the project, and {name!r} cannot be one; use letters, digits, '-', '_' and '.'"
        )
    if folder.exists() and any(one.name != ".git" for one in folder.iterdir()):
        raise RequestError(f"{folder} is not empty; name a new folder")
    words = _TEMPLATES[template]
    root = files("unskew") / "templates"
    made = []
    for place in (root / template, root / _SHARED):
        for path, source in _files(place):
            text = source.read_text("utf-8")
            if path.name in _FILLED:
                text = Template(text).substitute(vars(words), name=name)
            target = folder / path.with_name(_RENAMED.get(path.name, path.name))
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, "utf-8")
            except OSError as error:
                raise RequestError(f"{target}: {error.strerror or error}; name another folder") from error
            made.append(target.relative_to(folder))
    say(f"{folder} has {len(made)} files: {', '.join(str(path) for path in sorted(made))}")
    say("Next:")
    if folder.resolve() != Path.cwd():
        say(f"  cd {folder}")
    say("  unskew dev --generate 'python generate.py --rate 20'   (see the features live)")
    say("  pytest                                                 (test them, without servers)")
    say("README.md says more.")


def _files(place: Traversable, within: Path = Path()) -> Iterator[tuple[Path, Traversable]]:
    for one in sorted(place.iterdir(), key=lambda one: one.name):
        if one.name == "__pycache__":
            continue
        if one.is_dir():
            yield from _files(one, within / one.name)
        else:
            yield within / one.name, one
