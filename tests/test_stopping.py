"""Signals that ask a command to stop, at any instant of it."""

import subprocess
import sys

import pytest

_COMMAND = """
import signal
import threading

from unskew.stopping import stopping_on_signals

stop = threading.Event()
with stopping_on_signals(stop):
    {interrupted}
    assert stop.wait(60)
signal.raise_signal(signal.SIGTERM)
print("ended")
"""


@pytest.mark.parametrize(
    "interrupted",
    [
        pytest.param("signal.raise_signal(signal.SIGTERM); assert stop.is_set()", id="at-any-time"),
        # What a handler interrupts holds this lock while it waits for the event, and while another handler sets it.
        pytest.param("with stop._cond: signal.raise_signal(signal.SIGINT)", id="while-it-waits"),
        pytest.param("[signal.raise_signal(each) for each in [signal.SIGTERM, signal.SIGINT] * 1_000]", id="many"),
    ],
)
def test_a_signal_sets_the_request_to_stop_whatever_it_interrupts(interrupted: str) -> None:
    command = _COMMAND.format(interrupted=interrupted)
    done = subprocess.run([sys.executable, "-c", command], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
