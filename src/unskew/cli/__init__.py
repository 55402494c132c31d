"""The command line: ``unskew COMMAND``. A command's module is imported when the command runs, so help is fast."""

import errno
import importlib
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from unskew.features.errors import UnskewError
from unskew.features.extras import PIPELINE, lacking_of
from unskew.features.nearest import nearest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

INTERRUPTED = 130
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class _Place(NamedTuple):
    """The place of a command's code, and its line in the list of commands."""

    module: str
    name: str
    summary: str


COMMANDS = {
    "demo": _Place("unskew.cli.demo", "demo", "Stream real data through everything, on its own servers."),
    "init": _Place("unskew.cli.init", "init", "Make a small project to begin with."),
    "dev": _Place("unskew.cli.dev", "dev", "Try definitions out, on servers of their own; saved files are taken up."),
    "ui": _Place("unskew.cli.ui", "ui", "Show what the demo computed in a browser."),
    "check": _Place("unskew.cli.definitions", "check", "Check definitions and report all faults."),
    "describe": _Place("unskew.cli.definitions", "describe", "Show views, entities, features, windows and owners."),
    "plan": _Place("unskew.cli.plan", "plan", "Show what applying definitions would change, and who is touched."),
    "apply": _Place("unskew.cli.plan", "apply", "Apply definitions: what the pipeline may run."),
    "promote": _Place("unskew.cli.promote", "promote", "Let another version of a view serve, at once."),
    "rollback": _Place("unskew.cli.promote", "rollback", "Apply again what an earlier revision had."),
    "registry": _Place("unskew.cli.registry", "registry", "Look into the record of what was applied."),
    "doctor": _Place("unskew.cli.doctor", "doctor", "Say what is wrong with a deployment before it runs."),
    "run": _Place("unskew.cli.run", "run", "Run the pipeline: Kafka to Redis and the Parquet log."),
    "produce": _Place("unskew.cli.produce", "produce", "Send events to a topic, from a file or made up."),
    "lineage": _Place("unskew.cli.lineage", "lineage", "Show what a feature comes from, and what depends on it."),
    "search": _Place("unskew.cli.search", "search", "Find features by words."),
    "catalog": _Place("unskew.cli.catalog", "catalog", "Write pages about all features, for a browser."),
    "get": _Place("unskew.cli.get", "get", "Read an entity's current features from Redis."),
    "serve": _Place("unskew.cli.serve", "serve", "Answer requests for current features over HTTP."),
    "train": _Place("unskew.cli.train", "train", "Write a training set: labels with the features of their instants."),
    "log": _Place("unskew.cli.log", "log", "Look into the Parquet log."),
    "dead-letters": _Place(
        "unskew.cli.dead_letters", "dead_letters", "Look at records that could not be used, and send them again."
    ),
    "compact": _Place("unskew.cli.compact", "compact", "Merge the small files of log, archive and dead letters."),
    "publish": _Place("unskew.cli.publish", "publish", "Write the metadata by which other engines read the log."),
    "export": _Place("unskew.cli.export", "export", "Write what other feature stores read the features with."),
    "import": _Place("unskew.cli.import_", "import_", "Bring history that lies in files into the archive of a stream."),
    "backfill": _Place("unskew.cli.backfill", "backfill", "Give a new view its past from the event archive."),
    "materialize": _Place("unskew.cli.materialize", "materialize", "Compute views over tables up to an instant."),
    "diff": _Place("unskew.cli.diff", "diff", "Show which values a change of definitions changes."),
    "value": _Place("unskew.cli.value", "value", "Show what features cost and earn, and which ones to retire."),
    "rehydrate": _Place(
        "unskew.cli.rehydrate", "rehydrate", "Write all current values to Redis again, from the state."
    ),
    "purge": _Place("unskew.cli.purge", "purge", "Remove a view version that is no longer computed from Redis."),
    "retain": _Place("unskew.cli.retain", "retain", "Remove old days of log, archive and dead letters."),
    "erase": _Place("unskew.cli.erase", "erase", "Remove one entity everywhere, and search for what is left of it."),
    "warm": _Place("unskew.cli.warm", "warm", "Compile everything now, for an image."),
    "monitor": _Place("unskew.cli.monitor", "monitor", "Watch values, freshness and what was served, from the log."),
    "baseline": _Place("unskew.cli.baseline", "baseline", "Keep a view's population, to compare later ones with."),
    "completion": _Place("unskew.cli.completion", "completion", "Let a shell complete commands and options."),
    "audit": _Place("unskew.cli.audit", "audit", "Check that the log, Redis and a recount agree."),
}
_EXTRAS = {"catalog": "serve", "demo": "demo", "dev": "demo", "serve": "serve", "train": "training", "ui": "demo"}
"""The extra that has the packages of a command; that of all others is the pipeline's."""


class _Failure(click.ClickException):
    """An ``UnskewError`` as the command line shows it: one line for each fault, no traceback."""

    def __init__(self, error: UnskewError) -> None:
        super().__init__(str(error))
        self.faults = error.faults

    def show(self, file: Any = None) -> None:  # noqa: ARG002 - click's signature; it gives none
        from unskew.cli.screen import say

        for fault in self.faults:
            say(f"error: {fault}", err=True)
        if len(self.faults) > 1:
            say(f"{len(self.faults)} faults", err=True)


class _Misuse(click.UsageError):
    """A command that is called wrongly, in the form of other errors; how it is called stands before it."""

    def show(self, file: Any = None) -> None:  # noqa: ARG002 - click's signature; it gives none
        from unskew.cli.screen import say, say_lines

        if self.ctx is not None:
            say_lines(f"{self.ctx.get_usage()}\nTry '{self.ctx.command_path} --help' for help.\n")
        # click lists choices in lines of their own.
        say(f"error: {' '.join(self.message.split())}", err=True)


class _Commands(click.Group):
    """Commands by name, imported when they run."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        from unskew.cli.output import OutputLost, standard_output

        try:
            with standard_output():
                return super().main(*args, **kwargs)
        except OutputLost as error:
            from unskew.cli.screen import say

            say(f"error: {error}", err=True)
            sys.exit(1)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _Misuse(error.format_message(), error.ctx) from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if (place := COMMANDS.get(cmd_name)) is None:
            return None
        command: click.Command = getattr(importlib.import_module(place.module), place.name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # A shell that completes a word shows what is found, and would show an error in the prompt.
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {args[0]!r}; {nearest(args[0], COMMANDS, 'commands are')}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        from click.shell_completion import CompletionItem

        # Click's own way imports every command, to see whether it is hidden.
        names = [CompletionItem(name, help=at.summary) for name, at in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        from unskew.cli.output import OutputLost
        from unskew.cli.screen import escape_log_lines

        escape_log_lines()
        try:
            return super().invoke(ctx)
        except UnskewError as error:
            raise _Failure(error) from error
        except ImportError as error:
            command = ctx.invoked_subcommand or "unskew"
            lacking = lacking_of(f"unskew {command}", error, _EXTRAS.get(command, PIPELINE))
            raise _Failure(lacking or _unexpected(error)) from error
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _Misuse(error.format_message(), error.ctx) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError, OutputLost):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                said = UnskewError(f"{error.filename}: {error.strerror}; correct the path or its permissions")
            elif isinstance(error, OSError) and error.errno in _NO_ROOM:
                said = UnskewError(
                    f"a file could not be written: {error.strerror}; make room where the command writes, and run it again"
                )
            else:
                said = _unexpected(error)
            raise _Failure(said) from error


_NO_THREAD = "can't start new thread"
"""What Python says then, with no type of its own."""


def _unexpected(error: Exception) -> UnskewError:
    """Return the error for one that nobody expected, and print where it came from."""
    traceback.print_exc()
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return UnskewError(
                f"there is not enough memory: {str(cause) or 'the system gives no more'}; give this process more, and "
                "start it again"
            )
        if isinstance(cause, RuntimeError) and str(cause) == _NO_THREAD:
            return UnskewError(
                "the system starts no more threads: give this process more memory, or allow it more threads, and start "
                "it again"
            )
        cause = cause.__cause__
    return UnskewError(
        f"unexpected {type(error).__name__}: {error}; this is a fault of unskew: report it with the lines above"
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="unskew", message="unskew %(version)s")
def main() -> None:
    """Streaming features whose training rows hold exactly what the model would have read.

    \b
    See it work:          unskew demo
    Try definitions out:  unskew dev
    Check definitions:    unskew check definitions/
    Apply definitions:    unskew apply definitions/ --log data/log
    Run the pipeline:     unskew run --idle wall
    Read features:        unskew get household_purchases 1

    Configure a deployment with options or UNSKEW_* variables; each command's --help lists them.
    """
