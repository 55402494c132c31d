"""Erasure of one entity from a state folder that no process uses: shards, seeds and the recovery store.

The order of steps is the contract, for each shard:

1. Its state is written whole, without the entity, to files that no manifest names yet.
2. The recovery store, or the shard's seed, is made to name them instead of the files before: the store in one
   transaction, the seed by renaming.
3. The files before are removed.

After a stop between any two steps the state is complete, with the entity or without; the same call finishes the rest.
Views that are no longer computed can never go on, so their state is removed whole. SQLite keeps old pages, so the store
is overwritten, emptied and packed (``secure_delete``, ``VACUUM``, an empty log).

Before that, the rows of tables that the recovery store holds are published, as the next start would do, and taken out
of it (``publish_held``), so that whoever erases from the tables finds them there.

Views over tables have seeds and changelogs of their own (``state/batch``), which are treated in the same way. Rows that
a killed import or materialization was sorting are removed: the next one sorts anew.
"""

import contextlib
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from unskew.features.errors import LayoutError, RequestError
from unskew.features.keys import OneEntity
from unskew.features.plan import Plan, ViewPlan
from unskew.features.selecting import bytes_of_texts
from unskew.pipelines.state.changelog import REMEDY, Changelog, Changelogs, Manifest, read_base, remove
from unskew.pipelines.state.folder import (
    BATCH,
    CHANGELOG,
    DEPLOYMENT,
    IMPORTING,
    RECOVERY,
    SORTING,
    held_by,
    refuse_strangers,
)
from unskew.pipelines.state.ordering import Shard, Siblings
from unskew.pipelines.state.saved import FLOW, SHARDS, TABLES, Saved, read_saved
from unskew.pipelines.state.seeds import BACKFILL, Seeds
from unskew.pipelines.state.whole import WholeState
from unskew.sinks import durable
from unskew.sinks.ipc import from_ipc
from unskew.sinks.tables.kinds import Roots
from unskew.sinks.tables.parquet import rows_of, without_rows
from unskew.sinks.wall import wall_us

Report = Callable[[str], None]
_COPY = ".copy"


def erase_state(
    state: Path, plan: Plan, one: OneEntity, still_ours: Callable[[], None], report: Report = lambda _: None
) -> int:
    """Erase an entity from a state that this process holds the lease of; return how many shards held it.

    Raises ``RequestError`` if the definitions lack a view of the state, ``LayoutError`` if the state is damaged or of
    other definitions, ``StoreUnavailable`` if the disk fails. The call can then be repeated.
    """
    refuse_strangers(state)
    views = _views(state, plan)
    batch = _views_of_seeds(state / BATCH, plan)
    _views_of_seeds(state, plan)
    with durable.disk(state):
        for sorting in (state / IMPORTING, state / BATCH / SORTING):
            still_ours()
            shutil.rmtree(sorting, ignore_errors=True)
    return _erase_shards(state, plan, views, one, still_ours, report) + _erase_batch(
        state / BATCH, batch, one, still_ours, report
    )


def publish_held(
    state: Path, plan: Plan, roots: Roots, still_ours: Callable[[], None], report: Report = lambda _: None
) -> None:
    """Publish the rows of tables that a recovery store holds, and take them out of it.

    Nobody will publish those of a view that is not in the plan any more. This process holds all leases. Raises as
    ``erase_state`` does.
    """
    if not is_pipeline(state):
        return
    refuse_strangers(state)
    # Refuses what ``erase_state`` would refuse, before anything has changed.
    _views(state, plan)
    views = {view.id: view for view in plan.views.values()}
    with durable.disk(state):
        for name, saved in sorted(_saved(state).tables.items()):
            if rows_of(saved) and (not name.startswith("log/") or name.split("/")[1] in views):
                report(f"rows of {name}")
                roots.open(name, saved, views, now_us=wall_us, still_ours=still_ours)
        still_ours()
        _strip(state / RECOVERY)


def _strip(recovery: Path) -> None:
    """Take all rows of tables out of a recovery store."""
    for path in sorted(recovery.glob("*.sqlite3")):
        with _rewriting(path) as store:
            for row, data in _entries(store, TABLES):
                # The folder belongs to this user alone, see ``_replace``.
                tables = {name: without_rows(saved) for name, saved in pickle.loads(data).items()}  # noqa: S301
                store.execute("UPDATE snaps SET ser_change = ? WHERE rowid = ?", (pickle.dumps(tables), row))
            store.execute("COMMIT")


@contextlib.contextmanager
def _rewriting(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a part of a recovery store for one transaction, after which no trace is left of what it replaced."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as store:
        store.execute("PRAGMA secure_delete = ON")
        store.execute("BEGIN IMMEDIATE")
        yield store
        store.execute("VACUUM")
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _entries(store: sqlite3.Connection, step: str) -> list[tuple[int, bytes]]:
    """Return the entries of a step of the flow, of all epochs, by their places."""
    query = "SELECT rowid, ser_change FROM snaps WHERE step_id = ? AND ser_change IS NOT NULL"
    return store.execute(query, (f"{FLOW}.{step}",)).fetchall()


def _erase_shards(
    state: Path,
    plan: Plan,
    views: dict[str, ViewPlan],
    one: OneEntity,
    still_ours: Callable[[], None],
    report: Report,
) -> int:
    """Erase the entity from what the pipeline itself keeps there, and from backfills that it has not taken over."""
    if not is_pipeline(state):
        return 0
    changelogs = Changelogs(state / CHANGELOG, still_ours)
    n_found = 0
    try:
        with durable.disk(state):
            saved = _saved(state).shards
            # A start does not read these seeds any more, and the files that they name may be gone.
            for view_id, name in sorted(_taken_over(state, saved)):
                still_ours()
                Seeds(state).remove_shard(view_id, name)
            changed: dict[tuple[str, str], Mapping[str, Any]] = {}
            settles = []
            for shard in saved:
                view = views.get(shard["view"])
                if view is None:
                    continue
                # Cuts off what was written after the last durable epoch, as the next start would.
                Changelog(changelogs, view, shard["shard"], _manifest(shard))
                if not _holds(changelogs, view, shard, one) and not _mentioned(changelogs, view, shard, one):
                    continue
                report(f"state {view.id}/{shard['shard']}")
                changed[view.id, shard["shard"]], settle = _without(changelogs, view, shard, one)
                settles.append(settle)
            n_found += len(changed)
            still_ours()
            searched = {view.id for view in views.values() if one.is_in(view.entity)} | {place[0] for place in changed}
            _replace(state / RECOVERY, saved, changed, set(views), searched)
            for settle in settles:
                settle()
            views |= _views_of_seeds(state, plan)
            n_found += _erase_seeds(state, views, changelogs, one, still_ours)
            _remove_strangers(state, views, [changed.get((s["view"], s["shard"]), s) for s in saved])
    finally:
        changelogs.close()
    return n_found


def _erase_batch(
    folder: Path, views: dict[str, ViewPlan], one: OneEntity, still_ours: Callable[[], None], report: Report
) -> int:
    """Erase the entity from the states of views over tables; those that have been replaced are removed."""
    if not folder.is_dir():
        return 0
    report(f"state {folder}")
    changelogs = Changelogs(folder / CHANGELOG, still_ours)
    try:
        with durable.disk(folder):
            seeds = Seeds(folder)
            for view_id in sorted(set(seeds.views()) - views.keys()):
                still_ours()
                seeds.remove(view_id)
            n_found = _erase_seeds(folder, views, changelogs, one, still_ours)
            _remove_strangers(folder, views, ())
    finally:
        changelogs.close()
    return n_found


def search_state(
    state: Path, plan: Plan, one: OneEntity, report: Report = lambda _: None
) -> tuple[int, int, Sequence[str]]:
    """Read everything in a state that may hold the entity; return the files, their bytes, and where it was found.

    Bases, events, events that wait, and seeds are decoded. If the key is long enough that it is nothing else, its bytes
    are looked for in every file as well.
    """
    found: list[str] = []
    last = _saved(state) if is_pipeline(state) else Saved(shards=(), places={}, tables={})
    saved = last.shards
    found += [f"rows of {name}" for name, table in last.tables.items() if _is_in_rows(one, rows_of(table))]
    views = _views(state, plan)
    for folder, of_folder, shards in (
        (state, {**views, **_views_of_seeds(state, plan)}, saved),
        (state / BATCH, _views_of_seeds(state / BATCH, plan), ()),
    ):
        changelogs = Changelogs(folder / CHANGELOG)
        over = _taken_over(folder, shards)
        seeded = [
            seed.snapshot
            for view in of_folder.values()
            for name, seed in _seeds(folder, view)
            if (view.id, name) not in over
        ]
        for shard in (*shards, *seeded):
            view = of_folder.get(shard["view"])
            report(f"state {shard['view']}/{shard['shard']}")
            if view is None or _holds(changelogs, view, shard, one):
                found.append(f"{shard['view']}/{shard['shard']}")
        found += [f"{folder / BACKFILL / view_id}" for view_id in set(Seeds(folder).views()) - of_folder.keys()]
    n_files = n_bytes = 0
    octets = one.key.encode()
    for path in sorted(path for path in state.rglob("*") if path.is_file() and "compiled" not in path.parts):
        n_files += 1
        n_bytes += path.stat().st_size
        if len(octets) >= DISTINCT_BYTES and _mentions(path, octets):
            found.append(str(path))
    return n_files, n_bytes, found


def _is_in_rows(one: OneEntity, parts: Sequence[pl.DataFrame]) -> bool:
    return any({*one.entity.keys} <= {*rows.columns} and rows.filter(one.where()).height for rows in parts)


DISTINCT_BYTES = 6
"""A key of at least so many bytes is looked for in every file; a shorter one may be anything."""
_PIECE = 1 << 22


def _mentions(path: Path, octets: bytes) -> bool:
    before = b""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            if octets in before + piece:
                return True
            before = piece[-len(octets) :]
    return False


def _views(state: Path, plan: Plan) -> dict[str, ViewPlan]:
    """Return the views that the pipeline computes, by id; a view that it has given up is not among them."""
    if not is_pipeline(state):
        return {}
    held = held_by(state)
    views = {view.id: view for view in plan.views.values()}
    if missing := sorted(set(held.views) - set(held.retired) - views.keys()):
        raise RequestError(
            f"{', '.join(missing)}: in {state}, but not in the definitions, so nobody knows whose values it holds; give its definition "
            "(check --definitions), or end it with unskew run --drop"
        )
    return {view_id: view for view_id, view in views.items() if view_id not in held.retired}


def _saved(state: Path) -> Saved:
    """Return shards and positions of tables as the last durable epoch left them."""
    copies = state / _COPY
    # A process that was killed may have left its copy, in which the entity is still.
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    try:
        return read_saved(state / RECOVERY, {}, copies)
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def _manifest(shard: Mapping[str, Any]) -> Manifest:
    return Manifest.from_bytes(shard["changelog"])


def _holds(changelogs: Changelogs, view: ViewPlan, shard: Mapping[str, Any], one: OneEntity) -> bool:
    """Return whether any file or part of a saved shard holds the entity, also if its values are over."""
    if not one.is_in(view.entity):
        return False

    def among(events: pl.DataFrame) -> bool:
        return bool(one.among(events["key"], view.entity).any())

    if shard["waiting"] and among(from_ipc(shard["waiting"])):
        return True
    manifest = _manifest(shard)
    if any(among(events) for events in changelogs.events(view, shard["shard"], manifest)):
        return True
    state = read_base(changelogs.folder(view, shard["shard"]), view, shard["shard"], manifest)
    return state.any_of(lambda keys: one.among(keys, view.entity))


def _mentioned(changelogs: Changelogs, view: ViewPlan, shard: Mapping[str, Any], one: OneEntity) -> bool:
    """Return whether the events of a saved shard have the bytes of the key anywhere.

    An earlier version wrote texts of rows that had been filtered out, for example because they belong to another shard.
    Those that are written anew have none.
    """
    octets = one.key.encode()
    return len(octets) >= DISTINCT_BYTES and any(
        octets in held
        for events in changelogs.events(view, shard["shard"], _manifest(shard))
        for column in events.select(pl.col(pl.String)).get_columns()
        for held in bytes_of_texts(column)
    )


def _without(
    changelogs: Changelogs, view: ViewPlan, saved: Mapping[str, Any], one: OneEntity
) -> tuple[Mapping[str, Any], Callable[[], None]]:
    """Write a shard without the entity; return what to save, and what to call once that is durable."""
    shard = Shard.from_snapshot(view, Siblings(), changelogs, saved, WholeState)
    if one.is_in(view.entity):
        shard.forget(lambda keys: one.among(keys, view.entity))
    kept = shard.changelog
    assert isinstance(kept, WholeState)
    return {**saved, **shard.to_snapshot()}, kept.settle


def _replace(
    recovery: Path,
    saved: Sequence[Mapping[str, Any]],
    changed: Mapping[tuple[str, str], Mapping[str, Any]],
    views: set[str],
    searched: set[str],
) -> None:
    """Put changed shards into the recovery store, and take out those of other views than ``views``.

    Of the shards in ``searched`` only the entry from which a run would resume stays, the one that was read: others may
    hold events of the entity that wait.
    """
    as_read = {(one["view"], one["shard"]): one for one in saved}
    for path in sorted(recovery.glob("*.sqlite3")):
        with _rewriting(path) as store:
            replaced = set()
            for row, data in _entries(store, SHARDS):
                # The folder belongs to this user alone (``refuse_strangers``), as Bytewax itself needs it.
                one = pickle.loads(data)  # noqa: S301
                place = one["view"], one["shard"]
                if one["view"] not in views or (one["view"] in searched and one != as_read.get(place)):
                    store.execute("DELETE FROM snaps WHERE rowid = ?", (row,))
                elif place in changed:
                    store.execute(
                        "UPDATE snaps SET ser_change = ? WHERE rowid = ?", (pickle.dumps(changed[place]), row)
                    )
                    replaced.add(place)
            if replaced != changed.keys():
                store.execute("ROLLBACK")
                raise LayoutError(f"the recovery store {recovery} lacks what was read from it; {REMEDY}")
            store.execute("COMMIT")


def _views_of_seeds(folder: Path, plan: Plan) -> dict[str, ViewPlan]:
    """Return the views whose seeds a folder holds, by id, without views over tables that a higher version replaces.

    Raises ``RequestError`` for another view that is not in the definitions.
    """
    seeds = Seeds(folder)
    known = {view.id: view for view in plan.views.values()}
    newest = {view.name: view.version for view in sorted(known.values(), key=lambda view: view.version)}
    for view_id in seeds.views():
        name, _, version = view_id.rpartition("@")
        if view_id in known or (folder.name == BATCH and newest.get(name, 0) > int(version)):
            continue
        way = (
            f"if nobody will compute it again, remove {seeds.root / view_id}"
            if folder.name == BATCH
            else f"remove it with unskew purge {view_id} --backfill"
        )
        raise RequestError(
            f"{seeds.root / view_id}: the state of a view that is not in the definitions, so nobody knows whose values it holds; give its "
            f"definition, or {way}"
        )
    return {view_id: known[view_id] for view_id in seeds.views() if view_id in known}


def _taken_over(state: Path, saved: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Return views and shards whose seeds the flow has taken over: it saves these shards itself."""
    seeds = Seeds(state)
    held = {(shard["view"], shard["shard"]) for shard in saved}
    return {(view_id, name) for view_id in seeds.views() for name in seeds.shards(view_id)} & held


def _seeds(state: Path, view: ViewPlan) -> Iterator[tuple[str, Any]]:
    seeds = Seeds(state)
    for name in seeds.shards(view.id):
        if (seed := seeds.read(view, name)) is not None:
            yield name, seed


def _erase_seeds(
    folder: Path,
    views: Mapping[str, ViewPlan],
    changelogs: Changelogs,
    one: OneEntity,
    still_ours: Callable[[], None],
) -> int:
    seeds, n_found = Seeds(folder), 0
    for view_id in seeds.views():
        view = views[view_id]
        for name, seed in list(_seeds(folder, view)):
            held = _holds(changelogs, view, seed.snapshot, one)
            if held or _mentioned(changelogs, view, seed.snapshot, one):
                snapshot, settle = _without(changelogs, view, seed.snapshot, one)
                seeds.write(view, name, msgspec.structs.replace(seed, snapshot=dict(snapshot)), still_ours)
                settle()
                n_found += 1
    return n_found


def _remove_strangers(state: Path, views: Mapping[str, ViewPlan], saved: Sequence[Mapping[str, Any]]) -> None:
    """Remove files that no manifest names: those of an erasure that was killed, and of views that are given up."""
    named: dict[tuple[str, str], set[str]] = {}
    for shard in (*saved, *(seed.snapshot for view in views.values() for _, seed in _seeds(state, view))):
        manifest = _manifest(shard)
        named.setdefault((shard["view"], shard["shard"]), set()).update(manifest.names())
    for folder in (state / CHANGELOG).glob("*/*"):
        if folder.is_dir():
            place = folder.parent.name, folder.name
            if folder.parent.name not in views:
                shutil.rmtree(folder)
            else:
                remove(folder, except_for=named.get(place, set()))


def is_state(folder: Path) -> bool:
    """Return whether a folder holds the state of a pipeline or of views over tables."""
    return is_pipeline(folder) or bool(Seeds(folder / BATCH).views())


def is_pipeline(folder: Path) -> bool:
    """Return whether a folder holds the state of a pipeline."""
    return (folder / DEPLOYMENT).exists()
