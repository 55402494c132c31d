"""Commands that print rows, over one log, in terminals of several widths: nothing is broken, nothing stands out."""

import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.text import Text

from tests.support.plans import SECOND, events
from tests.support.terminal import WIDTHS, broken, cells, in_terminal, wider
from tests.support.written import write_log
from unskew.cli import main
from unskew.cli.screen import phases
from unskew.features.definitions.load import load

LONG = [f"clicks_of_the_last_{n:02}_hours_{'x' * 35}" for n in range(1, 61)]
DEFINITIONS = f"""
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg

schema = {{"type": "record", "name": "Click", "fields": [
    {{"name": "user", "type": "string"}}, {{"name": "at", "type": {{"type": "long", "logicalType": "timestamp-micros"}}}},
]}}
clicks = Stream("clicks", topic="clicks", schema=schema, event_time="at", settle="1s")
user = Entity("user", key="user")
few = FeatureView("few", entity=user, stream=clicks, owner="growth", features=[
    Feature(f"n_{{hours}}h", agg.count(), Sliding(f"{{hours}}h"), description="How many clicks a user did lately")
    for hours in range(1, 13)
])
wide = FeatureView("wide", entity=user, stream=clicks, features=[
    Feature(name, agg.count(), Sliding(f"{{hours}}h"), description="How many clicks a user did lately")
    for hours, name in enumerate({LONG!r}, 1)
])
"""
T0 = 1_483_272_000_000_005
USERS = ("u1", "日本語🎉", "a\x1b[31m\tb c")
EVENTS = events([(T0 + n * SECOND, T0 + n * SECOND, {"user": USERS[n % 3]}) for n in range(30)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("screens")
    (root / "archive").mkdir()
    (root / "views.py").write_text(DEFINITIONS)
    labels = "".join(f"u1,2017-01-01T12:00:{second}Z\n" for second in range(20, 40))
    (root / "labels.csv").write_text(f"user,event_timestamp\n{labels}")
    for view in load(root / "views.py").views.values():
        write_log(root / "log", view, EVENTS, T0 + 100 * SECOND, n_shards=2, n_batches=2)
    return root


def arguments(world: Path, command: str) -> list[str]:
    places = {
        "ARCHIVE": [world / "archive"],
        "LOG": ["--log", world / "log"],
        "VIEWS": ["--definitions", world / "views.py"],
        "PATH": [world / "views.py"],
        "LABELS": [world / "labels.csv"],
        "FILE": [world / "training.parquet", "--overwrite"],
    }
    return [str(part) for word in command.split() for part in places.get(word, [word])]


COMMANDS = (
    "log head few -n 3 LOG VIEWS",
    "log tail few LOG VIEWS",
    "log head wide -n 2 LOG VIEWS",
    "log stats few LOG VIEWS",
    "describe PATH",
    "search clicks --limit 100 VIEWS",
    "value few LOG VIEWS",
    "compact LOG --archive ARCHIVE --dry-run",
    "log stats wide LOG VIEWS",
    "value wide LOG VIEWS",
    "retain --keep-log 1d --dry-run LOG VIEWS",
    "train LABELS -f few:n_1h -o FILE LOG VIEWS",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_of_any_width_breaks_no_name_number_or_instant(world: Path, command: str) -> None:
    given = arguments(world, command)
    whole = CliRunner().invoke(main, given)
    assert whole.exit_code == 0, whole.output
    rows = cells(whole.output)
    assert rows

    for width in WIDTHS:
        shown = in_terminal(width, *given)

        assert wider(shown, width) == []
        words = {word for row in rows for cell in row for word in cell.split(" ")}
        assert broken(shown, words) == []
        assert "…" not in shown


@pytest.mark.parametrize("ref", ["few:n_1h", "wide"])
def test_lines_of_other_commands_break_no_word_either(world: Path, ref: str) -> None:
    given = arguments(world, f"lineage {ref} LOG VIEWS")
    words = CliRunner().invoke(main, given).output.split()
    assert words

    for width in WIDTHS:
        shown = in_terminal(width, *given)

        assert wider(shown, width) == []
        assert broken(shown, words) == []


def test_a_few_wide_rows_take_few_lines(world: Path) -> None:
    lines = in_terminal(100, *arguments(world, "log head few -n 3 LOG VIEWS")).splitlines()

    # Before, it was 45.
    assert len(lines) <= 25
    assert not [line for line in lines if "\x1b" in line or "\t" in line]


def test_a_bar_shows_no_total_where_none_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    with phases("produce") as report:
        for phase, done, total in (("reading", 3, 8), ("sent", 72, 0), ("sent", 126, 0)):
            report(phase, done, total)
            time.sleep(0.25)

    shown = Text.from_ansi(capsys.readouterr().err).plain
    assert "126/?" in shown
    assert "/100" not in shown
    assert "126/8" not in shown
