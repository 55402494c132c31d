"""What a change of definitions does to values: what is recorded of views against the definitions that shall follow.

A record describes views and has no code; see ``definitions.revived``. What is compared, and how, is ``diff``.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from unskew.features.definitions.revived import revived
from unskew.features.errors import LayoutError
from unskew.features.plan import Plan, ViewPlan
from unskew.features.view import View
from unskew.pipelines.history.diff import Progress, Sample, ViewDiff, compare, defaults_of, paired
from unskew.pipelines.kafka.consumer import Flag

LIMIT_S = 60.0


def impact(
    recorded: Sequence[View],
    plan: Plan,
    archive_root: Path,
    *,
    against: Plan | None = None,
    sample: Sample | None = None,
    limit_s: float | None = LIMIT_S,
    now_s: Callable[[], float] = time.monotonic,
    stop: Flag | None = None,
    progress: Progress = lambda _done, _total: None,
) -> list[ViewDiff]:
    """Return, for every view that is recorded or in the plan, what the plan does to the values of archived events.

    ``recorded``: the views as published; a view of the plan is compared with that of its name and version, else with
    the latest other version of its name. ``against``: the definitions that the record was made from, for views that
    cannot be computed from what is recorded, because their stream has changed. ``sample``, ``stop``, ``progress``: as
    in ``diff``. ``limit_s``: once so many seconds have passed by the clock ``now_s``, what was read of the archive by
    then is compared.

    Nothing is refused: where there are no figures, ``why`` of the result says the reason. Views that are alike are
    ``unchanged`` and cost nothing; a view that is removed has no figures.
    """
    results: dict[tuple[str | None, str | None], ViewDiff | None] = {}
    pairs: list[tuple[ViewPlan | None, ViewPlan]] = []
    for old, new in paired(recorded, list(plan.views.values())):
        place = None if old is None else old.id, None if new is None else new.id
        results[place] = None
        if new is None:
            assert old is not None
            results[place] = ViewDiff(old=old.id, new=None, removed=tuple(one.name for one in old.features))
        elif old is None:
            pairs.append((None, new))
        elif old.state_fingerprint == new.state_fingerprint and defaults_of(old) == defaults_of(new.published):
            results[place] = ViewDiff(old=old.id, new=new.id, unchanged=True)
        else:
            try:
                pairs.append((_computable(old, plan, against), new))
            except LayoutError as error:
                results[place] = ViewDiff(old=old.id, new=new.id, why=str(error))
    found = compare(
        pairs,
        archive_root,
        sample=sample,
        stop=stop,
        progress=progress,
        limit_s=limit_s,
        now_s=now_s,
        must_compare=False,
    )
    results |= {(one.old, one.new): one for one in found}
    return [one for one in results.values() if one is not None]


def _computable(view: View, plan: Plan, against: Plan | None) -> ViewPlan:
    known = None if against is None else against.views.get(view.id)
    if known is not None and known.state_fingerprint == view.state_fingerprint:
        return known
    return revived(view, plan.streams)
