"""``unskew erase``: remove one entity everywhere, and search for what is left of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli.screen import Screen, say
from unskew.features.errors import RequestError
from unskew.features.printing import printable

if TYPE_CHECKING:
    from unskew.features.keys import OneEntity
    from unskew.features.plan import Plan, ViewPlan
    from unskew.features.view import ViewEntity
    from unskew.offline.erasing import Place, Searched

_SHOWN = 10


@click.command()
@click.argument("entity")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@settings.some_definitions
@settings.states
@settings.log
@settings.archive
@settings.dead_letters
@settings.served
@settings.redis_url
@settings.schema_registry
@settings.umask
@click.option(
    "--doubted-letters",
    is_flag=True,
    help="Also remove dead letters that cannot be read and in which so short a key cannot be looked for.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Change nothing, and print where the entity is. Pipelines must stand all the same: in files that one of them "
    "replaces meanwhile, the entity could be missed.",
)
def erase(
    entity: str,
    keys: tuple[str, ...],
    definitions: tuple[Path, ...],
    states: tuple[Path, ...],
    log: Path,
    archive: Path,
    dead_letters: Path | None,
    served: Path | None,
    redis_url: str,
    schema_registry: str | None,
    doubted_letters: bool,
    dry_run: bool,
) -> None:
    """Remove one entity from Redis, state, log, archive and dead letters, and search for what is left of it.

    ENTITY is the entity's name in the definitions, KEY its key; an entity with several key columns takes a KEY for
    each, in their order. Without --definitions, the log says how all views in it are computed. Pipelines that use these
    folders must stand; the command refuses otherwise. It may be interrupted at any point: the same command finishes the
    rest. If anything is left, it exits with 1.

    Entities whose keys contain the key (a user's shops, say) are removed with it. An archived event of the entity
    keeps its place and loses its content, except for what views of other entities read; what these have counted stays.
    Records that are still in Kafka come again if they are read again, and new ones begin the entity anew.

    \b
    unskew erase user u-42 --state state --log log --archive archive \\
        --redis-url redis://localhost:6379/0
    """
    from unskew.cli.known import plan_of
    from unskew.features.keys import OneEntity
    from unskew.features.local import existing_folder
    from unskew.offline import erasing
    from unskew.offline.compaction import refuse_swapped
    from unskew.pipelines.deployment import owner_of
    from unskew.pipelines.erasing import erase_state, is_pipeline, is_state, publish_held, search_state
    from unskew.pipelines.history.archive import columns_of
    from unskew.pipelines.state.folder import BATCH
    from unskew.serving.sample import SERVED
    from unskew.sinks.lease import EVERYTHING, Leases
    from unskew.sinks.redis.server import Server
    from unskew.sinks.tables.kinds import Roots

    plan = plan_of(definitions, log, applied=False)
    one = OneEntity.of(_entity(entity, plan, log), keys)
    letters = archive.with_name("dead_letters") if dead_letters is None else dead_letters
    for state in states:
        if not is_state(state):
            raise RequestError(f"{state} holds no state; name the --state of the pipeline")
    refuse_swapped(existing_folder(log, "--log"), existing_folder(archive, "--archive"))
    folders = {"--log": log, "--archive": archive, "--dead-letters": letters}
    errors = Screen(stderr=True)
    with ExitStack() as closing:
        leases = Leases()
        closing.callback(leases.release)
        owner = owner_of(f"the erasure of an entity of {entity}", states[0])
        batches = [("--state", state / BATCH) for state in states]
        everywhere = [*(("--state", state) for state in states), *batches, *folders.items()]
        for option, folder in everywhere:
            if folder.is_dir():
                leases.take(folder, option, owner, frozenset([EVERYTHING]))
        status = closing.enter_context(errors.status("")) if errors.is_terminal else None

        def report(text: str) -> None:
            if status is not None:
                status.update(printable(text))

        views = list(plan.views.values())
        readers = [view for view in views if not one.is_in(view.entity) and {*one.entity.keys} & {*columns_of(view)}]
        _refuse_pending(readers, states)
        for view in () if dry_run else readers:
            again = f"; run unskew materialize {view.id} --again afterwards" if view.stream.table is not None else ""
            say(
                f"{view.id} reads {', '.join(one.entity.keys)} as a value: what it has counted stays, and audits and new versions, which "
                f"count from the archive, will differ for entities that have met this one{again}",
                err=True,
            )
        if not dry_run:
            erasing.refuse_unfinished(archive)
            for state in states:
                # Before the tables are looked at, because it adds files to them.
                publish_held(state, plan, Roots(log=log, archive=archive, dead_letters=letters), leases.check, report)
        decoded = _decoder(plan, schema_registry, next(filter(is_pipeline, states), None))
        tables = erasing.places(
            one, views, log, archive, letters, read_by=columns_of, decoded=decoded, doubted=doubted_letters
        )
        covered = erasing.coverage_of(tables)
        server = Server(redis_url)
        closing.callback(server.close)
        removed: dict[str, int] = {}
        if not dry_run:
            for state in states:
                removed[f"state {state}"] = erase_state(state, plan, one, leases.check, report)
            removed["Redis"] = _in_redis(server, one, plan, report, dry_run=False)[0]
            for table in tables:
                if table.rule is not None:
                    removed[table.name] = erasing.erase(
                        table.name,
                        table.root,
                        table.rule,
                        counts=table.counts,
                        still_ours=leases.check,
                        progress=report,
                    ).n_found
        samples = [folder for folder in (log / SERVED, served) if folder is not None]
        if not dry_run:
            removed["samples"] = sum(_in_sample(folder, one, plan, dry_run=False).n_found for folder in samples)
        found: list[Searched] = [_in_sample(folder, one, plan, dry_run=True) for folder in samples if folder.is_dir()]
        for state in states:
            n_files, n_bytes, where = search_state(state, plan, one, report)
            in_state = erasing.Searched(place=f"state {state}", n_files=n_files, n_bytes=n_bytes, n_found=len(where))
            found.append(
                in_state if dry_run else replace(in_state, notes=tuple(f"{at}: the key is there" for at in where))
            )
        n_found, n_keys, unknown = _in_redis(server, one, plan, report, dry_run=True)
        found.append(erasing.Searched(place="Redis", n_files=n_keys, n_found=n_found, notes=_of_nobody(unknown)))
        found += [_searched(one, table, report) for table in tables]
        if not dry_run and (written := dict(covered.items() ^ erasing.coverage_of(tables).items())):
            # In an object store, nothing keeps a pipeline whose state was not named from writing.
            why = f"{min(written)} was written meanwhile by a pipeline that still runs; stop it, name its --state too, and erase again"
            found.append(erasing.Searched(place="pipelines", notes=(why,)))
    _show(found, removed, dry_run=dry_run)
    notes = [note for each in found for note in each.notes]
    for note in notes:
        say(note, err=True)
    for name in sorted(stream.name for stream in plan.streams.values() if stream.table is not None):
        if removed.get(f"archive {name}"):
            say(
                f"table {name}: remove the entity from the table itself too; its old rows come back only with unskew materialize "
                "--again, new ones begin the entity anew",
                err=True,
            )
    n_bytes = sum(each.n_bytes for each in found)
    what = f"{len(found)} places, {n_bytes:,} bytes of files and {n_keys:,} keys of Redis were searched"
    left = [each for each in found if each.n_found]
    if dry_run:
        say(
            f"nothing was changed; {what}: the entity is in {len(left)} of them"
            if left
            else f"{what}: nothing is there"
        )
        return
    if left or notes:
        say(
            f"error: {what}, and something may be left: {', '.join(each.place for each in left) or 'see above'}",
            err=True,
        )
        for each in left:
            say(f"error: {each.place}: {each.n_found:,} found; {_WHY}", err=True)
        raise click.exceptions.Exit(1)
    say(f"nothing is left: {what}")


_WHY = (
    "a view of another entity stores the key as a value, or the event_id of its stream contains the key. Give that view a new "
    "version without it, restart the pipeline, purge the old version, and erase again"
)


def _entity(name: str, plan: "Plan", log: Path) -> "ViewEntity":
    """Return an entity of the definitions, or of a log, whose views may be defined nowhere any more."""
    from unskew.features.nearest import nearest
    from unskew.sinks.tables.layout import read_definition, view_roots

    logged = [view for _, _, root in view_roots(log) if (view := read_definition(root)) is not None]
    known = {view.entity.name: view.entity for view in logged}
    known |= {view.entity.name: view.entity for view in plan.views.values()}
    if name not in known:
        raise RequestError(f"there is no entity {name!r}; {nearest(name, sorted(known), 'definitions and log have')}")
    return known[name]


def _refuse_pending(readers: "Sequence[ViewPlan]", states: Sequence[Path]) -> None:
    """Refuse while a backfill waits to be compared with the archive, whose values rest on the key."""
    from unskew.pipelines.state.seeds import Seeds

    for state in states:
        if pending := [view.id for view in readers if Seeds(state).has(view.id)]:
            raise RequestError(
                f"{pending[0]} reads the key as a value, and its backfill will be compared with the archive: first start unskew run twice "
                f"with its definition, which takes the backfill over, or remove it (unskew purge {pending[0]} --backfill)"
            )


def _decoder(plan: "Plan", schema_registry: str | None, state: Path | None) -> Callable[[str, Mapping[str, Any]], Any]:
    """Return what reads the value of a dead letter; one that cannot be read is searched as it is."""
    import threading

    from unskew.pipelines.decoding.schema_registry import SchemaRegistry
    from unskew.pipelines.replay import Checks, Resend

    schemas = None if schema_registry is None else SchemaRegistry(schema_registry, threading.Event())
    checks = Checks(plan.of_topics, schemas, state)

    def decoded(folder: str, row: Mapping[str, Any]) -> Any:
        record = Resend(folder, row["topic"], row["partition"], row["offset"], row["key"], row["value"], None)
        return checks.decoded(record)

    return decoded


def _in_redis(
    server: Any, one: "OneEntity", plan: "Plan", report: Callable[[str], None], *, dry_run: bool
) -> tuple[int, int, Sequence[str]]:
    """Remove the entity's values, or only look; return how many were its, how many there are, and the unknown ones."""
    import polars as pl

    from unskew.sinks.redis.removal import registries, remove_entity

    with server.reaching() as client:
        published = registries(client)
        known: dict[str, Any] = {view.id: view.entity for view in plan.views.values()}
        known |= {view.name: view.entity for view in plan.views.values()}

        def judge(prefix: str, view_id: str, key: str) -> bool | None:
            if not all(part in key.split("|") for part in one.key.split("|")):
                return False
            name = view_id.partition("@")[0]
            views = published.get(prefix, {})
            there = {
                **{view.name: view.entity for view in views.values()},
                **{view.id: view.entity for view in views.values()},
            }
            of_view = known.get(view_id) or there.get(view_id) or known.get(name) or there.get(name)
            if of_view is None:
                return None
            return one.is_in(of_view) and bool(one.among(pl.Series([key]), of_view)[0])

        found = remove_entity(client, judge, lambda n: report(f"Redis: {n:,} keys"), dry_run=dry_run)
    return len(found.removed), found.n_keys, found.unknown


def _in_sample(folder: Path, one: "OneEntity", plan: "Plan", *, dry_run: bool) -> "Searched":
    """Remove the lines of a sample that are the entity's, or mention its key, or only look."""
    import json

    import polars as pl

    from unskew.offline import erasing
    from unskew.serving.sample import forget

    entities = {name: view.entity for view in plan.views.values() for name in (view.name, view.id)}
    mentions = json.dumps(one.parts[0])[1:-1] if len(one.parts) == 1 and len(one.parts[0]) >= erasing.DISTINCT else None

    def theirs(view_id: str, key: str, line: str) -> bool:
        of_view = entities.get(view_id) or entities.get(view_id.partition("@")[0])
        if of_view is None:
            return key == one.key or (mentions is not None and mentions in line)
        own = one.is_in(of_view) and bool(one.among(pl.Series([key]), of_view)[0])
        return own or (mentions is not None and (mentions in line or one.key in line))

    n_files, n_bytes, n_found = forget(folder, theirs, dry_run=dry_run)
    return erasing.Searched(place="samples", n_files=n_files, n_bytes=n_bytes, n_found=n_found)


def _of_nobody(unknown: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"Redis: {key}: nobody knows whose entities these are; if they are this one's, remove the view with unskew purge"
        for key in unknown[:_SHOWN]
    )


def _searched(one: "OneEntity", table: "Place", report: Callable[[str], None]) -> "Searched":
    from unskew.offline import erasing

    rules: list[erasing.Rule] = [] if table.rule is None else [table.rule]
    if len(one.parts) == 1 and one.entity.types[0] != "int64" and len(one.parts[0]) >= erasing.DISTINCT:
        rules.append(erasing.TextRule(one.parts[0]))
    return erasing.search(table.name, table.root, rules, report)


def _show(found: "Sequence[Searched]", removed: Mapping[str, int], *, dry_run: bool) -> None:
    from unskew.features.folding import Rows, number

    columns = ("files", "bytes", *(("found",) if dry_run else ("erased", "left")))
    table = Rows(
        "place",
        *map(number, columns),
        heading=["nothing was changed: this is where the entity is"] if dry_run else [],
    )
    for each in found:
        counts = [] if dry_run else [f"{removed.get(each.place, 0):,}"]
        table.add(each.place, f"{each.n_files:,}", f"{each.n_bytes:,}", *counts, f"{each.n_found:,}")
    Screen().print(table)
