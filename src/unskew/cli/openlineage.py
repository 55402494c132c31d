"""A lineage as events of OpenLineage: https://openlineage.io/docs/spec/object-model.

Each view, on-demand view, service and model is a job. It reads datasets (topics, tables, views) and gives one of its
own (of a model, the training set), whose facet ``columnLineage`` says from which fields each of its fields comes. A
definition has not run, so the events are of the kind JobEvent, which says what a job is.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from unskew.features.definitions.lineage import How, Kind, Lineage, Node
from unskew.features.time import format_instant

SPEC = "https://openlineage.io/spec"
_EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/JobEvent"
_FACETS = {
    "documentation": ("1-1-0", "DocumentationDatasetFacet"),
    "ownership": ("1-0-1", "OwnershipDatasetFacet"),
    "schema": ("1-2-0", "SchemaDatasetFacet"),
    "columnLineage": ("1-2-0", "ColumnLineageDatasetFacet"),
    "jobType": ("2-0-4", "JobTypeJobFacet"),
}
_JOBS: tuple[Kind, ...] = ("view", "on_demand", "service", "model")
_IDENTITY = ("DIRECT", "IDENTITY")
_HOW: Mapping[How, tuple[str, str]] = {
    "value": ("DIRECT", "AGGREGATION"),
    "derived": ("DIRECT", "TRANSFORMATION"),
    "filter": ("INDIRECT", "FILTER"),
    "where": ("INDIRECT", "FILTER"),
    "by": ("INDIRECT", "GROUP_BY"),
    "key": ("INDIRECT", "GROUP_BY"),
    "event time": ("INDIRECT", "WINDOW"),
}

Field = tuple[str, str, str]
"""A namespace, the name of a dataset in it, and the name of a field."""
Read = dict[Field, dict[tuple[str, str], None]]
"""What a field is made of, each with the types and subtypes of what is done with it."""


class OpenLineage:
    """Writes the jobs of a lineage as events.

    ``namespace``: of the jobs and of what they make. ``topics``: of the topics, ``kafka://host:port``.
    """

    def __init__(self, lineage: Lineage, *, namespace: str, topics: str, now_us: int) -> None:
        self._lineage = lineage
        self._namespace = namespace
        self._topics = topics
        self._now = format_instant(now_us)
        self._producer = f"https://pypi.org/project/unskew/{version('unskew')}/"

    def events(self, nodes: Iterable[Node]) -> Iterator[dict[str, Any]]:
        """Yield an event for each job among these nodes, and for the job of each feature among them."""
        jobs: dict[str, Node] = {}
        for node in nodes:
            if node.kind == "feature":
                jobs |= {one.id: one for one in self._holders(node)}
            elif node.kind in _JOBS:
                jobs[node.id] = node
        return map(self._event, jobs.values())

    def _event(self, job: Node) -> dict[str, Any]:
        features = self._features(job)
        fields = {name: self._read(job, feature) for name, feature in features.items()}
        inputs = dict.fromkeys((one[:2] for of_field in fields.values() for one in of_field), None)
        inputs |= dict.fromkeys(self._datasets(job), None)
        facets = {
            "schema": self._facet("schema", fields=[_field(name, its) for name, its in features.items()]),
            "columnLineage": self._facet(
                "columnLineage", fields={name: {"inputFields": _input_fields(read)} for name, read in fields.items()}
            ),
        }
        if description := job.about.get("description"):
            facets["documentation"] = self._facet("documentation", description=description)
        if owner := job.about.get("owner"):
            facets["ownership"] = self._facet("ownership", owners=[{"name": owner}])
        is_batch = job.kind == "model" or any(node.kind == "table" for node in self._lineage.upstream([job]))
        kind = self._facet(
            "jobType",
            processingType="BATCH" if is_batch else "STREAMING",
            integration="UNSKEW",
            jobType=job.kind.upper(),
        )
        return {
            "eventTime": self._now,
            "producer": self._producer,
            "schemaURL": _EVENT,
            "job": {"namespace": self._namespace, "name": _name(job), "facets": {"jobType": kind}},
            "inputs": [{"namespace": namespace, "name": name} for namespace, name in inputs],
            "outputs": [{"namespace": self._namespace, "name": _name(job), "facets": facets}],
        }

    def _facet(self, name: str, **content: Any) -> dict[str, Any]:
        place, kind = _FACETS[name]
        return {
            "_producer": self._producer,
            "_schemaURL": f"{SPEC}/facets/{place}/{kind}.json#/$defs/{kind}",
            **content,
        }

    def _features(self, job: Node) -> dict[str, Node]:
        """Return the features that a job gives, by the names of its fields."""
        if job.kind in {"view", "on_demand"}:
            edges = [edge.target for edge in self._lineage.dependents(job) if edge.how == "of"]
        else:
            edges = [edge.source for edge in self._lineage.sources(job)]
        nodes = [node for node in (self._lineage.nodes[one] for one in edges) if node.kind == "feature"]
        short = [node.name.partition(":")[2] for node in nodes]
        return {name if short.count(name) == 1 else node.name: node for name, node in zip(short, nodes, strict=True)}

    def _holders(self, feature: Node) -> list[Node]:
        return [self._lineage.nodes[edge.source] for edge in self._lineage.sources(feature) if edge.how == "of"]

    def _datasets(self, job: Node) -> Iterator[tuple[str, str]]:
        """Yield the topics and tables that a view reads, whether or not a feature reads a column of them."""
        if job.kind == "view":
            for node in self._lineage.upstream([job]):
                if node.kind in {"topic", "table"}:
                    yield self._dataset(node)

    def _dataset(self, node: Node) -> tuple[str, str]:
        return (self._topics if node.kind == "topic" else "file", node.name)

    def _read(self, job: Node, feature: Node) -> Read:
        """Return the fields of other datasets that a feature is made of, with how."""
        if job.kind in {"service", "model"}:
            return {(self._namespace, *_place(feature)): {_IDENTITY: None}}
        found: Read = {}
        begun: list[tuple[Node, tuple[str, str]]] = [(feature, _IDENTITY)]
        if job.kind == "view":
            begun.append((job, ("INDIRECT", "FILTER")))
        seen = set()
        while begun:
            node, outer = begun.pop()
            for edge in self._lineage.sources(node):
                source = self._lineage.nodes[edge.source]
                how = _HOW.get(edge.how, outer)
                if outer[0] == "INDIRECT" and how[0] == "DIRECT":
                    how = outer
                if source.kind == "feature" and job.kind == "on_demand":
                    found.setdefault((self._namespace, *_place(source)), {})[how] = None
                elif source.kind == "column" and (datasets := self._datasets_of(source)):
                    for place in datasets:
                        found.setdefault((*place, source.about["column"]), {})[how] = None
                elif source.kind in {"feature", "column", "sessions"} and (source.id, how) not in seen:
                    seen.add((source.id, how))
                    begun.append((source, how))
        return found

    def _datasets_of(self, column: Node) -> list[tuple[str, str]]:
        """Return the topics or tables that have a column; none for a column of sessions."""
        holder = self._lineage.nodes[column.about["of"]]
        sources = [self._lineage.nodes[edge.source] for edge in self._lineage.sources(holder)]
        return [self._dataset(node) for node in sources if node.kind in {"topic", "table"}]


def _name(job: Node) -> str:
    return job.name if job.kind == "view" else f"{job.kind} {job.name}"


def _place(feature: Node) -> tuple[str, str]:
    """Return the dataset of a feature, and its field there."""
    view, _, name = feature.name.partition(":")
    return view, name


def _field(name: str, feature: Node) -> dict[str, str]:
    about = {"type": feature.about.get("type"), "description": feature.about.get("description")}
    return {"name": name, **{word: text for word, text in about.items() if text}}


def _input_fields(read: Read) -> list[dict[str, Any]]:
    return [
        {
            "namespace": namespace,
            "name": name,
            "field": field,
            "transformations": [{"type": kind, "subtype": subtype} for kind, subtype in hows],
        }
        for (namespace, name, field), hows in sorted(read.items())
    ]
