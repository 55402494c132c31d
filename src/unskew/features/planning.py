"""What applying definitions would change: definitions held against the last revision, object by object, field by field."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from unskew.features.plan import Plan, ViewPlan
from unskew.features.registry import as_json, describe_one
from unskew.features.revision import Content
from unskew.features.time import format_duration
from unskew.features.view import View, ViewFeature

What = Literal["view", "service", "on-demand"]
Kind = Literal["added", "changed", "removed", "serves"]
_SIGNS: Mapping[Kind, str] = {"added": "+", "changed": "~", "removed": "-", "serves": ">"}
# Parts of a published view that follow from others, or say nothing to people.
_DERIVED = frozenset(
    {"name", "version", "serving", "state_fingerprint", "presentation_fingerprint", "windows", "features", "sessions"}
)
_UNSEEN = "how records of its stream are read"


@dataclass(frozen=True, kw_only=True)
class FieldChange:
    """A field of an object before and after, as values of JSON."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one object. ``kind``: ``serves`` if another version of a view is to serve.

    ``notes``: what follows from it, for people. ``touches``: the services that read the view.
    """

    what: What
    kind: Kind
    name: str
    fields: tuple[FieldChange, ...] = ()
    notes: tuple[str, ...] = ()
    touches: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the change as one line."""
        changes = "; ".join(f"{one.name}: {_shown(one.before)} -> {_shown(one.after)}" for one in self.fields)
        return f"{_SIGNS[self.kind]} {self.what} {self.name}{f': {changes}' if changes else ''}"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What an apply would write and change. ``refused``: why it must not be applied, a sentence for each reason."""

    content: Content
    changes: tuple[Change, ...]
    refused: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The changes, a line for each."""
        return tuple(change.line() for change in self.changes)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How definitions are to be applied.

    ``accepted``: names of services that may break, and of views whose bare name may come to mean another version
    because the one that serves is removed. ``keeps_others``: views and services whose names the definitions do not have
    belong to others, and stay unless ``drop`` names them. ``has_ended``: whether the state of a version has ended; None
    if that is not known.
    """

    accepted: Collection[str] = ()
    keeps_others: bool = False
    drop: Collection[str] = ()
    has_ended: Callable[[str], bool | None] = field(default=lambda _view_id: None)


def planned(plan: Plan, before: Content | None, asked: Asked = Asked()) -> Planned:
    """Return what applying the definitions would change; ``before``: what was applied last, None for nothing."""
    return _Planning(plan, before or Content(), asked, is_first=before is None).done()


def unapplied(views: Iterable[View], applied: Content) -> list[str]:
    """Return how these views differ from what was applied, a line for each; others that were applied do not count."""
    known = applied.by_id
    lines = []
    for view in views:
        before = known.get(view.id)
        if before is None:
            lines.append(Change(what="view", kind="added", name=view.id).line())
        elif describe_one(before) != describe_one(view):
            lines.append(Change(what="view", kind="changed", name=view.id, fields=tuple(_fields(before, view))).line())
    return lines


class _Planning:
    """Definitions and what was applied before, compared step by step."""

    def __init__(self, plan: Plan, before: Content, asked: Asked, *, is_first: bool) -> None:
        self._plans: Mapping[str, ViewPlan] = {view.id: view for view in plan.views.values()}
        self._before = before
        self._asked = asked
        self._is_first = is_first
        self._old = before.by_id
        defined = {view.name for view in self._plans.values()}
        kept = [
            view
            for view in before.views
            if asked.keeps_others and view.name not in defined and not {view.id, view.name} & set(asked.drop)
        ]
        published = (msgspec.structs.replace(view.published, serving=True) for view in self._plans.values())
        self._new = {view.id: view for view in (*kept, *published)}
        self._says = {
            **{view.name: before.says[view.name] for view in kept if view.name in before.says},
            **{view.name: view.version for view in self._plans.values() if view.serving},
        }
        self._changes: list[Change] = []
        self._refused: list[str] = []

    def done(self) -> Planned:
        for view in self._new.values():
            if view.id not in self._old:
                self._added(view)
        for view in self._new.values():
            if view.id in self._old:
                self._changed(self._old[view.id], view)
        for view in self._old.values():
            if view.id not in self._new:
                self._removed(view)
        content = Content(
            views=tuple(sorted(self._new.values(), key=lambda view: (view.name, view.version))),
            serves=self._serves(),
            says=dict(sorted(self._says.items())),
            retired=tuple(sorted({*self._before.retired, *self._old} - set(self._new))),
        )
        return Planned(content=content, changes=tuple(self._changes), refused=tuple(self._refused))

    def _added(self, view: View) -> None:
        notes = []
        if view.id in self._before.retired:
            ended = self._asked.has_ended(view.id)
            if ended:
                self._refused.append(
                    f"{view.id} was applied before and then removed, and its state has ended, so it would lack the events since; "
                    f"give the view a new version, {self._next_version(view.name)} or later"
                )
            elif ended is None:
                notes.append(f"it was removed before; if its state has ended meanwhile, unskew run refuses it")
        plan = self._plans[view.id]
        if plan.stream.table is not None:
            notes.append("unskew materialize computes it")
        elif not self._is_first:
            notes.append(
                "its past is computed from the archive when unskew run starts, or before by unskew backfill"
                if plan.history == "archive"
                else "it begins when unskew run starts, without a past: its values are warming until their windows are full"
            )
        beside = self._before.serves.get(view.name)
        if beside is not None and f"{view.name}@{beside}" in self._new:
            notes.append(f"version {beside} serves; unskew promote {view.id} lets this one serve")
        self._note("added", view, notes=notes)

    def _changed(self, old: View, new: View) -> None:
        if describe_one(old) == describe_one(new):
            return
        fields = tuple(_fields(old, new))
        if old.state_fingerprint != new.state_fingerprint:
            what = ", ".join(one.name for one in fields if one.name not in {"description", "owner"}) or _UNSEEN
            self._refused.append(
                f"{new.id} would compute something else under the same version ({what}); leave version {new.version} as it was, with "
                f"serving=True, and define the change beside it as version {self._next_version(new.name)}"
            )
        self._note("changed", new, fields=fields, notes=["no new version is needed"] if not self._refused else [])

    def _removed(self, view: View) -> None:
        higher = [one for one in self._new.values() if one.name == view.name and one.version > view.version]
        drop = "" if higher else f" (start it with --drop {view.id})"
        self._note(
            "removed",
            view,
            notes=[f"its state ends when unskew run starts without it{drop}, for good; its log stays"],
        )

    def _serves(self) -> dict[str, int]:
        serves = {}
        for name in sorted({view.name for view in self._new.values()}):
            before, said, says = self._before.serves.get(name), self._before.says.get(name), self._says[name]
            if before is None:
                serves[name] = says
                continue
            if f"{name}@{before}" in self._new:
                serves[name] = before if says == said else says
            else:
                serves[name] = says
                if name not in self._asked.accepted:
                    self._refused.append(
                        f"{name}@{before} serves, and is removed: {name}:feature would mean version {says} at once, for every reader; "
                        f"define version {before} beside it, with serving=True, apply, run, and then unskew promote {name}@{says}; or "
                        f"accept it with --break {name}"
                    )
            if serves[name] != before:
                self._changes.append(
                    Change(
                        what="view",
                        kind="serves",
                        name=name,
                        fields=(FieldChange(name="version that serves", before=before, after=serves[name]),),
                        notes=(f"readers of {name}:feature read version {serves[name]} as soon as it runs",),
                    )
                )
        return serves

    def _next_version(self, name: str) -> int:
        ids = {*self._new, *self._old, *self._before.retired}
        return 1 + max(int(one.rpartition("@")[2]) for one in ids if one.rpartition("@")[0] == name)

    def _note(self, kind: Kind, view: View, **more: Any) -> None:
        self._changes.append(
            Change(what="view", kind=kind, name=view.id, **{key: tuple(value) for key, value in more.items()})
        )


def _fields(old: View, new: View) -> Iterator[FieldChange]:
    """Yield the fields in which two views differ."""
    before, after = _facts(old), _facts(new)
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            yield FieldChange(name=name, before=before.get(name), after=after.get(name))


def _facts(view: View) -> dict[str, Any]:
    """Return what people know of a view, by the names under which they know it."""
    facts: dict[str, Any] = {
        name: value for name, value in msgspec.to_builtins(as_json(view)).items() if name not in _DERIVED
    }
    if view.sessions is not None:
        facts["sessions.where"] = view.sessions.where
        facts["sessions.gap"] = format_duration(view.sessions.window.extent_us)
        for column in view.sessions.columns:
            facts.update(_of_feature(f"sessions.{column.name}", column, ""))
    facts["features"] = [feature.name for feature in view.features]
    for feature in as_json(view).features:
        window = "" if feature.window is None else view.windows[feature.window].text
        facts.update(_of_feature(feature.name, feature, window))
    return facts


def _of_feature(name: str, feature: ViewFeature, window: str) -> Iterator[tuple[str, Any]]:
    for key, value in msgspec.to_builtins(feature).items():
        if key == "window":
            value = window
        if key != "name" and value not in (None, "", [], {}):
            yield f"{name}.{key}", value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
