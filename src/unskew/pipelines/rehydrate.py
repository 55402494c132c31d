"""Rehydration: write all current values to Redis again from a state folder whose pipeline does not run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import Plan, ViewPlan
from unskew.features.text_buffers import Keys
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.folder import CHANGELOG, RECOVERY, StateFolder, shards_of
from unskew.pipelines.state.ordering import Shard, Siblings
from unskew.pipelines.state.saved import read_saved
from unskew.sinks.lease import Lease, Leases
from unskew.sinks.record import Record, published
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.wall import wall_us

ROWS_PER_PART = 20_000


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a rehydration has written so far: rows of Redis, and shards of ``n_shards``.

    ``removed``: the number of keys that Redis held and the state does not.
    """

    rows: int = 0
    shards: int = 0
    n_shards: int = 0
    removed: int = 0


def rehydrate(plan: Plan, deployment: Deployment, report: Callable[[Written], None] = lambda _: None) -> Written:
    """Write all values of the plan's views that the state holds, then remove keys of these views that it does not hold.

    ``deployment``: ``state``, ``registry``, ``redis_url``, ``prefix`` and ``pipeline`` count. Nothing in the state
    folder is changed.
    Raises ``LayoutError`` if a process runs on the state, if the state is of another pipeline or definition, or if
    Redis holds later values than the state; ``StoreUnavailable`` if Redis fails. The call can then be repeated.
    """
    plan = plan.of_topics
    if not plan.views:
        raise RequestError(
            "all views of the definitions are over tables; their values are written again by unskew materialize, with the "
            "instant that they have reached"
        )
    with ExitStack() as closing:
        leases = Leases()
        closing.callback(leases.release)
        leases.add(Lease(deployment.state, "--state", deployment.owner(), frozenset(["the state"]), take_over=False))
        deployment = replace(deployment, n_hashes=shards_of(deployment.state))
        state = StateFolder.read(plan, deployment, leases.check)
        saved = read_saved(deployment.state / RECOVERY, {}).shards
        changelogs = Changelogs(deployment.state / CHANGELOG, leases.check)
        closing.callback(changelogs.close)
        writer = RedisWriter(
            deployment.redis_url,
            deployment.prefix,
            deployment.pipeline,
            state.id,
            still_ours=leases.check,
            allow_eviction=deployment.allow_eviction,
            expire_after_us=deployment.expire_after_us,
        )
        closing.callback(writer.close)
        writer.look()
        views = {view.id: view for view in plan.views.values()}
        names = {view_id: sorted(one["shard"] for one in saved if one["view"] == view_id) for view_id in views}
        own = frozenset(f"{view_id}/{name}" for view_id, shards in names.items() for name in shards)
        writer.claim(own, deployment.place())
        applied = None if deployment.registry is None else Record(deployment.registry).last()
        writer.publish_registry(published(plan, applied))
        listed = {view_id: writer.listed(view_id) or tuple(names[view_id]) for view_id in views}
        writer.expect(listed, own)
        written = Written(n_shards=len(own))
        for view_id, view in views.items():
            mine = [one for one in saved if one["view"] == view_id]
            whole = set(listed[view_id]) <= set(names[view_id])
            for step in write_view(view, mine, writer, changelogs, written, whole=whole):
                written = step
                report(written)
        return written


def write_view(
    view: ViewPlan,
    saved: Sequence[Mapping[str, Any]],
    writer: RedisWriter,
    changelogs: Changelogs,
    written: Written,
    *,
    whole: bool,
) -> Iterator[Written]:
    """Write one view from saved shards, and yield how much was written.

    ``whole``: the state holds all of its shards, so a key that none of them holds is removed.
    """
    siblings = Siblings()
    shards = [Shard.from_snapshot(view, siblings, changelogs, dict(one)) for one in saved]
    for shard in shards:
        state = shard.state
        if state.clock_us is None:
            written = replace(written, shards=written.shards + 1)
            continue
        for part in shard.everything(ROWS_PER_PART):
            if writer.is_ahead(part):
                raise LayoutError(
                    f"Redis holds later values of {view.id} (shard {state.shard}) than the state, because the pipeline did not end "
                    "by itself; start unskew run: it comes as far again, and then writes what Redis lacks"
                )
            writer.add(part.but(behind=False))
            writer.flush(wall_us())
            written = replace(written, rows=written.rows + part.current_rows.height)
            yield written
        written = replace(written, shards=written.shards + 1)
        yield written
    if whole:

        def is_unknown(keys: pl.Series) -> pl.Series:
            known = np.zeros(len(keys), np.bool_)
            for shard in shards:
                known |= shard.state.holds(Keys.of(keys))
            return pl.Series(~known)

        yield replace(written, removed=written.removed + writer.remove(view, is_unknown))
    for shard in shards:
        shard.state.dissolve()
