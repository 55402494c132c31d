"""``unskew purge``: remove what a view version that is no longer computed left in Redis."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.screen import say
from unskew.features.errors import RequestError
from unskew.features.nearest import nearest
from unskew.features.registry import named, without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unskew.sinks.redis.url import Client

_VIEW_ID = re.compile(r"[^@\s]+@[1-9][0-9]*")


@click.command()
@click.argument("views", metavar="VIEW@VERSION...", nargs=-1, required=True, shell_complete=naming.views)
@settings.redis_url
@settings.prefix
@settings.pipeline
@settings.optional_state
@settings.optional_log
@click.option(
    "--backfill",
    is_flag=True,
    help="Remove a backfill that no pipeline has taken over, from --state and --log, and nothing from Redis.",
)
@click.option(
    "--force", is_flag=True, help="Also if a pipeline has not given up the view: it must have ended for good."
)
def purge(
    views: tuple[str, ...],
    redis_url: str,
    prefix: str,
    pipeline: str,
    state: Path | None,
    log: Path | None,
    backfill: bool,
    force: bool,
) -> None:
    """Remove the values of view versions that are no longer computed, and what Redis holds beside them.

    `unskew run` names this command when a view is no longer defined or has a new version. Keys of other views, versions
    and prefixes are not touched. The keys are found by SCAN, page by page, so Redis goes on serving. The command can be
    repeated.

    \b
    Examples:
        unskew purge household_purchases@1
        unskew purge household_purchases@1 --force  (its pipeline has ended)
        unskew purge household_purchases@2 --backfill --state state --log log
    """
    from unskew.sinks.redis.keyspace import clock_key, owners_key
    from unskew.sinks.redis.nodes import nodes_of
    from unskew.sinks.redis.removal import remove_values, remove_words
    from unskew.sinks.redis.server import Server
    from unskew.sinks.redis.words import Clocks, Words, retired_words

    if wrong := [view for view in views if not _VIEW_ID.fullmatch(view)]:
        raise RequestError(f"{wrong[0]!r} is not a view version; write VIEW@VERSION, for example household_purchases@1")
    if backfill:
        _remove_backfills(views, state, log)
        return
    server = Server(redis_url)
    try:
        with server.reaching() as client:
            clocks, owners = Clocks.read(client, clock_key(prefix, pipeline)), Words.read(client, owners_key(prefix))
            alive = [view for view in views if clocks.shards(view) or owners.of_views([view])]
            if alive and not force:
                raise RequestError(
                    f"{', '.join(alive)}: a pipeline computes it; run that pipeline without the view first, or, if it has ended for "
                    "good, add --force"
                )
            registered = _withdraw(client, prefix, views)
            known = {*registered, *clocks.view_ids(), *owners.view_ids()}
            unknown = []
            for view in views:
                n_removed = remove_values(
                    client,
                    prefix,
                    view,
                    lambda n, view=view: say(f"{view}: {n:,} keys removed", err=True),  # type: ignore[misc]
                )
                if not n_removed and view not in known:
                    unknown.append(view)
                    continue
                remove_words(client, prefix, pipeline, nodes_of(client).tags, [view])
                client.hset(clock_key(prefix, pipeline), mapping=retired_words([view]))  # type: ignore[arg-type]
                say(f"{view}: {n_removed:,} keys removed from Redis")
            if unknown:
                raise RequestError(
                    f"Redis holds nothing of {', '.join(unknown)} under the prefix {prefix!r} and the pipeline {pipeline!r}; "
                    f"{nearest(unknown[0], sorted(known), 'it holds', none='no view')}"
                )
    finally:
        server.close()


def _remove_backfills(views: "Sequence[str]", state: Path | None, log: Path | None) -> None:
    from unskew.pipelines.deployment import owner_of
    from unskew.pipelines.history.ahead import remove_backfill

    if state is None or log is None:
        raise RequestError("--backfill: give the --state and the --log of the pipeline")
    for view in views:
        n_shards = remove_backfill(view, state, log, owner_of(f"the removal of a backfill of {view}", state))
        say(f"{view}: its backfill is removed: {n_shards} shards, with their log")


def _withdraw(client: "Client", prefix: str, views: "Sequence[str]") -> list[str]:
    """Remove the views from the published registry; return all that it named before."""
    from unskew.sinks.redis.published import replace_registry

    before: list[str] = []

    def change(stored: "bytes | str | None") -> str | None:
        before[:] = named(stored)
        return without(stored, views)

    replace_registry(client, prefix, change)
    return before
