"""``unskew completion``: print what lets a shell complete commands and options."""

import click

from unskew.cli.screen import say


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script with which SHELL completes the commands of unskew, their options, paths, and names.

    Names of views, features and services are those of the log and of the registry in Redis that the command would read:
    by its options so far, or by the UNSKEW_* variables.

    \b
    Examples:
        eval "$(unskew completion bash)"                     # in ~/.bashrc
        eval "$(unskew completion zsh)"                      # in ~/.zshrc
        unskew completion fish > ~/.config/fish/completions/unskew.fish
    """
    from click.shell_completion import get_completion_class

    from unskew.cli import main

    kind = get_completion_class(shell)
    assert kind is not None
    for line in kind(main, {}, "unskew", "_UNSKEW_COMPLETE").source().splitlines():
        say(line)
