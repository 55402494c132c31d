"""Removal of a view version from Redis: its values, page by page, and what is said of its shards."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import polars as pl

from unskew.features.registry import parse
from unskew.features.view import View
from unskew.sinks.redis.keyspace import (
    clock_key,
    ledger_key,
    owners_key,
    registry_key,
    sent_key,
    value_key,
    value_keys_pattern,
    witness_key,
)
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Words

KEYS_PER_PAGE = 1_000
_Item = TypeVar("_Item")
_VALUE_KEY = re.compile(r"(.*):([^:@]+@[1-9][0-9]*):\{(.*)\}", re.DOTALL)


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


@dataclass(frozen=True, kw_only=True)
class EntityKeys:
    """The keys of values of one entity, under any prefix.

    ``n_keys``: all keys of values that were looked at. ``removed``: those that were the entity's. ``unknown``: those
    whose view nobody knows.
    """

    n_keys: int
    removed: Sequence[str]
    unknown: Sequence[str]


def remove_entity(
    client: Client,
    judge: Callable[[str, str, str], bool | None],
    report: Callable[[int], None] = lambda _: None,
    *,
    dry_run: bool = False,
) -> EntityKeys:
    """Remove the values of one entity, of all views and versions and under all prefixes.

    ``judge``: says for a prefix, a view version and a canonical entity key whether the key is the entity's; None if the
    key may be, and nobody knows what the view's entities are. ``dry_run``: only look. Scans the whole key space, as
    ``remove_values`` does; the call can be repeated.
    """
    n_keys = 0
    removed: list[str] = []
    unknown: list[str] = []
    for page in _pages(client.scan_iter(match="*:*@*:{*}", count=KEYS_PER_PAGE)):
        commands = client.pipeline(transaction=False)
        for key in page:
            text = key.decode(errors="backslashreplace") if isinstance(key, bytes) else str(key)
            found = _VALUE_KEY.fullmatch(text)
            if found is None:
                continue
            n_keys += 1
            verdict = judge(*found.groups())
            if verdict is None:
                unknown.append(text)
            elif verdict:
                removed.append(text)
                commands.delete(key)
        if not dry_run:
            commands.execute()
        report(n_keys)
    return EntityKeys(n_keys=n_keys, removed=removed, unknown=unknown)


def registries(client: Client) -> dict[str, dict[str, View]]:
    """Return the views, by id, that are published under each prefix. Raises what redis-py raises."""
    found: dict[str, dict[str, View]] = {}
    suffix = registry_key("")
    for key in client.scan_iter(match=f"*{suffix}", count=KEYS_PER_PAGE):
        text = key.decode() if isinstance(key, bytes) else str(key)
        published = client.get(key)
        if isinstance(published, bytes | str):
            found[text.removesuffix(suffix)] = {view.id: view for view in parse(published, text).views.values()}
    return found


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
