"""``unskew doctor``: look at everything that a run needs, before it runs, and say what is wrong and what to do."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from unskew import settings
from unskew.cli.screen import Screen, say, say_json, styled
from unskew.features.errors import RequestError
from unskew.features.printing import counted

if TYPE_CHECKING:
    from unskew.pipelines.doctor.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "not checked": "dim"}


@click.command()
@settings.optional_definition_paths
@settings.bootstrap_servers
@settings.kafka_config
@settings.redis_url
@settings.schema_registry
@settings.optional_log
@settings.optional_archive
@settings.dead_letters
@settings.optional_state
@settings.prefix
@settings.pipeline
@settings.allow_eviction
@settings.expire_after
@settings.drop
@settings.registry
@click.option(
    "--idle",
    type=click.Choice(["wall", "none"]),
    default="wall",
    show_default=True,
    help="As for run: wall for live topics, which need a settle where producers stamp the records; none for a replay.",
)
@settings.shards
@settings.partitions
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: errors, warnings and findings.")
def doctor(
    paths: tuple[Path, ...],
    bootstrap_servers: str,
    kafka_config: Path | None,
    redis_url: str,
    schema_registry: str | None,
    log: Path | None,
    archive: Path | None,
    dead_letters: Path | None,
    state: Path | None,
    prefix: str,
    pipeline: str,
    allow_eviction: bool,
    expire_after: str | None,
    drop: tuple[str, ...],
    registry: Path | None,
    idle: str,
    shards: int,
    partitions: str | None,
    as_json: bool,
) -> None:
    """Check everything that `unskew run` needs, at once, and change nothing: one line for each check.

    Definitions; Kafka, with each topic's partitions, timestamps and retention; the Schema Registry and the schemas
    there; Redis, with its memory, its policy and what is published; folders, and who writes them; clocks; the kernel.

    It takes the options and UNSKEW_* variables of `unskew run`. What it cannot look at, because a setting is not given
    or a server does not answer, it says. It exits with 1 if there is an error, and with 0 if there are only warnings.

    \b
    Examples:
        unskew doctor definitions/ --log log --archive archive --state state
        unskew doctor --json | jq '.findings[] | select(.level == "error")'
    """
    from unskew.pipelines.doctor.asked import Asked
    from unskew.pipelines.doctor.examine import examine

    found = examine(
        paths,
        Asked(
            bootstrap=bootstrap_servers,
            kafka_config=kafka_config,
            redis_url=redis_url,
            schema_registry=schema_registry,
            log=log,
            archive=archive,
            dead_letters=dead_letters,
            state=state,
            registry=registry,
            idle=cast("Literal['wall', 'none']", idle),
            prefix=prefix,
            pipeline=pipeline,
            n_hashes=shards,
            partitions=settings.partitions_of(partitions),
            allow_eviction=allow_eviction,
            expires=expire_after is not None and settings.duration_us("--expire-after", expire_after) > 0,
            drop=drop,
        ),
    )
    n_errors, n_warnings = (sum(one.level == level for one in found) for level in ("error", "warning"))
    if as_json:
        import msgspec

        say_json({"errors": n_errors, "warnings": n_warnings, "findings": msgspec.to_builtins(found)}, indent=2)
    else:
        _show(found)
        say(f"{counted(n_errors, 'error')}, {counted(n_warnings, 'warning')}")
    if n_errors:
        whose = "; ".join(dict.fromkeys(one.about for one in found if one.level == "error"))
        raise RequestError(f"{counted(n_errors, 'error')} in {whose}: do what the lines above say, and look again")


def _show(found: "list[Finding]") -> None:
    from unskew.features.folding import Rows, prose

    table = Rows("level", "about", prose("found"), keys=2)
    for one in found:
        table.add(styled(one.level, _STYLES[one.level]), one.about, one.text)
    Screen().print(table)
