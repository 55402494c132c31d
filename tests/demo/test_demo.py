"""The demo as a person runs it, on a small part of the data."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from tests.support.commands import printed
from tests.support.recovery.processes import free_port
from unskew.demo import journey
from unskew.demo.folders import Folders
from unskew.demo.run import check_counts

N_LINES = 4_000


def processes(word: str) -> list[str]:
    """Command lines of running processes that hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in command:
            found.append(command)
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, Folders]:
    """What a run of the demo printed, and where it wrote; at its end it stayed up, and ended with Ctrl-C."""
    folders = Folders(tmp_path_factory.mktemp("demo"))
    keep = ["--keep", "--listen", str(free_port())]
    command = [sys.executable, "-m", "unskew", "demo", "--rows", str(N_LINES), "--output", str(folders.root), *keep]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                said += printed(*to_try(said)).splitlines(keepends=True)
                demo.send_signal(signal.SIGINT)
    said.append(f"exit {demo.returncode}")
    return "".join(said), folders


def to_try(said: Sequence[str]) -> list[str]:
    """The commands among lines that the demo printed."""
    return [line for line in said if line.startswith(("  unskew ", "  curl "))]


def test_it_ends_in_agreement(shown):
    text, _ = shown

    assert "Everything agrees." in text


def test_what_is_kept_up_answers_the_commands_that_are_printed_and_ends_with_it(shown):
    text, folders = shown
    lines = text.splitlines()
    tried = to_try(lines)
    answer = text.partition("Ctrl-C ends it.")[2]

    assert [line.split()[:2][-1] for line in tried if "unskew" in line] == ["get", "log"]
    assert len(tried) == 3
    # As a table, as JSON, and as a column of the log.
    assert answer.count("spend_30d") >= 3
    assert lines[-1] == "exit 0"
    assert processes(str(folders.root)) == []


def test_it_shows_features_of_three_households_a_training_set_and_the_audit(shown):
    text, _ = shown

    for words in (
        "Features of 3 households, read from Redis",
        "Training set: the first 3 of 10,000 rows",
        "Training set: its columns",
        "compared bit for bit with a recount",
    ):
        assert words in text


def test_the_training_set_has_a_row_per_label_and_every_feature(shown):
    _, folders = shown
    frame = pl.read_parquet(folders.training_set)

    assert frame.height == 10_000
    assert sum("__" in name for name in frame.columns) == 16
    assert frame["household_purchases__purchase_count_30d"].max() > 0


def test_a_record_missing_from_the_archive_is_a_fault(shown):
    _, folders = shown
    topics = journey.topics(N_LINES)
    console = Console(file=io.StringIO())
    assert check_counts(console, topics, folders) == []
    lost = next((folders.archive / "transactions").glob("day=*/*.parquet"))
    hidden = lost.rename(lost.with_suffix(".hidden"))

    faults = check_counts(console, topics, folders)

    hidden.rename(lost)
    assert len(faults) == 1
    assert faults[0].startswith("transactions: 4,000 records were produced, but")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_however_it_ends(tmp_path, number):
    command = [sys.executable, "-m", "unskew", "demo", "--rows", "50000", "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as demo:
        # A machine that has compiled nothing does so first.
        deadline = time.monotonic() + 180
        # The demo itself, and the pipeline that it started.
        while not any(" run " in one for one in processes(str(tmp_path))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert any(" run " in one for one in processes(str(tmp_path)))

        demo.send_signal(number)
        _, errors = demo.communicate(timeout=30)

    assert demo.returncode in {130, -signal.SIGKILL}
    assert b"Traceback" not in errors
    deadline = time.monotonic() + 60
    while processes(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(str(tmp_path)) == []
