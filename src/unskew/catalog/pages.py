"""The catalog: pages about everything that is published, made from the lineage, in which all of it stands.

A page shows what is known, and says "not known" where nothing is. It asks for nothing from elsewhere, and holds no
script and no style of its own: its policy permits those of its folder alone.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from jinja2.loaders import FunctionLoader
from markupsafe import Markup, escape

from unskew.catalog.naming import page_of
from unskew.features.definitions.lineage import KINDS, Edge, Lineage, Model, Node
from unskew.features.on_demand import OnDemandView
from unskew.features.plan import StreamPlan
from unskew.features.registry import Published
from unskew.features.revision import Revision
from unskew.features.view import View, ViewFeature
from unskew.offline.catalogue import catalogue

INDEX = "index.html"
CHANGES = "changes.html"
ASSETS = ("catalog.css", "catalog.js")
NOT_KNOWN = "not known"
# Columns, inputs and sessions stand on the pages of what has them.
_WITH_PAGE = frozenset({"view", "on_demand", "service", "stream", "table", "topic", "model", "feature"})
_TITLES = {"on_demand": "on-demand view"}
_LISTED = ("view", "on_demand", "service", "stream", "model")


class Link(NamedTuple):
    """Something that a page names. ``page``: None if it has none. ``how``: how it is related."""

    text: str
    kind: str
    page: str | None
    how: str = ""


def pages(
    published: Published,
    streams: Mapping[str, StreamPlan] | None = None,
    *,
    models: Iterable[Model] = (),
    revisions: Sequence[Revision] = (),
    place: str,
) -> dict[str, bytes]:
    """Return all files of the catalog by name. ``place``: where what is published was found, for people.

    ``revisions``: of the record, the last one first.
    """
    graph = Lineage(published, streams, models=models)
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    environment.globals |= {"place": place, "has_changes": bool(revisions), "not_known": NOT_KNOWN}
    made = {name: _read(name) for name in ASSETS}

    def add(name: str, template: str, **values: Any) -> None:
        made[name] = environment.get_template(template).render(**values).encode()

    add(INDEX, "features.html", **_of_features(published, graph))
    for node in graph.nodes.values():
        if node.kind in _WITH_PAGE:
            add(page_of(node.kind, node.name), "thing.html", **_of_thing(node, published, graph))
    if revisions:
        add(CHANGES, "changes.html", revisions=revisions)
    return made


def _breakable(text: str) -> Markup:
    """Return text that a line may break after the signs that join words, and not within a word."""
    return Markup(_JOINTS.sub(r"\g<0><wbr>", str(escape(text))))  # noqa: S704 - it is escaped


# Not the end of an escape, which is a semicolon.
_JOINTS = re.compile("[_:,.@]")


def _read(name: str) -> bytes:
    return (files("unskew.catalog") / "templates" / name).read_bytes()


def _source(name: str) -> str:
    return _read(name).decode()


def _of_features(published: Published, graph: Lineage) -> dict[str, Any]:
    rows = []
    for row in catalogue(published.views, published.on_demand.values()).iter_rows(named=True):
        node = graph.nodes[f"feature {row['view']}@{row['version']}:{row['feature']}"]
        readers = [_link(graph.nodes[edge.target], edge) for edge in graph.dependents(node) if edge.how in _READERS]
        rows.append({**row, "page": page_of("feature", node.name), "readers": readers, "state": _state(row, published)})
    # What is deprecated needs somebody's attention.
    rows.sort(key=lambda row: not row["deprecated"])
    lists = {kind: [_link(node) for node in graph.nodes.values() if node.kind == kind] for kind in _LISTED}
    owners = sorted({row["owner"] for row in rows if row["owner"]})
    entities = sorted({", ".join(row["keys"]) for row in rows})
    return {"rows": rows, "lists": lists, "titles": _TITLES, "owners": owners, "entities": entities}


_READERS = frozenset({"read", "trained"})


def _state(row: Mapping[str, Any], published: Published) -> str:
    """Return what the version of a feature's view is: what bare names mean, or not."""
    view = published.views.get(f"{row['view']}@{row['version']}") or published.views.get(row["view"])
    return "serving" if view is None or view.serving else "running"


def _link(node: Node, edge: Edge | None = None) -> Link:
    page = page_of(node.kind, node.name) if node.kind in _WITH_PAGE else None
    return Link(node.name, _TITLES.get(node.kind, node.kind), page, "" if edge is None else edge.how)


def _of_thing(node: Node, published: Published, graph: Lineage) -> dict[str, Any]:
    holder, feature = _defined(node, published)
    sources = [_link(graph.nodes[edge.source], edge) for edge in graph.sources(node)]
    dependents = [_link(graph.nodes[edge.target], edge) for edge in graph.dependents(node)]
    facts = {"kind": _TITLES.get(node.kind, node.kind), **node.about}
    if feature is not None and holder is not None:
        facts |= _facts_of(feature, holder)
    return {
        "node": node,
        "kind": facts.pop("kind"),
        "facts": facts,
        "of": None if holder is None else _link(graph.nodes[f"{_kind(holder)} {holder.id}"]),
        "sources": [one for one in sources if one.how != "of"],
        "held": [one for one in dependents if one.how == "of"],
        "dependents": [one for one in dependents if one.how != "of"],
        "further_sources": _others(graph.upstream([node]), graph.sources(node), "source"),
        "further_dependents": _others(graph.downstream([node]), graph.dependents(node), "target"),
        "ways": [] if feature is None or holder is None else _ways(feature, holder),
        "deprecated": "" if feature is None else feature.deprecated,
    }


def _kind(holder: View | OnDemandView) -> str:
    return "view" if isinstance(holder, View) else "on_demand"


def _others(reached: Iterable[Node], edges: Iterable[Edge], end: str) -> list[Link]:
    """Return what is reached beside the ends of a node's own edges, by kind."""
    near = {getattr(edge, end) for edge in edges}
    further = [node for node in reached if node.id not in near]
    return [_link(node) for node in sorted(further, key=lambda node: KINDS.index(node.kind))]


def _defined(node: Node, published: Published) -> tuple[View | OnDemandView | None, ViewFeature | None]:
    """Return the view that a feature is of, and the feature; None for anything else."""
    if node.kind != "feature":
        return None, None
    view_id, _, name = node.name.partition(":")
    holders: Iterable[View | OnDemandView] = (*published.views.values(), *published.on_demand.values())
    holder = next((one for one in holders if one.id == view_id), None)
    return holder, None if holder is None else holder.feature(name)


def _facts_of(feature: ViewFeature, holder: View | OnDemandView) -> dict[str, str]:
    facts = {"default": "none: it is null" if feature.default is None else str(feature.default)}
    if isinstance(holder, View):
        # A derived feature has those of the features that it is derived from.
        facts["window"] = ", ".join(window.text for window in holder.windows_of(feature)) or "none"
        facts["entity"] = f"{holder.entity.name} ({', '.join(holder.entity.keys)})"
        facts["stream"] = holder.stream
        facts["where"] = holder.where or "all events"
        facts["fingerprint"] = holder.state_fingerprint
    else:
        facts["inputs"] = ", ".join(f"{name} {dtype}" for name, dtype in holder.inputs.items())
        facts["fingerprint"] = holder.fingerprint
    facts["owner"] = feature.owner or holder.owner or NOT_KNOWN
    facts["description"] = feature.description or holder.description or NOT_KNOWN
    return facts


def _ways(feature: ViewFeature, holder: View | OnDemandView) -> list[tuple[str, str]]:
    """Return how the feature is read, as text to copy; the version is named, so it works while another serves."""
    reference = f"{holder.id}:{feature.name}" if isinstance(holder, View) else f"{holder.name}:{feature.name}"
    given = dict.fromkeys(holder.entity.keys if isinstance(holder, View) else holder.inputs, "...")
    body = {"entities": {name: [value] for name, value in given.items()}, "features": [reference]}
    command = f"curl localhost:6566/get-online-features -d {_quoted(json.dumps(body, ensure_ascii=False))}"
    ways = [
        ("Python", f"FeatureStore().get_online_features([{reference!r}], [{given!r}]).to_dict()"),
        ("HTTP", command),
    ]
    if isinstance(holder, View):
        ways.append(("redis-cli", f"redis-cli HGET {_quoted(f'unskew:{holder.id}:{{KEY}}')} {_quoted(feature.name)}"))
    return ways


def _quoted(text: str) -> str:
    """Return text as one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
