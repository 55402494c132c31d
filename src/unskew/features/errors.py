"""Errors, grouped by remedy."""


class UnskewError(Exception):
    """The base of every error that unskew raises on purpose; its text says what is wrong, where, and what to do."""


class DefinitionError(UnskewError):
    """A definition is wrong: fix the definition.

    ``faults``: every fault found, each a whole sentence; the error's text has one per line.
    """

    def __init__(self, faults: str | list[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class RequestError(UnskewError):
    """A request cannot be answered as asked (unknown feature, label past ``complete_to``): fix the request."""


class LayoutError(UnskewError):
    """Stored bytes do not belong to this definition or this run: do what the text names."""


class Stopped(UnskewError):
    """The process was asked to stop before it began to work: nothing is to be done."""


class StoreUnavailable(UnskewError):
    """Redis, Kafka or the disk cannot be reached now: retry."""
