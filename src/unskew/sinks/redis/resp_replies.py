"""Replies counted rather than parsed: an object for each would cost more than making the commands did.

The replies to our commands are integers (``:1``), statuses (``+OK``, ``+QUEUED``) and arrays of integers (``*2``): a
line each, of few characters. A refusal, within a transaction too, is a line that begins with ``-``, which no other reply
contains. So the replies are good when the expected number of lines has come and no other character was among them.
"""

from collections.abc import Callable

import redis

BYTES_PER_READ = 1 << 16

_EXPECTED = bytes(sorted(set(b":+*0123456789OKQUED\r\n")))


class Replies:
    """The replies still to come on one connection, read through ``receive``, a socket's ``recv_into``."""

    def __init__(self, receive: Callable[[bytearray], int]) -> None:
        self._receive = receive
        self._buffer = bytearray(BYTES_PER_READ)
        self._n_outstanding = 0
        self._refused = bytearray()

    def expect(self, n_lines: int) -> None:
        """Count the replies of commands that were sent."""
        self._n_outstanding += n_lines

    def read(self, *, down_to: int = 0) -> None:
        """Return once no more than ``down_to`` lines are outstanding.

        Raises ``redis.ResponseError`` with the server's text for a command that was refused, ``redis.ConnectionError``
        where the server hung up, ``redis.TimeoutError`` where it is silent. The connection is of no use after any, unless
        after a refusal ``refusals`` reads on.
        """
        while self._n_outstanding > down_to:
            received = self._next()
            if received.translate(None, _EXPECTED):
                raise self._refusal(received)
            self._n_outstanding -= received.count(b"\n")
        if self._n_outstanding < 0:
            raise redis.InvalidResponse("more replies than commands")

    def refusals(self, last: bytes) -> list[str]:
        """After a refusal, read on up to ``last``, which is the last reply to come; the server's text for all it refused."""
        text = self._refused
        while not text.endswith(last):
            text += self._next()
        self._n_outstanding = 0
        return [line[1:].decode(errors="replace") for line in text.split(b"\r\n") if line.startswith(b"-")]

    def _next(self) -> bytearray:
        try:
            n_bytes = self._receive(self._buffer)
        except TimeoutError as error:
            raise redis.TimeoutError("Timeout reading from socket") from error
        if not n_bytes:
            raise redis.ConnectionError("Connection closed by server")
        return self._buffer[:n_bytes]

    def _refusal(self, received: bytearray) -> redis.RedisError:
        """The error whose line begins in ``received``; its end may not have come yet."""
        text = received
        while b"-" in text and b"\r\n" not in text[text.index(b"-") :]:
            text = text + self._next()
        self._refused = text
        _, dash, line = text.partition(b"-")
        if not dash:
            return redis.InvalidResponse(f"unexpected reply: {bytes(text[:80])!r}")
        return redis.ResponseError(line.partition(b"\r\n")[0].decode(errors="replace"))
