"""The pipeline as its operator runs it: one or several processes of ``python -m unskew run``, which can be killed."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.recovery.scene import Scene

END_WITHIN_S = 480.0


@dataclass(frozen=True)
class Topology:
    """How the pipeline is spread: what each of its processes is told beside what all are told.

    In an argument, ``{port0}``, ``{port1}`` ... stand for free ports, and ``{root}`` for the site's folder.
    """

    name: str
    processes: Sequence[Sequence[str]] = ((),)


ONE = Topology("one process")
SHARDED = Topology("one process, three shards", (("--shards", "3"),))
_ADDRESSES = "127.0.0.1:{port0},127.0.0.1:{port1}"
CLUSTER = Topology(
    "a cluster of two", (("--cluster", _ADDRESSES, "--process", "0"), ("--cluster", _ADDRESSES, "--process", "1"))
)
APART = Topology(
    "two processes apart",
    (("--partitions", "0,1", "--state", "{root}/state-01"), ("--partitions", "2,3", "--state", "{root}/state-23")),
)


@dataclass(frozen=True)
class Site:
    """Where one deployment lives: servers, the folders below ``root`` and its prefix in Redis.

    ``live``: the topics have no end, and the wall clock moves what brings no records. ``module``: what Python runs.
    """

    scene: Scene
    bootstrap: str
    redis_url: str
    root: Path
    prefix: str
    epoch: str = "200ms"
    live: bool = False
    module: str = "unskew"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def archive(self) -> Path:
        return self.root / "archive"

    @property
    def dead_letters(self) -> Path:
        return self.root / "dead"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def options(self) -> list[str]:
        """What every process is told; options that a topology repeats win."""
        return [
            *("run", "--apply", "--definitions", str(self.scene.definitions)),
            *("--bootstrap-servers", self.bootstrap, "--redis-url", self.redis_url, "--prefix", self.prefix),
            *("--log", str(self.log), "--archive", str(self.archive), "--dead-letters", str(self.dead_letters)),
            *("--state", str(self.state)),
            *(("--idle", "wall") if self.live else ("--idle", "none", "--end", str(self.scene.ends))),
            # Small steps: what is computed again after a crash comes in many of them, so that one can be seen.
            *("--epoch", self.epoch, "--poll-records", "10", "--progress", "json"),
        ]


@dataclass
class Life:
    """The processes of one start, until they end or are killed."""

    topology: Topology
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, site: Site, topology: Topology) -> "Life":
        life = cls(topology)
        ports = {f"port{number}": free_port() for number in range(4)}
        (site.root / "output").mkdir(parents=True, exist_ok=True)
        for number, arguments in enumerate(topology.processes):
            told = [argument.format(root=site.root, **ports) for argument in arguments]
            output = site.root / "output" / f"{time.monotonic_ns()}-{number}"
            with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
                # A session of its own: the whole group can be killed, and nothing else is.
                process = subprocess.Popen(
                    [sys.executable, "-m", site.module, *site.options, *told],
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            life.processes.append(process)
            life.outputs.append(output)
        return life

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def ended(self) -> bool:
        """Whether every process has ended by itself."""
        return all(process.poll() is not None for process in self.processes)

    def kill(self, chance: random.Random | None = None) -> None:
        """``kill -9`` every process group, and wait until all are gone; fail if one had ended with an error.

        ``chance``: draws the one that is killed first, and how much later the others are killed.
        """
        order = list(range(len(self.processes)))
        if chance is not None:
            chance.shuffle(order)
        failed = [self._failure(number) for number in order if self.processes[number].poll() is not None]
        self._kill(order[0])
        if chance is not None and len(order) > 1:
            time.sleep(chance.choice([0.0, 0.002, chance.uniform(0.0, 0.5)]))
        self.destroy()
        assert not any(failed), failed

    def freeze(self) -> None:
        """Let every process stand still, as those of a machine that hangs."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGCONT)

    def await_failure(self, code: int, text: str, within_s: float = END_WITHIN_S) -> None:
        """Wait until every process has ended by itself, with that code and such a text."""
        deadline_s = time.monotonic() + within_s
        for number, process in enumerate(self.processes):
            try:
                process.wait(max(deadline_s - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"process {number} of {self.topology.name} goes on after {within_s:g} s: {self._errors(number)}"
                ) from None
            assert process.returncode == code, f"it ended with {process.returncode}: {self._errors(number)}"
            assert text in self._errors(number), self._errors(number)

    def destroy(self) -> None:
        """Kill whatever is left."""
        for number in range(len(self.processes)):
            self._kill(number)

    def _kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[number].pid, signal.SIGKILL)
        self.processes[number].wait()

    def terminate(self, number: signal.Signals = signal.SIGTERM, within_s: float = END_WITHIN_S) -> float:
        """Send the signal; seconds until all have ended, which must be with 0."""
        began_s = time.monotonic()
        for process in self.processes:
            process.send_signal(number)
        self._await_success(within_s)
        return time.monotonic() - began_s

    def await_end(self, within_s: float = END_WITHIN_S) -> None:
        """Wait until every process has ended by itself, with 0."""
        self._await_success(within_s)

    def consumed(self) -> int:
        """Records that the processes say they have read in this life."""
        return sum(int(status.get("consumed", 0)) for status in self.statuses())

    def statuses(self) -> list[dict[str, Any]]:
        """The last whole progress line of each process; empty where it has not said any yet."""
        found = []
        for output in self.outputs:
            lines = output.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n") and line.startswith("{")]
            found.append(json.loads(whole[-1]) if whole else {})
        return found

    def _await_success(self, within_s: float) -> None:
        deadline_s = time.monotonic() + within_s
        for number, process in enumerate(self.processes):
            try:
                process.wait(max(deadline_s - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                errors = [self._errors(each) for each in range(len(self.processes))]
                said = self.statuses()
                self.destroy()
                raise AssertionError(
                    f"{self.topology.name}: not at its end within {within_s:g} s; last {said}; {errors}"
                ) from None
            assert process.returncode == 0, self._failure(number)

    def failures(self) -> list[str]:
        """How those ended that ended with an error."""
        return [text for number in range(len(self.processes)) if (text := self._failure(number))]

    def _failure(self, number: int) -> str:
        """How a process ended that ended by itself; empty where it did so with 0."""
        code = self.processes[number].returncode
        return f"process {number} of {self.topology.name} ended with {code}: {self._errors(number)}" if code else ""

    def _errors(self, number: int) -> str:
        return self.outputs[number].with_suffix(".err").read_text(errors="replace")[-3000:]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
