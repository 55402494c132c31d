"""The entry point of ``unskew`` and of ``python -m unskew``. It heeds signals before it imports anything slow."""

import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Run the command line.

    A pipeline or server that is asked to stop before it has begun ends at once, with success: as a service it is asked
    so at any time, and as the first process of a container it would not get a signal that it does not handle.
    """
    if sys.argv[1:2] in (["run"], ["serve"], ["monitor"]):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end)
    from unskew.cli import main as commands  # noqa: PLC0415 - after the handlers, because it takes long

    commands()


def _end(_number: int, _frame: object) -> NoReturn:
    os._exit(0)


if __name__ == "__main__":
    main()
