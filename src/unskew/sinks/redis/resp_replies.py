"""Replies on one connection, parsed by hiredis: count those outstanding, and collect the texts of refusals.

The replies to our commands are integers, ``OK``, ``QUEUED`` and, to a transaction, a list of integers.
"""

from collections.abc import Callable

import hiredis
import redis

BYTES_PER_READ = 1 << 16

_STATUSES = frozenset({b"OK", b"QUEUED"})
_NOT_YET = object()


class Replies:
    """The outstanding replies of one connection, read through ``receive``, a socket's ``recv_into``."""

    def __init__(self, receive: Callable[[bytearray], int]) -> None:
        self._receive = receive
        self._buffer = bytearray(BYTES_PER_READ)
        self._reader = hiredis.Reader(
            redis.InvalidResponse, redis.ResponseError, errors="replace", notEnoughData=_NOT_YET
        )
        self._n_outstanding = 0

    def expect(self, n_replies: int) -> None:
        """Add the number of replies to commands that were sent."""
        self._n_outstanding += n_replies

    def read(self, *, down_to: int = 0) -> list[str]:
        """Read replies until at most ``down_to`` are outstanding; return the server's text for each refused command.

        Raises ``redis.ConnectionError`` if the server closed the connection, ``redis.TimeoutError`` if it does not
        answer, and ``redis.InvalidResponse`` for a reply that none of our commands has. After any of these errors the
        connection cannot be used again.
        """
        refusals: list[str] = []
        next_reply = self._reader.gets
        while self._n_outstanding > down_to:
            reply = next_reply()
            if reply is _NOT_YET:
                self._feed()
                continue
            self._n_outstanding -= 1
            # Fast path: nearly all replies are of this kind.
            if type(reply) is int or (type(reply) is bytes and reply in _STATUSES):
                continue
            for one in reply if type(reply) is list else [reply]:
                if isinstance(one, redis.ResponseError):
                    refusals.append(str(one))
                elif type(one) is not int:
                    raise redis.InvalidResponse(f"unexpected reply: {one!r}")
        if not self._n_outstanding and self._reader.has_data():
            raise redis.InvalidResponse("more replies than commands")
        return refusals

    def _feed(self) -> None:
        try:
            n_bytes = self._receive(self._buffer)
        except TimeoutError as error:
            raise redis.TimeoutError("Timeout reading from socket") from error
        if not n_bytes:
            raise redis.ConnectionError("Connection closed by server")
        self._reader.feed(self._buffer, 0, n_bytes)  # type: ignore[arg-type]
