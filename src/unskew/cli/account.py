"""The account that ``unskew run`` gives of itself on standard error: how it begins, how far it is, and why it ends.

In text, a terminal has a live display, and anything else a line a minute. As JSON, every line is an object, log records
and errors too; docs/operations.md has the keys.
"""

import importlib.metadata
import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from unskew.cli.screen import Screen, say, say_json
from unskew.features.errors import UnskewError
from unskew.features.printing import counted, printable_json
from unskew.features.time import format_instant, rough_duration
from unskew.sinks.redis.url import Address
from unskew.sinks.wall import wall_us

if TYPE_CHECKING:
    from unskew.features.plan import Plan
    from unskew.pipelines.deployment import Deployment
    from unskew.pipelines.watch.display import Display
    from unskew.pipelines.watch.running import Status

EVERY_S = 60.0
"""Seconds between two lines about the progress."""

Kind = Literal["auto", "plain", "json", "none"]
_TOTALS = ("consumed", "rows", "dead", "late")


class Account:
    """What a run says of itself; ``kind`` is that of ``--progress``, and ``as_json`` whether lines are JSON.

    ``none`` says only why a run failed, and ``json`` also prints every reading on standard output.
    """

    def __init__(self, deployment: "Deployment", kind: Kind, *, as_json: bool) -> None:
        self._deployment = deployment
        self._kind = kind
        self._as_json = as_json
        self._is_silent = kind == "none"
        self._began_s: float | None = None
        self._last_line_s = 0.0
        self._last: Status | None = None
        self._before = dict.fromkeys(_TOTALS, 0)
        self._display: Display | None = None

    def begun(self, plan: "Plan", partitions: Mapping[str, int]) -> None:
        """Say what runs, over topics with so many partitions; again if the flow begins again, with new partitions."""
        self._before = self._totals()
        self._last = None
        if self._began_s is None:
            self._began_s = self._last_line_s = time.monotonic()
        if self._is_silent:
            return
        if self._as_json:
            self._say_json("begun", **_introduced(plan, self._deployment, partitions))
            return
        self._close()
        for line in _banner(_introduced(plan, self._deployment, partitions)):
            say(line, err=True)
        if self._kind in {"auto", "plain"}:
            from unskew.pipelines.watch.display import Display

            console = Screen(stderr=True)
            is_live = self._kind == "auto" and console.is_terminal and not console.is_dumb_terminal
            self._display = Display(console, every_s=EVERY_S, is_live=is_live)
            self._display.__enter__()

    def report(self, status: "Status") -> None:
        """Take a reading."""
        compiles = status.compiling and not (self._last is not None and self._last.compiling)
        self._last = status
        if self._kind == "json":
            say_json(asdict(status))
        elif self._as_json:
            now_s = time.monotonic()
            if not self._is_silent and (compiles or now_s - self._last_line_s >= EVERY_S):
                self._last_line_s = now_s
                self._say_json("progress", **_reading(status))
        elif self._display is not None:
            self._display.show(status)

    def ended(self, why: str, error: BaseException | None = None) -> None:
        """Say why a run that had begun ends, and what it did; as JSON, also why one failed that had not begun."""
        self._close()
        if self._as_json and (error is not None or (self._began_s is not None and not self._is_silent)):
            said = None if error is None else str(error) or type(error).__name__
            unexpected = error is not None and not isinstance(error, (UnskewError, OSError))
            trace = "".join(traceback.format_exception(error)) if unexpected else None
            seconds = round(self._ran_s(), 3)
            self._say_json("ended", why=why, error=said, exception=trace, seconds=seconds, **self._totals())
        elif self._began_s is not None and not self._is_silent:
            totals = self._totals()
            say(
                f"ended after {rough_duration(int(self._ran_s() * 1e6))}, because {why}: {totals['consumed']:,} events, "
                f"{totals['rows']:,} log rows, {totals['late']:,} late, {totals['dead']:,} dead letters",
                err=True,
            )

    def _close(self) -> None:
        if self._display is not None:
            self._display.__exit__(None, None, None)
            self._display = None

    def _totals(self) -> dict[str, int]:
        return {name: self._before[name] + (getattr(self._last, name) if self._last else 0) for name in _TOTALS}

    def _ran_s(self) -> float:
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s

    def _say_json(self, event: str, **more: Any) -> None:
        say_json({"at": format_instant(wall_us()), "event": event, **more}, err=True)


class JsonLines(logging.Formatter):
    """Formats log records as JSON objects, a line each, like those of an ``Account``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        trace = None if record.exc_info is None else "".join(traceback.format_exception(*record.exc_info))
        return printable_json(
            {
                "at": format_instant(int(record.created * 1e6)),
                "event": "log",
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
                "exception": trace,
            }
        )


def log_as_json() -> None:
    """Write log records and Python's warnings, which no configured logging takes, as JSON lines."""
    logging.captureWarnings(capture=True)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(JsonLines())


def _introduced(plan: "Plan", deployment: "Deployment", partitions: Mapping[str, int]) -> dict[str, Any]:
    metrics = deployment.metrics
    return {
        "version": importlib.metadata.version("unskew"),
        "pipeline": deployment.pipeline,
        "prefix": deployment.prefix,
        "process": deployment.process,
        "processes": deployment.n_processes,
        "kafka": deployment.bootstrap,
        "redis": str(Address.parse(deployment.redis_url)),
        "topics": dict(partitions),
        "views": {view.id: len(view.published.features) for view in plan.of_topics.views.values()},
        "log": str(deployment.log),
        "archive": str(deployment.archive),
        "dead_letters": str(deployment.dead_letters),
        "state": str(deployment.state),
        "metrics": None if metrics is None else f"http://{metrics[0]}:{metrics[1]}/metrics",
    }


def _banner(found: Mapping[str, Any]) -> "list[str]":
    among = f", process {found['process']} of {found['processes']}" if found["processes"] > 1 else ""
    lines = [f"unskew {found['version']} runs pipeline {found['pipeline']}, prefix {found['prefix']}{among}"]
    lines += [f"  {name:13} {found[name]}" for name in ("kafka", "redis")]
    lines += [f"  {'topic':13} {topic}, {counted(n, 'partition')}" for topic, n in found["topics"].items()]
    lines += [f"  {'view':13} {view}, {counted(n, 'feature')}" for view, n in found["views"].items()]
    names = ("log", "archive", "dead_letters", "state", "metrics")
    return lines + [f"  {name.replace('_', ' '):13} {found[name]}" for name in names if found[name] is not None]


def _reading(status: "Status") -> dict[str, Any]:
    found = asdict(status)
    clock_us = found.pop("clock_us")
    return {"clock": None if clock_us is None else format_instant(clock_us), **found}
