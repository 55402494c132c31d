"""The state of a running pipeline, read from Redis alone: how far each view has come, and which events were late."""

from collections.abc import Callable
from dataclasses import dataclass

from unskew.features.errors import RequestError
from unskew.features.ledger import Ledger, together
from unskew.features.registry import parse
from unskew.features.view import View
from unskew.sinks.redis.keyspace import clock_field, clock_key, ledger_key, registry_key
from unskew.sinks.redis.server import Server, checked
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Clocks, Ledgers
from unskew.sinks.wall import wall_us


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """One view as its pipeline last reported it; instants in microseconds.

    ``clock_us``: the last instant that every shard has closed, None while a shard has no clock. ``lag_us``: how far
    that is behind the present, None without a clock. ``since_us``: the latest of the shards' first arrivals.
    ``shards``: their names. ``waiting``: shards without a clock yet. ``ended``: shards that ended before they had one.
    ``ledger``: late events and repeats of all shards since their state began.
    """

    view: View
    clock_us: int | None
    lag_us: int | None
    since_us: int | None
    shards: tuple[str, ...]
    waiting: tuple[str, ...]
    ended: tuple[str, ...]
    ledger: Ledger


def read_live(
    source: Client | str, prefix: str, pipeline: str, *, now_us: Callable[[], int] = wall_us
) -> list[LiveView]:
    """Return the views on which the pipeline has reported, in the registry's order.

    ``source``: a client or a URL. Raises ``RequestError`` if there is no such view, ``StoreUnavailable`` if Redis
    cannot be reached, and ``LayoutError`` if its content cannot be read.
    """
    server = Server(source)
    try:
        live = read_all_live(server, prefix, pipeline, now_us=now_us)
    finally:
        if isinstance(source, str):
            server.close()
    if not live:
        raise RequestError(
            f"Redis holds no clock of pipeline {pipeline!r} under the prefix {prefix!r}; give the same --pipeline and "
            "--prefix as to `unskew run`, or start it"
        )
    return live


def read_all_live(server: Server, prefix: str, pipeline: str, *, now_us: Callable[[], int] = wall_us) -> list[LiveView]:
    """Return the views on which the pipeline has reported, in the registry's order; none if there are none.

    Raises as ``read_live`` does.
    """
    clocks_key, ledgers_key = clock_key(prefix, pipeline), ledger_key(prefix, pipeline)
    with server.reaching() as client:
        commands = client.pipeline(transaction=False)
        commands.get(registry_key(prefix))
        commands.hgetall(clocks_key)
        commands.hgetall(ledgers_key)
        replies = commands.execute(raise_on_error=False)
        registry, clocks, ledgers = checked(replies, [registry_key(prefix), clocks_key, ledgers_key])
    views = {} if registry is None else parse(registry, registry_key(prefix)).views
    words, late = Clocks((clocks_key, clocks)), Ledgers((ledgers_key, ledgers))
    return [_live(view, words, late, now_us()) for view in views.values() if words.shards(view.id)]


def _live(view: View, clocks: Clocks, ledgers: Ledgers, now_us: int) -> LiveView:
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
