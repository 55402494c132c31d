"""What features come from and what depends on them, as a graph, from what is published of them.

The published texts name the columns that they read, so a registry or a log is enough; definitions add what only a
stream knows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, get_args

from unskew.features.definitions.revived import names_in
from unskew.features.errors import RequestError
from unskew.features.nearest import nearest
from unskew.features.on_demand import NOW, OnDemandView
from unskew.features.plan import StreamPlan
from unskew.features.printing import pairs
from unskew.features.registry import Published
from unskew.features.service import Service
from unskew.features.types import Type
from unskew.features.view import View, ViewFeature

Kind = Literal[
    "view", "on_demand", "service", "stream", "table", "topic", "model", "feature", "column", "input", "sessions"
]  # fmt: skip
How = Literal["read", "event time", "key", "where", "value", "filter", "by", "derived", "of", "trained"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MOST_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Node:
    """A thing in the graph. ``about``: what is known of it, as texts by word; empty ones are left out.

    A column is called ``stream.column``, and ``about`` has its own name and the id of the stream or sessions that have
    it. A feature is called ``view@version:feature``.
    """

    kind: Kind
    name: str
    about: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        """The kind and the name, which together are unique."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """``target`` depends on ``source``, both ids of nodes. ``how``: in which role it does."""

    source: str
    target: str
    how: How


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as its training manifest knows it. ``features``: ``view@version:feature``. ``service``: None for none."""

    name: str
    features: Sequence[str]
    service: str | None = None


class Lineage:
    """A graph without cycles: nodes by id, and edges from what is read to what reads it.

    ``streams``: by name, as they are defined; none if only what is published is known.
    """

    def __init__(
        self,
        published: Published,
        streams: Mapping[str, StreamPlan] | None = None,
        *,
        models: Iterable[Model] = (),
    ) -> None:
        self.nodes: dict[str, Node] = {}
        self._edges: dict[Edge, None] = {}
        self._into: dict[str, list[Edge]] = {}
        self._out_of: dict[str, list[Edge]] = {}
        self._published = published
        for name, stream in (streams or {}).items():
            self._add_stream(name, "", stream)
        for view in published.views.values():
            self._add_view(view, (streams or {}).get(view.stream))
        for one in published.on_demand.values():
            self._add_on_demand(one)
        for service in published.services.values():
            self._add_service(service)
        for model in models:
            self._add_model(model)

    def find(self, reference: str, kind: Kind | None = None) -> list[Node]:
        """Return what a reference names: one thing, or a view or on-demand view with all of its features.

        ``reference``: ``view``, ``view@version``, ``view:feature``, or the name of anything else; a bare name of a view
        means the version that serves. ``kind``: which of several things of one name is meant; by default the first of
        view, service, stream, table, topic, model and column. Raises ``RequestError`` for an unknown name.
        """
        holder, _, feature = reference.partition(":")
        ids = dict.fromkeys(self._holders(holder))
        found = [self.nodes[f"feature {one}:{feature}"] for one in ids if f"feature {one}:{feature}" in self.nodes]
        if not feature:
            held = [(self.nodes.get(f"view {one}") or self.nodes[f"on_demand {one}"], one) for one in ids]
            features = [edge.target for _, one in held for edge in self._out_of_holder(one)]
            found = [node for node, _ in held] + [self.nodes[one] for one in features]
        found = [node for node in found if kind is None or found[0].kind == kind]
        for each in KINDS if kind is None else (kind,):
            node = self.nodes.get(f"{each} {reference}")
            if not found and node is not None:
                found = [node]
        if not found:
            what = "thing" if kind is None else kind
            raise RequestError(f"there is no {what} {reference!r} in the lineage; {self._nearest(reference, kind)}")
        return found

    def _nearest(self, reference: str, kind: Kind | None) -> str:
        known = [node.name for node in self.nodes.values() if kind in {None, node.kind}]
        if get_close_matches(reference, known, n=1):
            return nearest(reference, known, "there are")
        # There may be thousands of features and columns.
        named = [node.name for node in self.nodes.values() if node.kind in {kind or "view", kind or "service"}]
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        return nearest(reference, named[:_MOST_NAMED], "there are") + more

    def upstream(self, nodes: Iterable[Node]) -> list[Node]:
        """Return what these come from, near things first; not the nodes themselves."""
        return self._reached(nodes, lambda node_id: [edge.source for edge in self._into.get(node_id, ())])

    def downstream(self, nodes: Iterable[Node]) -> list[Node]:
        """Return what depends on these, near things first; not the nodes themselves."""
        return self._reached(nodes, lambda node_id: [edge.target for edge in self._out_of.get(node_id, ())])

    def sources(self, node: Node) -> list[Edge]:
        """Return the edges to what a node reads itself."""
        return self._into.get(node.id, [])

    def dependents(self, node: Node) -> list[Edge]:
        """Return the edges to what reads a node itself."""
        return self._out_of.get(node.id, [])

    def between(self, nodes: Iterable[Node]) -> list[Edge]:
        """Return the edges of which both ends are among these nodes."""
        ids = {node.id for node in nodes}
        return [edge for edge in self._edges if edge.source in ids and edge.target in ids]

    def _reached(self, nodes: Iterable[Node], step: Callable[[str], Iterable[str]]) -> list[Node]:
        begun = [node.id for node in nodes]
        seen = dict.fromkeys(begun)
        waiting = deque(begun)
        while waiting:
            for other in step(waiting.popleft()):
                if other not in seen:
                    seen[other] = None
                    waiting.append(other)
        return [self.nodes[one] for one in list(seen)[len(set(begun)) :]]

    def _holders(self, reference: str) -> list[str]:
        """Return the ids of the view, or of what is on demand, that a name means; none for anything else."""
        if reference in self._published.views:
            return [self._published.views[reference].id]
        return [one.id for one in self._published.on_demand.values() if reference in {one.name, one.id}]

    def _out_of_holder(self, holder_id: str) -> list[Edge]:
        edges = [*self._out_of.get(f"view {holder_id}", ()), *self._out_of.get(f"on_demand {holder_id}", ())]
        return [edge for edge in edges if edge.how == "of"]

    def _add(self, kind: Kind, name: str, **about: str) -> str:
        """Add a node, or what is known of one that is there; return its id."""
        node = Node(kind=kind, name=name, about={word: text for word, text in about.items() if text})
        if (known := self.nodes.get(node.id)) is not None:
            node = Node(kind=kind, name=name, about={**known.about, **node.about})
        self.nodes[node.id] = node
        return node.id

    def _link(self, source: str, target: str, how: How) -> None:
        edge = Edge(source=source, target=target, how=how)
        if edge not in self._edges:
            self._edges[edge] = None
            self._into.setdefault(target, []).append(edge)
            self._out_of.setdefault(source, []).append(edge)

    def _add_stream(self, name: str, topics: str, stream: StreamPlan | None) -> str:
        if stream is None:
            added = self._add("stream", name)
            for topic in topics.split(", "):
                self._link(self._add("topic", topic), added, "read")
            return added
        added = self._add("stream", name, owner=stream.owner, description=stream.description, format=stream.format)
        if stream.table is None:
            for topic in stream.sources:
                self._link(self._add("topic", topic), added, "read")
        else:
            self._link(self._add("table", str(stream.table.path)), added, "read")
        for column, dtype in stream.columns.items():
            self._column(added, name, column, str(Type.of_values(dtype) or dtype))
        return added

    def _column(self, holder: str, named: str, column: str, dtype: str = "") -> str:
        added = self._add("column", f"{named}.{column}", type=dtype, column=column, of=holder)
        self._link(holder, added, "read")
        return added

    def _add_view(self, view: View, stream: StreamPlan | None) -> None:
        holder, named = self._add_stream(view.stream, view.topic, stream), view.stream
        entity = f"{view.entity.name} ({', '.join(view.entity.keys)})"
        tags = pairs(view.tags)
        added = self._add("view", view.id, owner=view.owner, description=view.description, entity=entity, tags=tags)
        event_times = {} if stream is None else {self._column(holder, named, stream.event_time): "event time"}
        keys = [self._column(holder, named, key) for key in view.entity.keys]
        if view.sessions is not None:
            # What the sessions are called is not published.
            inner = self._add("sessions", f"sessions of {view.id}", gap=view.sessions.window.text)
            self._link(holder, inner, "read")
            for one in keys:
                self._link(one, inner, "key")
            for one in event_times:
                self._link(one, inner, "event time")
            for one in self._columns(holder, named, view.sessions.where):
                self._link(one, inner, "where")
            for column in view.sessions.columns:
                its = self._column(inner, f"sessions of {view.id}", column.name, column.type)
                self._add_reads(its, column, holder, named)
            holder, named = inner, f"sessions of {view.id}"
        else:
            for one in keys:
                self._link(one, added, "key")
            for one in event_times:
                self._link(one, added, "event time")
        self._link(holder, added, "read")
        for one in self._columns(holder, named, view.where):
            self._link(one, added, "where")
        for feature in view.features:
            window = view.window_text(feature)
            self._add_feature(added, view.id, feature, window=window, entity=entity)
            its = f"feature {view.id}:{feature.name}"
            if feature.function == "derived":
                for name in feature.inputs:
                    self._link(f"feature {view.id}:{name}", its, "derived")
            else:
                self._add_reads(its, feature, holder, named)

    def _add_feature(self, holder: str, holder_id: str, feature: ViewFeature, **about: str) -> None:
        its = self._add(
            "feature",
            f"{holder_id}:{feature.name}",
            type=feature.type,
            function=feature.function,
            value=feature.value or "",
            filter=feature.filter or "",
            owner=feature.owner,
            description=feature.description,
            **about,
        )
        self._link(holder, its, "of")

    def _add_reads(self, target: str, feature: ViewFeature, holder: str, named: str) -> None:
        texts: tuple[tuple[str | None, How], ...] = (
            (feature.value, "value"), (feature.filter, "filter"), (feature.by, "by"),
        )  # fmt: skip
        for text, how in texts:
            for one in self._columns(holder, named, text):
                self._link(one, target, how)

    def _columns(self, holder: str, named: str, text: str | None) -> list[str]:
        return [] if text is None else [self._column(holder, named, name) for name in names_in(text)]

    def _add_on_demand(self, one: OnDemandView) -> None:
        tags = pairs(one.tags)
        added = self._add("on_demand", one.id, owner=one.owner, description=one.description, tags=tags)
        for feature in one.features:
            its = f"feature {one.id}:{feature.name}"
            self._add_feature(added, one.id, feature)
            for name in feature.inputs:
                view, colon, read = name.partition(":")
                if name == NOW:
                    continue
                if not colon:
                    self._link(self._add("input", name, type=one.inputs.get(name, "")), its, "value")
                elif view in self._published.views:
                    self._link(f"feature {self._published.views[view].id}:{read}", its, "derived")

    def _add_service(self, service: Service) -> None:
        tags = pairs(service.tags)
        added = self._add("service", service.name, owner=service.owner, description=service.description, tags=tags)
        for one in service.features:
            self._link(self._add("feature", f"{one.view}:{one.feature}"), added, "read")

    def _add_model(self, model: Model) -> None:
        added = self._add("model", model.name)
        if model.service is not None:
            self._link(self._add("service", model.service), added, "trained")
        for name in model.features:
            self._link(self._add("feature", name), added, "trained")
