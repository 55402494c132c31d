"""A revision: what was applied at one time, as data that converts to JSON and back.

Revisions are never changed. Each holds all objects, so one file says everything that was applied.
"""

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from unskew.features.errors import LayoutError
from unskew.features.on_demand import OnDemandView
from unskew.features.registry import (
    APPLIED,
    CLAIM,
    NO_REGISTRY,
    as_json,
    describe_one,
    merge,
    on_demand_as_json,
    typed,
    typed_on_demand,
)
from unskew.features.registry import FORMAT as REGISTRY_FORMAT
from unskew.features.service import Service
from unskew.features.stream_settings import StreamSettings
from unskew.features.versions import Versions
from unskew.features.view import View

FORMAT = 1


class GitCommit(msgspec.Struct, frozen=True, kw_only=True):
    """The commit that the definitions were at; ``changed``: whether files there differ from it."""

    commit: str
    changed: bool


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """The objects of a revision, and which versions serve.

    ``views``: as they are published, each with ``serving=True``, which says nothing here. ``services``: with the
    versions that they have pinned. ``on_demand``: on-demand features, one version of each name. ``serves``: the version
    that the bare name of a view means. ``says``: the version whose definition said so when it was applied. ``retired``:
    versions that earlier revisions had, and that are no longer computed. ``streams``: how those streams are read that
    the views are over; revisions of earlier versions of unskew do not say it.
    """

    views: tuple[View, ...] = ()
    services: tuple[Service, ...] = ()
    serves: Mapping[str, int] = {}
    says: Mapping[str, int] = {}
    retired: tuple[str, ...] = ()
    on_demand: tuple[OnDemandView, ...] = ()
    streams: tuple[StreamSettings, ...] = ()

    @property
    def by_id(self) -> dict[str, View]:
        """The views by ``name@version``."""
        return {view.id: view for view in self.views}

    @property
    def objects(self) -> dict[str, View | OnDemandView]:
        """The views and the on-demand features by ``name@version``."""
        return {**self.by_id, **{one.id: one for one in self.on_demand}}

    @property
    def versions(self) -> Versions[View]:
        """The views, each with whether it serves."""
        return Versions(
            msgspec.structs.replace(view, serving=self.serves.get(view.name) == view.version) for view in self.views
        )

    def state_of(self, view: View) -> str:
        """Return ``serving`` or ``running``, and what should be read in its place if it is deprecated."""
        state = "serving" if self.serves.get(view.name) == view.version else "running"
        return f"{state}, deprecated: {view.deprecated}" if view.deprecated else state


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the record.

    ``record``: the id of the record, the same for all of its revisions. ``number``: counted from 1. ``command``: what
    made it, for example ``apply`` or ``promote user_purchases@2``. ``plan``: what it changed, a line for each change.
    ``by``: user and host. ``git``: None if the definitions do not lie in a git work tree.
    """

    format: int = FORMAT
    unskew: str
    record: str
    number: int
    at: dt.datetime
    by: str
    command: str
    message: str
    plan: tuple[str, ...]
    git: GitCommit | None
    content: Content


class _Format(msgspec.Struct):
    format: int


def to_bytes(revision: Revision) -> bytes:
    """Return the revision as JSON, with its views' scalars as JSON values."""
    content = msgspec.structs.replace(
        revision.content,
        views=tuple(map(as_json, revision.content.views)),
        on_demand=tuple(map(on_demand_as_json, revision.content.on_demand)),
    )
    written = msgspec.json.encode(msgspec.structs.replace(revision, content=content), order="deterministic")
    return msgspec.json.format(written, indent=1) + b"\n"


def from_bytes(data: bytes, place: str, number: int) -> Revision:
    """Read the revision of this number. ``place``: where it stands, for messages.

    Raises ``LayoutError`` if another version of unskew wrote it, or if it is damaged.
    """
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise LayoutError(
                f"{place} has format {found}, but this version of unskew reads {FORMAT}; use the version that wrote it, or a "
                "later one"
            )
        revision = msgspec.json.decode(data, type=Revision)
        if revision.number != number:
            raise LayoutError(f"{place} says that it is revision {revision.number}; restore it from a backup")
        content = revision.content
        views = tuple(typed(view, f"{view.id} in {place}") for view in content.views)
        on_demand = tuple(typed_on_demand(one, f"{one.id} in {place}") for one in content.on_demand)
        _check(content, place)
    # A text may nest deeper than any reader follows.
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise LayoutError(f"{place} is damaged ({why}); restore it from a backup") from error
    return msgspec.structs.replace(revision, content=msgspec.structs.replace(content, views=views, on_demand=on_demand))


def _check(content: Content, place: str) -> None:
    """Raise ``LayoutError`` if a version stands there twice, or nothing says which version of a view serves."""
    ids = [view.id for view in content.views]
    if len(set(ids)) < len(ids):
        raise LayoutError(f"{place} is damaged (a version of a view stands there twice); restore it from a backup")
    for name in {view.name for view in content.views} | set(content.serves):
        if f"{name}@{content.serves.get(name)}" not in ids:
            raise LayoutError(f"{place} is damaged (no version of view {name!r} serves); restore it from a backup")


def described(revision: Revision) -> dict[str, Any]:
    """Return the revision as data that ``json.dumps`` takes."""
    shown: dict[str, Any] = msgspec.json.decode(to_bytes(revision))
    return shown


def with_applied(published: dict[str, Any], revision: Revision | None) -> dict[str, Any]:
    """Return a registry, as ``registry.describe`` returns it, with what was applied last; None: nothing was."""
    if revision is None:
        return published
    content = revision.content
    objects: dict[str, tuple[Any, ...]] = {
        "services": content.services,
        "on_demand": tuple(map(on_demand_as_json, content.on_demand)),
    }
    applied = {
        "revision": revision.number,
        "serves": dict(content.serves),
        **{kind: [one.name for one in those] for kind, those in objects.items()},
    }
    return {**published, **msgspec.to_builtins(objects), APPLIED: {revision.record: applied}}


def others_of(stored: str | bytes | None, revision: Revision | None) -> dict[str, int]:
    """Return the views that other records have applied to the stored registry, with the version that serves.

    Raises ``LayoutError`` if a later revision of the same record was applied to it, or if it cannot be read.
    """
    try:
        applied = {} if stored is None else json.loads(stored).get(APPLIED, {})
        own = {} if revision is None else applied.get(revision.record, {})
        known = own.get("revision", 0)
        if revision is not None and known > revision.number:
            raise LayoutError(
                f"the registry in Redis has revision {known}, but the record ends with revision {revision.number}: later ones are "
                "missing; restore the record from a backup"
            )
        return {name: version for one in applied.values() if one is not own for name, version in one["serves"].items()}
    except NO_REGISTRY as error:
        raise LayoutError(
            f"the registry in Redis cannot be read ({error}); publish it again with unskew run"
        ) from error


def brought_up_to(stored: str | bytes | None, revision: Revision) -> str | None:
    """Return the stored registry with what the revision says of the views in it; None if nothing is stored yet.

    A view with another state is not replaced: its pipeline still computes what was applied before. Raises
    ``LayoutError`` if the registry cannot be read, or if a later revision of the same record was applied to it.
    """
    if stored is None:
        return None
    new = {(view.name, view.version): view for view in revision.content.views}
    try:
        registry = json.loads(stored)
        if registry["format"] != REGISTRY_FORMAT:
            raise ValueError(f"it has format {registry['format']}, not {REGISTRY_FORMAT}")
        others_of(stored, revision)
        views = []
        for view in registry["views"]:
            now = new.get((view["name"], view["version"]))
            same = now is not None and now.state_fingerprint == view["state_fingerprint"]
            kept = {name: view[name] for name in ("serving", CLAIM) if name in view}
            views.append({**describe_one(now), **kept} if now is not None and same else view)
        text = json.dumps(with_applied({"format": REGISTRY_FORMAT, "views": []}, revision))
        return merge(json.dumps({**registry, "views": views}), text)
    except NO_REGISTRY as error:
        raise LayoutError(
            f"the registry in Redis cannot be read ({error}); publish it again with unskew run"
        ) from error
