"""A TLS proxy for a server without TLS: it decrypts and forwards encrypted data, and forwards plain data unchanged."""

import contextlib
import select
import socket
import ssl
import threading
from types import TracebackType
from typing import Self

from tests.support.servers.certificates import Certificates
from tests.support.servers.valkey import quiet_port

_HANDSHAKE = b"\x16"


class TlsFront:
    """Listens on a port of its own. ``asks_clients``: a client must show a certificate of the same authority."""

    def __init__(self, port: int, certificates: Certificates, *, asks_clients: bool = False) -> None:
        self._behind = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.certificate, certificates.key)
        if asks_clients:
            self._context.load_verify_locations(certificates.authority)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", quiet_port()))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.n_encrypted = 0

    def lead_to(self, port: int) -> None:
        """What connects from here on is handed on to another server."""
        self._behind = port

    def __enter__(self) -> Self:
        self._in_background(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def _in_background(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                found, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(found)
            self._in_background(self._serve, found)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            opened.callback(client.close)
            if client.recv(1, socket.MSG_PEEK) == _HANDSHAKE:
                client = self._context.wrap_socket(client, server_side=True)
                opened.callback(client.close)
                self._open.append(client)
                self.n_encrypted += 1
            server = opened.enter_context(socket.create_connection(("127.0.0.1", self._behind)))
            self._open.append(server)
            other = {client: server, server: client}
            while True:
                waiting = isinstance(client, ssl.SSLSocket) and client.pending()
                for one in [client] if waiting else select.select([client, server], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    other[one].sendall(data)
