"""How a running pipeline stands, from Redis alone: how far each view has come, and which events came too late."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from unskew.features.errors import RequestError
from unskew.features.ledger import Ledger, together
from unskew.features.registry import RegisteredView, parse
from unskew.sinks.redis.keyspace import clock_field, clock_key, ledger_key, registry_key
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Clocks, Ledgers


def present_us() -> int:
    """The wall clock, microseconds."""
    return time.time_ns() // 1000


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """One view as its pipeline last said; instants in microseconds.

    ``clock_us``: the last instant that is closed in every shard, None while one has no clock; ``lag_us``: how far it is behind
    the present, None without one. ``since_us``: the latest of the shards' first arrivals. ``shards``: their names.
    ``waiting``: those without a clock yet; ``ended``: those that ended before they had one. ``ledger``: late events and
    repeats of all shards since their state began.
    """

    view: RegisteredView
    clock_us: int | None
    lag_us: int | None
    since_us: int | None
    shards: tuple[str, ...]
    waiting: tuple[str, ...]
    ended: tuple[str, ...]
    ledger: Ledger


def read_live(
    source: Client | str, prefix: str, pipeline: str, *, now_us: Callable[[], int] = present_us
) -> list[LiveView]:
    """The views that the pipeline has said anything of, in the registry's order.

    ``source``: a client or a URL. Raises ``RequestError`` where there is none, ``StoreUnavailable`` where Redis cannot
    be reached, ``LayoutError`` where what it holds cannot be read.
    """
    server = Server(source)
    clocks_key, ledgers_key = clock_key(prefix, pipeline), ledger_key(prefix, pipeline)
    try:
        with server.reaching() as client:
            commands = client.pipeline(transaction=False)
            commands.get(registry_key(prefix))
            commands.hgetall(clocks_key)
            commands.hgetall(ledgers_key)
            registry, clocks, ledgers = commands.execute()
    finally:
        if isinstance(source, str):
            server.close()
    views = {} if registry is None else parse(registry)
    words = Clocks((clocks_key, clocks)), Ledgers((ledgers_key, ledgers))
    live = [_live(view, *words, now_us()) for view in views.values() if words[0].shards(view.id)]
    if not live:
        raise RequestError(
            f"Redis holds no clock of pipeline {pipeline!r} under the prefix {prefix!r}; give the --pipeline and --prefix that "
            "`unskew run` was given, or start it"
        )
    return live


def _live(view: RegisteredView, clocks: Clocks, ledgers: Ledgers, now_us: int) -> LiveView:
    shards = {shard: clock_field(view, shard) for shard in clocks.shards(view.id)}
    waiting = tuple(shard for shard, name in shards.items() if not clocks.stands(name))
    closed = [us for us in map(clocks.closed_us, shards.values()) if us is not None]
    since = [us for us in map(clocks.since_us, shards.values()) if us is not None]
    clock_us = None if waiting else min(closed, default=None)
    return LiveView(
        view=view,
        clock_us=clock_us,
        lag_us=None if clock_us is None else max(0, now_us - clock_us),
        since_us=max(since, default=None),
        shards=tuple(shards),
        waiting=waiting,
        ended=tuple(shard for shard, name in shards.items() if clocks.has_ended(name)),
        ledger=together(map(ledgers.ledger, shards.values())),
    )
