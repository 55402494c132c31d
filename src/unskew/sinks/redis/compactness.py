"""Compactness: whether Redis can keep the hashes of a view as compact lists, which take about half the memory.

A hash with more fields than ``hash-max-listpack-entries``, or with a name or a value of more bytes than
``hash-max-listpack-value``, is kept as a table.
"""

import logging
from collections.abc import Iterable

import redis

from unskew.features.types import Type
from unskew.features.view import View
from unskew.sinks.redis.nodes import Nodes

LONGEST_COMPACT_BYTES = 64
"""The default of ``hash-max-listpack-value``."""
_OWN_FIELDS = 2  # _at and _until
_log = logging.getLogger("unskew.redis")


def long_features(view: View) -> list[str]:
    """Return the features whose text in Redis can be of any length: texts, lists and maps."""
    types = {feature.name: Type.parse(feature.type) for feature in view.features}
    return [name for name, dtype in types.items() if dtype.nesting or dtype.scalar == "string"]


def report_large_hashes(nodes: Nodes, views: Iterable[View]) -> None:
    """Log which views' hashes the servers will not keep compact, whatever their values; then those that depend on them.

    A server that does not show its settings is passed over. Raises what redis-py raises.
    """
    n_fields: list[int] = []
    n_bytes: list[int] = []
    for server in nodes.servers():
        try:
            found = server.config_get("hash-max-*")
        except redis.ResponseError:
            continue
        for limits, kind in ((n_fields, "entries"), (n_bytes, "value")):
            limits += [int(str(text)) for name, text in found.items() if str(name).endswith(f"-{kind}")]
    if not n_fields or not n_bytes:
        return
    for view in views:
        n_own = len(view.features) + _OWN_FIELDS
        longest = max((len(feature.name.encode()) for feature in view.features), default=0)
        if n_own > min(n_fields) or longest > min(n_bytes):
            _log.warning(
                "%s: Redis keeps a hash of %d fields with names of up to %d bytes as a table, at about twice the memory; set "
                "hash-max-listpack-entries (%d) and hash-max-listpack-value (%d) higher, or split the view",
                view.id,
                n_own,
                longest,
                min(n_fields),
                min(n_bytes),
            )
        elif long := long_features(view):
            _log.info(
                "%s: values of %s that are longer than hash-max-listpack-value (%d bytes) double the memory of their hash",
                view.id,
                ", ".join(long),
                min(n_bytes),
            )
