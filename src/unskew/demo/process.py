"""The real pipeline in its own process, and the progress that it reports."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import msgspec

from unskew.features.errors import UnskewError

# A signal is acted on between two steps, and a step may wait for a slow disk.
STOP_TIMEOUT_S = 300.0


class Progress(msgspec.Struct, frozen=True):
    """One line of ``unskew run --progress json``; counts are since the process started.

    ``clock_us``: the slowest clock, None before the first record. ``lag``: records not yet read. ``compiling``: the
    kernel is being compiled, and no record is read yet. ``history``: how far the past of a new view is computed.
    """

    consumed: int = 0
    dead: int = 0
    late: int = 0
    bumped: int = 0
    updates: int = 0
    rows: int = 0
    clock_us: int | None = None
    lag: int = 0
    duplicates: Mapping[str, int] = {}
    compiling: bool = False
    history: str | None = None

    def after(self, before: "Progress") -> "Progress":
        """Return these figures plus the counts of an earlier process."""
        return msgspec.structs.replace(
            self,
            consumed=before.consumed + self.consumed,
            dead=before.dead + self.dead,
            late=before.late + self.late,
            bumped=before.bumped + self.bumped,
            updates=before.updates + self.updates,
            rows=before.rows + self.rows,
            clock_us=before.clock_us if self.clock_us is None else self.clock_us,
        )


def watcher(target: str) -> subprocess.Popen[bytes]:
    """Return a process that ends another one should this one end before it, even by kill -9.

    ``target``: as ``kill`` takes it, the id of a process, or with a minus that of a group. Whoever ends the target
    kills the watcher then.
    """
    # It waits on a pipe that closes when this process ends.
    return subprocess.Popen(  # noqa: S603 - our own shell text
        ["/bin/sh", "-c", 'read _; kill -s TERM -- "$0"', target],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class PipelineFailed(UnskewError):
    """The pipeline's process did not end as it should."""


class PipelineProcess:
    """``unskew run`` as a child with its own session: Ctrl-C reaches only the demo, which then stops its child.

    A context manager: when the block ends, for whatever reason, the child has ended too.
    """

    def __init__(self, arguments: Sequence[str], *, errors: Path) -> None:
        """Prepare ``unskew run`` with these arguments; its standard error is appended to ``errors``."""
        self._command = [sys.executable, "-m", "unskew", "run", "--apply", *arguments, "--progress", "json"]
        self._errors = errors
        self._progress = Progress()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the process."""
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._watcher = watcher(str(self._process.pid))
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, gracefully if possible."""
        try:
            if self._running.poll() is None:
                with contextlib.suppress(PipelineFailed):
                    self.stop()
        finally:
            if self._watcher is not None:
                self._watcher.kill()
                self._watcher.communicate()
            if self._reader is not None and self._running.stdout is not None:
                self._reader.join(5.0)
                self._running.stdout.close()

    @property
    def progress(self) -> Progress:
        """The latest line."""
        return self._progress

    def ended(self) -> bool:
        """Return whether the process has ended by itself; raises ``PipelineFailed`` if it ended with an error."""
        code = self._running.poll()
        if code is None:
            return False
        self._finish(code)
        return True

    def stop(self) -> None:
        """Send SIGTERM and wait; raises ``PipelineFailed`` unless the process exits with 0 in time."""
        process = self._running
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise PipelineFailed(
                f"the pipeline did not stop within {STOP_TIMEOUT_S:.0f} s of SIGTERM and was killed; see {self._errors}"
            ) from None
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._finish(code)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the pipeline is not started; use it in a with statement")
        return self._process

    def _finish(self, code: int) -> None:
        # The last line may still be in the pipe when the process has ended.
        if self._reader is not None:
            self._reader.join(5.0)
        if code != 0:
            raise PipelineFailed(
                f"the pipeline exited with {code}:\n{self._last_words()}\nThe whole output is in {self._errors}"
            )

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-8:]) or "  (it wrote nothing)"

    def _read(self, stdout: IO[bytes]) -> None:
        decoder = msgspec.json.Decoder(Progress)
        for line in stdout:
            # Lines that a library prints beside the progress are ignored.
            with contextlib.suppress(msgspec.DecodeError):
                self._progress = decoder.decode(line)
