"""What applying definitions would change: they are compared with the last revision, object by object."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from unskew.features.on_demand import OnDemandView
from unskew.features.plan import Plan, ViewPlan
from unskew.features.registry import as_json, describe_one, on_demand_as_json, pin
from unskew.features.revision import Content
from unskew.features.service import Service, ServiceFeature
from unskew.features.stream_settings import recorded
from unskew.features.time import format_duration
from unskew.features.view import View, ViewFeature

What = Literal["view", "service", "on-demand", "stream"]
Kind = Literal["added", "changed", "removed", "serves"]
_SIGNS: Mapping[Kind, str] = {"added": "+", "changed": "~", "removed": "-", "serves": ">"}
# Parts of a published view that follow from others, or say nothing to people.
_DERIVED = frozenset(
    {"name", "version", "serving", "state_fingerprint", "presentation_fingerprint", "windows", "features", "sessions"}
)
_SHOWN_ONLY = frozenset({"description", "owner", "default", "tags", "deprecated"})
_UNSEEN = "how records of its stream are read"


class FieldChange(msgspec.Struct, frozen=True, kw_only=True):
    """A field of an object before and after, as values of JSON."""

    name: str
    before: Any
    after: Any

    def text(self) -> str:
        """Return the change for people; of lists of names, the names that come and go."""
        if _are_names(self.before) and _are_names(self.after):
            more = [f"+{name}" for name in self.after if name not in self.before]
            less = [f"-{name}" for name in self.before if name not in self.after]
            return f"{self.name}: {' '.join([*more, *less]) or 'in another order'}"
        return f"{self.name}: {_shown(self.before)} -> {_shown(self.after)}"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The change of one object. ``kind``: ``serves`` if another version of a view is to serve.

    ``notes``: what follows from it, for people. ``touches``: the services that read the view, or views of the stream.
    """

    what: What
    kind: Kind
    name: str
    fields: tuple[FieldChange, ...] = ()
    notes: tuple[str, ...] = ()
    touches: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the change as one line."""
        changes = "; ".join(one.text() for one in self.fields)
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


def read_otherwise(views: Iterable[ViewPlan], applied: Content) -> list[str]:
    """Return how streams of these views are read otherwise than was applied, a line for each that was."""
    known = {one.name for one in applied.streams}
    now = Content(streams=tuple(one for one in recorded(views).values() if one.name in known))
    changes = _stream_changes(applied, now, {})
    return [change.line() for change in changes if change.kind == "changed"]


class _Planning:
    """Definitions and what was applied before, held against each other step by step."""

    def __init__(self, plan: Plan, before: Content, asked: Asked, *, is_first: bool) -> None:
        self._plan = plan
        self._before = before
        self._asked = asked
        self._is_first = is_first
        self._old = before.by_id
        self._refused: list[str] = []
        kept = [
            view
            for view in before.views
            if asked.keeps_others and view.name not in plan.views.names and not {view.id, view.name} & set(asked.drop)
        ]
        published = (msgspec.structs.replace(view.published, serving=True) for view in plan.views.values())
        self._new = {view.id: view for view in sorted((*kept, *published), key=lambda view: (view.name, view.version))}
        others = {one.name: one for one in before.on_demand if asked.keeps_others and one.name not in asked.drop}
        self._on_demand = {**others, **plan.on_demand}
        others_streams = {view.stream for view in kept}
        self._streams = {one.name: one for one in before.streams if one.name in others_streams}
        self._streams |= recorded(plan.views.values())
        self._says = {view.name: before.says[view.name] for view in kept if view.name in before.says}
        self._says |= {view.name: view.version for view in plan.views.values() if view.serving}

    def done(self) -> Planned:
        serves = self._serves()
        content = Content(
            views=tuple(self._new.values()),
            services=tuple(self._services(serves)),
            on_demand=tuple(self._on_demand.values()),
            serves=serves,
            says=dict(sorted(self._says.items())),
            retired=tuple(sorted({*self._before.retired, *self._old} - set(self._new))),
            streams=tuple(one for _, one in sorted(self._streams.items())),
        )
        self._refuse_other_states()
        self._refuse_ended()
        self._refused += broken_services(self._before, content, self._asked)
        self._refused += unreadable(content, self._asked)
        changes = tuple(
            msgspec.structs.replace(change, notes=(*change.notes, *self._notes(change)))
            for change in differences(self._before, content)
        )
        return Planned(content=content, changes=changes, refused=tuple(self._refused))

    def _serves(self) -> dict[str, int]:
        serves = {}
        for name in dict.fromkeys(view.name for view in self._new.values()):
            before, said, says = self._before.serves.get(name), self._before.says.get(name), self._says[name]
            if before is not None and f"{name}@{before}" in self._new:
                # A version that is promoted goes on serving until a definition says otherwise anew.
                serves[name] = before if says == said else says
                continue
            serves[name] = says
            if before is not None and name not in self._asked.accepted:
                self._refused.append(
                    f"{name}@{before} serves, and is removed: {name}:feature would mean version {says} at once, for every reader; "
                    f"define version {before} beside it, with serving=True, apply, run, and then unskew promote {name}@{says}; or "
                    f"accept it with --break {name}"
                )
        return serves

    def _services(self, serves: Mapping[str, int]) -> Iterator[Service]:
        """Yield the services of the definitions with what their names mean now, and those of others as they are."""
        objects: dict[str, View | OnDemandView] = {**self._new}
        objects |= {one.id: one for one in self._on_demand.values()}
        for service in self._plan.services.values():
            features, missing = repinned(service, objects, serves)
            self._refused += [f"service {service.name} reads {why}; name a version that has it" for why in missing]
            yield service if missing else msgspec.structs.replace(service, features=features)
        if self._asked.keeps_others:
            yield from (one for one in self._before.services if one.name not in self._plan.services)

    def _refuse_other_states(self) -> None:
        for view_id, new in self._new.items():
            old = self._old.get(view_id)
            if old is None or old.state_fingerprint == new.state_fingerprint:
                continue
            fields = [one.name for one in _fields(old, new) if one.name.rpartition(".")[2] not in _SHOWN_ONLY]
            self._refused.append(
                f"{view_id} would compute something else under the same version ({', '.join(fields) or _UNSEEN}); leave version "
                f"{new.version} as it was, with serving=True, and define the change beside it as version {self._next_version(new.name)}"
            )

        earlier = {one.name: one for one in self._before.on_demand}
        for one in self._on_demand.values():
            old_one = earlier.get(one.name)
            if old_one is not None and old_one.version == one.version and old_one.fingerprint != one.fingerprint:
                self._refused.append(
                    f"on-demand {one.id} would compute something else under the same version; give it version {one.version + 1}"
                )

    def _refuse_ended(self) -> None:
        for view in self._new.values():
            if self._is_back(view.id) and self._asked.has_ended(view.id):
                self._refused.append(
                    f"{view.id} was applied before and then removed, and its state has ended, so it would lack the events since; "
                    f"give the view a new version, {self._next_version(view.name)} or later"
                )

    def _is_back(self, view_id: str) -> bool:
        return view_id in self._before.retired

    def _next_version(self, name: str) -> int:
        ids = {*self._new, *self._old, *self._before.retired}
        return 1 + max(int(one.rpartition("@")[2]) for one in ids if one.rpartition("@")[0] == name)

    def _notes(self, change: Change) -> Iterator[str]:
        """Yield what follows from the change of a view, for people."""
        if change.what == "stream" and change.kind == "changed":
            yield "unskew run reads it so from its next start; rows of the past stay as they are"
        view = self._new.get(change.name) or self._old.get(change.name)
        if change.what != "view" or view is None:
            return
        if change.kind == "added":
            if self._is_back(view.id) and self._asked.has_ended(view.id) is None:
                yield "it was removed before; if its state has ended meanwhile, unskew run refuses it"
            one = self._plan.views[view.id]
            if one.stream.table is not None:
                yield "unskew materialize computes it"
            elif not self._is_first and one.history == "archive":
                yield "its past is computed from the archive when unskew run starts, or before by unskew backfill"
            elif not self._is_first:
                yield "it begins when unskew run starts, without a past: its values are warming until their windows are full"
            serves = self._before.serves.get(view.name)
            if serves is not None and f"{view.name}@{serves}" in self._new:
                yield f"version {serves} serves; unskew promote {view.id} lets this one serve"
        if change.kind == "changed" and self._old[view.id].state_fingerprint == view.state_fingerprint:
            yield "no new version is needed"
        if change.kind == "removed":
            higher = any(one.name == view.name and one.version > view.version for one in self._new.values())
            drop = "" if higher else f" (start it with --drop {view.id})"
            yield f"its state ends when unskew run starts without it{drop}, for good; its log stays"


def differences(before: Content, after: Content) -> list[Change]:
    """Return what differs between two contents, object by object."""
    old, new = before.by_id, after.by_id
    readers: dict[str, list[str]] = {}
    for service in before.services:
        for view_id in dict.fromkeys(one.view for one in service.of_views):
            readers.setdefault(view_id, []).append(service.name)

    def of_view(kind: Kind, view_id: str, fields: Iterable[FieldChange] = ()) -> Change:
        return Change(
            what="view", kind=kind, name=view_id, fields=tuple(fields), touches=tuple(readers.get(view_id, ()))
        )

    changes = [of_view("added", view_id) for view_id in new if view_id not in old]
    for view_id, view in new.items():
        if view_id in old and describe_one(old[view_id]) != describe_one(view):
            changes.append(of_view("changed", view_id, _fields(old[view_id], view)))
    changes += [of_view("removed", view_id) for view_id in old if view_id not in new]
    for name, version in after.serves.items():
        earlier, said, says = before.serves.get(name, version), before.says.get(name), after.says.get(name)
        if version != earlier:
            changes.append(_serving(name, earlier, version))
        elif said is not None and says != said and not any(one.name.partition("@")[0] == name for one in changes):
            # Written down, because only a definition that says so anew lets another version serve.
            says_now = FieldChange(name="the version that says serving=True", before=said, after=says)
            changes.append(Change(what="view", kind="changed", name=name, fields=(says_now,)))
    changes += _stream_changes(before, after, readers)
    changes += _on_demand_changes(before, after)
    services, now = ({one.name: one for one in part.services} for part in (before, after))
    for name, service in now.items():
        if name not in services:
            changes.append(Change(what="service", kind="added", name=name))
        elif fields := tuple(_service_fields(services[name], service)):
            changes.append(Change(what="service", kind="changed", name=name, fields=fields))
    changes += [Change(what="service", kind="removed", name=name) for name in services if name not in now]
    return changes


def _stream_changes(before: Content, after: Content, readers: Mapping[str, Sequence[str]]) -> Iterator[Change]:
    """Yield what differs in how streams are read; ``readers``: the services that read each view."""
    old, new = ({one.name: one for one in part.streams} for part in (before, after))
    for name, now in new.items():
        if name not in old:
            yield Change(what="stream", kind="added", name=name)
        elif old[name] != now:
            of_views = [readers.get(view.id, ()) for view in before.views if view.stream == name]
            touched = dict.fromkeys(service for services in of_views for service in services)
            fields = tuple(_differing(old[name].facts(), now.facts()))
            yield Change(what="stream", kind="changed", name=name, fields=fields, touches=tuple(touched))
    for name in old:
        if name not in new:
            yield Change(what="stream", kind="removed", name=name)


def _on_demand_changes(before: Content, after: Content) -> Iterator[Change]:
    old, new = ({one.name: _on_demand_facts(one) for one in part.on_demand} for part in (before, after))
    readers = {
        name: tuple(
            service.name
            for service in before.services
            if any(one.view.partition("@")[0] == name for one in service.features)
        )
        for name in (*new, *old)
    }
    for name, facts in new.items():
        if name not in old:
            yield Change(what="on-demand", kind="added", name=name)
        elif old[name] != facts:
            fields = tuple(_differing(old[name], facts))
            yield Change(what="on-demand", kind="changed", name=name, fields=fields, touches=readers[name])
    for name in old:
        if name not in new:
            yield Change(what="on-demand", kind="removed", name=name, touches=readers[name])


def _on_demand_facts(one: OnDemandView) -> dict[str, Any]:
    """Return what people know of on-demand features, by the names under which they know it."""
    written = on_demand_as_json(one)
    facts: dict[str, Any] = msgspec.to_builtins(written)
    facts = {name: value for name, value in facts.items() if name not in {"name", "features", "fingerprint"}}
    facts["features"] = [feature.name for feature in one.features]
    for feature in written.features:
        facts.update(_of_feature(feature.name, feature, ""))
    return facts


def broken_services(before: Content, after: Content, asked: Asked) -> list[str]:
    """Return, for each service that breaks and that may not, why it does."""
    now = {service.name: service for service in after.services}
    refused = []
    for old in before.services:
        new = now.get(old.name)
        if new is None:
            reasons = [f"{old.references[0]}, and it is removed"]
        else:
            features, missing = repinned(new, after.objects, {})
            reasons = [*missing, *breaks(old, new if missing else msgspec.structs.replace(new, features=features))]
        if reasons and old.name not in asked.accepted:
            refused.append(broken(old, reasons, asked.reads(old.name)))
    return refused


def unreadable(content: Content, asked: Asked) -> list[str]:
    """Return, for on-demand features that read what is not there, and that may not break, what that is."""
    refused = []
    for one in content.on_demand:
        for reference in one.references:
            named, _, feature = reference.partition(":")
            view_id = named if "@" in named else f"{named}@{content.serves.get(named)}"
            view = content.by_id.get(view_id)
            if (view is None or view.feature(feature) is None) and one.name not in asked.accepted:
                what = (
                    "which was not applied" if view is None else f"and {view_id}, which it means, has no such feature"
                )
                refused.append(
                    f"on-demand {one.id} reads {reference}, {what}; name a version that has it, or accept that it breaks with "
                    f"--break {one.name}"
                )
    return refused


def _serving(name: str, before: int, after: int) -> Change:
    return Change(
        what="view",
        kind="serves",
        name=name,
        fields=(FieldChange(name="version that serves", before=before, after=after),),
        notes=(
            f"{name}:feature means version {after}, for every reader at once, if it runs; services keep what they have pinned",
        ),
    )


def broken_by_promotion(content: Content, view: View) -> Iterator[tuple[Service, list[str]]]:
    """Yield the services that name a view without version and that its new version would break, and why."""
    for service in content.services:
        if any(one.is_bare and one.view.partition("@")[0] == view.name for one in service.of_views):
            features, missing = repinned(service, content.objects, {view.name: view.version})
            now = msgspec.structs.replace(service, features=features)
            if reasons := missing or breaks(service, now):
                yield service, reasons


def repinned(
    service: Service, objects: Mapping[str, View | OnDemandView], serves: Mapping[str, int]
) -> tuple[tuple[ServiceFeature, ...], list[str]]:
    """Return the features of a service as they are now, and what is missing of them, as ends of a sentence.

    ``objects``: views and on-demand features by ``name@version``. ``serves``: the versions that bare names mean now; of
    any other view the service keeps the version that it has.
    """
    means = {name: f"{name}@{version}" for name, version in serves.items()}
    means |= {one.name: one.id for one in objects.values() if isinstance(one, OnDemandView)}
    return _repinned(service.features, objects, means)


def _repinned(
    features: Sequence[ServiceFeature], objects: Mapping[str, View | OnDemandView], means: Mapping[str, str]
) -> tuple[tuple[ServiceFeature, ...], list[str]]:
    found, missing = [], []
    for one in features:
        name = one.view.partition("@")[0]
        view_id = means[name] if one.is_bare and name in means else one.view
        view = objects.get(view_id)
        feature = None if view is None else view.feature(one.feature)
        if view is None or feature is None:
            missing.append(f"{one.reference}, and {view_id} {'is removed' if view is None else 'has no such feature'}")
            continue
        reads, without = _repinned(one.reads, objects, means)
        missing += [f"{one.reference}, which reads {what}" for what in without]
        found.append(pin(one.reference, view, feature, reads))
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
            reasons.append(
                f"{one.reference}, whose default becomes {_shown(found.default)} in place of {_shown(one.default)}"
            )
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
    """Return the fields in which two views differ."""
    return _differing(_facts(old), _facts(new))


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
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
        known = window if key == "window" else value
        if key != "name" and known not in (None, "", [], {}):
            yield f"{name}.{key}", known


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
