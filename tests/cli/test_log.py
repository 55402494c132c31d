"""``unskew log head`` and ``unskew log tail``: the rows at both ends of a log, and those of one entity."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.plans import SECOND, events
from tests.support.terminal import cells
from tests.support.written import write_log
from unskew.cli import main
from unskew.features.definitions.load import load

DEFINITIONS = """
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg

schema = {"type": "record", "name": "Click", "fields": [
    {"name": "user", "type": "string"}, {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
]}
clicks = Stream("clicks", topic="clicks", schema=schema, event_time="at", settle="1s")
counts = FeatureView(
    "counts", entity=Entity("user", key="user"), stream=clicks, features=[Feature("n", agg.count(), Sliding("1d"))]
)
"""
VIEW = "counts"
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
        f"2017-01-01T12:00:{second}.000000+00:00" for second in (58, 59)
    ]
    assert json.loads(call(log, "tail", VIEW, "--entity", "nobody", "--json").stdout)["rows"] == []
    assert (figures["rows"], figures["entities"], figures["view"]) == (N, 3, "counts@1")


def test_the_last_rows_of_an_entity_are_its_own(log: Path) -> None:
    found = lines(log, "tail", VIEW, "--entity", "u1", "-n", "3")

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
