"""Errors, grouped by remedy."""

from typing import Literal

_LONGEST_FAULT = 1_000
_LONGEST_SHOWN = 100


class UnskewError(Exception):
    """The base of every error that unskew raises on purpose; its text says what is wrong, where, and what to do.

    ``faults``: each thing that is wrong, as a text of its own; the error's text has them below each other.
    """

    def __init__(self, faults: str | list[str] = "") -> None:
        self.faults = [faults] if isinstance(faults, str) else faults
        super().__init__("\n".join(self.faults))


class DefinitionError(UnskewError):
    """A definition is wrong: fix the definition.

    ``faults``: every fault found, each a whole sentence of at most 1,000 characters that can be printed; the error's
    text has one per line.
    """

    def __init__(self, faults: str | list[str]) -> None:
        super().__init__([_printable(fault) for fault in ([faults] if isinstance(faults, str) else faults)])


def shown(value: object) -> str:
    """Return ``repr`` of a value that somebody wrote, for a message: at most 100 characters, and never an error."""
    try:
        text = repr(value)
    # A number of thousands of digits, a structure of any depth, an object of the user's own.
    except Exception as error:  # noqa: BLE001
        return f"a value of type {type(value).__name__} that cannot be shown ({type(error).__name__})"
    return cut(text)


def cut(text: str) -> str:
    """Return at most the first 100 characters of a text, for a message."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _printable(fault: str) -> str:
    """Return the fault without its middle if it is long, because it may quote a whole file."""
    if len(fault) > _LONGEST_FAULT:
        fault = f"{fault[: _LONGEST_FAULT - 300]} ... {fault[-280:]}"
    return fault.encode(errors="backslashreplace").decode()


class RequestError(UnskewError):
    """A request cannot be answered as asked (unknown feature, label past ``complete_to``): fix the request."""


class UnknownName(RequestError):
    """A request names something that does not exist. ``kind``: what it would be."""

    def __init__(self, kind: Literal["view", "version", "feature", "service"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class OtherFeatures(RequestError):
    """What is served is not what a request expects: ask for what the model was trained with, or train it again."""


class NothingPublished(RequestError):
    """No pipeline has published views where they are looked for, or Redis has lost them: start one, or wait for it."""


class LayoutError(UnskewError):
    """Stored bytes do not belong to this definition or this run: do what the text names."""


class Stopped(UnskewError):
    """The process was asked to stop before it began to work: nothing is to be done."""


class StoreUnavailable(UnskewError):
    """Redis, Kafka or the disk cannot be reached now: retry."""
