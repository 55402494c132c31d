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

from unskew.catalog.naming import page_of
from unskew.features.definitions.lineage import KINDS, Edge, Lineage, Model, Node
from unskew.features.on_demand import OnDemandView
from unskew.features.plan import StreamPlan
from unskew.features.registry import Published
from unskew.features.revision import Revision
from unskew.features.view import View
from unskew.offline.catalogue import catalogue
from unskew.sinks.redis.keyspace import value_key

INDEX = "index.html"
CHANGES = "changes.html"
ASSETS = ("catalog.css", "catalog.js")
NOT_KNOWN = "not known"
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


def pages(
    published: Published,
    streams: Mapping[str, StreamPlan] | None = None,
    *,
    models: Iterable[Model] = (),
    revisions: Sequence[Revision] = (),
    place: str,
    prefix: str = _PREFIX,
) -> dict[str, bytes]:
    """Return all files of the catalog by name. ``place``: where what is published was found, for people.

    ``revisions``: of the record, the last one first. ``prefix``: the first part of every Redis key.
    """
    graph = Lineage(published, streams, models=models)
    held: list[_Holder] = [*published.views.values(), *published.on_demand.values()]
    holders = {one.id: one for one in held}
    listed = catalogue(published.views, published.on_demand.values()).iter_rows(named=True)
    rows = {f"feature {row['view']}@{row['version']}:{row['feature']}": row for row in listed}
    environment = Environment(
        loader=PackageLoader("unskew.catalog"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.globals |= {"place": place, "has_changes": bool(revisions), "not_known": NOT_KNOWN}
    made = {name: (files("unskew.catalog") / "templates" / name).read_bytes() for name in ASSETS}

    def add(name: str, template: str, **values: Any) -> None:
        made[name] = environment.get_template(template).render(**values).encode()

    add(INDEX, "features.html", **_of_features(rows, holders, graph))
    for node in graph.nodes.values():
        if node.kind in _WITH_PAGE:
            values = _of_thing(node, graph)
            if (row := rows.get(node.id)) is not None:
                values |= _of_feature(row, holders[_holder_id(row)], values["facts"], prefix)
            add(page_of(node.kind, node.name), "thing.html", **values)
    if revisions:
        add(CHANGES, "changes.html", revisions=revisions)
    return made


def _breakable(text: str) -> Markup:
    """Return text that a line may break after the signs that join words, and not within a word."""
    return Markup(_JOINTS.sub(r"\g<0><wbr>", str(escape(text))))  # noqa: S704 - it is escaped


# Not the end of an escape, which is a semicolon.
_JOINTS = re.compile("[_:,.@]")


def _of_features(rows: Mapping[str, _Row], holders: Mapping[str, _Holder], graph: Lineage) -> dict[str, Any]:
    shown = []
    for node_id, row in rows.items():
        node, holder = graph.nodes[node_id], holders[_holder_id(row)]
        readers = [_link(graph.nodes[edge.target], edge) for edge in graph.dependents(node) if edge.how in _READERS]
        # What is on demand has one version alone.
        is_serving = isinstance(holder, OnDemandView) or holder.serving
        state = "serving" if is_serving else "running"
        shown.append({**row, "page": page_of("feature", node.name), "readers": readers, "state": state})
    # What is deprecated needs somebody's attention.
    shown.sort(key=lambda row: not row["deprecated"])
    lists = {kind: [_link(node) for node in graph.nodes.values() if node.kind == kind] for kind in _LISTED}
    owners = sorted({row["owner"] for row in shown if row["owner"]})
    entities = sorted({", ".join(row["keys"]) for row in shown})
    return {"rows": shown, "lists": lists, "titles": _TITLES, "owners": owners, "entities": entities}


_READERS = frozenset({"read", "trained"})


def _holder_id(row: _Row) -> str:
    return f"{row['view']}@{row['version']}"


def _link(node: Node, edge: Edge | None = None) -> Link:
    page = page_of(node.kind, node.name) if node.kind in _WITH_PAGE else None
    return Link(node.name, _TITLES.get(node.kind, node.kind), page, "" if edge is None else edge.how)


def _of_thing(node: Node, graph: Lineage) -> dict[str, Any]:
    sources = [_link(graph.nodes[edge.source], edge) for edge in graph.sources(node)]
    dependents = [_link(graph.nodes[edge.target], edge) for edge in graph.dependents(node)]
    return {
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
    }


def _others(reached: Iterable[Node], edges: Iterable[Edge], end: str) -> list[Link]:
    """Return what is reached beside the ends of a node's own edges, by kind."""
    near = {getattr(edge, end) for edge in edges}
    further = [node for node in reached if node.id not in near]
    return [_link(node) for node in sorted(further, key=lambda node: KINDS.index(node.kind))]


def _of_feature(row: _Row, holder: _Holder, about: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """Return what a feature's page has in place of other things' and besides. ``about``: the node's own facts."""
    feature = holder.feature(row["feature"])
    assert feature is not None
    facts = {**about, "default": "none: it is null" if feature.default is None else str(feature.default)}
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
    facts["owner"] = row["owner"] or NOT_KNOWN
    facts["description"] = row["description"] or NOT_KNOWN
    return {"facts": facts, "ways": _ways(row, holder, prefix), "deprecated": feature.deprecated}


def _ways(row: _Row, holder: _Holder, prefix: str) -> list[tuple[str, str]]:
    """Return how a feature is read, as text to copy; the version is named, so it works while another serves."""
    reference = f"{holder.id}:{row['feature']}" if isinstance(holder, View) else row["reference"]
    given = dict.fromkeys(row["keys"], "...")
    body = {"entities": {name: [value] for name, value in given.items()}, "features": [reference]}
    store = f"FeatureStore(prefix={prefix!r})" if prefix != _PREFIX else "FeatureStore()"
    ways = [
        ("Python", f"{store}.get_online_features([{reference!r}], [{given!r}]).to_dict()"),
        (
            "HTTP",
            f"curl localhost:6566/get-online-features -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        ),
    ]
    if isinstance(holder, View):
        words = ["redis-cli", "HGET", value_key(prefix, holder.id, "KEY"), row["feature"]]
        ways.append(("redis-cli", shlex.join(words)))
    return ways
