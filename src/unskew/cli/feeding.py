"""The events of ``unskew dev``: those of every stream are made up, or come from a command of the user."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from unskew.cli.produce import schema_id_of
from unskew.demo.process import watcher
from unskew.features.definitions.streams import is_pattern
from unskew.features.errors import RequestError, UnskewError
from unskew.features.plan import Plan, StreamPlan
from unskew.features.time import HOUR_US
from unskew.pipelines.kafka.sending import Sender
from unskew.pipelines.producing.encoding import Encoder, wire_of
from unskew.pipelines.producing.job import Job, send
from unskew.pipelines.producing.rows import lines_of
from unskew.pipelines.producing.sample import Span, sample_of

if TYPE_CHECKING:
    from unskew.pipelines.producing.encoding import Wire
    from unskew.pipelines.producing.rows import Source

STREAM = "{stream}"
_N_KEYS = 20
_END_S = 5.0
_LONGEST_LINE = 1_000


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where events come from: with neither, nowhere.

    ``sample``: events a second of each stream, made up from its schema. ``command``: what the shell runs for each
    stream; it prints JSON lines.
    """

    sample: float | None
    command: str | None

    def check(self, plan: Plan) -> None:
        """Raise ``RequestError`` if the command cannot tell the streams of a plan apart."""
        names = [one.name for one in fed(plan)]
        if self.command is not None and STREAM not in self.command and len(names) > 1:
            raise RequestError(
                f"--generate {self.command!r} would send the same events to each of {', '.join(names)}; write {STREAM} where "
                "it takes the name of a stream"
            )


def fed(plan: Plan) -> list[StreamPlan]:
    """Return the streams that have topics of their own; one that reads all topics of a pattern has none."""
    return [one for one in plan.of_topics.streams.values() if not is_pattern(one.sources[0])]


class Feeds:
    """The events of every stream of a plan, sent as they come. ``note``: takes what is to be said of them."""

    def __init__(self, bootstrap: str, origin: Origin, note: Callable[[str], None]) -> None:
        self._bootstrap = bootstrap
        self._origin = origin
        self._note = note
        self._feeds: dict[str, _Feed] = {}
        self._n_begun = 0

    def leave(self, plan: Plan) -> None:
        """Send no more of streams that this plan does not have, or has otherwise.

        What has come to its end stays: the events of a command would be there twice.
        """
        streams = {one.name: one for one in fed(plan)}
        for name, feed in list(self._feeds.items()):
            other = feed.stream != streams.get(name)
            if name not in streams or (other if feed.is_going_on() else feed.n_sent == 0):
                self._feeds.pop(name).end()

    def follow(self, plan: Plan) -> None:
        """Send events of this plan's streams, whose topics must be there; streams that are as they were go on."""
        if self._origin.sample is None and self._origin.command is None:
            return
        self.leave(plan)
        for name, stream in ((one.name, one) for one in fed(plan)):
            if name not in self._feeds:
                # Another seed each time, because a stream may drop an id that it has seen.
                self._n_begun += 1
                self._feeds[name] = _Feed(self._bootstrap, self._origin, self._note, plan, stream, self._n_begun)

    def end(self) -> None:
        """Stop sending; the commands have ended then."""
        for feed in self._feeds.values():
            feed.ask_to_end()
        for feed in self._feeds.values():
            feed.end()
        self._feeds.clear()


class _Feed:
    """Sends the events of one stream until they end, one of them is none, or it is asked to end."""

    def __init__(
        self,
        bootstrap: str,
        origin: Origin,
        note: Callable[[str], None],
        plan: Plan,
        stream: StreamPlan,
        seed: int,
    ) -> None:
        self.stream = stream
        self.n_sent = 0
        self._status: int | None = None
        self._bootstrap = bootstrap
        self._origin = origin
        self._note = note
        self._plan = plan
        self._seed = seed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unskew-feed", daemon=True)
        self._thread.start()

    def is_going_on(self) -> bool:
        """Return whether it may still send something."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            # However long the pipeline takes until it reads.
            sender = Sender(self.stream.sources[0], self._bootstrap, {"message.timeout.ms": 0})
            wire = wire_of(self.stream, None, schema_id_of(self.stream, None, sender), text=False)
            with self._source(wire) as source:
                job = Job(
                    source=source,
                    encoder=Encoder(self.stream, wire, text=source.is_text),
                    partitioner="crc32",
                    rate=self._origin.sample,
                )
                sent = send(job, sender, self._ended, self._count)
        except (UnskewError, OSError) as error:
            if not self._ended.is_set():
                self._note(f"events of {self.stream.name}: {error}; {self._goes_on()}")
            return
        if not sent.stopped:
            n, status = sent.handed_over, self._status
            failed = f" with exit status {status}" if status else ""
            remedy = "" if n and not status else f"; {self._goes_on()}"
            self._note(
                f"events of {self.stream.name}: {source.name} has ended{failed}, after {n:,} event{'' if n == 1 else 's'}{remedy}"
            )

    def _count(self, n: int) -> None:
        self.n_sent = n

    def _goes_on(self) -> str:
        if self.n_sent == 0:
            return "mend it, and it begins again when a definition is saved"
        return "it does not begin again, because its events would be there twice: mend it, and start unskew dev again"

    @contextlib.contextmanager
    def _source(self, wire: "Wire") -> "Iterator[Source]":
        command = self._origin.command
        if command is not None:
            command = command.replace(STREAM, self.stream.name)
            with _running(command, lambda line: self._note(f"{self.stream.name}: {line}")) as process:
                assert process.stdout is not None
                yield lines_of(process.stdout.fileno(), command, self._ended.is_set)
                if not self._ended.is_set():
                    # Its output has ended, and it soon does.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._status = process.wait(_END_S)
            return
        span = Span(present_us=lambda: time.time_ns() // 1000, over_us=HOUR_US, rate=self._origin.sample)
        yield sample_of(self._plan, self.stream, span, wire, seed=self._seed, n_rows=None, n_keys=_N_KEYS)

    def ask_to_end(self) -> None:
        """Let it end."""
        self._ended.set()

    def end(self) -> None:
        """Let it end, and wait until it has."""
        self._ended.set()
        self._thread.join(3 * _END_S)


@contextlib.contextmanager
def _running(command: str, note: Callable[[str], None]) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command of the user in the shell; yield its process, with a pipe for its output. At the end it has ended.

    So has all that it started: it is a group of processes, which Ctrl-C does not reach. ``note``: takes the lines of
    its standard error.
    """
    process = subprocess.Popen(  # noqa: S602 - the user's own command, meant for the shell
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    reading = threading.Thread(target=_pass_on, args=(process.stderr, note), name="unskew-feed-errors", daemon=True)
    reading.start()
    watching = watcher(f"-{process.pid}")
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        watching.kill()
        watching.communicate()
        process.stdout.close()
        # What has left the group may hold it open.
        reading.join(_END_S)
        if not reading.is_alive():
            process.stderr.close()


def _pass_on(errors: IO[bytes], note: Callable[[str], None]) -> None:
    while line := errors.readline(_LONGEST_LINE):
        note(line.decode(errors="replace").rstrip())
