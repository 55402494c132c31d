"""Findings: a line for each thing that the doctor looked at, made by the pieces with which ``unskew run`` begins.

Those pieces raise what makes a run impossible, and log what its operator should know. ``made`` calls them and turns
both into findings, so that the doctor and a run never disagree.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import msgspec
from typing_extensions import override

from unskew.features.errors import DefinitionError, UnskewError

Level = Literal["ok", "warning", "error", "not checked"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. ``about``: what was looked at. ``text``: what is there, or what is wrong and what to do."""

    about: str
    level: Level
    text: str


class NotChecked(Exception):
    """A check cannot be made; the text says why."""


def made(about: str, look: Callable[[], str]) -> list[Finding]:
    """Return what a check finds: what it returns (nothing, if that is empty) or raises, and then what it logs."""
    said: list[tuple[int, str]] = []
    _heard.said = said
    last: list[Finding] = []
    try:
        text = look()
        last = [Finding(about=about, level="ok", text=text)] if text else []
    except NotChecked as why:
        last = [Finding(about=about, level="not checked", text=str(why))]
    except DefinitionError as error:
        last = [Finding(about=about, level="error", text=fault) for fault in error.faults]
    except UnskewError as error:
        last = [Finding(about=about, level="error", text=str(error))]
    # Whatever it is, the other checks go on.
    except Exception as error:  # noqa: BLE001
        text = f"unexpected {type(error).__name__}: {error}; this is a fault of unskew: report it"
        last = [Finding(about=about, level="error", text=text)]
    finally:
        _heard.said = None
    warnings = [
        Finding(about=about, level="error" if level >= logging.ERROR else "warning", text=text) for level, text in said
    ]
    return [*last, *warnings]


def not_checked(about: str, why: str) -> list[Finding]:
    """Return the finding of a check that was not made."""
    return [Finding(about=about, level="not checked", text=why)]


def failed(found: list[Finding]) -> bool:
    """Return whether a check found an error, so that those which rest on it cannot be made."""
    return any(one.level == "error" for one in found)


def together(groups: Mapping[str, Callable[[], list[Finding]]], within_s: float) -> list[Finding]:
    """Return the findings of groups of checks, which are made at the same time, in the order of the groups.

    A group that has not ended within ``within_s`` is an error: its thread is left to end with the process.
    """
    found: dict[str, list[Finding]] = {}

    def examine(about: str, group: Callable[[], list[Finding]]) -> None:
        found[about] = group()

    threads = {
        about: threading.Thread(target=examine, args=(about, group), name=f"unskew-doctor-{about}", daemon=True)
        for about, group in groups.items()
    }
    for thread in threads.values():
        thread.start()
    until_s = time.monotonic() + within_s
    for thread in threads.values():
        thread.join(max(0.0, until_s - time.monotonic()))
    late = f"it did not answer within {within_s:g} s: a server or a network disk hangs; see to it, and try again"
    return [one for about in groups for one in found.get(about, [Finding(about=about, level="error", text=late)])]


@contextmanager
def hearing() -> Iterator[None]:
    """Let ``made`` hear what the pieces log, in place of standard error."""
    logger = logging.getLogger("unskew")
    ear, propagates = _Ear(logging.WARNING), logger.propagate
    logger.addHandler(ear)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagates
        logger.removeHandler(ear)


class _Heard(threading.local):
    """What the check of this thread has logged; None between checks."""

    said: list[tuple[int, str]] | None = None


_heard = _Heard()


class _Ear(logging.Handler):
    @override
    def emit(self, record: logging.LogRecord) -> None:
        # Threads that a check leaves behind, such as one that watches a broker, are nobody's.
        if _heard.said is not None:
            _heard.said.append((record.levelno, record.getMessage()))
