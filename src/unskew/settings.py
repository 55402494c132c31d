"""What is deployed: each option with the environment variable that sets it. Nothing else reads the environment.

Options are decorators for click commands, so a command shows in its help what it needs and how to set it::

    @click.command()
    @settings.redis_url
    @settings.prefix
    def get(redis_url: str, prefix: str) -> None: ...
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Decorator = Callable[[_Command], _Command]

DEFINITIONS = "UNSKEW_DEFINITIONS"

_A_PATH = click.Path(path_type=Path)


def _option(flag: str, **settings: Any) -> _Decorator[Any]:
    name = flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=f"UNSKEW_{name}", show_envvar=True, **settings)


#: ``paths: tuple[Path, ...]``: definition files and folders as arguments, or from the variable, joined as in PATH.
definition_paths = click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_A_PATH, envvar=DEFINITIONS)

#: The same, for a command that can do without.
optional_definition_paths = click.argument("paths", metavar="[PATH...]", nargs=-1, type=_A_PATH, envvar=DEFINITIONS)

#: ``definitions: tuple[Path, ...]``: the same as an option, for commands whose arguments are something else.
definitions = _option(
    "--definitions",
    multiple=True,
    required=True,
    type=_A_PATH,
    help="Definition file or folder; may be given several times.",
)

#: The same, for a command that only decodes values with them.
optional_definitions = _option(
    "--definitions", multiple=True, type=_A_PATH, help="Definitions, to decode values with; may be given several times."
)

#: ``bootstrap_servers: str``.
bootstrap_servers = _option(
    "--bootstrap-servers",
    default="localhost:9092",
    show_default=True,
    metavar="HOST:PORT,...",
    help="Where Kafka is found.",
)

#: ``kafka_config: Path | None``; a file, as it may hold secrets.
kafka_config = _option(
    "--kafka-config",
    type=_A_PATH,
    metavar="FILE",
    help="Further settings of the Kafka client, as lines name=value in librdkafka's words: TLS, SASL, credentials.",
)

#: ``redis_url: str``.
redis_url = _option(
    "--redis-url",
    default="redis://localhost:6379/0",
    show_default=True,
    metavar="URL",
    help="Where Redis or Valkey is found: redis://, rediss:// (TLS), unix://, redis+sentinel://HOST,HOST/SERVICE or "
    "redis+cluster://HOST,HOST.",
)

#: ``schema_registry: str | None``; may hold a user and password, so it is not shown.
schema_registry = _option(
    "--schema-registry",
    metavar="URL",
    help="Where the Confluent Schema Registry is found. Without one, every message is read with its stream's own schema.",
)

#: ``log: Path``.
log = _option("--log", required=True, type=_A_PATH, help="Folder of the Parquet log: every value that was ever served.")

#: ``log: Path | None``, for a command that can do without.
optional_log = _option("--log", type=_A_PATH, help="Folder of the Parquet log.")

#: ``archive: Path``.
archive = _option(
    "--archive", required=True, type=_A_PATH, help="Folder of the event archive: every event with its arrival."
)

#: ``archive: Path | None``, for a command that can do without.
optional_archive = _option("--archive", type=_A_PATH, help="Folder of the event archive.")

#: ``dead_letters: Path | None``; beside the archive where not given.
dead_letters = _option(
    "--dead-letters", type=_A_PATH, help="Folder of the dead letters. Default: dead_letters beside the archive."
)

#: ``state: Path``.
state = _option("--state", required=True, type=_A_PATH, help="Folder of the recovery store.")

#: ``metrics: str | None``.
metrics = _option(
    "--metrics",
    metavar="HOST:PORT|PORT",
    help="Where to tell metrics (/metrics, for Prometheus) and health (/health, /ready) over HTTP, to whoever asks; a PORT alone "
    "is of this machine's loopback. Nowhere if not given.",
)

#: ``prefix: str``.
prefix = _option("--prefix", default="unskew", show_default=True, help="First part of every Redis key.")

#: ``pipeline: str``.
pipeline = _option(
    "--pipeline", default="main", show_default=True, help="Name of the pipeline, under which its clocks stand in Redis."
)
