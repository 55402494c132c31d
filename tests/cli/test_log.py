"""``unskew log head`` and ``unskew log tail``: the rows at both ends of a log, and those of one entity."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.growing import Growing
from tests.support.plans import SECOND, events
from tests.support.terminal import cells
from tests.support.written import write_log
from unskew.cli import main
from unskew.features.definitions.load import load

DEFINITIONS = """
from unskew import Entity, Feature, FeatureView, Service, Sliding, Stream, agg

schema = {"type": "record", "name": "Click", "fields": [
    {"name": "user", "type": "string"}, {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
]}
clicks = Stream("clicks", topic="clicks", schema=schema, event_time="at", settle="1s")
counts = FeatureView(
    "counts", entity=Entity("user", key="user"), stream=clicks, features=[Feature("n", agg.count(), Sliding("1d"))]
)
ranking = Service("ranking", features=["counts:n"])
"""
VIEW = "counts"
AWAY = "redis://127.0.0.1:1/0"
T0 = 1_483_272_000_000_000
N = 60
EVENTS = events([(T0 + n * SECOND, T0 + n * SECOND, {"user": f"u{n % 3}"}) for n in range(N)])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    definitions = tmp_path / "views.py"
    definitions.write_text(DEFINITIONS)
    (view,) = load(definitions).views.values()
    write_log(tmp_path / "log", view, EVENTS, T0 + 100 * SECOND, n_shards=2, n_batches=5)
    return tmp_path


def call(folder: Path, *arguments: str) -> Result:
    known = ("--log", str(folder / "log"), "--definitions", str(folder / "views.py"))
    return CliRunner().invoke(main, ["log", *arguments, *known])


def lines(log: Path, *arguments: str) -> list[list[str]]:
    """The cells of the printed rows."""
    done = call(log, *arguments)
    assert done.exit_code == 0, done.output
    return cells(done.output)[1:]


def test_the_last_rows_are_the_ends_of_all_rows(log: Path) -> None:
    everything = lines(log, "head", VIEW, "-n", "1000")

    assert len(everything) == N
    assert lines(log, "tail", VIEW, "-n", "7") == everything[-7:]
    assert lines(log, "tail", VIEW, "-n", "1000") == everything
    assert len(lines(log, "tail", VIEW)) == 10


def test_rows_and_figures_are_one_json_document_too(log: Path) -> None:
    shown = json.loads(call(log, "tail", VIEW, "-n", "2", "--json").stdout)
    figures = json.loads(call(log, "stats", VIEW, "--json").stdout)

    assert shown["view"] == "counts@1"
    assert [row["available_at"] for row in shown["rows"]] == [
        f"2017-01-01T12:00:{second}.000000Z" for second in (58, 59)
    ]
    assert json.loads(call(log, "tail", VIEW, "--entity", "nobody", "--json").stdout)["rows"] == []
    assert (figures["rows"], figures["entities"], figures["view"]) == (N, 3, "counts@1")


def test_the_last_rows_of_an_entity_are_its_own(log: Path) -> None:
    found = lines(log, "tail", VIEW, "--entity", "u1", "-n", "3")
    of_all, of_one = (cells(call(log, "tail", VIEW, *more).output)[0] for more in ((), ("--entity", "u1")))
    assert (
        of_all[: len(of_one) - 1]
        == of_one[:-1]
        == ["user", "available_at", "cause", "event_time", "partition", "offset"]
    )

    assert [row[0] for row in found] == ["u1"] * 3
    assert [row[-1] for row in found] == ["18", "19", "20"]


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("--entity", "u9"), "has no rows of user u9", 0),
        (("--entity", "u1", "--entity", "u2"), "1 expected, 2 given", 1),
    ],
)
def test_an_entity_without_rows_or_with_another_key_is_said(
    log: Path, arguments: tuple[str, ...], said: str, code: int
) -> None:
    done = call(log, "tail", VIEW, *arguments)

    assert done.exit_code == code
    assert said in done.output


@pytest.mark.parametrize("entity", [(), ("--entity", "u1")])
@pytest.mark.parametrize("as_json", [False, True])
def test_follow_goes_on_with_rows_that_are_published_until_it_is_stopped(
    tmp_path: Path, entity: tuple[str, ...], as_json: bool
) -> None:
    definitions = tmp_path / "views.py"
    definitions.write_text(DEFINITIONS)
    (view,) = load(definitions).views.values()
    written = Growing(tmp_path / "log", view)
    written.feed(EVENTS[:30], T0 + 30 * SECOND)
    form = ("--json",) if as_json else ()
    shown = (*entity, *form)
    following = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "unskew",
            "log",
            "tail",
            VIEW,
            "--log",
            tmp_path / "log",
            "--definitions",
            definitions,
            "-n",
            "2",
            "--follow",
            *shown,
        ],
        stdout=subprocess.PIPE,
    )
    assert following.stdout is not None
    lines = [following.stdout.readline() for _ in range(2 if as_json else 3)]
    written.feed(EVENTS[30:45], T0 + 45 * SECOND)
    written.feed(EVENTS[45:], T0 + 100 * SECOND)
    n_new = 10 if entity else 30
    lines += [following.stdout.readline() for _ in range(n_new)]
    following.send_signal(signal.SIGINT)
    rest, _ = following.communicate(timeout=60)

    assert (rest, following.returncode) == (b"", 0)
    done = call(tmp_path, "tail", VIEW, "-n", str(n_new + 2), *shown)
    found = [json.loads(line) for line in lines] if as_json else b"".join(lines).decode().splitlines()
    whole = json.loads(done.stdout)["rows"] if as_json else done.stdout.splitlines()
    # What two looks find may interleave.
    assert sorted(found, key=str) == sorted(whole, key=str)


@pytest.mark.parametrize("command", ["log head", "log tail", "log stats", "value", "backfill", "materialize"])
def test_a_service_in_the_place_of_a_view_is_named_with_its_views(log: Path, command: str) -> None:
    folders = ("--archive", str(log), "--state", str(log / "state"))
    more = {"backfill": folders, "materialize": ("--until", "2026-01-31T00:00:00Z", *folders)}.get(command, ())
    places = ("--log", str(log / "log"), "--definitions", str(log / "views.py"), *more)

    ended = CliRunner().invoke(main, [*command.split(), "ranking", *places])

    said = "error: there is no view 'ranking', but a service of this name; name one of its views, counts@1"
    assert said in ended.stderr.splitlines()


def test_a_service_that_was_applied_is_known_without_definitions(log: Path) -> None:
    places = ("--log", str(log / "log"))
    applied = CliRunner().invoke(main, ["apply", str(log / "views.py"), *places, "--yes", "--redis-url", AWAY])
    assert applied.exit_code == 0, applied.output

    for command in (
        ["log", "tail", "ranking"],
        ["value", "ranking"],
        ["baseline", "ranking", "-o", str(log / "out.json")],
    ):
        ended = CliRunner().invoke(main, [*command, *places])

        assert "no view 'ranking', but a service of this name; name one of its views, counts@1" in ended.stderr
