"""What applying definitions would change: definitions held against the last revision, object by object, field by field."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from unskew.features.plan import Plan, ViewPlan
from unskew.features.registry import as_json, describe_one, json_scalar
from unskew.features.revision import Content
from unskew.features.service import Service, ServiceFeature
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
    belong to others, and stay unless ``drop`` names them. ``has_ended``: whether the state of a version has ended.
    ``reads``: how often a service was read since yesterday. Both give None if that is not known.
    """

    accepted: Collection[str] = ()
    keeps_others: bool = False
    drop: Collection[str] = ()
    has_ended: Callable[[str], bool | None] = lambda _view_id: None
    reads: Callable[[str], int | None] = lambda _service: None


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
        self._services = {
            **{one.name: one for one in before.services if asked.keeps_others and one.name not in plan.services},
            **plan.services,
        }
        self._own_services = plan.services.keys()
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
        serves = self._serves()
        content = Content(
            views=tuple(sorted(self._new.values(), key=lambda view: (view.name, view.version))),
            services=tuple(self._pinned(serves)),
            serves=serves,
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
                notes.append("it was removed before; if its state has ended meanwhile, unskew run refuses it")
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
                self._changes.append(serving_change(name, before, serves[name]))
            elif says != said and not any(one.name.partition("@")[0] == name for one in self._changes):
                # Written down, because only a definition that says so anew lets another version serve.
                says_now = FieldChange(name="the version that says serving=True", before=said, after=says)
                self._changes.append(Change(what="view", kind="changed", name=name, fields=(says_now,)))
        return serves

    def _pinned(self, serves: Mapping[str, int]) -> Iterator[Service]:
        """Yield the services with the versions that they read from now on; note what changes for each."""
        before = {service.name: service for service in self._before.services}
        for name, service in sorted(self._services.items()):
            is_own = name in self._own_services
            features, missing = repinned(service, self._new, serves if is_own else {})
            if missing and is_own:
                self._refused += [f"service {name} reads {why}; name a version that has it" for why in missing]
            now = service if missing else msgspec.structs.replace(service, features=features)
            old = before.get(name)
            if old is None:
                self._changes.append(Change(what="service", kind="added", name=name))
            elif old != now or missing:
                self._refuse_broken(old, [*missing, *breaks(old, now)] if not is_own else breaks(old, now))
                fields = tuple(_service_fields(old, now))
                if fields:
                    self._changes.append(Change(what="service", kind="changed", name=name, fields=fields))
            yield now
        for name, service in before.items():
            if name not in self._services:
                self._refuse_broken(service, ["all its features, and it is removed"])
                self._changes.append(Change(what="service", kind="removed", name=name))

    def _refuse_broken(self, service: Service, reasons: Sequence[str]) -> None:
        if reasons and service.name not in self._asked.accepted:
            self._refused.append(broken(service, reasons, self._asked.reads(service.name)))

    def _next_version(self, name: str) -> int:
        ids = {*self._new, *self._old, *self._before.retired}
        return 1 + max(int(one.rpartition("@")[2]) for one in ids if one.rpartition("@")[0] == name)

    def _note(self, kind: Kind, view: View, **more: Any) -> None:
        touches = tuple(
            one.name for one in self._before.services if any(feature.view == view.id for feature in one.features)
        )
        parts = {key: tuple(value) for key, value in more.items()}
        self._changes.append(Change(what="view", kind=kind, name=view.id, touches=touches, **parts))


def serving_change(name: str, before: int, after: int) -> Change:
    """Return the change of a view of which another version is to serve."""
    return Change(
        what="view",
        kind="serves",
        name=name,
        fields=(FieldChange(name="version that serves", before=before, after=after),),
        notes=(f"{name}:feature means version {after}, for every reader at once, if it runs; services keep what they have pinned",),
    )


def repinned(
    service: Service, views: Mapping[str, View], serves: Mapping[str, int]
) -> tuple[tuple[ServiceFeature, ...], list[str]]:
    """Return the features of a service as they are now, and what is missing of them, as ends of a sentence.

    ``views``: by ``name@version``. ``serves``: the versions that bare names mean now; of any other view the service
    keeps the version that it has.
    """
    found, missing = [], []
    for one in service.features:
        name = one.view.partition("@")[0]
        view_id = f"{name}@{serves[name]}" if one.is_bare and name in serves else one.view
        view = views.get(view_id)
        feature = None if view is None else view.feature(one.feature)
        if view is None or feature is None:
            missing.append(f"{one.reference}, and {view_id} {'is removed' if view is None else 'has no such feature'}")
            continue
        found.append(
            msgspec.structs.replace(
                one,
                view=view_id,
                type=feature.type,
                fingerprint=view.state_fingerprint,
                default=json_scalar(feature.default),
            )
        )
    return tuple(found), missing


def breaks(old: Service, new: Service) -> list[str]:
    """Return what a reader of the service misses in the new one, or finds changed, as ends of a sentence."""
    now = {one.reference: one for one in new.features}
    reasons = []
    for one in old.features:
        found = now.get(one.reference)
        if found is None:
            reasons.append(f"{one.reference}, which is removed from it")
        elif found.type != one.type:
            reasons.append(f"{one.reference}, whose type becomes {found.type} in place of {one.type}")
        elif found.default != one.default or type(found.default) is not type(one.default):
            reasons.append(f"{one.reference}, whose default becomes {_shown(found.default)} in place of {_shown(one.default)}")
    return reasons


def broken(service: Service, reasons: Sequence[str], reads: int | None) -> str:
    """Return the refusal of a change that breaks a service."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return (
        f"service {service.name} ({whose(service, reads)}) reads {reasons[0]}{more}; change the service first, or accept "
        f"that it breaks with --break {service.name}"
    )


def whose(service: Service, reads: int | None) -> str:
    """Return who owns a service, and how often it is read, for people."""
    counted = "its reads are not known" if reads is None else f"{reads:,} reads since yesterday"
    return f"owner: {service.owner or 'nobody'}, {counted}"


def _service_fields(old: Service, new: Service) -> Iterator[FieldChange]:
    for name in ("owner", "description", "tags"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield FieldChange(name=name, before=before, after=after)
    if old.references != new.references:
        yield FieldChange(name="features", before=old.references, after=new.references)
    now = {one.reference: one for one in new.features}
    for one in old.features:
        found = now.get(one.reference, one)
        for name in ("view", "type", "default"):
            before, after = getattr(one, name), getattr(found, name)
            if before != after:
                yield FieldChange(name=f"{one.reference}.{name}", before=before, after=after)


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
