"""``unskew ui``: the catalog in a browser, with the data that the demo left."""

import contextlib
import json
import logging
import shlex
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli.screen import say
from unskew.features.errors import RequestError
from unskew.features.extras import needed

if TYPE_CHECKING:
    from unskew.demo.folders import Folders

_MONTH_US = 30 * 86_400_000_000
_HOUSEHOLD = 2070
_OPENS_WITHIN_S = 60.0


@click.command()
@click.argument("folder", metavar="[FOLDER]", type=settings.LocalPath(file_okay=False), default=Path("demo-output"))
@click.option(
    "--listen",
    metavar="HOST:PORT|PORT",
    default="127.0.0.1:6566",
    show_default=True,
    help="Address to listen at; a PORT alone means that port of 127.0.0.1.",
)
@click.option("--no-open", is_flag=True, help="Open no browser.")
@click.pass_context
def ui(context: click.Context, folder: Path, listen: str, no_open: bool) -> None:
    """Show in a browser what the demo computed, until it is stopped: the catalog, and the values of every household.

    FOLDER is the output of `unskew demo` or `make demo` (default: demo-output). A Redis of its own is filled from the
    state that the demo left, and `unskew serve` answers from it; so requests over HTTP and `unskew get` work too, and
    what to try is printed. Meanwhile, `unskew baseline`, `unskew monitor` and `unskew value` measure the features, and
    the pages have their figures as soon as they are there; they are kept in FOLDER.

    For pages about your own features, use `unskew serve`.
    """
    with needed("unskew ui"):
        from unskew.demo.embedded import EmbeddedRedis
    from unskew.cli.serve import in_url, listening, serve
    from unskew.demo.folders import Folders
    from unskew.demo.journey import HOME
    from unskew.features.definitions.load import load
    from unskew.pipelines.deployment import Deployment
    from unskew.pipelines.rehydrate import rehydrate

    host, port = settings.address("--listen", listen)
    folders = Folders(folder.absolute())
    if not folders.training_set.exists():
        raise RequestError(
            f"{folder} does not hold the output of the demo; run unskew demo --output {shlex.quote(str(folder))} first"
        )
    # Before the work, and not after it.
    listening(host, port).close()
    with EmbeddedRedis() as redis:
        say("Filling a Redis from the state of the demo ...", err=True)
        deployment = Deployment(
            bootstrap="",
            redis_url=redis.url,
            log=folders.log,
            archive=folders.archive,
            dead_letters=folders.dead_letters,
            state=folders.state,
            registry=settings.record_of(None, folders.log),
            idle="none",
        )
        # That a new Redis is empty is no news here.
        logging.getLogger("unskew.redis").setLevel(logging.ERROR)
        written = rehydrate(load(HOME), deployment)
        address = f"http://{in_url(host, port)}"
        say(f"{written.rows:,} values are served. Open {address}, or try:")
        say_what_to_try(address, redis.url, folders, _HOUSEHOLD)
        with _measuring(folders, HOME):
            if not no_open and settings.has_display():
                threading.Thread(target=_open, args=(host, port, address), daemon=True).start()
            context.invoke(serve, redis_url=redis.url, listen=listen, log=folders.log, figures=(folders.figures,))


def say_what_to_try(address: str, redis_url: str, folders: "Folders", household: int) -> None:
    """Print commands that read what the demo computed, to be copied into another terminal."""
    body = json.dumps({"entities": {"household_id": [household]}, "features": ["household_purchases:spend_30d"]})
    say(f"  unskew get household_purchases {household} --redis-url {redis_url}")
    say(f"  curl {address}/get-online-features -d {shlex.quote(body)}")
    say(f"  unskew log tail household_purchases --log {shlex.quote(str(folders.log))}")
    say("Ctrl-C ends it.")


def _open(host: str, port: int, address: str) -> None:
    """Open a browser once the server answers."""
    until_s = time.monotonic() + _OPENS_WITHIN_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            webbrowser.open(address)
            return
        time.sleep(0.2)


@contextlib.contextmanager
def _measuring(folders: "Folders", definitions: Path) -> Iterator[None]:
    """Measure the features beside the body; what is not done at its end is given up."""
    ended = threading.Event()
    thread = threading.Thread(target=_measure, args=(folders, definitions, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _measure(folders: "Folders", definitions: Path, ended: threading.Event) -> None:
    from unskew.features.time import format_instant
    from unskew.offline.log_reader import ViewLog
    from unskew.offline.logged import all_logged

    log = str(folders.log)
    folders.baselines.mkdir(exist_ok=True)
    folders.figures.mkdir(exist_ok=True)
    for view in all_logged(folders.log).values():
        kept = folders.baselines / f"{view.name}.json"
        stats = ViewLog(folders.log, view)
        if not kept.exists() and stats.complete_to_us is not None and stats.coverage is not None:
            began_us = max((one.since_us or 0 for one in stats.coverage.shards.values()), default=0)
            at_us = max(stats.complete_to_us - _MONTH_US, (began_us + stats.complete_to_us) // 2)
            _run(["baseline", view.id, "--log", log, "--at", format_instant(at_us), "-o", str(kept)], ended)
    look, value = folders.figures / "look.json", folders.figures / "value.json"
    if not look.exists():
        asked = ["monitor", "--once", "--log", log, "--baseline", str(folders.baselines), "--report", str(look)]
        _run(asked, ended)
    if not value.exists():
        places = ["--log", log, "--archive", str(folders.archive), "--definitions", str(definitions)]
        _run(["value", *places, "--json"], ended, value)
    if not ended.is_set():
        say("The pages have the figures of monitor and value now.", err=True)


def _run(arguments: list[str], ended: threading.Event, output: Path | None = None) -> None:
    """Run a command of unskew to its end, unless ``ended`` is set before. ``output``: the file for what it prints."""
    unfinished = None if output is None else output.with_suffix(".tmp")
    with contextlib.ExitStack() as stack:
        to = subprocess.DEVNULL if unfinished is None else stack.enter_context(unfinished.open("wb"))
        if ended.is_set():
            return
        command = [sys.executable, "-m", "unskew", *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.DEVNULL)  # noqa: S603 - our own interpreter and module
        while process.poll() is None:
            if ended.wait(0.1):
                process.kill()
                process.wait()
    if unfinished is not None and output is not None and process.returncode == 0:
        unfinished.replace(output)
