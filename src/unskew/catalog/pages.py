"""The catalog: pages about everything that is published, made from the lineage, in which all of it stands.

A page shows what is known, and says "not known" where nothing is. It asks for nothing from elsewhere, and holds no
script and no style of its own: its policy permits those of its folder alone.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from unskew.catalog.drawing import bars
from unskew.catalog.figures import Figures
from unskew.catalog.naming import page_of
from unskew.features.definitions.lineage import KINDS, Edge, Lineage, Model, Node
from unskew.features.on_demand import OnDemandView
from unskew.features.plan import StreamPlan
from unskew.features.registry import Published
from unskew.features.revision import Revision
from unskew.features.showing import shown
from unskew.features.time import SECOND_US, format_instant, rough_duration
from unskew.features.view import View, ViewFeature
from unskew.offline.catalogue import catalogue
from unskew.sinks.redis.keyspace import value_key

INDEX = "index.html"
CHANGES = "changes.html"
ALERTS = "alerts.html"
ASSETS = ("catalog.css", "catalog.js", "icon.svg")
NOT_KNOWN = "not known"
NONE = "none"
# Columns, inputs and sessions stand on the pages of what has them.
_WITH_PAGE = frozenset({"view", "on_demand", "service", "stream", "table", "topic", "model", "feature"})
_TITLES = {"on_demand": "on-demand view"}
_LISTED = ("view", "on_demand", "service", "stream", "model")
_PREFIX = "unskew"

_Row = Mapping[str, Any]
"""A row of ``catalogue``."""
_Holder = View | OnDemandView


class Link(NamedTuple):
    """Something that a page names. ``page``: None if it has none. ``how``: how it is related."""

    text: str
    kind: str
    page: str | None
    how: str = ""


class Catalog:
    """The pages of everything that is published, each made when it is asked for.

    ``revisions``: of the record, the last one first. ``figures``: what was measured. ``place``: where what is published
    was found, for people. ``prefix``: the first part of every Redis key. ``address``: where features are served.
    ``has_entities``: whether pages of entities are there too, which only a server can answer.
    """

    def __init__(
        self,
        published: Published,
        streams: Mapping[str, StreamPlan] | None = None,
        *,
        models: Iterable[Model] = (),
        revisions: Sequence[Revision] = (),
        figures: Figures | None = None,
        place: str,
        prefix: str = _PREFIX,
        address: str = "localhost:6566",
        has_entities: bool = False,
    ) -> None:
        self.published = published
        self._graph = Lineage(published, streams, models=models)
        held: list[_Holder] = [*published.views.values(), *published.on_demand.values()]
        self._holders = {one.id: one for one in held}
        listed = catalogue(published.views, published.on_demand.values()).iter_rows(named=True)
        self._rows = {f"feature {row['view']}@{row['version']}:{row['feature']}": row for row in listed}
        self._things = {
            page_of(node.kind, node.name): node for node in self._graph.nodes.values() if node.kind in _WITH_PAGE
        }
        # Each is made once: there are only so many.
        self._made: dict[str, bytes] = {}
        self._revisions = revisions
        self._figures = figures or Figures()
        self._prefix = prefix
        self._address = address
        self._environment = Environment(
            loader=PackageLoader("unskew.catalog"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "breakable": _breakable,
            "age": _age,
            "percent": _percent,
            "instant": format_instant,
        }
        looked = None if self._figures.at_us is None else format_instant(self._figures.at_us // SECOND_US * SECOND_US)
        self._environment.globals |= {
            "place": place,
            "has_changes": bool(revisions),
            "has_entities": has_entities,
            "looked": looked,
            "has_alerts": self._has_alerts,
            "not_known": NOT_KNOWN,
        }

    @property
    def names(self) -> list[str]:
        """The files of the catalog, those that the pages need included."""
        made = [*ASSETS, INDEX, *self._things]
        made += [ALERTS] if self._has_alerts else []
        return made + ([CHANGES] if self._revisions else [])

    @property
    def _has_alerts(self) -> bool:
        return self._figures.at_us is not None or bool(self._figures.faults)

    def page(self, name: str) -> bytes | None:
        """Return a file of the catalog, None if it has none of that name."""
        if name not in self._made:
            page = self._page(name)
            if page is None:
                return None
            self._made[name] = page
        return self._made[name]

    def _page(self, name: str) -> bytes | None:
        if name in ASSETS:
            return (files("unskew.catalog") / "templates" / name).read_bytes()
        if name == INDEX:
            return self.render("features.html", **self._of_features())
        if name == ALERTS and self._has_alerts:
            return self.render("alerts.html", **self._of_alerts())
        if name == CHANGES and self._revisions:
            return self.render("changes.html", revisions=self._revisions)
        node = self._things.get(name)
        return None if node is None else self.render("thing.html", **self._of_thing(node))

    def render(self, template: str, **values: Any) -> bytes:
        """Return a page made from a template."""
        return self._environment.get_template(template).render(**values).encode("utf-8", "replace")

    def _of_features(self) -> dict[str, Any]:
        graph, listed = self._graph, []
        for node_id, row in self._rows.items():
            node, holder = graph.nodes[node_id], self._holders[_holder_id(row)]
            readers = [_link(graph.nodes[edge.target], edge) for edge in graph.dependents(node) if edge.how in _READERS]
            # What is on demand has one version alone.
            is_serving = isinstance(holder, OnDemandView) or holder.serving
            state = "deprecated" if row["deprecated"] else "serving" if is_serving else "running"
            seen = self._figures.of(holder.id, row["feature"])
            listed.append(
                {
                    **row,
                    "page": page_of("feature", node.name),
                    "readers": readers,
                    "state": state,
                    "seen": seen[0] if seen else None,
                    "view_seen": self._figures.views.get(holder.id),
                    "worth": self._figures.worth.get(node.name),
                }
            )
        # What needs somebody's attention comes first.
        listed.sort(key=lambda row: (not (row["seen"] and row["seen"].is_over), not row["deprecated"]))
        lists = {kind: [_link(node) for node in graph.nodes.values() if node.kind == kind] for kind in _LISTED}
        return {
            "rows": listed,
            "lists": lists,
            "titles": _TITLES,
            "owners": sorted({row["owner"] for row in listed if row["owner"]}),
            # Those of on-demand features are inputs too.
            "entities": sorted({", ".join(row["keys"]) for row in listed if row["function"] != "on demand"}),
            "services": sorted(node.name for node in graph.nodes.values() if node.kind == "service"),
            "watched": sorted({row["seen"].state for row in listed if row["seen"]}),
            "has_worth": bool(self._figures.worth),
        }

    def _of_alerts(self) -> dict[str, Any]:
        nodes = (self._graph.nodes.get(f"view {view_id}") for view_id in self._figures.views)
        links = {node.name: _link(node) for node in nodes if node is not None}
        over = [(view_id, links.get(view_id), one.over) for view_id, one in self._figures.views.items() if one.over]
        return {"over": over, "refused": self._figures.refused, "faults": self._figures.faults}

    def _of_thing(self, node: Node) -> dict[str, Any]:
        graph = self._graph
        sources = [_link(graph.nodes[edge.source], edge) for edge in graph.sources(node)]
        dependents = [_link(graph.nodes[edge.target], edge) for edge in graph.dependents(node)]
        view = self._view_of(node)
        values: dict[str, Any] = {
            "node": node,
            "kind": _TITLES.get(node.kind, node.kind),
            "facts": node.about,
            "of": next((one for one in sources if one.how == "of"), None),
            "sources": [one for one in sources if one.how != "of"],
            "held": [one for one in dependents if one.how == "of"],
            "dependents": [one for one in dependents if one.how != "of"],
            "further_sources": _others(graph.upstream([node]), graph.sources(node), "source"),
            "further_dependents": _others(graph.downstream([node]), graph.dependents(node), "target"),
            "ways": [],
            "deprecated": "",
            "view": view,
            "view_seen": None if view is None else self._figures.views.get(view.id),
            "seen": [],
            "worth": None,
        }
        if (row := self._rows.get(node.id)) is not None:
            holder = self._holders[_holder_id(row)]
            seen = self._figures.of(holder.id, row["feature"])
            values |= _of_feature(row, holder, node.about, self._prefix, self._address)
            values |= {
                "seen": [(one, bars(one.bins, one.counts, one.counts_before)) for one in seen],
                "worth": self._figures.worth.get(node.name),
            }
        return values

    def _view_of(self, node: Node) -> View | None:
        """Return the view that a page is about, or that has its feature."""
        if node.kind not in {"view", "feature"}:
            return None
        holder = self._holders.get(node.name.partition(":")[0])
        return holder if isinstance(holder, View) else None


def _breakable(text: str) -> Markup:
    """Return text that a line may break after the signs that join words, and not within a word."""
    return Markup(_JOINTS.sub(r"\g<0><wbr>", str(escape(text))))  # noqa: S704 - it is escaped


def _age(us: int | None) -> str:
    return NOT_KNOWN if us is None else rough_duration(us)


def _percent(share: float | None) -> str:
    return NOT_KNOWN if share is None else f"{share:.1%}"


# Not the end of an escape, which is a semicolon.
_JOINTS = re.compile("[_:,.@]")


_READERS = frozenset({"read", "trained"})


def _holder_id(row: _Row) -> str:
    return f"{row['view']}@{row['version']}"


def _link(node: Node, edge: Edge | None = None) -> Link:
    page = page_of(node.kind, node.name) if node.kind in _WITH_PAGE else None
    return Link(node.name, _TITLES.get(node.kind, node.kind), page, "" if edge is None else edge.how)


def _others(reached: Iterable[Node], edges: Iterable[Edge], end: str) -> list[Link]:
    """Return what is reached beside the ends of a node's own edges, by kind."""
    near = {getattr(edge, end) for edge in edges}
    further = [node for node in reached if node.id not in near]
    return [_link(node) for node in sorted(further, key=lambda node: KINDS.index(node.kind))]


def _of_feature(row: _Row, holder: _Holder, about: Mapping[str, str], prefix: str, address: str) -> dict[str, Any]:
    """Return what a feature's page has in place of other things' and besides. ``about``: the node's own facts."""
    feature = holder.feature(row["feature"])
    assert feature is not None
    facts = {**about, "default": _default(feature)}
    if isinstance(holder, View):
        # A derived feature has those of the features that it is derived from.
        facts["window"] = row["window"] or "none"
        facts["entity"] = f"{holder.entity.name} ({', '.join(holder.entity.keys)})"
        facts["stream"] = holder.stream
        facts["where"] = holder.where or "all events"
        facts["fingerprint"] = holder.state_fingerprint
    else:
        facts["inputs"] = ", ".join(f"{name} {dtype}" for name, dtype in holder.inputs.items())
        facts["fingerprint"] = holder.fingerprint
    facts["owner"] = row["owner"] or NONE
    facts["description"] = row["description"] or NONE
    return {"facts": facts, "ways": _ways(row, holder, prefix, address), "deprecated": feature.deprecated}


def _default(feature: ViewFeature) -> str:
    """Return what is read in place of null, and of an entity without events."""
    if feature.default is not None:
        return shown(feature.default)
    return "none: it is null" if feature.empty is None else f"none; without events it is {shown(feature.empty)}"


def _ways(row: _Row, holder: _Holder, prefix: str, address: str) -> list[tuple[str, str]]:
    """Return how a feature is read, as text to copy; the version is named, so it works while another serves."""
    reference = f"{holder.id}:{row['feature']}" if isinstance(holder, View) else row["reference"]
    given = dict.fromkeys(row["keys"], "...")
    body = {"entities": {name: [value] for name, value in given.items()}, "features": [reference]}
    store = f"FeatureStore(prefix={prefix!r})" if prefix != _PREFIX else "FeatureStore()"
    ways = [
        ("Python", f"{store}.get_online_features([{reference!r}], [{given!r}]).to_dict()"),
        (
            "HTTP",
            f"curl {address}/get-online-features -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        ),
    ]
    if isinstance(holder, View):
        words = ["redis-cli", "HGET", value_key(prefix, holder.id, "KEY"), row["feature"]]
        ways.append(("redis-cli", shlex.join(words)))
    return ways
