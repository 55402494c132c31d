"""The state of a running pipeline, read from Redis alone: how far each view has come, and which events were late."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unskew.features.errors import RequestError
from unskew.features.ledger import Ledger, read_ledger, together
from unskew.features.registry import parse
from unskew.features.view import View
from unskew.sinks.redis.keyspace import (
    ENDED,
    SINCE,
    as_text,
    clock_key,
    ledger_key,
    registry_key,
    shards_field,
)
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.url import Client
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
        with server.reaching() as client:
            commands = client.pipeline(transaction=False)
            commands.get(registry_key(prefix))
            commands.hgetall(clock_key(prefix, pipeline))
            commands.hgetall(ledger_key(prefix, pipeline))
            registry, clocks, ledgers = commands.execute()
    finally:
        if isinstance(source, str):
            server.close()
    fields = {as_text(name): as_text(value) for name, value in clocks.items()}
    told = {as_text(name): as_text(value) for name, value in ledgers.items()}
    views = {} if registry is None else parse(registry)
    live = [_live(view, fields, told, now_us()) for view in views.values() if _is_said(view, fields)]
    if not live:
        raise RequestError(
            f"Redis holds no clock of pipeline {pipeline!r} under the prefix {prefix!r}; give the same --pipeline and "
            "--prefix as to `unskew run`, or start it"
        )
    return live


def _is_said(view: View, fields: Mapping[str, str]) -> bool:
    return shards_field(view.id) in fields or any(name.startswith(f"{view.id}/") for name in fields)


def _live(view: View, fields: Mapping[str, str], ledgers: Mapping[str, str], now_us: int) -> LiveView:
    own = f"{view.id}/"
    shards = {name.removeprefix(own): text for name, text in fields.items() if name.startswith(own)}
    listed = fields.get(shards_field(view.id), "").split() or sorted(name for name in shards if SINCE not in name)
    clocks = {shard: int(shards[shard]) for shard in listed if shards.get(shard, ENDED) != ENDED}
    waiting = tuple(shard for shard in listed if shard not in shards)
    clock_us = None if waiting else min(clocks.values(), default=None)
    since = [int(shards[shard + SINCE]) for shard in listed if shard + SINCE in shards]
    return LiveView(
        view=view,
        clock_us=clock_us,
        lag_us=None if clock_us is None else max(0, now_us - clock_us),
        since_us=max(since, default=None),
        shards=tuple(listed),
        waiting=waiting,
        ended=tuple(shard for shard in listed if shards.get(shard) == ENDED),
        ledger=together(read_ledger(ledgers[own + shard]) for shard in listed if own + shard in ledgers),
    )
