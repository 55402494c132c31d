"""Rows are sent while the server works on those before, and replies are awaited where there may be many of them."""

import threading

from tests.support.flows import NOW, VIEW, step
from tests.support.servers.valkey import Valkey
from unskew.sinks.redis.nodes import BYTES_PER_SEND, OneServer
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.resp_replies import BYTES_PER_READ

ENCODER = RowEncoder(VIEW, "unskew")


def test_pieces_are_sent_without_a_wait_until_many_replies_are_outstanding(tmp_path):
    pieces = [step(1, number, [f"{number}-{key}" for key in range(100)]).current_rows for number in range(40)]
    n_bytes = len(ENCODER.encode(pieces[0].frame(), NOW).data)
    assert BYTES_PER_SEND < n_bytes < BYTES_PER_READ / 3
    n_before_a_wait = -(-BYTES_PER_READ // n_bytes)
    n_sent = 0

    def send():
        nonlocal n_sent
        for piece in pieces:
            nodes.send_rows(ENCODER, piece, NOW)
            n_sent += 1
        nodes.finish()

    with Valkey(tmp_path / "one") as server:
        nodes = OneServer(server.client)
        with nodes.open():
            with server.paused():
                sending = threading.Thread(target=send)
                sending.start()
                sending.join(2)
                assert n_sent == n_before_a_wait
            sending.join(60)
            assert not sending.is_alive()
        assert server.client.dbsize() == 40 * 100
        assert server.client.hget("unskew:purchases@1:{39-99}", "n") == b"39"


def test_very_short_pieces_go_together_and_in_their_order(tmp_path):
    with Valkey(tmp_path / "one") as server:
        nodes = OneServer(server.client)
        with nodes.open():
            for n in range(30):
                nodes.send_rows(ENCODER, step(1, n, ["a"]).current_rows, NOW)
                nodes.set_fields("mark", {"n": n})
            nodes.finish()
            assert server.client.hget("unskew:purchases@1:{a}", "n") == b"29"
            assert server.client.hget("mark", "n") == b"29"
        # What each of them makes the server read at once; a hundred bytes are not worth a system call.
        events = server.client.info("stats")["total_reads_processed"]
        assert events < 20
