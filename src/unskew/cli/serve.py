"""``unskew serve``: current features over HTTP."""

import contextlib
import datetime as dt
import ipaddress
import os
import re
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli.screen import say
from unskew.features.errors import RequestError
from unskew.features.extras import needed

if TYPE_CHECKING:
    from unskew.catalog.site import Site
    from unskew.serving.http import Application, Limits
    from unskew.serving.online import OnlineReader

PORT = 6566
_A_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")


def _are_names(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for name in given:
        if not _A_NAME.fullmatch(name):
            raise click.BadParameter(
                f"{name!r} is not the name of a host; give it without a scheme and a port, for example "
                "features.example.com"
            )
    return given


@click.command()
@settings.redis_url
@settings.prefix
@settings.pipeline
@click.option(
    "--listen",
    metavar="HOST:PORT|PORT",
    default=f"127.0.0.1:{PORT}",
    show_default=True,
    envvar="UNSKEW_LISTEN",
    show_envvar=True,
    help="Address to listen at; a PORT alone means that port of 127.0.0.1. Give 0.0.0.0:PORT to be reached from other "
    "machines, with a token or behind a proxy that has one.",
)
@click.option(
    "--max-lag",
    metavar="DURATION",
    help="Say of values whose clock is further behind the present than this that they are outside of their age.",
)
@click.option(
    "--timeout",
    metavar="DURATION",
    default="250ms",
    show_default=True,
    help="Time to wait for a connection to Redis and for a reply; a read is tried three times.",
)
@click.option(
    "--cache",
    metavar="DURATION",
    help="Answer again from memory for this long, if the same features of the same entities are asked for; no value is "
    "older than that.",
)
@click.option(
    "--sample",
    type=settings.LocalPath(file_okay=False),
    metavar="DIR",
    envvar="UNSKEW_SAMPLE",
    show_envvar=True,
    help="Folder on this machine for a small sample of what is answered, for `unskew audit` and `unskew monitor` "
    "--served: at most one row in a second for each worker, and 64 MiB. It holds keys and values of entities.",
)
@click.option(
    "--token-file",
    type=settings.LocalPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="File with the bearer token that clients must send; without it, everybody who reaches the address may read.",
)
@click.option(
    "--tls-cert",
    type=settings.LocalPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="Certificate, in PEM, to answer over TLS with; its chain may follow it.",
)
@click.option(
    "--tls-key", type=settings.LocalPath(exists=True, dir_okay=False), metavar="FILE", help="Its private key, in PEM."
)
@click.option("--max-rows", type=click.IntRange(1), default=5_000, show_default=True, help="Entities of one request.")
@click.option(
    "--max-body", type=click.IntRange(1), default=1 << 20, show_default=True, help="Bytes of the body of one request."
)
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    help="Requests that are answered at the same time; more get the code 503.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    envvar="UNSKEW_WORKERS",
    show_envvar=True,
    help="Processes that answer at the address, one for each core that is to be used.",
)
@click.option(
    "--host-name",
    "host_names",
    multiple=True,
    metavar="NAME",
    callback=_are_names,
    envvar="UNSKEW_HOST_NAME",
    show_envvar=True,
    help="Name under which clients reach this server, if it listens at this machine alone and asks for no token: requests "
    "to other names than these, localhost and addresses are refused. May be given several times.",
)
@settings.optional_log
@settings.registry
@settings.models
@settings.figures
@click.option("--no-values", is_flag=True, help="Show no values of entities on the pages.")
def serve(
    redis_url: str,
    prefix: str,
    pipeline: str,
    listen: str,
    max_lag: str | None,
    timeout: str,
    cache: str | None,
    sample: Path | None,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    max_rows: int,
    max_body: int,
    max_requests: int,
    workers: int,
    host_names: tuple[str, ...],
    log: Path | None,
    registry: Path | None,
    models: Path | None,
    figures: tuple[Path, ...],
    no_values: bool,
) -> None:
    """Answer requests for current features over HTTP, until it is stopped.

    POST /get-online-features takes and gives what Feast's feature server does, so Feast's own client reads unskew:

    \b
      curl localhost:6566/get-online-features -d '{
        "entities": {"user_id": ["u-42"]},
        "features": ["user_purchases:spend_30d"]
      }'

    GET /health answers while the process works, GET /ready while features can be read; GET /metrics is for Prometheus.
    Features follow the registry in Redis as it changes. SIGTERM lets requests that were begun come to their end.
    A process uses one core; --workers has more of them answer, and one that dies is replaced.

    A browser gets pages at the same address: what features there are, what they mean, who reads them, and the values of
    an entity; with --log also as they were, with --registry or --log what was applied, with --figures how they are
    distributed, and what they cost and earn. --models names what was trained on them. With --token-file, the token is
    the password that the browser asks for.
    """
    with needed("unskew serve", extra="serve"):
        from unskew.serving import http
        from unskew.serving.listening import configured, run
    from unskew.features.local import existing_folder
    from unskew.sinks.objects import ObjectPath

    if log is not None and not isinstance(log, ObjectPath):
        existing_folder(log, "--log")
    if (tls_cert is None) != (tls_key is None):
        raise RequestError("TLS needs both: give --tls-cert and --tls-key")
    host, port = settings.address("--listen", listen)
    with contextlib.ExitStack() as stack:
        making = Making(
            redis_url=redis_url,
            prefix=prefix,
            pipeline=pipeline,
            max_lag_us=None if max_lag is None else settings.duration_us("--max-lag", max_lag),
            timeout_s=settings.duration_us("--timeout", timeout) / 1e6,
            cache_s=None if cache is None else settings.duration_us("--cache", cache) / 1e6,
            sample=sample,
            token=None if token_file is None else _token(token_file),
            limits=http.Limits(rows=max_rows, body_bytes=max_body, at_once=max_requests),
            log=log,
            registry=registry,
            models=models,
            figures=figures,
            address=in_url("localhost" if is_loopback(host) or host in {"0.0.0.0", "::"} else host, port or PORT),  # noqa: S104 - nothing is bound
            shows_values=not no_values,
            names=host_names if token_file is None and is_loopback(host) else None,
            parent=os.getpid(),
            shared=None if workers == 1 else stack.enter_context(tempfile.TemporaryDirectory(prefix="unskew-serve-")),
        )
        # Whatever is wrong with the options is said here, and not by each worker.
        with contextlib.closing(making.reader()) as reader:
            making.site(reader)
        config = configured(making, tls_cert, tls_key, workers)
        listener = stack.enter_context(listening(host, port))
        say(f"unskew serves http{'s' if tls_cert else ''}://{in_url(*listener.getsockname()[:2])}", err=True)
        run(config, listener)


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a process that answers is made from.

    ``parent``: the process that was started. ``shared``: the folder of what the workers of several count together.
    """

    redis_url: str
    prefix: str = "unskew"
    pipeline: str = "main"
    max_lag_us: int | None = None
    timeout_s: float = 0.25
    cache_s: float | None = None
    sample: Path | None = None
    token: str | None = None
    limits: "Limits"
    log: Path | None = None
    registry: Path | None = None
    models: Path | None = None
    figures: tuple[Path, ...] = ()
    address: str
    shows_values: bool = True
    names: tuple[str, ...] | None = ()
    parent: int = 0
    shared: str | None = None

    def __call__(self) -> "Application":
        """Return the application of this process."""
        from unskew.serving.http import Application
        from unskew.serving.listening import end_with, quiet
        from unskew.serving.measured import Metrics, Share
        from unskew.sinks.redis.usage import Usage

        quiet()
        if self.shared is not None:
            end_with(self.parent)
        stack = contextlib.ExitStack()
        reader = stack.enter_context(contextlib.closing(self.reader()))
        usage = stack.enter_context(Usage(self.redis_url, self.prefix, lambda: dt.datetime.now(dt.UTC).date()))
        metrics = Metrics(None if self.shared is None else Share(Path(self.shared)))
        return Application(
            reader,
            self.limits,
            self.token,
            usage,
            metrics=metrics,
            site=self.site(reader),
            names=self.names,
            at_end=stack.close,
        )

    def site(self, reader: "OnlineReader") -> "Site":
        """Return what answers with pages. Raises ``RequestError`` for files that are not what they should be."""
        from unskew.catalog.figures import FigureFiles
        from unskew.catalog.site import Site
        from unskew.cli.known import models_of, revisions_of

        figures = FigureFiles(self.figures)
        figures.now()
        return Site(
            reader,
            log=self.log,
            figures=figures,
            models=lambda: [] if self.models is None else models_of(self.models),
            revisions=lambda: revisions_of(self.registry, self.log),
            prefix=self.prefix,
            address=self.address,
            shows_values=self.shows_values,
        )

    def reader(self) -> "OnlineReader":
        """Return a reader; it connects when it is used."""
        from unskew.serving.online import OnlineReader
        from unskew.serving.sample import Sampler

        return OnlineReader(
            self.redis_url,
            self.prefix,
            self.pipeline,
            max_lag_us=self.max_lag_us,
            sampler=None if self.sample is None else Sampler(self.sample),
            timeout_s=self.timeout_s,
            cache_s=self.cache_s,
        )


def in_url(host: str, port: int) -> str:
    """Return an address as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ``RequestError`` if the address cannot be had."""
    from unskew.serving.listening import WAITING

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=WAITING)
    except OSError as error:
        raise RequestError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; choose another HOST:PORT with --listen"
        ) from error


def _token(path: Path) -> str:
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--token-file {path}: {error}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise RequestError(f"--token-file {path}: it must hold one token of printable ASCII characters, without spaces")
    return token
