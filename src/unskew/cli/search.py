"""``unskew search``: features, views, services and what they are made of, found by words."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli.known import known
from unskew.cli.screen import Screen, say, say_json
from unskew.features.errors import RequestError

if TYPE_CHECKING:
    from unskew.features.definitions.search import Hit


@click.command()
@click.argument("words", metavar="WORDS...", nargs=-1, required=True)
@settings.places
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The most results that are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_context
def search(
    context: click.Context,
    words: tuple[str, ...],
    definitions: tuple[Path, ...],
    log: Path | None,
    redis_url: str,
    prefix: str,
    limit: int,
    as_json: bool,
) -> None:
    """Find features, views, services, streams, topics and columns by WORDS, the best first.

    All words must match: the name, or else the owner, tags, entity, window, type, aggregation or description. A word
    may be a part of what it matches. If nothing matches, the nearest words are shown, and the exit status is 1.

    What is searched comes from --definitions, else from the --log that the command line names, else from the registry
    in Redis.

    \b
    Examples:
        unskew search spend 30d
        unskew search household --definitions definitions/ --json
    """
    from unskew.features.definitions.lineage import Lineage
    from unskew.features.definitions.search import nearest_words
    from unskew.features.definitions.search import search as hits_of

    if blank := [word for word in words if not any(map(str.isalnum, word))]:
        raise RequestError(f"there is no letter or digit in {blank[0]!r}; give words to search for")
    found = known(definitions, log, redis_url, prefix)
    graph = Lineage(found.published, found.streams)
    hits = hits_of(graph, words)
    near = [] if hits else nearest_words(graph, words)
    if as_json:
        say_json({"n_found": len(hits), "found": [_plain(hit) for hit in hits[:limit]], "nearest": near}, indent=2)
    elif hits:
        _print(hits[:limit])
        if len(hits) > limit:
            say(f"{len(hits) - limit:,} more; add a word, or a higher --limit")
    else:
        say(
            f"nothing in {found.place} matches {' '.join(words)!r}; "
            + (f"nearest words: {', '.join(near)}" if near else "try fewer or other words")
        )
    if not hits:
        context.exit(1)


def _print(hits: "list[Hit]") -> None:
    from unskew.features.folding import Rows, prose

    table = Rows("kind", "name", "type", prose("window"), "entity", "owner", prose("description"), keys=2)
    for hit in hits:
        about = hit.node.about
        texts = (about.get(word, "-") for word in ("type", "window", "entity", "owner", "description"))
        table.add(hit.node.kind.replace("_", "-"), hit.node.name, *texts)
    Screen().print(table)


def _plain(hit: "Hit") -> dict[str, Any]:
    return {"kind": hit.node.kind, "name": hit.node.name, "score": hit.score, **hit.node.about}
