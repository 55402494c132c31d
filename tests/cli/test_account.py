"""What ``unskew run`` says of itself, reading by reading, without a pipeline."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.plans import HOUR, MINUTE, Wanted, sliding, view
from tests.support.terminal import wider
from unskew.cli import account
from unskew.cli.account import Account, JsonLines, Kind
from unskew.features.errors import StoreUnavailable
from unskew.features.plan import Plan
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.watch.running import Status

PLAN = Plan(streams={}, views={"visits": view(Wanted("n", "count", sliding(HOUR, MINUTE)), name="visits")})
READ = Status(
    consumed=1_234, dead=1, late=2, bumped=0, updates=1_300, rows=1_400, clock_us=1_600_000_000_000_000, lag=7
)


def told(kind: Kind, *, as_json: bool = False) -> Account:
    deployment = Deployment(
        bootstrap="broker:9092", redis_url="redis://me:secret@host:7000/3", log=Path("log"), archive=Path("archive"),
        dead_letters=Path("dead"), state=Path("state"), idle="wall", metrics=("127.0.0.1", 9464),
    )  # fmt: skip
    return Account(deployment, kind, as_json=as_json)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The monotonic clock of the account and its display; ``now_s`` is set by the test."""
    now = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr("time.monotonic", lambda: now.now_s)
    monkeypatch.setattr("unskew.pipelines.watch.display.monotonic", lambda: now.now_s)
    return now


def run_of(one: Account, clock: SimpleNamespace, *, minutes: int = 2, error: BaseException | None = None) -> None:
    one.begun(PLAN, {"topic": 4})
    for _ in range(60 * minutes + 1):
        one.report(READ)
        clock.now_s += 1.0
    one.ended("it failed" if error else "it was asked to stop", error)


def test_elsewhere_than_in_a_terminal_a_line_a_minute_says_how_far_it_is(clock, capsys):
    run_of(told("auto"), clock)

    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line for line in lines if "1,234 events" in line] == [
        "  60 s  1,234 events, 0 events/s, 0 updates/s, 1,400 log rows, clock 2020-09-13T12:26:40Z, lag 7, late 2, dead letters 1",
        " 120 s  1,234 events, 0 events/s, 0 updates/s, 1,400 log rows, clock 2020-09-13T12:26:40Z, lag 7, late 2, dead letters 1",
        "ended after 2.0 min, because it was asked to stop: 1,234 events, 1,400 log rows, 2 late, 1 dead letters",
    ]
    assert "  redis         redis://host:7000" in lines
    assert "  metrics       http://127.0.0.1:9464/metrics" in lines
    assert "secret" not in err


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_in_a_terminal_the_display_is_live_and_fits(clock, capsys, monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))

    run_of(told("auto"), clock)

    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b[?25l" in err
    assert "events/s" in err
    assert "ended after" in err
    assert wider(err.partition("\x1b")[0], columns) == []


@pytest.mark.parametrize(
    ("kind", "on_stdout", "on_stderr"), [("none", 0, 0), ("json", 61, 2), ("plain", 0, 3), ("auto", 0, 3)]
)
def test_lines_of_json_have_fixed_keys(clock, capsys, kind, on_stdout, on_stderr):
    run_of(told(kind, as_json=True), clock, minutes=1)

    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert (len(out.splitlines()), len(lines)) == (on_stdout, on_stderr)
    assert [one["event"] for one in lines] == ["begun", *["progress"] * (on_stderr - 2), "ended"][:on_stderr]
    for one in lines:
        if one["event"] == "progress":
            assert (one["clock"], one["consumed"], one["lag"]) == ("2020-09-13T12:26:40Z", 1_234, 7)
            assert {"at", "event", "updates", "rows", "late", "dead", "duplicates", "retries"} <= one.keys()


@pytest.mark.parametrize("kind", ["none", "auto"])
def test_a_failure_as_json_is_told_even_if_nothing_began(capsys, kind):
    told(kind, as_json=True).ended("it failed", StoreUnavailable("Redis is away"))

    found = json.loads(capsys.readouterr().err)
    assert (found["why"], found["error"], found["exception"], found["consumed"]) == (
        "it failed",
        "Redis is away",
        None,
        0,
    )


def test_totals_go_on_if_the_flow_begins_again(clock, capsys):
    one = told("auto")
    one.begun(PLAN, {"topic": 4})
    one.report(READ)
    run_of(one, clock, minutes=0)

    assert "2,468 events, 2,800 log rows" in capsys.readouterr().err


def test_a_run_that_has_not_begun_says_nothing_in_text(capsys):
    told("auto").ended("it was asked to stop")

    assert capsys.readouterr() == ("", "")


def test_a_log_record_is_an_object_whatever_it_holds():
    record = logging.LogRecord("unskew.run", logging.WARNING, __file__, 1, "a\x1b[31m\n%s", ("b",), None)

    text = JsonLines().format(record)

    found: dict[str, Any] = json.loads(text)
    assert text.isprintable()
    assert (found["event"], found["level"], found["logger"], found["message"], found["exception"]) == (
        *("log", "warning", "unskew.run", "a\x1b[31m\nb", None),
    )
    assert account.EVERY_S == 60.0
