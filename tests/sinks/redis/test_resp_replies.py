import socket
from collections.abc import Iterator

import pytest
import redis

from unskew.sinks.redis.resp_replies import BYTES_PER_READ, Replies

TRANSACTION = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:0\r\n:1\r\n"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a connection and the server's."""
    ours, servers = socket.socketpair()
    ours.settimeout(0.2)
    with ours, servers:
        yield ours, servers


def expecting(ours: socket.socket, n_replies: int) -> Replies:
    replies = Replies(ours.recv_into)
    replies.expect(n_replies)
    return replies


def test_replies_may_come_in_pieces_of_any_size():
    for size in range(1, len(TRANSACTION) + 1):
        pieces = [TRANSACTION[start : start + size] for start in range(0, len(TRANSACTION), size)]

        def receive(buffer, pieces=pieces):
            piece = pieces.pop(0)
            buffer[: len(piece)] = piece
            return len(piece)

        replies = Replies(receive)
        replies.expect(4)

        assert replies.read() == []
        assert not pieces


def test_only_as_many_replies_are_awaited_as_asked(ends):
    ours, servers = ends
    replies = expecting(ours, 5)
    servers.sendall(b":1\r\n" * 3)

    replies.read(down_to=2)

    servers.sendall(b":1\r\n" * 2)
    replies.read()


def test_more_replies_than_fit_one_read_are_counted(ends):
    ours, servers = ends
    n = BYTES_PER_READ // 2
    replies = expecting(ours, n)
    servers.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * BYTES_PER_READ)
    servers.sendall(b":1\r\n" * n)

    replies.read()


@pytest.mark.parametrize(
    ("answer", "n_replies", "refusals"),
    [
        (b":1\r\n-WRONGTYPE not a hash\r\n:1\r\n", 3, ["WRONGTYPE not a hash"]),
        (b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n-WRONGTYPE not a hash\r\n:0\r\n", 4, ["WRONGTYPE not a hash"]),
        (
            b"+OK\r\n-MOVED 7 :1\r\n-MOVED 7 :1\r\n-EXECABORT discarded\r\n:1\r\n",
            5,
            ["MOVED 7 :1", "MOVED 7 :1", "EXECABORT discarded"],
        ),
        (b"-ERR \xff\r\n", 1, ["ERR \ufffd"]),
    ],
    ids=["alone", "inside a transaction", "while queueing", "not UTF-8"],
)
def test_refusals_are_given_with_their_texts_however_they_are_cut(answer, n_replies, refusals):
    for cut in range(1, len(answer)):
        pieces = [answer[:cut], answer[cut:]]

        def receive(buffer, pieces=pieces):
            piece = pieces.pop(0)
            buffer[: len(piece)] = piece
            return len(piece)

        replies = Replies(receive)
        replies.expect(n_replies)
        assert replies.read() == refusals


def test_a_transaction_that_did_not_run_is_an_error(ends):
    ours, servers = ends
    replies = expecting(ours, 4)
    servers.sendall(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*-1\r\n")

    with pytest.raises(redis.InvalidResponse):
        replies.read()


def test_a_server_that_hangs_up_is_an_error(ends):
    ours, servers = ends
    replies = expecting(ours, 2)
    servers.sendall(b":1\r\n")
    servers.close()

    with pytest.raises(redis.ConnectionError, match="closed"):
        replies.read()


def test_a_silent_server_is_an_error(ends):
    ours, _ = ends

    with pytest.raises(redis.TimeoutError):
        expecting(ours, 1).read()


@pytest.mark.parametrize("answer", [b"$5\r\nhello\r\n", b"*-1\r\n", b">2\r\n+pushed\r\n+x\r\n", b"HTTP/1.1 400\r\n"])
def test_an_answer_of_another_kind_is_an_error(ends, answer):
    ours, servers = ends
    replies = expecting(ours, 9)
    servers.sendall(answer)

    with pytest.raises(redis.InvalidResponse):
        replies.read()


def test_more_replies_than_commands_are_an_error(ends):
    ours, servers = ends
    replies = expecting(ours, 1)
    servers.sendall(b":1\r\n:1\r\n")

    with pytest.raises(redis.InvalidResponse, match="more replies"):
        replies.read()
