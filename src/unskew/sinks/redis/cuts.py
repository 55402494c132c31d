"""Cuts: close the connections of a frozen process that this process replaced, so that it sends nothing more.

A process may freeze between the check of its lease and a send, and send when it wakes up. A process that takes over
therefore takes the lease first, and then has each server close the connections that bear its predecessor's name. A
predecessor that connects again after that finds its lease gone.
"""

import logging

import redis

from unskew.sinks.redis.nodes import Nodes

_log = logging.getLogger("unskew.redis")


class Cuts:
    """Names of this process's connections, and the cutting of those of its predecessors.

    ``state``: names the history that they write; if it is empty, nothing is named or cut. ``process``: this process's
    number among the ``n_processes`` of that history.
    """

    def __init__(self, state: str, process: int, n_processes: int) -> None:
        self._prefix = f"unskew-{state}-"
        self._process = process
        self._n_processes = n_processes
        self._able = bool(state)

    def show(self, nodes: Nodes) -> None:
        """Name this process's connections. Raises what redis-py raises."""
        if self._able:
            try:
                nodes.call_them(f"{self._prefix}{self._process}")
            except redis.exceptions.ResponseError as error:
                self._give_up(error)

    def cut_predecessors(self, nodes: Nodes) -> None:
        """Close the connections of the processes that this one replaces. Raises what redis-py raises."""
        if not self._able:
            return
        for server in nodes.servers():
            try:
                for one in server.client_list():
                    if self._is_predecessor(one["name"]):
                        server.client_kill_filter(_id=one["id"])
            except redis.exceptions.ResponseError as error:
                self._give_up(error)
                return

    def _is_predecessor(self, name: str) -> bool:
        number = name.removeprefix(self._prefix)
        if number == name or not number.isdecimal():
            return False
        return int(number) == self._process or int(number) >= self._n_processes

    def _give_up(self, error: redis.exceptions.ResponseError) -> None:
        self._able = False
        _log.warning(
            "Redis does not let this user run CLIENT SETNAME, LIST and KILL (%s): a process that froze and was "
            "replaced may still send when it wakes up, and cannot be stopped; allow these commands",
            error,
        )
