"""The options of a deployment, each with the environment variable that sets it. No other module reads the environment.

Options are decorators for click commands, so the help of a command shows what it needs and how to set it::

    @click.command()
    @settings.redis_url
    @settings.prefix
    def get(redis_url: str, prefix: str) -> None: ...
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from typing_extensions import override

from unskew.features.errors import DefinitionError, RequestError
from unskew.features.local import local_path
from unskew.sinks.objects import ObjectPath, table_path

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Decorator = Callable[[_Command], _Command]

DEFINITIONS = "UNSKEW_DEFINITIONS"
LOOPBACK = "127.0.0.1"
REDIS_TIMEOUT_S = 2.0
"""How long a command for which somebody waits gives a Redis that does not answer."""


class LocalPath(click.Path):
    """A path of this machine's file system, as a ``Path``; an address is refused."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = "" if param is None else param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
        name = name.strip("[]").removesuffix("...")
        return super().convert(local_path(value, name), param, ctx)


class TablePath(LocalPath):
    """The root of tables: a path of this machine's file system, or an address of an object store."""

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = param.opts[0] if isinstance(param, click.Option) else ""
        root = table_path(value, name)
        return root if isinstance(root, ObjectPath) else super().convert(value, param, ctx)


_A_PATH = LocalPath()
_TABLES = TablePath()
_OR_OBJECTS = "or s3://BUCKET/NAME, gs://, az:// (credentials by the usual variables, AWS_* and so on)"


def _option(flag: str, **settings: Any) -> _Decorator[Any]:
    name = flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=f"UNSKEW_{name}", show_envvar=True, **settings)


def together(*options: _Decorator[Any]) -> _Decorator[Any]:
    """Return options that stand on several commands as one, in the order in which help lists them."""

    def give(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def duration_us(option: str, text: str) -> int:
    """Return the microseconds of a duration that an option gives. Raises ``RequestError`` with the option's name."""
    # It imports numpy, for which no help and no completion should wait.
    from unskew.features.time import duration_us as of  # noqa: PLC0415

    try:
        return of(text)
    except DefinitionError as error:
        raise RequestError(f"{option}: {error}") from error


def instant_us(option: str, text: str | None) -> int | None:
    """Return the instant that an option gives, in microseconds; None if it was left out. Raises ``RequestError``."""
    if text is None:
        return None
    from unskew.features.time import instant_us as of  # noqa: PLC0415

    try:
        return of(text)
    except (DefinitionError, ValueError) as error:
        raise RequestError(
            f"{option} {text}: {error}; give an instant with its offset, for example 2026-01-31T00:00:00Z"
        ) from error


def address(option: str, text: str) -> tuple[str, int]:
    """Return host and port of an option's HOST:PORT; a port alone is one of this machine. Raises ``RequestError``."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or LOOPBACK
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise RequestError(
            f"{option} {text!r}: give HOST:PORT, for example 127.0.0.1:9464, or a port alone for {LOOPBACK}"
        )
    return host, int(port)


def not_empty(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    """Refuse an empty text as the value of an option."""
    if given == "":
        raise click.BadParameter("it is empty; give a value, or leave the option out")
    return given


#: ``paths: tuple[Path, ...]``: definition files and folders as arguments, or from the variable, joined as in PATH.
definition_paths = click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_A_PATH, envvar=DEFINITIONS)

#: The same, for a command that works without them.
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

#: The same, for a command that needs them only in one of its modes.
some_definitions = _option(
    "--definitions", multiple=True, type=_A_PATH, help="Definition file or folder; may be given several times."
)

#: ``bootstrap_servers: str``.
bootstrap_servers = _option(
    "--bootstrap-servers",
    default="localhost:9092",
    show_default=True,
    metavar="HOST:PORT,...",
    callback=not_empty,
    help="Address of Kafka.",
)

#: ``kafka_config: Path | None``: a file, because it may hold secrets.
kafka_config = _option(
    "--kafka-config",
    type=_A_PATH,
    metavar="FILE",
    help="Further settings of the Kafka client (TLS, SASL, credentials): lines name=value with librdkafka's names.",
)

#: ``redis_url: str``.
redis_url = _option(
    "--redis-url",
    default="redis://localhost:6379/0",
    show_default=True,
    metavar="URL",
    help="Address of Redis or Valkey: redis://, rediss:// (TLS), unix://, redis+sentinel://HOST,HOST/SERVICE or "
    "redis+cluster://HOST,HOST.",
)

#: ``schema_registry: str | None``: may hold a user and password, so it is not shown.
schema_registry = _option(
    "--schema-registry",
    metavar="URL",
    callback=not_empty,
    help="Address of the Confluent Schema Registry. Without one, every message is read with its stream's own schema.",
)

#: ``log: Path``.
log = _option(
    "--log",
    required=True,
    type=_TABLES,
    help=f"Folder of the Parquet log: every value that was ever served; {_OR_OBJECTS}.",
)

#: ``log: Path | None``, for a command that works without it.
optional_log = _option("--log", type=_TABLES, help="Folder of the Parquet log, or its address in an object store.")

#: ``registry: Path | None``; by default beside the log.
registry = _option(
    "--registry",
    type=_TABLES,
    help="Folder of the registry's record: what was applied, and when; or its address in an object store. Default: "
    "registry beside the log.",
)


#: ``as_json: bool``, for what lists or shows something.
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

#: ``models: Path | None``.
models = click.option(
    "--models", type=LocalPath(), metavar="FOLDER", help="Folder of training sets, whose manifests are models."
)

#: ``figures: tuple[Path, ...]``.
figures = click.option(
    "--figures",
    multiple=True,
    type=LocalPath(),
    metavar="FILE|FOLDER",
    help="What was measured: a file of `unskew monitor --report` or of `unskew value --json`, or a folder of such files "
    "(*.json), into which later ones may be put. May be given several times.",
)

#: ``applies: bool``, for what computes views.
applies = click.option(
    "--apply",
    "applies",
    is_flag=True,
    help="Apply the definitions first, as `unskew apply` does; views and services that they do not name stay as they are.",
)


def record_of(registry: Path | None, log: Path | None) -> Path:
    """Return where the registry's record is. Raises ``RequestError`` if neither it nor the log is named."""
    if registry is not None:
        return registry
    if log is None:
        raise RequestError(
            "where is the registry's record? give --log of the pipeline, beside which it is, or --registry"
        )
    return log.with_name("registry")


#: ``archive: Path``.
archive = _option(
    "--archive",
    required=True,
    type=_TABLES,
    help="Folder of the event archive: every event with its arrival; or its address in an object store.",
)

#: ``archive: Path | None``, for a command that works without it.
optional_archive = _option(
    "--archive", type=_TABLES, help="Folder of the event archive, or its address in an object store."
)

#: ``served: Path | None``.
served = _option(
    "--served",
    type=_A_PATH,
    help="Folder of a sample of what readers were given, from FeatureStore(sample=...) or `unskew serve --sample`.",
)

#: ``dead_letters: Path | None``; by default beside the archive.
dead_letters = _option(
    "--dead-letters",
    type=_TABLES,
    help="Folder of the dead letters, or their address in an object store. Default: dead_letters beside the archive.",
)

#: ``state: Path``.
state = _option("--state", required=True, type=_A_PATH, help="Folder of the recovery store.")

#: ``state: Path | None``, for a command that works without it.
optional_state = _option("--state", type=_A_PATH, help="Folder of the recovery store.")

#: ``states: tuple[Path, ...]``.
states = click.option(
    "--state",
    "states",
    envvar="UNSKEW_STATE",
    show_envvar=True,
    multiple=True,
    required=True,
    type=_A_PATH,
    help="Folder of the recovery store; give those of all processes that write to the same log.",
)

#: ``shards: int``.
shards = click.option(
    "--shards",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Number of hash shards of each view; fixed for as long as the state lives.",
)

#: ``partitions: str | None``; ``partitions_of`` reads it.
partitions = click.option(
    "--partitions",
    metavar="N,N,...",
    help="Read only these partitions, always the same for one --state; other processes read the others.",
)


def partitions_of(text: str | None) -> tuple[int, ...] | None:
    """Return the partitions that --partitions gives; None if it was left out. Raises ``RequestError``."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise RequestError(f"--partitions {text!r}: give the numbers of partitions, each once, for example 0,1")
    return tuple(sorted(map(int, parts)))


#: ``cluster: str | None``; ``cluster_of`` reads it.
cluster = click.option(
    "--cluster",
    metavar="HOST:PORT,...",
    help="Addresses of all processes of a cluster that shares one --state; the same list for each process. Processes "
    "trust each other: use addresses that nobody else can reach.",
)

#: ``process: int``.
process = click.option(
    "--process", type=click.IntRange(0), default=0, show_default=True, help="Number of this process in --cluster."
)


def cluster_of(text: str | None, process: int) -> tuple[str, ...]:
    """Return the addresses that --cluster gives; none if it was left out.

    Raises ``RequestError`` for a text that is not a list of addresses, or a process that is not among them.
    """
    addresses = () if text is None else tuple(part.strip() for part in text.split(","))
    if any(not host or not port.isdecimal() for host, _, port in (address.rpartition(":") for address in addresses)):
        raise RequestError(
            f"--cluster {text!r}: give host:port of every process, for example 127.0.0.1:9101,127.0.0.1:9102"
        )
    if len(set(addresses)) < len(addresses):
        raise RequestError(f"--cluster {text!r}: two processes have the same address; give each its own")
    if process >= max(len(addresses), 1):
        raise RequestError(
            f"--process {process}: --cluster names {len(addresses)} process{'es' if len(addresses) > 1 else ''}, counted from 0; give a lower "
            "--process, or name this one too"
            if addresses
            else f"--process {process}: give the addresses of all processes with --cluster"
        )
    return addresses


#: ``metrics: str | None``.
metrics = _option(
    "--metrics",
    metavar="HOST:PORT|PORT",
    help="Address at which metrics (/metrics, for Prometheus) and health (/health, /ready) are exposed over HTTP, "
    "without a password; a PORT alone means that port of 127.0.0.1. Without it they are not exposed.",
)

#: ``log_format: str``.
log_format = _option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of everything on standard error; json is an object a line, log records and errors too.",
)

#: ``drop: tuple[str, ...]``.
drop = _option(
    "--drop",
    multiple=True,
    metavar="VIEW",
    help="View (NAME, or NAME@VERSION) that is no longer defined and whose state shall end, for good; may be given several "
    "times. Without it, a view that is missing from the definitions refuses the start.",
)


def _set_umask(context: click.Context, _parameter: click.Parameter, text: str) -> None:
    """Set the process's umask until the command ends."""
    mask = int(text, 8) if re.fullmatch("0?[0-7]{3}", text) else None
    if mask is None or mask & 0o700 or not mask & 0o002:
        raise click.BadParameter(
            f"{text!r} is not a umask that leaves this user its own files and keeps them from others; write 077, 027 (the group reads) or 022 (all read)"
        )
    before = os.umask(mask)
    context.call_on_close(lambda: os.umask(before))


#: No argument: applies to every file and folder that the command makes, also through SQLite.
umask = _option(
    "--umask",
    default="077",
    show_default=True,
    metavar="OCTAL",
    expose_value=False,
    callback=_set_umask,
    help="Permissions that new files and folders lack: 077 keeps them to this user, 027 lets its group read them.",
)

#: ``prefix: str``.
prefix = _option(
    "--prefix", default="unskew", show_default=True, callback=not_empty, help="First part of every Redis key."
)

#: ``allow_eviction: bool``.
allow_eviction = _option(
    "--allow-eviction",
    is_flag=True,
    help="Run even if the maxmemory-policy of Redis evicts keys. Every read of an entity without a row is provisional then.",
)

#: ``expire_after: str | None``.
expire_after = _option(
    "--expire-after",
    metavar="DURATION",
    help="Let Redis delete a key this long after its last window has emptied, should the pipeline not do it. Without "
    "it keys never expire. Keys that expire may be evicted under volatile policies.",
)

#: ``scrub: str``.
scrub = _option(
    "--scrub",
    default="1h",
    show_default=True,
    metavar="DURATION|off",
    help="Time in which every value in Redis is compared with the state once, and rewritten if it lacks or differs.",
)

#: ``pipeline: str``.
pipeline = _option(
    "--pipeline",
    default="main",
    show_default=True,
    callback=not_empty,
    help="Name of the pipeline; the key of its clocks in Redis.",
)


#: ``log``, ``registry``, ``redis_url``, ``prefix`` and ``pipeline``, for what plans and applies: the registry's record,
#: and what Redis says beside it.
of_record = together(optional_log, registry, redis_url, prefix, pipeline)

#: ``definitions``, ``log``, ``redis_url`` and ``prefix``, for what looks features up, wherever they are known.
places = together(some_definitions, optional_log, redis_url, prefix)


@dataclass(frozen=True, kw_only=True)
class OfEnvironment:
    """What the variables of the environment say of a feature store; None for one that is not set, or empty."""

    definitions: list[str]
    redis_url: str | None
    log: str | None
    archive: str | None
    prefix: str | None
    pipeline: str | None


def of_environment() -> OfEnvironment:
    """Return what the environment says of a feature store, under the names that the options of commands have."""

    def variable(name: str) -> str | None:
        return os.environ.get(name) or None  # noqa: TID251 - this is the one place

    return OfEnvironment(
        # Joined as in PATH.
        definitions=[path for path in (variable(DEFINITIONS) or "").split(os.pathsep) if path],
        redis_url=variable("UNSKEW_REDIS_URL"),
        log=variable("UNSKEW_LOG"),
        archive=variable("UNSKEW_ARCHIVE"),
        prefix=variable("UNSKEW_PREFIX"),
        pipeline=variable("UNSKEW_PIPELINE"),
    )


def has_display() -> bool:
    """Return whether a browser could show a page here."""
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(os.environ.get(name) for name in names)  # noqa: TID251 - this is the one place
