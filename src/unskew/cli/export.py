"""``unskew export``: what other feature stores read."""

from pathlib import Path

import click

from unskew import settings
from unskew.cli.screen import say
from unskew.features.errors import RequestError


@click.group()
def export() -> None:
    """Write what other feature stores read the features with."""


@export.command(short_help="Write a feature repository of Feast.")
@click.argument("folder", metavar="DIR", type=settings.LocalPath())
@settings.some_definitions
@settings.log
@click.option(
    "--server",
    metavar="URL",
    default="http://localhost:6566",
    show_default=True,
    help="Address of unskew serve, from which Feast's clients read current features.",
)
@click.option("--project", default="unskew", show_default=True, help="Name of Feast's project.")
@click.option("--force", is_flag=True, help="Replace the files that an earlier export wrote.")
def feast(folder: Path, definitions: tuple[Path, ...], log: Path, server: str, project: str, force: bool) -> None:
    """Write a feature repository of Feast into DIR: feature_store.yaml, and unskew_features.py with its definitions.

    Feast then reads current features from `unskew serve`, and training sets from the log, with its DuckDB store. Of a
    view with several versions, it has the one that serves. Without definitions, the log says itself what it holds, but
    for services.

    \b
    Example:
        unskew export feast feature_repo --log data/log \\
            --definitions examples/complete_journey
        cd feature_repo && feast apply
    """
    from unskew.features.definitions.load import load
    from unskew.features.local import existing_folder
    from unskew.features.registry import Published
    from unskew.offline import feast_repo
    from unskew.offline.logged import all_logged
    from unskew.sinks.objects import ObjectPath

    if isinstance(log, ObjectPath):
        raise RequestError(
            f"--log {log}: Feast reads every file of a log's folders, and in an object store some are not published; give a "
            "log on a disk"
        )
    root = existing_folder(log, "--log")
    published = Published.of(load(*definitions)) if definitions else Published(views=all_logged(root))
    texts = {
        feast_repo.CONFIGURATION: feast_repo.configuration(project, server),
        feast_repo.DEFINITIONS: feast_repo.definitions(published, root),
    }
    there = [str(folder / name) for name in texts if (folder / name).exists()]
    if there and not force:
        raise RequestError(f"{', '.join(there)}: already there; give another DIR, or --force to replace it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
        say(f"{folder / name} is written")
    for sentence in feast_repo.unread(published):
        say(f"note: {sentence}", err=True)
