"""The views that a log holds, by what the log itself says of them: also those that are defined nowhere any more."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from unskew.features.errors import LayoutError, RequestError
from unskew.features.versions import Versions
from unskew.features.view import View
from unskew.sinks.objects import ObjectPath
from unskew.sinks.record import Record
from unskew.sinks.tables.layout import read_definition, view_root, view_roots


@dataclass(frozen=True)
class LoggedVersion:
    """A view version that has a folder in a log; which of several serves, the record beside the log says, if any."""

    name: str
    version: int
    root: Path
    serving: bool = True

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


def with_logged(log_root: Path, named: Iterable[str], known: Versions[View] | None = None) -> Versions[View]:
    """Return the known views, and what the log holds besides of the views that a request names.

    ``named``: ``view`` or ``view@version``. With ``known`` views, only versions that are named by their number are
    looked for in the log; one that the log has with another definition is the version that serves by the record of the
    registry beside the log, if that has this definition. Without known views, a bare name means the only version there
    or, of several, the one that serves by that record. Raises ``RequestError`` for a name that the log does not hold,
    or holds in several versions; ``LayoutError`` if the log does not say how it is read.
    """
    named = list(dict.fromkeys(named))
    if known is not None and not isinstance(log_root, ObjectPath):
        known = _as_numbered(log_root, named, known)
    wanted = [name for name in named if known is None or ("@" in name and name not in known)]
    if known is not None and not wanted:
        return known
    held = Versions(_held(log_root))
    if known is None and not held:
        raise RequestError(f"{log_root} holds no log of any view; give the --log folder of unskew run")
    if known is not None:
        # A name that the log does not hold either is an error about the known views.
        wanted = [name for name in wanted if name in held]
    found = {held.find(name).id: defined(held.find(name)) for name in wanted}
    if known is None:
        return Versions(found.values())
    # What a bare name means stays as it is, also where the only known version becomes one of several.
    beside = [msgspec.structs.replace(view, serving=known.serving(view.name) is view) for view in known.values()]
    return Versions([*beside, *(msgspec.structs.replace(view, serving=False) for view in found.values())])


def _as_numbered(log_root: Path, named: Iterable[str], known: Versions[View]) -> Versions[View]:
    """Return the known views; one that is named alone has the number under which the log has what it computes.

    ``unskew dev`` takes a view that changes as the next version, whatever number the definition says.
    """
    meant: dict[str, View] = {}
    for name in named:
        view = known.get(name)
        if view is None or _is_logged(log_root, view, view.version) is not False:
            continue
        version = (_serves(log_root) or {}).get(name)
        if version is not None and f"{name}@{version}" not in known and _is_logged(log_root, view, version):
            meant[view.id] = msgspec.structs.replace(view, version=version)
    return Versions(meant.get(view.id, view) for view in known.values()) if meant else known


def _is_logged(log_root: Path, view: View, version: int) -> bool | None:
    """Return whether the log has what a view computes under a number; None if it has nothing under it."""
    logged = read_definition(view_root(log_root, view.name, version))
    return None if logged is None else logged.state_fingerprint == view.state_fingerprint


def _held(log_root: Path) -> list[LoggedVersion]:
    found = [LoggedVersion(*one) for one in view_roots(log_root)]
    if len({one.name for one in found}) == len(found):
        return found
    serves = _serves(log_root)
    if serves is None:
        return found
    return [replace(one, serving=serves.get(one.name, one.version) == one.version) for one in found]


def _serves(log_root: Path) -> Mapping[str, int] | None:
    """Return which version of each view serves, by the record beside the log; None if there is no record."""
    last = Record(log_root.with_name("registry")).last()
    return None if last is None else last.content.serves


def all_logged(log_root: Path) -> Versions[View]:
    """Return all views of a log. Raises as ``with_logged`` does."""
    return with_logged(log_root, [f"{name}@{version}" for name, version, _ in view_roots(log_root)])


def defined(logged: LoggedVersion) -> View:
    """Return the definition with which a log was written. Raises ``LayoutError`` if the log does not hold it."""
    view = read_definition(logged.root)
    if view is None:
        raise LayoutError(
            f"the log of {logged.id} under {logged.root} does not hold its definition, because a version of unskew wrote it that "
            "did not keep any; give the definition, or start unskew run with it once"
        )
    if view.id != logged.id:
        raise LayoutError(f"{logged.root} holds the log of {view.id}; move it to where it was written")
    return view
