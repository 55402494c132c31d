"""What ``plan``, ``apply``, ``promote``, ``rollback`` and ``run --apply`` have in common: from a plan to a revision."""

import contextlib
import datetime as dt
import getpass
import importlib.metadata
import logging
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unskew.cli.screen import say
from unskew.features.errors import LayoutError, Stopped, StoreUnavailable
from unskew.features.plan import Plan
from unskew.features.planning import Asked, Change, Planned, planned, whose
from unskew.features.revision import Content, GitCommit, Revision, brought_up_to, others_of
from unskew.features.service import Service
from unskew.settings import REDIS_TIMEOUT_S
from unskew.sinks.record import Overtaken, Record

if TYPE_CHECKING:
    from unskew.features.definitions.lineage import Model
    from unskew.serving.live import LiveView
    from unskew.sinks.redis.server import Server

_GIT_S = 10.0
_TRIES = 5

_log = logging.getLogger("unskew.run")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """The copy of the registry in Redis, and what pipelines and servers say of themselves beside it.

    ``live``: views that a pipeline has listed, by ``name@version``. ``of_others``: views that other records have
    applied until now. ``is_retired``: whether the state of a version has ended. ``reads``: how often a service was read
    since yesterday.
    """

    server: "Server"
    prefix: str
    live: "dict[str, LiveView]"
    of_others: Mapping[str, int]
    is_retired: Callable[[str], bool]
    reads: Callable[[str], int]

    def has_ended(self, view_id: str) -> bool | None:
        """Return whether the state of a version has ended; None if nothing says it."""
        if view_id in self.live:
            return False
        return True if self.is_retired(view_id) else None

    def bring_up_to(self, revision: Revision) -> bool:
        """Bring the copy up to a revision; return false if there is none yet, because no pipeline has published."""
        from unskew.sinks.redis.published import replace_registry

        is_there = [False]

        def change(stored: bytes | str | None) -> str | None:
            is_there[0] = stored is not None
            return brought_up_to(stored, revision)

        with self.server.reaching() as client:
            replace_registry(client, self.prefix, change)
        return is_there[0]


@contextlib.contextmanager
def reaching_copy(redis_url: str, prefix: str, pipeline: str, last: Revision | None) -> "Iterator[Copy]":
    """Yield what Redis says; ``last``: the last revision of the record.

    Raises ``StoreUnavailable`` if Redis cannot be reached, and ``LayoutError`` if it knows a later revision.
    """
    from unskew.serving.live import read_all_live
    from unskew.sinks.redis import usage
    from unskew.sinks.redis.keyspace import clock_key, registry_key
    from unskew.sinks.redis.server import Server
    from unskew.sinks.redis.words import Clocks
    from unskew.sinks.wall import wall_us

    server = Server(redis_url, timeout_s=REDIS_TIMEOUT_S)
    try:
        with server.reaching() as client:
            clocks = Clocks.read(client, clock_key(prefix, pipeline))
            of_others = others_of(client.get(registry_key(prefix)), last)

        def reads(service: str) -> int:
            today = dt.datetime.fromtimestamp(wall_us() / 1e6, dt.UTC).date()
            with server.reaching() as client:
                return usage.reads(client, prefix, [service], today - dt.timedelta(days=1))[service]

        yield Copy(
            server=server,
            prefix=prefix,
            live={one.view.id: one for one in read_all_live(server, prefix, pipeline)},
            of_others=of_others,
            is_retired=clocks.is_retired,
            reads=reads,
        )
    finally:
        server.close()


def next_revision(
    last: Revision | None,
    content: Content,
    lines: Sequence[str],
    *,
    command: str,
    message: str = "",
    git: GitCommit | None = None,
) -> Revision:
    """Return the revision that comes after the last one, with this content."""
    return Revision(
        unskew=importlib.metadata.version("unskew"),
        record=uuid.uuid4().hex if last is None else last.record,
        number=1 if last is None else last.number + 1,
        at=dt.datetime.now(dt.UTC),
        by=f"{_user()}@{socket.gethostname()}",
        command=command,
        message=message,
        plan=tuple(lines),
        git=git,
        content=content,
    )


def _user() -> str:
    # A container may run as a user that has no name.
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def git_commit(definitions: Iterable[Path]) -> GitCommit | None:
    """Return the commit of the first definitions' folder; None if it is in no git work tree, or if git is missing."""
    for path in definitions:
        folder = path if path.is_dir() else path.parent

        def git(*arguments: str, folder: Path = folder) -> str:
            # A monitor of files is a program that the repository names.
            command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True)  # noqa: S603 - no shell
            return done.stdout.strip()

        try:
            commit = git("rev-parse", "--verify", "HEAD")
            return GitCommit(commit=commit, changed=bool(git("status", "--porcelain", "--", ".")))
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            return None
    return None


def write(record: Record, revision: Revision, copy: Copy | None) -> None:
    """Write a revision, then bring the copy in Redis up to date; the record stands even if that fails."""
    record.append(revision)
    say(f"revision {revision.number} is applied")
    bring_up_to(copy, revision)


def bring_up_to(copy: Copy | None, revision: Revision) -> None:
    """Bring the copy in Redis up to date, or say when that will happen."""
    later = "the copy of the registry in Redis is brought up to date by unskew run, or by the next unskew apply"
    if copy is None:
        say(later, err=True)
        return
    try:
        if not copy.bring_up_to(revision):
            say("nothing is published in Redis yet; unskew run does so")
    except StoreUnavailable as error:
        say(f"{error}; {later}", err=True)


def applied_at_start(
    plan: Plan,
    definitions: Sequence[Path],
    registry: Path,
    state: Path,
    stop: threading.Event,
    *,
    command: str,
    drop: Sequence[str] = (),
) -> None:
    """Apply definitions before what they define is computed, in the state folder ``state``.

    Raises ``LayoutError`` if they must not be applied as they are, and ``Stopped`` if ``stop`` is set.
    """
    from unskew.pipelines.state.folder import held_by
    from unskew.sinks.objects import concerns
    from unskew.sinks.patience import Patience

    record = Record(registry)
    patience = Patience("the object store" if concerns(record.root) else "the disk", stop)

    def has_ended(view_id: str) -> bool | None:
        try:
            return view_id in held_by(state).retired
        except LayoutError:
            # A new state; what an older one is like, the run says.
            return None

    asked = Asked(keeps_others=True, drop=drop, has_ended=has_ended)
    for tried in range(1, _TRIES + 1):
        if stop.is_set():
            raise Stopped("it was asked to stop before it had begun")
        last = patience.until_done(record.last)
        found = planned(plan, None if last is None else last.content, asked)
        if found.refused:
            raise LayoutError(refusal(found))
        if not found.changes:
            return
        revision = next_revision(
            last, found.content, found.lines, command=f"{command} --apply", git=git_commit(definitions)
        )
        try:
            patience.until_done(lambda revision=revision: record.append(revision))  # type: ignore[misc]
        except Overtaken:
            # Another process of the same cluster, most likely, and then nothing is left to do.
            if tried == _TRIES:
                raise
            continue
        _log.info("revision %d is applied: %s", revision.number, "; ".join(found.lines))
        return


def refusal(found: Planned) -> str:
    """Return why a plan is refused, as one line."""
    more = f" (and {len(found.refused) - 1} more: unskew plan shows all)" if len(found.refused) > 1 else ""
    return f"{found.refused[0]}{more}"


def show_plan(found: Planned, services: Iterable[Service], copy: Copy | None, models: "Sequence[Model]" = ()) -> None:
    """Print what would change, and who is touched."""
    owned = {service.name: service for service in services}
    for name in [] if copy is None else sorted(set(found.content.serves) & set(copy.of_others)):
        say(f"{name}: another record has applied it until now; this one takes it over", err=True)
    for change in found.changes:
        for line in lines_of(change):
            say(line)
        for name in change.touches:
            say(f"    service {name} reads it ({whose(owned[name], None if copy is None else copy.reads(name))})")
        for name in _trained_on(change, models):
            say(f"    model {name} was trained on it")


def _trained_on(change: Change, models: "Sequence[Model]") -> list[str]:
    """Return the models that were trained on a view version that changes or is removed."""
    if change.what != "view" or change.kind not in {"changed", "removed"}:
        return []
    return [model.name for model in models if any(one.startswith(f"{change.name}:") for one in model.features)]


def lines_of(change: Change) -> Iterator[str]:
    """Yield a change as lines: fields and notes below its name."""
    yield change.line().partition(":")[0]
    for one in change.fields:
        yield f"    {one.text()}"
    for note in change.notes:
        yield f"    {note}"


def as_data(
    found: Planned, last: Revision | None, services: Iterable[Service], copy: Copy | None, models: "Sequence[Model]"
) -> dict[str, Any]:
    """Return a plan as data that ``json.dumps`` takes."""
    owned = {service.name: service for service in services}
    changes = changes_as_data(found.changes)
    for one, change in zip(found.changes, changes, strict=True):
        change["models"] = _trained_on(one, models)
        change["services"] = [
            {
                "name": name,
                "owner": owned[name].owner,
                "reads_since_yesterday": None if copy is None else copy.reads(name),
            }
            for name in change["services"]
        ]
    return {"revision": 0 if last is None else last.number, "changes": changes, "refused": list(found.refused)}


def changes_as_data(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Return changes as data that ``json.dumps`` takes; ``services``: the names of those that read the view."""
    return [
        {
            "what": change.what,
            "kind": change.kind,
            "name": change.name,
            "fields": [{"name": one.name, "before": one.before, "after": one.after} for one in change.fields],
            "notes": list(change.notes),
            "services": list(change.touches),
        }
        for change in changes
    ]
