"""Standard output, watched: if it cannot be written, the command ends with one error, whatever it was that it printed.

This imports nothing slow, because help and completion print too.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class OutputLost(OSError):
    """What a command prints could not be written, for another reason than that its reader has gone."""


class _Watched:
    """A text stream of which the failures are told from those of other files."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _lost():
            written: int = self._stream.write(text)
        return written

    def flush(self) -> None:
        with _lost():
            self._stream.flush()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(
            f"standard output cannot be written: {error.strerror or error}; make room there, or send it elsewhere"
        ) from error


@contextmanager
def standard_output() -> Iterator[None]:
    """Let ``OutputLost`` come of a standard output that fails, at the latest at the end."""
    before = sys.stdout
    if before is None:  # The caller has closed it.
        yield
        return
    watched: Any = _Watched(before)
    sys.stdout = watched
    try:
        try:
            yield
        finally:
            # Else the interpreter does it, when no error can be shown any more.
            sys.stdout.flush()
    except OutputLost:
        # What is left in the buffer would fail once more at the end.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), before.fileno())
        raise
    finally:
        if sys.stdout is watched:
            sys.stdout = before
