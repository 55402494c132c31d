"""``unskew catalog``: pages about everything that is published, as files."""

from collections.abc import Mapping
from pathlib import Path

import click

from unskew import settings
from unskew.cli.known import known, models_of, revisions_of
from unskew.cli.screen import say
from unskew.features.errors import RequestError
from unskew.features.extras import needed

_MARK = ".unskew-catalog"
"""The file that says that a folder is a catalog, and names its pages: those alone are replaced or removed."""


@click.command()
@click.option(
    "-o",
    "--output",
    required=True,
    type=settings.LocalPath(file_okay=False),
    metavar="DIR",
    help="Folder of the pages.",
)
@settings.places
@settings.registry
@settings.models
@settings.figures
def catalog(
    output: Path,
    definitions: tuple[Path, ...],
    log: Path | None,
    redis_url: str,
    prefix: str,
    registry: Path | None,
    models: Path | None,
    figures: tuple[Path, ...],
) -> None:
    """Write pages about all features, views, services, streams and models into DIR, to be opened in a browser.

    Each says what the thing is, who owns it, how it is read, what it comes from and what reads it. Nothing is asked for
    from elsewhere, so the folder may lie on any server, or be opened as it is: DIR/index.html.

    What is known comes from --definitions, else from the --log that the command line names, else from the registry in
    Redis. With the record of what was applied (--registry, or beside --log), there is a page of changes. With
    --figures, pages say what has drifted or is missing, how fresh it is, what it costs and what it earns. DIR must be
    empty, or a catalog that is replaced. `unskew serve` has the same pages, and those of entities.

    \b
    Examples:
        unskew catalog -o site --definitions definitions/
        unskew catalog -o site --log data/log --models training/
        unskew catalog -o site --log data/log --figures look.json
    """
    with needed("unskew catalog", extra="serve"):
        from unskew.catalog.figures import FigureFiles
        from unskew.catalog.pages import INDEX, Catalog

    before = _pages_before(output)
    found = known(definitions, log, redis_url, prefix)
    measured = FigureFiles(figures).now()
    for fault in measured.faults:
        say(f"warning: {fault}", err=True)
    made = Catalog(
        found.published,
        found.streams,
        models=() if models is None else models_of(models),
        revisions=revisions_of(registry, log),
        figures=measured,
        place=found.place,
        prefix=prefix,
    )
    _write(output, {name: page for name in made.names if (page := made.page(name)) is not None}, before)
    say(f"{len(made.names):,} files; open {output / INDEX}")


def _pages_before(output: Path) -> list[str]:
    """Return the pages of a catalog that is there. Raises ``RequestError`` for a folder with anything else."""
    if not output.exists() or not any(output.iterdir()):
        return []
    mark = output / _MARK
    if not mark.is_file():
        raise RequestError(f"{output} is not empty and is not a catalog; give an empty folder with -o")
    return mark.read_text("utf-8").splitlines()


def _write(output: Path, made: Mapping[str, bytes], before: list[str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    # Before the pages, so that a folder that was written in part is known as ours.
    (output / _MARK).write_text("".join(f"{name}\n" for name in sorted({*before, *made})), "utf-8")
    for name, data in made.items():
        (output / name).write_bytes(data)
    for name in before:
        if name not in made and "/" not in name and name != _MARK:
            (output / name).unlink(missing_ok=True)
    (output / _MARK).write_text("".join(f"{name}\n" for name in sorted(made)), "utf-8")
