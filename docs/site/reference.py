"""The directives of the reference: the commands with their options, and the settings, as the program declares them.

    ```{commands}
    ```

The help of a command is read as Markdown, which it is already: code stands between backticks.
"""

import inspect
import re
from collections.abc import Iterator

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from unskew.cli import COMMANDS, main


def paths() -> Iterator[tuple[str, click.Context]]:
    """Yield each command, and those below it, by its path (``log stats``), in the order of ``unskew --help``."""
    for name in COMMANDS:
        found = main.get_command(click.Context(main), name)
        assert found is not None
        above = click.Context(found, info_name=f"unskew {name}")
        yield name, above
        if isinstance(found, click.Group):
            for below in found.list_commands(above):
                command = found.get_command(above, below)
                assert command is not None
                yield f"{name} {below}", click.Context(command, info_name=f"unskew {name} {below}")


def options(context: click.Context) -> list[click.Option]:
    """Return the options of a command, without ``--help``."""
    found = context.command.get_params(context)
    return [one for one in found if isinstance(one, click.Option) and not one.hidden and "--help" not in one.opts]


def variable(parameter: click.Parameter) -> str | None:
    return parameter.envvar if isinstance(parameter.envvar, str) else None


def taken(option: click.Option, context: click.Context) -> str:
    """Return the flags of an option with what they take: ``--log PATH``."""
    record = option.get_help_record(context)
    assert record is not None
    return record[0]


def meaning(option: click.Option, context: click.Context) -> str:
    """Return the help of an option with its default and its range, as ``--help`` has them, without the variable."""
    extra = option.get_help_extra(context)
    notes = [f"default: `{extra['default']}`" if "default" in extra else "", extra.get("range", "")]
    notes.append("required" if "required" in extra else "")
    return " ".join([option.help or "", *(f"[{note}]" for note in notes if note)])


def cell(text: str) -> str:
    """Return a text as one cell of a table. A pipe would end it, also in code; ``<`` could begin a tag."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "\\<").strip()


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; one whose lines click keeps (after a backspace) is a block of code."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        kept = block.removeprefix("\b\n")
        yield block if kept == block else f"```text\n{kept}\n```"


def of_command(path: str, context: click.Context) -> str:
    """Return the section of a command, in Markdown."""
    usage = re.sub(r"\s+", " ", context.command.get_usage(context)).removeprefix("Usage: ")
    parts = [
        f"{'####' if ' ' in path else '###'} unskew {path}",
        *paragraphs(context.command.help or ""),
        f"```text\n{usage}\n```",
    ]
    if rows := options(context):
        lines = ["| option | variable | meaning |", "|---|---|---|"]
        for option in rows:
            name = variable(option)
            named = f"`{name}`" if name else ""
            lines.append(f"| `{cell(taken(option, context))}` | {named} | {cell(meaning(option, context))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def of_settings() -> str:
    """Return a table of all variables, with the options and the commands that read each, in Markdown."""
    flags: dict[str, set[str]] = {}
    meant: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for path, context in paths():
        for one in context.command.params:
            if (name := variable(one)) is None:
                continue
            readers.setdefault(name, []).append(path)
            if isinstance(one, click.Option):
                flags.setdefault(name, set()).add(one.opts[0])
                meant.setdefault(name, one.help or "")
    lines = ["| variable | option | meaning | commands |", "|---|---|---|---|"]
    for name, by in sorted(readers.items()):
        shown = ", ".join(f"`{flag}`" for flag in sorted(flags.get(name, ())))
        lines.append(f"| `{name}` | {shown} | {cell(meant.get(name, ''))} | {', '.join(dict.fromkeys(by))} |")
    return "\n".join(lines) + "\n"


class Commands(SphinxDirective):
    """The section of every command."""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(of_command(path, context) for path, context in paths())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class Settings(SphinxDirective):
    """The table of all variables."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(of_settings())


def parameters_apart(_app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Let what a docstring says of each parameter begin a paragraph."""
    lines[:] = [
        line
        for written in lines
        for line in (["", written] if re.match(r"``\w+``(, ``\w+``)*:", written) else [written])
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", parameters_apart)
    app.add_directive("commands", Commands)
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
