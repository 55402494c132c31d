"""The demo replaces its own output and nobody else's."""

import pytest

from unskew.demo.folders import Folders
from unskew.features.errors import RequestError


def test_a_new_folder_is_made(tmp_path):
    folders = Folders(tmp_path / "new" / "demo")

    folders.prepare()

    assert folders.root.is_dir()


def test_an_earlier_demo_is_replaced(tmp_path):
    folders = Folders(tmp_path)
    folders.prepare()
    folders.training_set.write_text("old")

    folders.prepare()

    assert not folders.training_set.exists()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(RequestError, match="not the demo's"):
        Folders(tmp_path).prepare()

    assert (tmp_path / "thesis.txt").read_text() == "years of work"
