"""The commands of unskew, as tests of what calls them look at them."""

import re
import subprocess
import sys
from collections.abc import Iterable

import click

from unskew.cli import main


def command_of(name: str) -> click.Command:
    """Return the command of that name."""
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def options_of(command: click.Command) -> set[str]:
    """Return the options that a command takes, as they are written."""
    return {text for option in command.params for text in option.opts}


def variables_of(commands: Iterable[click.Command]) -> set[str]:
    """Return the variables of the environment that commands read."""
    options = [option for command in commands for option in command.params if isinstance(option, click.Option)]
    return {str(option.envvar) for option in options if option.envvar is not None}


def printed(*lines: str) -> str:
    """Return what lines for a shell give, as a command has printed them; each must succeed."""
    # The programs of this environment need not be on the path.
    script = "\n".join(re.sub(r"^unskew (?=[a-z])", f"{sys.executable} -m unskew ", line.strip()) for line in lines)
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (lines, done.stdout, done.stderr)
    return done.stdout
