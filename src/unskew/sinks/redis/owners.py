"""Owners: which state folder computes each shard, so that two pipelines do not overwrite each other's values.

The hash ``{prefix}:owners`` holds, for each shard, the id of the state that computes it, and for each id, where that
state is. It is shared by all pipelines of a prefix, because their values share the keys of a view. A process claims its
shards at its start; a restart, and a process that takes over, claim them with the same id.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from unskew.features.errors import LayoutError
from unskew.sinks.redis.keyspace import owners_key
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Words

_AT_ONCE = 1_000


class Owners:
    """The claim of one process. ``state``: the id of its state; if it is empty, nothing is claimed.

    Methods raise what redis-py raises.
    """

    def __init__(self, prefix: str, state: str) -> None:
        self._key = owners_key(prefix)
        self._state = state
        self._shards: Collection[str] = ()
        self._where = ""

    def of(self, client: Client, shards: Collection[str]) -> dict[str, str]:
        """Return, by shard, ``view@version/shard``, the id of the state that owns it, if there is one."""
        owners = Words.read(client, self._key)
        return {shard: owner for shard in shards if (owner := owners.word(shard)) is not None}

    def claim(self, client: Client, shards: Collection[str], where: str, written_by: Mapping[str, str]) -> None:
        """Claim these shards for the state, from now on; ``where`` says where the state is.

        ``written_by``: the states that wrote values of shards before there were owners. Raises ``LayoutError`` if one
        of the shards belongs to another state.
        """
        if not self._state:
            return
        self._shards, self._where = shards, where
        self.hold(client, written_by)

    def refuse(self, client: Client, shards: Collection[str], written_by: Mapping[str, str]) -> None:
        """Raise ``LayoutError`` if one of these shards belongs to another state; ``written_by`` is as in ``claim``."""
        if self._state:
            self._refuse(client, {**written_by, **self.of(client, shards)})

    def take(self, client: Client, shards: Collection[str]) -> None:
        """Remove the owners of these shards."""
        for some in _parts(list(shards)):
            client.hdel(self._key, *some)

    def hold(self, client: Client, written_by: Mapping[str, str] = MappingProxyType({})) -> None:
        """Claim again what of the claim is lost; ``written_by`` is as in ``claim``.

        Raises ``LayoutError`` if another state has claimed any of it; it then claims nothing.
        """
        owned = self.of(client, self._shards)
        self._refuse(client, {**written_by, **owned})
        if free := [shard for shard in self._shards if shard not in owned]:
            client.hset(self._key, f"#{self._state}", self._where)
            commands = client.pipeline(transaction=False)
            for shard in free:
                # Of two that claim it at the same time, one gets it.
                commands.hsetnx(self._key, shard, self._state)
            commands.execute()
            self._refuse(client, self.of(client, self._shards))

    def retire(self, client: Client, view_ids: Collection[str], written_by: Mapping[str, str]) -> dict[str, bool]:
        """Give up the shards of these views; return those, and for each whether no other state has any of its view."""
        owners = {**written_by, **Words.read(client, self._key).by_shard()}
        mine = [shard for shard, state in owners.items() if state == self._state and _view_of(shard) in view_ids]
        others = {_view_of(shard) for shard, state in owners.items() if state != self._state}
        self.take(client, mine)
        return {shard: _view_of(shard) not in others for shard in mine}

    def _refuse(self, client: Client, owned: Mapping[str, str]) -> None:
        foreign = {shard: state for shard, state in owned.items() if state and state != self._state}
        if not foreign:
            return
        shard, state = min(foreign.items())
        where = Words.read(client, self._key).word(f"#{state}") or f"the state {state}"
        raise LayoutError(
            f"the values of {_view_of(shard)} in Redis belong to {where} ({len(foreign)} shards, for example {shard}), and two "
            "pipelines would overwrite each other's; run with the --state that wrote them, or with another --prefix; if that "
            "pipeline has ended for good, run with --replace, or unskew materialize with --again, which removes its values first"
        )


def _view_of(shard: str) -> str:
    return shard.partition("/")[0]


def _parts(items: list[str]) -> list[list[str]]:
    return [items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE)]
