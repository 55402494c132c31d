"""docs/tutorial.md from its first command to its last one, and the pictures of docs/concepts.md."""

import runpy
from pathlib import Path

import pytest

from tests.support.tutorial import PAGE, blocks, followed
from unskew.cli import COMMANDS

ROOT = Path(__file__).parents[1]
TIMELINES = runpy.run_path(str(ROOT / "docs" / "site" / "timelines.py"))["DRAWINGS"]


@pytest.mark.long
@pytest.mark.skipif("dev" not in COMMANDS, reason="unskew dev, which the tutorial is about, is not there yet")
def test_the_tutorial_trains_a_model_and_scores_with_what_is_served(tmp_path):
    with followed(tmp_path) as (shell, took_s):
        said = shell.said

        assert "3 passed" in said["pytest"]
        assert "pay again" in said["python labels.py"]
        assert float(said["python train.py"].split()[-1]) > 0.5
        assert [line.partition(":")[0] for line in said["python score.py"].splitlines()] == ["u-1", "u-2", "nobody"]
        assert shell.end() == 0
        assert len(took_s) == 10


def test_each_block_of_the_tutorial_says_what_it_is_for():
    found = blocks(PAGE.read_text("utf-8"))

    assert {block.language for block in found} == {"sh", "python", "diff"}
    assert [block for block in found if block.language != "sh" and not block.file] == []
    assert len({block.file for block in found if block.language == "python"}) == 4


@pytest.mark.parametrize("name", TIMELINES)
def test_a_timeline_is_what_its_script_draws_and_the_page_shows_it(name):
    file = ROOT / "docs" / "pictures" / f"timeline-{name}.svg"

    assert file.read_text("utf-8") == TIMELINES[name]().svg()
    assert f"pictures/{file.name}" in (ROOT / "docs" / "concepts.md").read_text("utf-8")
