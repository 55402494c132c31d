"""The state folder: the recovery store, the changelogs, the journal, and a small file that identifies them.

state/deployment.json    what the store was made for, its id, and the views that it holds
state/recovery/          Bytewax's recovery store
state/changelog/         see ``changelog.py``
state/journal/           see ``journal.py``
state/compiled/          compiled functions, where no usual folder can be written (``features/jit_cache.py``)
"""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
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
from unskew.sinks import durable

RECOVERY = "recovery"
CHANGELOG = "changelog"
JOURNAL = "journal"
COMPILED = "compiled"
DEPLOYMENT = "deployment.json"
DEPLOYMENT_LAYOUT = 2
STORE_TIMEOUT_S = 60.0

_log = logging.getLogger("unskew.run")


@dataclass(frozen=True, kw_only=True)
class StateFolder:
    """The content of ``deployment.json``: as found (``found``; None for a new state), and as this run leaves it.

    ``facts``: the configuration that the recovery store was made for. ``id``: the unique name of this history.
    ``views``: those that the store holds. ``retired``: views that an earlier run left out; their state is as old as
    that run, so they must not continue. ``leads``: whether this process writes the file and makes the store.
    ``still_ours``: raises if another process has taken over.
    """

    folder: Path
    facts: Mapping[str, Any]
    views: Sequence[str]
    retired: Sequence[str]
    found: Mapping[str, Any] | None
    id: str
    leads: bool
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
        path = deployment.state / DEPLOYMENT
        leads = deployment.process == 0
        if not leads:
            _await_store(deployment.state / RECOVERY, going_on)
        facts = {"layout": DEPLOYMENT_LAYOUT, "pipeline": deployment.pipeline, "shards": deployment.n_hashes}
        now = {view.id for view in plan.views.values()}
        existing = _read_deployment(path)
        found = existing or {**facts, "id": uuid.uuid4().hex, "views": [], "retired": []}
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
            found=existing,
            id=found["id"],
            leads=leads,
            still_ours=still_ours,
        )

    def open(self) -> RecoveryConfig:
        """Return the recovery store; make it if it is new.

        Raises ``StoreUnavailable``; the call can then be repeated.
        """
        recovery = self.folder / RECOVERY
        if not self.leads:
            return RecoveryConfig(recovery)
        if self.found is None:
            # Before the store, because a store without the file would be refused.
            self._write(views=[], retired=[])
        if not _holds_anything(recovery):
            with durable.disk(self.folder):
                self._make_store(recovery)
        return RecoveryConfig(recovery)

    def record(self) -> None:
        """Record the views; must be called before the first epoch that lacks a retired view is durable.

        It must not be called before the run is certain to be accepted. Raises ``StoreUnavailable``; the call can then
        be repeated.
        """
        if self.leads and self._content(self.views, self.retired) != self.found:
            self._write(self.views, self.retired)

    def _content(self, views: Sequence[str], retired: Sequence[str]) -> dict[str, Any]:
        return {**self.facts, "id": self.id, "views": views, "retired": retired}

    def _write(self, views: Sequence[str], retired: Sequence[str]) -> None:
        with durable.disk(self.folder):
            data = json.dumps(self._content(views, retired)).encode()
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
                f"--drop {wanted}: the definitions have {', '.join(both)}, so it goes on; take it out of them, or omit --drop"
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
        _log.warning("%s is replaced by version %d, so its state ends here", view, versions[_name(view)])


def _name(view: str) -> str:
    return view.rpartition("@")[0]


def _version(view: str) -> int:
    return int(view.rpartition("@")[2])


def _holds_anything(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _read_deployment(path: Path) -> dict[str, Any] | None:
    try:
        return {"id": "", "views": [], "retired": [], **json.loads(path.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LayoutError(
            f"{path} cannot be read ({error.strerror}); make it a readable file, restore it, or name another --state"
        ) from error
    except (ValueError, TypeError) as error:
        raise LayoutError(f"{path} is damaged ({error}); restore it, or name another --state") from error


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
