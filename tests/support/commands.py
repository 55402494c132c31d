"""The commands of unskew, as tests of what calls them look at them."""

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
