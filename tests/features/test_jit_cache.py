"""Compiled functions on hosts of every kind: read-only, without a home, with folders of others, with damaged files."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import unskew

# Root may write anywhere, whatever the mode says, unless it gives this up.
ORDINARY = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"] if os.geteuid() == 0 else []
PLACES = """
    from pathlib import Path
    from unskew.features import jit_cache
    {before}
    place = jit_cache.places().writable
    print(None if place is None else place.parent)
"""
USE = """
    import polars as pl
    from unskew.features.text_buffers import Keys
    print(Keys.of(pl.Series(["a", "b"])).hashes().tolist())
"""

pytestmark = pytest.mark.skipif(
    bool(ORDINARY) and shutil.which("setpriv") is None, reason="root cannot be refused anything without setpriv"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A copy of the package in which nothing can be written."""
    site = tmp_path_factory.mktemp("site")
    package = Path(unskew.__file__).parent
    shutil.copytree(package, site / "unskew", ignore=shutil.ignore_patterns("__pycache__"))
    folders = [site / "unskew", *(path for path in (site / "unskew").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield site
    for folder in folders:
        folder.chmod(0o755)


def ran(site: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*ORDINARY, sys.executable, "-c", textwrap.dedent(script)]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(site), "HOME": "/nonexistent", **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")


def test_functions_are_kept_where_they_can_be_and_nobody_else_can_write(installed, tmp_path):
    free, home, state, given = (tmp_path / name for name in ("free", "home", "state", "given"))
    for folder in (free, home, state):
        folder.mkdir()
    temporary = free / f"unskew-{os.getuid()}"
    suggested = f"jit_cache.suggest(Path({str(state / 'compiled')!r}))"

    def place(before: str = "", **variables: str) -> str:
        return ran(installed, PLACES.format(before=before), TMPDIR=str(free), **variables).stdout.strip()

    assert place(NUMBA_CACHE_DIR=str(given)) == str(given)
    assert place(HOME=str(home)) == str(home / ".cache" / "unskew")
    assert place(XDG_CACHE_HOME=str(home / "own")) == str(home / "own" / "unskew")
    assert place(suggested) == str(state / "compiled")
    assert place() == str(temporary)
    assert temporary.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["open to all", "a link", "a file"])
def test_a_folder_that_somebody_else_may_have_planted_is_not_used(installed, tmp_path, planted):
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    place = tmp_path / f"unskew-{os.getuid()}"
    if planted == "a link":
        place.symlink_to(theirs)
    elif planted == "a file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)

    done = ran(installed, PLACES.format(before=""), TMPDIR=str(tmp_path))

    assert done.stdout.strip() == "None"
    assert "set NUMBA_CACHE_DIR to a folder that only this user can write" in done.stderr
    assert list(theirs.iterdir()) == []


def test_values_are_the_same_with_a_cache_without_one_and_with_damaged_files(installed, tmp_path):
    (tmp_path / f"unskew-{os.getuid()}").touch()
    expected = ran(installed, USE, TMPDIR=str(tmp_path))
    assert "no folder for compiled functions can be written" in expected.stderr
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}

    def again() -> str:
        done = ran(installed, USE, **cache)
        assert done.stdout == expected.stdout
        return done.stderr

    assert again() == ""
    kept = sorted((tmp_path / "kept").rglob("*.nbc"))
    assert [file.name.partition("-")[0] for file in kept] == ["text_buffers._hash_keys", "text_buffers.hash_bytes"]
    assert again() == ""
    kept[0].write_bytes(kept[0].read_bytes()[:1000])
    assert "is damaged and is made again" in again()
    assert again() == ""
    # Complete, but of another function.
    kept[0].write_bytes(kept[1].read_bytes())
    again()
    for file in kept:
        file.unlink()
        file.mkdir()
    assert "cannot be kept" in again()


def test_a_process_that_compiles_for_long_says_so_once_and_then_not_again(installed, tmp_path):
    script = "from unskew.features import jit_cache\njit_cache.SAY_AFTER_S = 0.0\n" + textwrap.dedent(USE)

    first, second = (ran(installed, script, NUMBA_CACHE_DIR=str(tmp_path)).stderr for _ in range(2))

    assert first.count("functions are being compiled") == 1
    assert second == ""


def test_warm_refuses_where_nothing_can_be_kept(installed, tmp_path):
    (tmp_path / f"unskew-{os.getuid()}").touch()
    environment = {"PATH": os.defpath, "PYTHONPATH": str(installed), "HOME": "/nonexistent", "TMPDIR": str(tmp_path)}
    command = [*ORDINARY, sys.executable, "-m", "unskew", "warm"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")

    assert done.returncode == 1
    assert "error: what is compiled cannot be kept; set NUMBA_CACHE_DIR" in done.stderr
    assert "Traceback" not in done.stderr
