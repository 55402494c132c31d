"""``unskew dev``: definitions at work on this machine, on servers of their own, taken up whenever they are saved."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.features.errors import RequestError
from unskew.features.extras import needed

if TYPE_CHECKING:
    from unskew.cli.feeding import Origin
    from unskew.features.plan import Plan
    from unskew.pipelines.deployment import Deployment

_DEFINITIONS = Path("definitions")
_EPOCH_S = 1.0
_LINE_EVERY_S = 5.0


@click.command()
@settings.optional_definition_paths
@click.option(
    "--listen",
    metavar="HOST:PORT|PORT",
    default="127.0.0.1:6566",
    show_default=True,
    help="Address of the pages and of requests over HTTP; a PORT alone means that port of 127.0.0.1.",
)
@click.option(
    "--sample",
    metavar="RATE",
    type=click.FloatRange(0, 10_000, min_open=True),
    help="Make events of every stream up from its schema, so many a second.",
)
@click.option(
    "--generate",
    metavar="COMMAND",
    callback=settings.not_empty,
    help="Take the events from a command of yours, which the shell runs once for each stream: it prints JSON lines, and "
    "{stream} in it is the name of the stream.",
)
@click.option(
    "--keep",
    type=settings.LocalPath(file_okay=False),
    metavar="DIR",
    help="Keep log, archive, state and what was applied in this folder, and go on from it next time.  [default: nothing "
    "stays]",
)
@settings.umask
def dev(
    paths: tuple[Path, ...],
    listen: str,
    sample: float | None,
    generate: str | None,
    keep: Path | None,
) -> None:
    """Try definitions out: everything that they need runs on this machine, and a definition that is saved is taken up.

    PATH are definition files or folders (default: the folder definitions, as `unskew init` makes it). A Kafka and a
    Redis of its own are started, the topics made, and the pipeline and the server of `unskew serve` run on them; what
    is where, and what to try, is printed. A file that is saved is checked. If it has a fault, that is shown, and the
    definitions from before go on. Else the pipeline goes on with what is new: a view that computes something else
    is the next version of itself, has its past from the archive, and serves.

    Ctrl-C ends all of it and leaves nothing behind, except for what --keep names.

    \b
    Examples:
        unskew dev --sample 20
        unskew dev --generate 'python generate.py --rate 20'
    """
    with needed("unskew dev"):
        from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
        from unskew.serving import http
        from unskew.serving.listening import configured
        from unskew.serving.listening import run as answer
    from unskew.cli.developing import Development, placed
    from unskew.cli.feeding import Feeds, Origin
    from unskew.cli.keeping import kept, make_topics_again
    from unskew.cli.run import without_panics
    from unskew.cli.screen import Screen
    from unskew.cli.serve import Making, in_url, is_loopback, listening
    from unskew.features.definitions.load import load_definitions
    from unskew.pipelines.deployment import Deployment
    from unskew.pipelines.watch.display import Display

    host, port = settings.address("--listen", listen)
    if sample is not None and generate is not None:
        raise click.UsageError("--sample makes events up, and --generate takes them from a command: give one of them")
    paths = paths or _default()
    # Whatever is wrong from the beginning is said before anything starts.
    definitions = load_definitions(paths)
    plan = placed(definitions, paths)
    origin = Origin(sample=sample, command=generate)
    origin.check(plan)
    console = Screen()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(host, port))
        stack.enter_context(without_panics())
        if keep is not None:
            stack.enter_context(kept(keep.absolute()))
        redis = stack.enter_context(EmbeddedRedis())
        broker = stack.enter_context(EmbeddedBroker())
        root = redis.folder / "data" if keep is None else keep.absolute()
        deployment = Deployment(
            bootstrap=broker.bootstrap,
            redis_url=redis.url,
            log=root / "log",
            archive=root / "archive",
            dead_letters=root / "dead_letters",
            state=root / "state",
            registry=root / "registry",
            idle="wall",
            epoch_s=_EPOCH_S,
            # The topics of a folder that is kept are made again by another broker.
            adopt_topic_ids=True,
            # The broker keeps little, so all that it has is fetched at once.
            config={"queued.min.messages": 10_000_000, "queued.max.messages.kbytes": 1_000_000},
        )
        deployment.check(plan.of_topics)
        deployment.log.mkdir(parents=True, exist_ok=True)
        make_topics_again(broker, deployment.state)
        display = stack.enter_context(Display(console, every_s=_LINE_EVERY_S))
        feeds = Feeds(broker.bootstrap, origin, display.note)
        url = f"http://{in_url(host, port)}"

        def ready() -> None:
            for line in _introduction(deployment, plan, paths, origin, url=url, stays=keep is not None):
                display.note(line)

        display.note(f"starting, with pages at {url}: what is where follows once the pipeline reads")
        development = Development(
            paths=paths, deployment=deployment, broker=broker, feeds=feeds, display=display, ready=ready
        )
        stack.enter_context(development.begun(definitions))
        making = Making(
            redis_url=redis.url,
            limits=http.Limits(),
            log=deployment.log,
            registry=deployment.registry,
            address=in_url(host, port),
            names=() if is_loopback(host) else None,
        )
        answer(configured(making, None, None), listener)


def _default() -> tuple[Path, ...]:
    if not _DEFINITIONS.is_dir():
        raise RequestError(
            f"there is no folder {_DEFINITIONS} here; name the definitions (unskew dev PATH), go to a project's folder, or make "
            "a project with unskew init DIR"
        )
    return (_DEFINITIONS,)


def _introduction(
    deployment: "Deployment", plan: "Plan", paths: tuple[Path, ...], origin: "Origin", *, url: str, stays: bool
) -> list[str]:
    """Return the lines that say what is where, and what to try."""
    return [
        f"pages and HTTP  {url}",
        f"Kafka           {deployment.bootstrap} (in memory: it ends with this command)",
        f"Redis           {deployment.redis_url}",
        f"data            {deployment.log.parent}{'' if stays else ' (removed at the end)'}",
        f"definitions     {', '.join(map(str, paths))}: saved files are taken up",
        "",
        "In another terminal:",
        *(f"  {line}" for line in _to_try(deployment, plan, paths, origin, url)),
        "",
        "Ctrl-C ends it.",
        "",
    ]


def _to_try(
    deployment: "Deployment", plan: "Plan", paths: tuple[Path, ...], origin: "Origin", url: str
) -> Iterator[str]:
    places = {
        "UNSKEW_BOOTSTRAP_SERVERS": deployment.bootstrap,
        "UNSKEW_REDIS_URL": deployment.redis_url,
        "UNSKEW_LOG": str(deployment.log),
        "UNSKEW_ARCHIVE": str(deployment.archive),
    }
    for name, place in places.items():
        yield f"export {name}={shlex.quote(place)}"
    view = next(iter(plan.of_topics.views.values()))
    if origin.command is None:
        defined = " ".join(f"--definitions {shlex.quote(str(path.absolute()))}" for path in paths)
        yield f"unskew produce --sample {shlex.quote(view.stream.name)} {defined}"
    features = [f"{view.name}:{one.name}" for one in view.outputs]
    # As unskew produce --sample makes keys up; which ones a command makes, its events show.
    key: dict[str, int | str] = {
        name: "KEY" if origin.command is not None else 1 if kind == "int64" else f"{name.removesuffix('_id')}-1"
        for name, kind in zip(view.entity.keys, view.entity.types, strict=True)
    }
    get = f"unskew get {shlex.quote(view.name)} {' '.join(shlex.quote(str(one)) for one in key.values())}"
    tail = f"unskew log tail {shlex.quote(view.name)}"
    yield from (get, tail) if origin.command is None else (tail, f"{get}  # KEY: one that unskew log tail shows")
    body = json.dumps({"entities": {name: [one] for name, one in key.items()}, "features": features[:1]})
    yield f"curl {url}/get-online-features -d {shlex.quote(body)}"
