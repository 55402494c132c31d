"""Commands as the server reads them: arrays of texts, each with its length before it (RESP2)."""


def command(*arguments: bytes) -> bytes:
    """Return a command."""
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(argument, arguments)))


def argument(text: bytes) -> bytes:
    """Return one argument of a command."""
    return b"$%d\r\n%b\r\n" % (len(text), text)
