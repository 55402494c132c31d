"""How long a process goes on trying to reach a store after it was asked to stop."""

import threading
import time

import pytest

from unskew.features.errors import StoreUnavailable
from unskew.sinks.patience import Patience


@pytest.mark.parametrize("stops_at", [1, 2])
def test_a_try_that_took_longer_than_the_grace_is_the_last_one_after_a_stop(stops_at):
    stop = threading.Event()
    tries = []

    def hang() -> None:
        tries.append(None)
        if len(tries) == stops_at:
            stop.set()
        time.sleep(0.06)
        raise StoreUnavailable("no answer")

    with pytest.raises(StoreUnavailable, match="no answer"):
        Patience("Redis", stop, grace_s=0.05).until_done(hang)

    assert len(tries) == stops_at


def test_short_tries_go_on_after_a_stop_until_the_grace_has_passed():
    stop = threading.Event()
    stop.set()
    tries = []

    def fail() -> str:
        tries.append(None)
        if len(tries) < 4:
            raise StoreUnavailable("not yet")
        return "done"

    assert Patience("Redis", stop, grace_s=60.0).until_done(fail) == "done"
