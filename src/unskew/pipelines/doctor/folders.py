"""The folders of a run: whether they can be written, who writes them, and whether the state fits the definitions."""

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import Plan
from unskew.features.planning import read_otherwise
from unskew.features.printing import counted
from unskew.pipelines.doctor.asked import LACKS_DEFINITIONS, Asked, view_ids
from unskew.pipelines.doctor.finding import Finding, NotChecked, made, not_checked
from unskew.pipelines.state.folder import StateFolder, refuse_strangers
from unskew.sinks.lease import held
from unskew.sinks.objects import ObjectPath
from unskew.sinks.record import Record, require_applied

_ROOM_BYTES = 1 << 30
_MIB = 1 << 20
_MOUNTS = Path("/proc/self/mounts")
# Locks of SQLite, in which the recovery store lies, and of leases are not to be trusted there.
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"})
_MEMORY = frozenset({"tmpfs", "ramfs"})

_log = logging.getLogger("unskew.doctor")


@dataclass(kw_only=True)
class Here:
    """What is known of the state once its folder has been looked at; None where it cannot be known.

    ``is_held``: a process works on the state, so its recovery store must not be read.
    """

    state: StateFolder | None = None
    is_held: bool = False
    found: list[Finding] = field(default_factory=list)


def examine(asked: Asked, plan: Plan | None) -> Here:
    """Look at the folders, the leases, the state and the registry's record."""
    here = Here()
    for option, root in asked.folders().items():
        if root is None:
            here.found += not_checked(option, f"it is not given; run needs it, as an option or {_variable(option)}")
            continue
        here.found += made(option, lambda root=root, option=option: _root(asked, plan, here, root, option))  # type: ignore[misc]
    here.found += made("state", lambda: _state(asked, plan, here))
    here.found += made("applied", lambda: _applied(asked, plan))
    return here


def _variable(option: str) -> str:
    return f"UNSKEW_{option.removeprefix('--').replace('-', '_').upper()}"


def _root(asked: Asked, plan: Plan | None, here: Here, root: Path, option: str) -> str:
    if isinstance(root, ObjectPath):
        # Whether the store keeps the conditions of writes is found out by writing, so by a run.
        is_new = next(iter(root.objects(page=1)), None) is None
        return f"{root} answers, and holds {'nothing yet' if is_new else 'objects'}"
    if root.exists() and not root.is_dir():
        raise LayoutError(f"{root}: it is not a folder; name another {option}")
    is_there = root.is_dir()
    holder = root if is_there else next(path for path in root.absolute().parents if path.exists())
    if not os.access(holder, os.R_OK | os.W_OK | os.X_OK):
        what = "it" if is_there else f"{holder}, in which it would be made,"
        raise LayoutError(
            f"{root}: {what} cannot be written by this user ({os.geteuid()}); correct its owner or permissions, or name another "
            f"{option}"
        )
    kind = _file_system(holder)
    if kind in _MEMORY:
        _log.warning(
            "%s lies in memory (%s), so it is gone when this machine starts again: name another %s", root, kind, option
        )
    if kind in _NETWORK and option == "--state":
        _log.warning(
            "%s lies on a network disk (%s), whose locks may fail: the recovery store is made for a disk of this machine",
            root,
            kind,
        )
    disk = os.statvfs(holder)
    free = disk.f_bavail * disk.f_frsize
    # Some network disks do not say how large they are.
    if disk.f_blocks and free < _ROOM_BYTES:
        _log.warning("%s: %.1f MiB are free; a run waits when its disk is full: make room", root, free / _MIB)
    if is_there and holder.stat().st_uid != os.geteuid():
        _log.warning(
            "%s belongs to the user %d, and this process runs as %d: files of two users in it may not be readable for both",
            root,
            holder.stat().st_uid,
            os.geteuid(),
        )
    held_by = _held(asked, plan, here, root, option) if is_there else ""
    return f"{root}{'' if is_there else ' is not there yet, and can be made'}, {kind}, {free / _MIB:,.0f} MiB free{held_by}"


def _held(asked: Asked, plan: Plan | None, here: Here, root: Path, option: str) -> str:
    """Return who writes a folder; raise ``LayoutError`` if that excludes the run."""
    leases = held(root)
    own = "" if asked.state is None else f"pipeline {asked.pipeline!r} on {asked.state.absolute()}, "
    ours: Collection[str] = set() if plan is None else view_ids(plan) | {one.topic for one in plan.streams.values()}
    for lease in leases:
        if own and lease.owner.startswith(own):
            continue
        written = {name.partition("/")[0] for name in lease.writers}
        if option == "--state" or not written.isdisjoint(ours):
            raise LayoutError(
                f"{root} is in use by {lease.owner} (its lease was renewed {lease.age_s:.0f} s ago); stop that one first, or name "
                f"another {option}"
            )
    here.is_held = here.is_held or (option == "--state" and bool(leases))
    return "".join(f", in use by {lease.owner} (renewed {lease.age_s:.0f} s ago)" for lease in leases)


def _file_system(folder: Path) -> str:
    """Return the kind of the file system on which a folder lies, or that it is not known."""
    try:
        lines = [line.split() for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return "a file system of unknown kind"
    real = folder.resolve()
    # Spaces of a path are written as octal numbers; a path that has one falls to the mount above.
    over = [(len(parts[1]), number, parts[2]) for number, parts in enumerate(lines) if real.is_relative_to(parts[1])]
    return max(over)[2] if over else "a file system of unknown kind"


def _state(asked: Asked, plan: Plan | None, here: Here) -> str:
    if asked.state is not None:
        if asked.state.exists() and not asked.state.is_dir():
            raise NotChecked("--state is not a folder")
        refuse_strangers(asked.state)
    deployment = asked.deployment()
    if deployment is None:
        raise NotChecked("--state, --log and --archive are not all given")
    if plan is None:
        raise NotChecked(LACKS_DEFINITIONS)
    deployment.check(plan.of_topics)
    state = here.state = StateFolder.read(plan.of_topics, deployment, lambda: None)
    if deployment.state.is_dir():
        state.require_room()
    if not state.ran:
        return "it is new"
    new = sorted(view_ids(plan) - set(state.held))
    brings = f"; a run brings the history of {', '.join(new)} first" if new else ""
    return f"it goes on with {counted(len(state.held), 'view version')}{brings}"


def _applied(asked: Asked, plan: Plan | None) -> str:
    root = asked.record()
    if root is None:
        raise NotChecked("neither --log nor --registry is given")
    record = Record(root)
    last = record.last()
    if last is None or plan is None:
        what = f"revision {last.number} was applied last" if last else f"nothing was applied yet to {root}"
        if plan is None or last is not None:
            return what
        _log.warning("%s: apply the definitions (unskew apply), or start unskew run with --apply", what)
        return ""
    try:
        last = require_applied(record, plan.of_topics.published.values())
    except RequestError as error:
        _log.warning("%s; or start unskew run with --apply", error)
        return f"revision {last.number} was applied last"
    for difference in read_otherwise(plan.of_topics.views.values(), last.content):
        _log.warning("%s: a run does it so, and unskew apply would write it down", difference)
    return f"the definitions are those of revision {last.number}"
