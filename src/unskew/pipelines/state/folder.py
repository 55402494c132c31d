"""The state folder: the recovery store, the changelogs, the journal, and a small file that identifies them.

state/deployment.json    what the store was made for, its id, the views that it holds and the topics that were read
state/recovery/          Bytewax's recovery store
state/changelog/         see ``changelog.py``
state/journal/           see ``journal.py``
state/batch/             views over tables: places of tables, and seeds and changelogs of their own
state/importing/         rows of an import, while they are sorted
state/compiled/          compiled functions, where no usual folder can be written (``features/jit_cache.py``)
"""

import json
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import not_
from pathlib import Path
from typing import Any

from bytewax.recovery import RecoveryConfig, init_db_dir
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from unskew.features.errors import LayoutError, RequestError, StoreUnavailable
from unskew.features.nearest import nearest
from unskew.features.plan import Plan
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.state.journal import Journal
from unskew.pipelines.state.known_topics import KnownTopics
from unskew.sinks import durable

RECOVERY = "recovery"
CHANGELOG = "changelog"
JOURNAL = "journal"
BATCH = "batch"
IMPORTING = "importing"
SORTING = "sorting"
"""In the folder of views over tables: rows of a table, while they are sorted."""
COMPILED = "compiled"
DEPLOYMENT = "deployment.json"
DEPLOYMENT_LAYOUT = 2
STORE_TIMEOUT_S = 60.0
RESERVE_BYTES = 16 << 20
"""Room on the disk of the state that is left to the recovery store: many times what an epoch writes there."""

_log = logging.getLogger("unskew.run")


@dataclass(frozen=True, kw_only=True)
class StateFolder:
    """The content of ``deployment.json``: as found (``found``; None for a new state), and as this run leaves it.

    ``facts``: the configuration that the recovery store was made for. ``id``: the unique name of this history.
    ``views``: those that the store holds. ``retired``: views that an earlier run left out; their state is as old as
    that run, so they must not continue. ``topics``: by stream, the topics that were read; an earlier version left them
    out. ``leads``: whether this process writes the file and makes the store. ``partitions``: those that this process
    reads; None for all. ``still_ours``: raises if another process has taken over.
    """

    folder: Path
    facts: Mapping[str, Any]
    views: Sequence[str]
    retired: Sequence[str]
    topics: Mapping[str, KnownTopics]
    found: Mapping[str, Any] | None
    id: str
    leads: bool
    partitions: Sequence[int] | None
    still_ours: Callable[[], None]

    @classmethod
    def read(
        cls,
        plan: Plan,
        deployment: Deployment,
        still_ours: Callable[[], None],
        going_on: Callable[[], None] = lambda: None,
    ) -> "StateFolder":
        """Read what is there and write nothing; ``going_on`` raises if the process should stop.

        Raises ``LayoutError`` if it belongs to another deployment, or if an earlier run left out a view.
        """
        refuse_strangers(deployment.state)
        path = deployment.state / DEPLOYMENT
        leads = deployment.process == 0
        if not leads:
            _await_store(deployment.state / RECOVERY, going_on)
        facts = {"layout": DEPLOYMENT_LAYOUT, "pipeline": deployment.pipeline, "shards": deployment.n_hashes}
        now = {view.id for view in plan.views.values()}
        existing = _read_deployment(path)
        found = existing or {**facts, "id": uuid.uuid4().hex, "views": [], "retired": [], "topics": {}}
        stored = _holds_anything(deployment.state / RECOVERY)
        if existing is None and stored:
            raise LayoutError(
                f"{deployment.state / RECOVERY} holds a recovery store but {path} is gone; restore it, or name another "
                "--state"
            )
        if any(found.get(name) != value for name, value in facts.items()):
            raise LayoutError(
                f"{deployment.state} belongs to pipeline {found.get('pipeline')!r} with {found.get('shards')} shards "
                f"(layout {found.get('layout')}), not to {deployment.pipeline!r} with {deployment.n_hashes} "
                f"(layout {DEPLOYMENT_LAYOUT}); run with those, or name another --state"
            )
        if found["views"] and not stored:
            raise LayoutError(
                f"{deployment.state / RECOVERY} is gone but {path} refers to it; restore it, or name another --state"
            )
        missing = set(found["views"]) - set(found["retired"]) - now
        _refuse_missing(missing, now, found, deployment)
        retired = set(found["retired"]) | missing
        if back := sorted(retired & now):
            raise LayoutError(
                f"{', '.join(back)}: left out of an earlier run on {deployment.state}, so its state lacks the events of "
                "that run; give the view a new version"
            )
        return cls(
            folder=deployment.state,
            facts=facts,
            views=sorted(set(found["views"]) | now),
            retired=sorted(retired),
            topics={stream: KnownTopics.from_json(one) for stream, one in found["topics"].items()},
            found=existing,
            id=found["id"],
            leads=leads,
            partitions=deployment.partitions,
            still_ours=still_ours,
        )

    @property
    def held(self) -> Sequence[str]:
        """The ids of the views that the state holds, or that a run before was about to add."""
        return [] if self.found is None else list(self.found["views"])

    @property
    def ran(self) -> bool:
        """Whether an epoch with items of an earlier run may be durable; before one, no table has a saved state."""
        return bool(self.found and self.found["views"])

    def open(self, topics: Mapping[str, KnownTopics]) -> RecoveryConfig:
        """Return the recovery store; make it if it is new, for these topics.

        Raises ``StoreUnavailable``; the call can then be repeated.
        """
        recovery = self.folder / RECOVERY
        self.require_room()
        if not self.leads:
            return RecoveryConfig(recovery)
        if self.found is None:
            # Before the store, because a store without the file would be refused.
            self._write([], [], topics)
        if not _holds_anything(recovery):
            with durable.disk(self.folder):
                self._make_store(recovery)
        return RecoveryConfig(recovery)

    def require_room(self, n_held: int = 0) -> None:
        """Raise ``StoreUnavailable`` if the disk may be too full for what Bytewax writes at the end of an epoch.

        ``n_held``: the bytes of events and rows that it writes then. Bytewax's recovery store cannot wait: if a write
        fails, the process ends. So the flow waits before.
        """
        with durable.disk(self.folder):
            disk = os.statvfs(self.folder)
            # What an epoch writes is in the log of the store until the store takes it over; both need room.
            logged = sum(path.stat().st_size for path in (self.folder / RECOVERY).glob("*-wal"))
        free, needed = disk.f_bavail * disk.f_frsize, RESERVE_BYTES + 2 * (logged + n_held)
        # Some network disks do not say how large they are.
        if disk.f_blocks and free < needed:
            raise StoreUnavailable(
                f"{self.folder}: {free / (1 << 20):,.1f} MiB are free, and {needed / (1 << 20):,.1f} MiB are kept for the "
                "recovery store; make room"
            )

    def record(self, topics: Mapping[str, KnownTopics]) -> None:
        """Record the views and the topics; must be called before the first epoch that lacks a retired view is durable.

        It must not be called before the run is certain to be accepted. Raises ``StoreUnavailable``; the call can then
        be repeated.
        """
        if self.leads and self._content(self.views, self.retired, topics) != self.found:
            self._write(self.views, self.retired, topics)

    def _content(
        self, views: Sequence[str], retired: Sequence[str], topics: Mapping[str, KnownTopics]
    ) -> dict[str, Any]:
        # The topics of a stream that is left out for now are kept, as its offsets are.
        kept = {stream: one.to_json() for stream, one in {**self.topics, **topics}.items()}
        content = {**self.facts, "id": self.id, "views": views, "retired": retired, "topics": kept}
        return content if self.partitions is None else {**content, "partitions": list(self.partitions)}

    def _write(self, views: Sequence[str], retired: Sequence[str], topics: Mapping[str, KnownTopics]) -> None:
        with durable.disk(self.folder):
            data = json.dumps(self._content(views, retired, topics)).encode()
            durable.replace(self.folder / DEPLOYMENT, data, self.still_ours)

    def _make_store(self, recovery: Path) -> None:
        # Under another name first, because the other processes of a cluster wait for a complete store.
        made = recovery.with_suffix(".tmp")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        init_db_dir(made, 1)
        for path in (*made.iterdir(), made):
            durable.sync(path)
        if recovery.is_dir():
            recovery.rmdir()
        durable.rename(made, recovery, self.still_ours)


def shards_of(folder: Path) -> int:
    """Return the number of hash shards that a state was made for. Raises ``LayoutError`` if there is no state."""
    found = _read_deployment(folder / DEPLOYMENT)
    if found is None or not _holds_anything(folder / RECOVERY):
        raise LayoutError(f"{folder} holds no state; name the --state of the pipeline")
    return int(found["shards"])


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a state is for: its shards, its views by id, and the topics of each stream, by the stream's topic.

    ``retired``: those of the views that it does not compute any more. ``partitions``: those that its process reads;
    None for all.
    """

    n_hashes: int
    views: Sequence[str]
    retired: Sequence[str]
    topics: Mapping[str, KnownTopics]
    partitions: Sequence[int] | None

    @property
    def n_partitions(self) -> dict[str, int]:
        """How many partitions there are, by stream's topic."""
        return {stream: len(one.partitions) for stream, one in self.topics.items()}


def held_by(folder: Path) -> Held:
    """Return what a state is for, also while a pipeline runs on it. Raises ``LayoutError`` if there is no state."""
    n_hashes = shards_of(folder)
    found = _read_deployment(folder / DEPLOYMENT) or {}
    topics = {topic: KnownTopics.from_json(one) for topic, one in found["topics"].items()}
    return Held(
        n_hashes=n_hashes,
        views=found["views"],
        retired=found["retired"],
        partitions=found.get("partitions"),
        topics=topics,
    )


def schema_ids_of(folder: Path, streams: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return, by stream and place, the schema ids with which partitions began, from a state that a process may use now.

    ``streams``: the topics of streams. Raises ``LayoutError`` if there is no state.
    """
    found = _read_deployment(folder / DEPLOYMENT)
    if found is None:
        raise LayoutError(f"{folder} holds no state; name the --state of the pipeline")
    journal = Journal(folder / JOURNAL, found["id"], durably=lambda work: work(), still_ours=lambda: None)
    return {stream: journal.schema_ids(stream) for stream in streams}


def _await_store(recovery: Path, going_on: Callable[[], None]) -> None:
    """Wait for the first process of a cluster to make the recovery store."""
    waiting = Retrying(retry=retry_if_result(not_), wait=wait_fixed(0.05), stop=stop_after_delay(STORE_TIMEOUT_S))

    def is_made() -> bool:
        going_on()
        return _holds_anything(recovery)

    try:
        waiting(is_made)
    except RetryError as error:
        raise StoreUnavailable(
            f"{recovery} was not made within {STORE_TIMEOUT_S:.0f} s: start process 0 of the cluster, and give all processes "
            "the same --state"
        ) from error


def _refuse_missing(missing: set[str], now: set[str], found: Mapping[str, Any], deployment: Deployment) -> None:
    """Raise ``LayoutError`` if a view would end that nobody asked to end.

    A view with a higher version has been replaced on purpose.
    """
    versions = {_name(view): _version(view) for view in sorted(now, key=_version)}
    replaced = {view for view in missing if versions.get(_name(view), 0) > _version(view)}
    held = set(found["views"]) | set(found["retired"])
    for wanted in deployment.drop:
        meant = {view for view in held if wanted in {view, _name(view)}}
        if both := sorted(view for view in now if wanted in {view, _name(view)}):
            raise RequestError(
                f"--drop {wanted}: the definitions have {', '.join(both)}, so it goes on; take it out of them, omit --drop, or name "
                "the version that is to end"
            )
        if held and not meant:
            raise RequestError(
                f"--drop {wanted}: {deployment.state} holds no such view; {nearest(wanted, sorted(held), 'it holds')}"
            )
    dropped = {view for view in missing if {view, _name(view)} & set(deployment.drop)}
    if lost := sorted(missing - replaced - dropped):
        names = ", ".join(lost)
        raise LayoutError(
            f"{names}: in {deployment.state}, but not in the definitions; without its definition a view's state would end, and "
            f"could not go on later. Give the definition back (check --definitions), or end it with "
            f"{' '.join(f'--drop {view}' for view in lost)}; all other views go on"
        )
    for view in sorted(replaced):
        _log.warning(
            "%s is replaced by version %d, so its state ends here; its log stays, and is read as %s:feature",
            view,
            versions[_name(view)],
            view,
        )


def _name(view: str) -> str:
    return view.rpartition("@")[0]


def _version(view: str) -> int:
    return int(view.rpartition("@")[2])


def _holds_anything(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _read_deployment(path: Path) -> dict[str, Any] | None:
    try:
        return {"id": "", "views": [], "retired": [], "topics": {}, **json.loads(path.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LayoutError(
            f"{path} cannot be read ({error.strerror}); make it a readable file, restore it, or name another --state"
        ) from error
    except (ValueError, TypeError) as error:
        raise LayoutError(f"{path} is damaged ({error}); restore it, or name another --state") from error


def refuse_strangers(folder: Path) -> None:
    """Refuse a state folder in which another user than this one and root may write, or which one may replace.

    Bytewax unpickles what its recovery store holds, so whoever writes there runs code in this process. The group may
    write if this process's umask lets it: then its user means it to. Whoever may write to a folder above may rename the
    next one and put another in its place, unless the sticky bit keeps that from all but its owner, as in ``/tmp``. The
    owner of a folder above may do so, too; root has made room for that owner there, so this is only logged.
    """
    _refuse_above(folder)
    umask = os.umask(0o077)
    os.umask(umask)
    recovery = folder / RECOVERY
    for path in (folder, recovery, *(sorted(recovery.iterdir()) if recovery.is_dir() else ())):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if _is_of_others(found):
            whose = _whose(found)
        elif found.st_mode & umask & _WRITABLE_BY_OTHERS:
            whose = f"can be written by other users ({stat.filemode(found.st_mode)})"
        else:
            continue
        raise LayoutError(
            f"{path} {whose}: whoever writes there can run code in this process, so its content is not read. Make sure "
            f"that nobody has changed it, then let only this process's user write there (chown, chmod go-w)"
        )


_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def _refuse_above(folder: Path) -> None:
    """Refuse a state folder that another user may replace by renaming a folder above it, or a link on the way to it."""
    umask = os.umask(0o077)
    os.umask(umask)
    sticky = False
    for path in _way_to(folder):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        is_folder = stat.S_ISDIR(found.st_mode)
        open_to_others = is_folder and bool(found.st_mode & umask & _WRITABLE_BY_OTHERS)
        was_sticky, sticky = sticky, open_to_others and bool(found.st_mode & stat.S_ISVTX)
        if _is_of_others(found) and was_sticky:
            whose = f"lies where every user may put something, and {_whose(found)}"
        elif open_to_others and not sticky and path != folder:
            whose = f"can be written by other users ({stat.filemode(found.st_mode)})"
        elif _is_of_others(found) and path != folder:
            _log.warning(
                "%s %s; that user can replace the state folder %s and so run code in this process",
                *(path, _whose(found), folder),
            )
            continue
        else:
            continue
        raise LayoutError(
            f"{path} {whose}: whoever writes there can replace the state folder {folder}, and so run code in this "
            "process. Let only this process's user and root write there (chown, chmod go-w), or name another --state"
        )


def _way_to(folder: Path) -> Iterator[Path]:
    """Yield all folders and links from the root to a folder, each after what holds it; follow the links."""
    waiting, seen = [folder.absolute()], set[Path]()
    while waiting:
        path = waiting.pop()
        for step in (*reversed(path.parents), path):
            yield step
            if step.is_symlink() and step not in seen:
                seen.add(step)
                waiting.append(step.parent / step.readlink())


def _is_of_others(found: os.stat_result) -> bool:
    return found.st_uid not in {0, os.geteuid()}


def _whose(found: os.stat_result) -> str:
    return f"belongs to the user {found.st_uid}, and this process runs as {os.geteuid()}"


def make_state_folder(folder: Path) -> None:
    """Make the folder if it does not exist. Raises ``LayoutError`` if it cannot be used."""
    try:
        durable.make_folder(folder)
        usable = os.access(folder, os.W_OK)
    except OSError as error:
        raise LayoutError(
            f"{folder} cannot be used as a state folder: {error.strerror}; name another --state"
        ) from error
    if not usable:
        raise LayoutError(f"{folder} cannot be used as a state folder: it is not writable; name another --state")
