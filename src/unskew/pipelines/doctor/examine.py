"""The doctor: what ``unskew run`` would find here and now, looked at before it runs, and not changed.

    definitions -> folders, leases, state, record -> at the same time: Kafka, Schema Registry, Redis, this machine

Every server is given a few seconds, and one that hangs does not hold up the others.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unskew.features.definitions.load import load
from unskew.features.plan import Plan
from unskew.features.printing import counted
from unskew.features.time import rough_duration
from unskew.pipelines.doctor import folders, host, schemas, topics
from unskew.pipelines.doctor.asked import LACKS_DEFINITIONS, Asked, view_ids
from unskew.pipelines.doctor.finding import Finding, NotChecked, failed, hearing, made, not_checked, together
from unskew.pipelines.doctor.folders import Here
from unskew.pipelines.kafka.host_clock import HostClock
from unskew.sinks.redis.examined import Examined
from unskew.sinks.wall import wall_us

_REDIS_S = 3.0
_FOLDERS_S = 15.0
_SERVERS_S = 45.0


def examine(paths: Sequence[Path], asked: Asked) -> list[Finding]:
    """Look at everything; the findings stand in a fixed order. It raises nothing of what is wrong with a deployment."""
    with hearing():
        plans: list[Plan] = []
        found = made("definitions", lambda: _definitions(paths, plans))
        plan = plans[0] if plans else None
        here = Here()
        found += together({"folders": partial(_folders, asked, plan, here)}, _FOLDERS_S)
        return found + together(
            {
                "Kafka": partial(topics.examine, asked, plan, here),
                "Schema Registry": partial(schemas.examine, asked, plan),
                "Redis": partial(_redis, asked, plan, here),
                "host": host.examine,
            },
            _SERVERS_S,
        )


def _definitions(paths: Sequence[Path], plans: list[Plan]) -> str:
    if not paths:
        raise NotChecked("none are given; give them as PATH, or set UNSKEW_DEFINITIONS")
    plan = load(*paths)
    plans.append(plan)
    streams = {view.stream.name for view in plan.of_topics.views.values()}
    return f"{counted(len(plan.views), 'view version')} over {counted(len(streams), 'stream')}"


def _folders(asked: Asked, plan: Plan | None, here: Here) -> list[Finding]:
    found = folders.examine(asked, plan)
    # Not before it is complete: whoever waited too long for it goes on without.
    here.state, here.is_held = found.state, found.is_held
    return found.found


def _redis(asked: Asked, plan: Plan | None, here: Here) -> list[Finding]:
    opened: list[Examined] = []

    def servers() -> str:
        opened.append(Examined(asked.redis_url, asked.prefix, asked.pipeline, timeout_s=_REDIS_S))
        return opened[0].servers()

    def takes_writes() -> str:
        return opened[0].take_writes(allow_eviction=asked.allow_eviction, expires=asked.expires)

    def clock() -> str:
        other_us = opened[0].clock_us()
        HostClock().compare(other_us, "the Redis server")
        return f"{rough_duration(abs(wall_us() - other_us))} between this host and Redis"

    def published() -> str:
        return opened[0].registry()

    def owned() -> str:
        if plan is None:
            raise NotChecked(LACKS_DEFINITIONS)
        if here.state is None:
            raise NotChecked("the state is not known")
        return opened[0].owned(view_ids(plan), here.state.id)

    def compact() -> str:
        if plan is None:
            raise NotChecked(LACKS_DEFINITIONS)
        opened[0].large_hashes([view.published for view in plan.of_topics.views.values()])
        return f"{counted(len(view_ids(plan)), 'view version')} looked at"

    found = made("Redis", servers)
    away = failed(found)
    rest = {
        "eviction": takes_writes,
        "published": published,
        "owner": owned,
        "compact hashes": compact,
        "clock": clock,
    }
    for about, look in rest.items():
        found += not_checked(about, "Redis does not answer") if away else made(about, look)
    for one in opened:
        one.close()
    return found
