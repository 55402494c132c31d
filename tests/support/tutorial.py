"""docs/tutorial.md run from first to last; ``python -m tests.support.tutorial`` says how long each step takes.

A block of ``sh`` is run line by line, one of ``python`` is written to the file that is named before it, and one of
``diff`` adds its line. Packages are those of this environment, unless ``--wheel FILE`` names a built one: then a new
environment is made and has nothing but what the page installs.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.servers.valkey import quiet_port

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
PORT = "6566"
PATIENCE_S = 100.0
"""How long a command may say that there is too little yet: it is run again, as the page tells people to wait."""


class Block(NamedTuple):
    """A fenced block of the page: the heading of its step, the file that the text before it names, its language."""

    step: str
    file: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    found = []
    for step, text in re.findall(r"^## (\d+\. [^\n]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        for before, language, block in re.findall(r"(.*?)^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            files = re.findall(r"`([\w/]+\.py)`", before.rstrip().rpartition("\n\n")[2])
            found.append(Block(step, files[-1] if files else "", language, block))
    return found


class Shell:
    """A terminal of somebody who follows the page; ``wheel``: what is installed, or None for this environment."""

    def __init__(self, folder: Path, wheel: Path | None = None) -> None:
        self.folder = folder
        self.wheel = wheel
        self.port = quiet_port()
        self.environment = dict(os.environ)  # noqa: TID251 - a shell of a user has it
        self.running: subprocess.Popen[str] | None = None
        self.said: dict[str, str] = {}

    def follow(self, block: Block) -> None:
        """Do what a block says. Raises ``AssertionError`` where a command fails."""
        if block.language == "python":
            (self.folder / block.file).write_text(block.text.replace(PORT, str(self.port)))
        elif block.language == "diff":
            self._add(self.folder / block.file, block.text)
        else:
            for line in block.text.splitlines():
                self._run(line)

    def _add(self, file: Path, diff: str) -> None:
        known, added = (line[1:] + "\n" for line in diff.splitlines())
        text = file.read_text()
        assert text.count(known) == 1, known
        file.write_text(text.replace(known, known + added))

    def _run(self, line: str) -> None:
        if self.wheel is None and line.startswith(("pip ", "python -m venv", ". ")):
            return
        if line.startswith("cd "):
            self.folder /= line.removeprefix("cd ")
            return
        if line.startswith(("export ", ". ")):
            self._export(line)
            return
        command = line.replace(PORT, str(self.port))
        if self.wheel is None:
            # The programs of this environment need not be on the path.
            command = re.sub(r"^(unskew|pytest) ?", rf"{shlex.quote(sys.executable)} -m \1 ", command)
            command = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", command)
            command = command.replace("'python ", f"'{sys.executable} ")
        else:
            command = re.sub(r"^pip install 'unskew", f"pip install --quiet '{self.wheel}", command)
        if line.startswith("unskew dev"):
            self._start(f"exec {command} --listen {self.port}")
            return
        deadline = time.monotonic() + PATIENCE_S
        while True:
            done = subprocess.run(
                ["bash", "-c", command], cwd=self.folder, env=self.environment, check=False, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode == 0 or self.running is None or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        self.said[line] = done.stdout

    def _export(self, line: str) -> None:
        done = subprocess.run(
            ["bash", "-ec", f"{line}; env -0"], cwd=self.folder, env=self.environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        self.environment = dict(one.split("=", 1) for one in done.stdout.split("\0") if one)

    def _start(self, command: str) -> None:
        """Start what goes on running, and set the variables that it names."""
        self.running = subprocess.Popen(
            ["bash", "-c", command], cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.running.stdout is not None
        heard = []
        while not (line := self.running.stdout.readline().strip()).startswith("Ctrl-C"):
            heard.append(line)
            assert self.running.poll() is None, heard
            if line.startswith("export "):
                self._export(line)
        # Nobody reads on, so it must not wait for one.
        self.drained = subprocess.Popen(["cat"], stdin=self.running.stdout, stdout=subprocess.DEVNULL)
        self.running.stdout.close()

    def end(self) -> int | None:
        """Press Ctrl-C in the first terminal; return the exit status."""
        if self.running is None:
            return None
        self.running.send_signal(signal.SIGINT)
        try:
            return self.running.wait(60)
        finally:
            self.running.kill()
            self.drained.wait(10)


@contextlib.contextmanager
def followed(folder: Path, wheel: Path | None = None) -> Iterator[tuple[Shell, dict[str, float]]]:
    """Follow the page in a folder; yield the shell at the end of the page, and the seconds that each step took."""
    shell, took_s = Shell(folder, wheel), dict[str, float]()
    try:
        for block in blocks(PAGE.read_text("utf-8")):
            began_s = time.monotonic()
            shell.follow(block)
            took_s[block.step] = took_s.get(block.step, 0.0) + time.monotonic() - began_s
        yield shell, took_s
    finally:
        shell.end()


def main() -> None:
    parser = argparse.ArgumentParser(description="Run docs/tutorial.md from its first command to its last one.")
    parser.add_argument(
        "--wheel",
        type=lambda name: Path(name).resolve(),
        help="install this built package as the page says (default: none)",
    )
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as folder, followed(Path(folder), wheel) as (shell, took_s):
        for line, said in shell.said.items():
            print(f"$ {line}\n{said}")
    for step, seconds in took_s.items():
        print(f"{seconds:6.1f} s  {step}")
    print(f"{sum(took_s.values()):6.1f} s  altogether, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
