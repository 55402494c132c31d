"""Removal of a view version from Redis: its values, page by page, and what is said of its shards."""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import polars as pl

from unskew.sinks.redis.keyspace import (
    clock_key,
    ledger_key,
    owners_key,
    sent_key,
    value_key,
    value_keys_pattern,
    witness_key,
)
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Words

KEYS_PER_PAGE = 1_000
_Item = TypeVar("_Item")


def remove_values(
    client: Client,
    prefix: str,
    view_id: str,
    report: Callable[[int], None] = lambda _: None,
    chosen: Callable[[pl.Series], pl.Series] | None = None,
) -> int:
    """Remove all values of a view version; return how many there were.

    Scans the whole key space in small steps, in a cluster that of every master; ``report`` is called with the number so
    far after each page. ``chosen``: says for a series of canonical entity keys which to remove; None for all. Raises
    what redis-py raises; the call can then be repeated.
    """
    before = value_key(prefix, view_id, "").partition("}")[0]
    n_removed = 0
    pattern = value_keys_pattern(prefix, view_id)
    for page in _pages(client.scan_iter(match=pattern, count=KEYS_PER_PAGE)):
        names = page
        if chosen is not None:
            texts = pl.Series([key.decode() if isinstance(key, bytes) else key for key in page])
            names = texts.filter(chosen(texts.str.slice(len(before)).str.head(-1))).to_list()
        commands = client.pipeline(transaction=False)
        for name in names:
            commands.delete(name)
        n_removed += sum(commands.execute())
        report(n_removed)
    return n_removed


def remove_words(client: Client, prefix: str, pipeline: str, tags: Collection[str], view_ids: Collection[str]) -> None:
    """Remove everything that is said of the shards of these views. Raises what redis-py raises."""
    keys = [clock_key(prefix, pipeline), sent_key(prefix, pipeline), ledger_key(prefix, pipeline), owners_key(prefix)]
    for key in (*keys, *(witness_key(prefix, pipeline, tag) for tag in tags)):
        for some in _pages(Words.read(client, key).of_views(view_ids)):
            client.hdel(key, *some)


def _pages(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    rest = iter(items)
    while page := list(islice(rest, KEYS_PER_PAGE)):
        yield page
