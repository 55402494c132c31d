"""``unskew lineage``: what a feature comes from, and what depends on it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.known import known, models_of
from unskew.cli.screen import Screen, say, say_json, styled
from unskew.features.printing import printable

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from unskew.features.definitions.lineage import Edge, Lineage, Node

# Of things that stand for data, for processing, and for readers.
_SHAPES = {"topic": "cylinder", "table": "cylinder", "column": "plain", "service": "component", "model": "component"}
_SHOWN = ("type", "function", "value", "filter", "window", "gap", "format", "owner")


@click.command()
@click.argument("reference", metavar="REF", shell_complete=naming.features)
@settings.places
@click.option(
    "--models", type=settings.LocalPath(), metavar="FOLDER", help="Folder of training sets, whose manifests are models."
)
@click.option(
    "--kind", metavar="KIND", help="What REF is, where several things have that name: view, stream, topic, ..."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of trees.")
@click.option("--dot", "as_dot", is_flag=True, help="Print a graph in DOT, for Graphviz.")
@click.option("--openlineage", is_flag=True, help="Print JobEvents of OpenLineage, one JSON object in each line.")
@click.option(
    "--namespace", default="unskew", show_default=True, help="OpenLineage: the namespace of views, services and models."
)
@settings.bootstrap_servers
def lineage(
    reference: str,
    definitions: tuple[Path, ...],
    log: Path | None,
    redis_url: str,
    prefix: str,
    models: Path | None,
    kind: str | None,
    as_json: bool,
    as_dot: bool,
    openlineage: bool,
    namespace: str,
    bootstrap_servers: str,
) -> None:
    """Show what REF comes from, and what depends on it.

    REF is a VIEW, VIEW@VERSION, VIEW:FEATURE, a service, an on-demand view, a stream, a topic, a column (STREAM.COLUMN)
    or a model. A model is the name of a training set in the folder --models.

    What is known comes from --definitions, else from the --log that the command line names, else from the registry in
    Redis. Only definitions know the columns that no feature reads; a log knows no services. With --openlineage, topics
    are in the namespace kafka:// of --bootstrap-servers.

    \b
    Examples:
        unskew lineage user_purchases:spend_30d
        unskew lineage purchases.amount --definitions definitions/ \\
            --models training/
        unskew lineage purchases --dot | dot -Tsvg > purchases.svg
    """
    if as_json + as_dot + openlineage > 1:
        raise click.UsageError("--json, --dot and --openlineage exclude each other; give one of them")
    if not namespace:
        raise click.UsageError("--namespace: it is empty; give a name, or leave the option out")
    from unskew.features.definitions.lineage import KINDS, Lineage
    from unskew.features.nearest import nearest

    if kind is not None and kind not in KINDS:
        raise click.UsageError(f"--kind {kind!r} is not known; {nearest(kind, KINDS, 'kinds are')}")
    found = known(definitions, log, redis_url, prefix)
    graph = Lineage(found.published, found.streams, models=() if models is None else models_of(models))
    named = graph.find(reference, kind)
    sources, dependents = graph.upstream(named), graph.downstream(named)
    if as_json:
        say_json(_plain(reference, graph, named, sources, dependents), indent=2)
    elif as_dot:
        for line in _dot([*named, *sources, *dependents], graph.between([*named, *sources, *dependents])):
            say(line)
    elif openlineage:
        from unskew.cli.openlineage import OpenLineage
        from unskew.sinks.wall import wall_us

        topics = f"kafka://{bootstrap_servers.partition(',')[0]}"
        for event in OpenLineage(graph, namespace=namespace, topics=topics, now_us=wall_us()).events(
            [*named, *sources, *dependents]
        ):
            say_json(event)
    else:
        screen = Screen()
        screen.print(_label(named[0], bold=True))
        for title, step in (("comes from", _reads(graph)), ("is read by", _read_by(graph))):
            screen.print(_tree(title, graph, named, step))


Step = Callable[["Node"], Iterable[tuple[str, str]]]
"""From a node to the ids of others, each with how it is related."""


def _reads(graph: "Lineage") -> Step:
    return lambda node: ((edge.source, edge.how) for edge in graph.sources(node))


def _read_by(graph: "Lineage") -> Step:
    return lambda node: ((edge.target, edge.how) for edge in graph.dependents(node))


def _tree(title: str, graph: "Lineage", named: "Sequence[Node]", step: Step) -> "Tree":
    """Return what is related to some nodes, near things first; what was shown before is not shown again."""
    from rich.tree import Tree

    tree = Tree(styled(title, "bold"))
    seen = {node.id for node in named}
    waiting: list[tuple[Sequence[Node], Tree]] = [(named, tree)]
    while waiting:
        nodes, branch = waiting.pop()
        hows: dict[str, dict[str, None]] = {}
        for node in nodes:
            for other, how in step(node):
                if other not in {one.id for one in nodes}:
                    hows.setdefault(other, {})[how] = None
        below = []
        for other, its in hows.items():
            node = graph.nodes[other]
            again = other in seen
            seen.add(other)
            its_branch = branch.add(_label(node, ", ".join(its), again=again))
            if not again:
                below.append(([node], its_branch))
        waiting += reversed(below)
    if not tree.children:
        tree.add("nothing that is known")
    return tree


def _label(node: "Node", how: str = "", *, bold: bool = False, again: bool = False) -> "Text":
    label = styled(f"{node.kind.replace('_', '-')} ", "dim").append(printable(node.name), "bold" if bold else "")
    if how:
        label.append(printable(f"  ({how})"), "dim")
    if again:
        return label.append("  shown elsewhere", "dim")
    about = [
        node.about[word] if word != "owner" else f"owner {node.about[word]}" for word in _SHOWN if word in node.about
    ]
    return label.append(printable(f"  {', '.join(about)}" if about else ""), "dim")


def _plain(
    reference: str, graph: "Lineage", named: "Sequence[Node]", sources: "Sequence[Node]", dependents: "Sequence[Node]"
) -> dict[str, Any]:
    nodes = [*named, *sources, *dependents]
    return {
        "reference": reference,
        "named": [node.id for node in named],
        "upstream": [node.id for node in sources],
        "downstream": [node.id for node in dependents],
        "nodes": [{"id": node.id, "kind": node.kind, "name": node.name, **node.about} for node in nodes],
        "edges": [{"source": edge.source, "target": edge.target, "how": edge.how} for edge in graph.between(nodes)],
    }


def _dot(nodes: "Sequence[Node]", edges: "Sequence[Edge]") -> Iterable[str]:
    """Yield the lines of a graph; names of others are data in it, and never markup."""
    ids = {node.id: f"n{number}" for number, node in enumerate(nodes)}
    yield "digraph lineage {"
    yield "  rankdir=LR;"
    yield "  node [shape=box];"
    for node in nodes:
        label = _quoted(f"{node.kind.replace('_', '-')}\n{node.name}")
        yield f"  {ids[node.id]} [label={label}, shape={_SHAPES.get(node.kind, 'box')}];"
    for edge in edges:
        yield f"  {ids[edge.source]} -> {ids[edge.target]} [label={_quoted(edge.how)}];"
    yield "}"


def _quoted(text: str) -> str:
    """Return text as a string of DOT, in which a backslash begins an escape."""
    lines = (printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n", 1))
    return '"' + "\\n".join(lines) + '"'
