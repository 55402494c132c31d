"""The record of the registry: a file for each revision, which is never changed, in a folder or an object store.

    {root}/revision-00000001.json    see ``features/revision.py``

The next revision is a file that must not be there yet, so of two processes that apply at once one succeeds.
"""

import errno
import json
import re
from collections.abc import Iterable
from pathlib import Path

from unskew.features.errors import LayoutError, RequestError, StoreUnavailable
from unskew.features.plan import Plan
from unskew.features.planning import unapplied
from unskew.features.registry import describe
from unskew.features.revision import Revision, from_bytes, to_bytes, with_applied
from unskew.features.view import View
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath, Superseded, probe

_NAME = re.compile(r"revision-(\d{8})\.json")
_FOR_GOOD = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EROFS, errno.EOPNOTSUPP}
_MOST_BYTES = 256 << 20


class Overtaken(RequestError):
    """Another process has written the revision that this one was about to write: plan again."""


class Record:
    """The record in ``root``; reading it writes nothing.

    Methods raise ``LayoutError`` for a damaged record and ``StoreUnavailable`` if the store fails.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def numbers(self) -> range:
        """Return the numbers of all revisions, in order; none if there is no record."""
        try:
            names = [_NAME.fullmatch(path.name) for path in self.root.iterdir()]
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise _failure(error, f"{self.root} cannot be read") from error
        found = {int(name[1]) for name in names if name is not None}
        numbers = range(1, max(found, default=0) + 1)
        if missing := sorted(set(numbers) - found):
            raise LayoutError(f"{self.path(missing[0])} is missing, and later ones are there; restore it from a backup")
        return numbers

    def last(self) -> Revision | None:
        """Return the last revision; None if there is no record."""
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def read_last(self) -> Revision:
        """Return the last revision. Raises ``RequestError`` if nothing was applied yet."""
        last = self.last()
        if last is None:
            raise RequestError(f"nothing was applied yet to {self.root}; unskew apply writes the first revision")
        return last

    def read(self, number: int) -> Revision:
        """Return one revision. Raises ``RequestError`` if there is none of this number."""
        path = self.path(number)
        try:
            size = path.stat().st_size
            if size > _MOST_BYTES:
                raise LayoutError(f"{path} has {size:,} bytes, so it is not a revision; restore it from a backup")
            data = path.read_bytes()
        except FileNotFoundError as error:
            numbers = self.numbers()
            there = f"there are {numbers[0]} to {numbers[-1]}" if numbers else "nothing was applied yet"
            raise RequestError(f"{self.root} has no revision {number}; {there}") from error
        except OSError as error:
            raise _failure(error, f"{path} cannot be read") from error
        return from_bytes(data, str(path), number)

    def append(self, revision: Revision) -> None:
        """Write the next revision. Raises ``Overtaken`` if another process has written one of its number."""
        if isinstance(self.root, ObjectPath) and revision.number == 1:
            probe(self.root, "--registry")
        path = self.path(revision.number)
        try:
            durable.make_folder(self.root)
            durable.create_whole(path, to_bytes(revision))
        except OSError as error:
            raise _failure(error, f"{path} cannot be written") from error
        except Superseded as error:
            first = self.read(revision.number)
            raise Overtaken(
                f"{first.by} has written revision {first.number} ({first.command}) at "
                f"{first.at:%Y-%m-%d %H:%M:%S} UTC while this one was planned; look at it (unskew registry show "
                f"{first.number}), and plan again"
            ) from error

    def path(self, number: int) -> Path:
        """Return the file of a revision."""
        return self.root / f"revision-{number:08d}.json"


def _failure(error: OSError, what: str) -> StoreUnavailable | LayoutError:
    """Return the error of a failed disk; one that another try does not mend is a ``LayoutError``."""
    why = f"{what} ({error.strerror})"
    if error.errno in _FOR_GOOD:
        return LayoutError(f"{why}; correct its permissions, or name another folder with --registry")
    return StoreUnavailable(why)


def require_applied(record: Record, views: Iterable[View]) -> Revision:
    """Return the last revision. Raises ``RequestError`` unless it has these views, as they are."""
    last = record.last()
    if last is None:
        raise RequestError(
            f"nothing was applied yet to {record.root}, the record of the registry; apply the definitions (unskew apply), or give "
            "this command --apply"
        )
    if differences := unapplied(views, last.content):
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise RequestError(
            f"the definitions are not what was applied: {differences[0]}{more}; see what would change (unskew plan), and apply "
            f"them (unskew apply), or give those of revision {last.number}"
        )
    return last


def published(plan: Plan, revision: Revision | None) -> str:
    """Return what a pipeline publishes in Redis, as JSON: its views, and what was applied last; None: nothing was."""
    return json.dumps(with_applied(describe(plan), revision))
