"""Listings of a table in which files come and go meanwhile."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from unskew.sinks.tables.layout import TableFile, file_name, published_files, superseded_files

# So many that the system gives a folder's names in several pieces.
N_FILES = 1_000
N_ROUNDS = 3

# The script of a separate process, so that it does not delay listings: it runs commands, slowly enough to be watched.
CHANGES = """
import os, sys, time
for line in open(sys.argv[1]):
    command, *paths = line.split()
    {"link": os.link, "unlink": os.unlink, "rename": os.rename}[command](*paths)
    time.sleep(0.0001)
"""


def listed_meanwhile(
    look: Callable[[Path], Sequence[TableFile]], folder: Path, changes: Sequence[str]
) -> list[list[tuple[int, int]]]:
    """The ranges of every listing that was made while the changes were."""
    listed = folder / "changes"
    listed.write_text("\n".join(changes))
    found = []
    with subprocess.Popen([sys.executable, "-S", "-c", CHANGES, str(listed)]) as process:
        while process.poll() is None:
            found.append([(file.first, file.last) for file in look(folder)])
    assert process.returncode == 0
    return found


def follow(ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether they hold the numbers from 0 on, none left out and none twice."""
    return [first for first, _ in ranges] == [0, *(last + 1 for _, last in ranges)][: len(ranges)]


def test_no_listing_lacks_rows_whose_files_are_merged_and_deleted_meanwhile(tmp_path: Path) -> None:
    day, merged = tmp_path / "day=2024-01-01", tmp_path / "_merged"
    day.mkdir()
    merged.touch()
    small = [day / file_name("p0", n, n) for n in range(N_ROUNDS * N_FILES)]
    for path in small:
        path.touch()
    changes = []
    for first in range(0, len(small), N_FILES):
        changes.append(f"link {merged} {day / file_name('p0', first, first + N_FILES - 1)}")
        changes += [f"unlink {path}" for path in small[first : first + N_FILES]]

    found = listed_meanwhile(published_files, tmp_path, changes)

    assert found
    assert all(follow(ranges) and ranges[-1][1] == len(small) - 1 for ranges in found)
    assert len(published_files(tmp_path)) == N_ROUNDS


def test_no_listing_leaves_one_out_before_another_while_more_are_published(tmp_path: Path) -> None:
    day, staged = tmp_path / "day=2024-01-01", tmp_path / "_staged"
    names = [file_name("p0", n, n) for n in range(4 * N_FILES)]
    for folder, ones in ((day, names[:N_FILES]), (staged, names[N_FILES:])):
        folder.mkdir()
        for name in ones:
            (folder / name).touch()

    found = listed_meanwhile(
        published_files, tmp_path, [f"rename {staged / name} {day / name}" for name in names[N_FILES:]]
    )

    assert found
    assert all(map(follow, found))
    assert len(published_files(tmp_path)) == len(names)


def test_a_listing_of_days_has_no_file_that_follows_one_that_it_missed(tmp_path, monkeypatch) -> None:
    days = [tmp_path / f"day=2024-01-0{day}" for day in (1, 2)]
    for day in days:
        day.mkdir()
    (days[0] / file_name("p0", 0, 0)).touch()
    scandir, n_files = os.scandir, 1

    def scandir_then_publish(folder: Path) -> object:
        nonlocal n_files
        names = sorted(scandir(folder), key=lambda entry: entry.name)
        if folder == days[0]:
            # Before midnight, in the folder that was just listed, and after it, in the next one.
            for day in days:
                (day / file_name("p0", n_files, n_files)).touch()
                n_files += 1
        return nullcontext(iter(names))

    monkeypatch.setattr(os, "scandir", scandir_then_publish)
    found = published_files(tmp_path)

    assert n_files == 5
    assert [file.first for file in found] == [0, 1, 2]


def test_every_file_that_others_cover_is_superseded_by_them_the_widest_first(tmp_path: Path) -> None:
    day = tmp_path / "day=2024-01-01"
    day.mkdir()
    for writer, first, last in [("a", 0, 1), ("a", 2, 3), ("a", 0, 3), ("a", 0, 9), ("a", 10, 11), ("b", 2, 3)]:
        (day / file_name(writer, first, last)).touch()

    found = [(file.writer, file.first, file.last, [cover.last for cover in covers]) for file, covers in superseded_files(tmp_path)]  # fmt: skip

    assert found == [("a", 0, 3, [9]), ("a", 0, 1, [9, 3]), ("a", 2, 3, [9, 3])]
    assert [(file.writer, file.first, file.last) for file in published_files(tmp_path)] == [
        ("a", 0, 9),
        ("a", 10, 11),
        ("b", 2, 3),
    ]
