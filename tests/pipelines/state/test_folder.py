"""The state folder is read only where nobody else can have written, for what is read may run code."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from unskew.cli import main
from unskew.features.errors import LayoutError
from unskew.pipelines.state.folder import RECOVERY, refuse_strangers


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    store = tmp_path / "state" / RECOVERY / "part-0.sqlite3"
    store.parent.mkdir(parents=True)
    store.touch()
    refuse_strangers(tmp_path / "state")
    return tmp_path / "state"


@pytest.mark.parametrize("name", [".", RECOVERY, f"{RECOVERY}/part-0.sqlite3", f"{RECOVERY}/part-0.sqlite3-wal"])
@pytest.mark.parametrize(
    ("mode", "owner", "message"),
    [
        (0o777, None, r"can be written by other users \(.rwxrwxrwx\): whoever writes there can run code .*chmod go-w"),
        (0o720, None, r"can be written by other users \(.rwx-w----\): whoever writes there can run code"),
        (0o700, 12345, r"belongs to the user 12345, and this process runs as \d+: whoever writes there can run code"),
        (0o755, None, None),
    ],
)
def test_a_state_in_which_others_may_write_is_refused(state, name, mode, owner, message):
    path = state / name
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.touch()
    path.chmod(mode)
    if owner is not None:
        if os.geteuid():
            pytest.skip("needs the right to give files away")
        os.chown(path, owner, -1)
    if message is None:
        refuse_strangers(state)
        return

    with pytest.raises(LayoutError, match=message):
        refuse_strangers(state)


def test_the_group_may_write_where_the_umask_lets_it(state):
    state.chmod(0o770)
    os.umask(0o007)

    refuse_strangers(state)


REPLACED = (
    r"above.* can be written by other users \(.rwxrwx.*\): whoever writes there can replace the state folder .*state"
)


@pytest.mark.parametrize("name", ["above", "above/between"])
@pytest.mark.parametrize(
    ("mode", "mask", "message"),
    [
        (0o777, 0o077, REPLACED),
        (0o770, 0o077, REPLACED),
        (0o770, 0o007, None),
        (0o777, 0o007, REPLACED),
        # Only the owner of an entry may rename it there.
        (0o1777, 0o077, None),
        (0o1770, 0o077, None),
        (0o755, 0o077, None),
    ],
)
def test_a_state_folder_that_others_may_replace_is_refused(tmp_path, name, mode, mask, message):
    folder = tmp_path / "above" / "between" / "state"
    folder.mkdir(parents=True)
    (tmp_path / name).chmod(mode)
    os.umask(mask)
    if message is None:
        refuse_strangers(folder)
        return

    with pytest.raises(LayoutError, match=message):
        refuse_strangers(folder)


def test_a_link_is_followed_to_where_others_may_write(tmp_path, monkeypatch):
    (tmp_path / "above" / "state").mkdir(parents=True)
    (tmp_path / "above").chmod(0o777)
    (tmp_path / "link").symlink_to("above")
    (tmp_path / "of_state").symlink_to(tmp_path / "link" / "state")
    monkeypatch.chdir(tmp_path)

    for given in (Path("link/state"), tmp_path / "of_state", Path("above/../link/state")):
        with pytest.raises(LayoutError, match=REPLACED):
            refuse_strangers(given)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to give files away")
@pytest.mark.parametrize("what", ["folder", "link"])
def test_what_another_user_put_where_all_may_write_is_refused(tmp_path, what):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "own").mkdir()
    path = shared / "theirs"
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "own")
    os.chown(path, 12345, -1, follow_symlinks=False)

    with pytest.raises(
        LayoutError, match="theirs lies where every user may put something, and belongs to the user 12345"
    ):
        refuse_strangers(path / "state")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to give files away")
def test_a_folder_above_that_root_gave_to_another_user_is_named(tmp_path, caplog):
    folder = tmp_path / "home" / "state"
    folder.mkdir(parents=True)
    os.chown(tmp_path / "home", 12345, -1)

    refuse_strangers(folder)

    assert "home belongs to the user 12345, and this process runs as 0; that user can replace" in caplog.text


@pytest.mark.parametrize("text", ["777", "0277", "8", "u=rwx", "-1", "000", "020"])
def test_a_umask_that_takes_the_users_own_files_away_or_is_none_is_refused(text):
    ended = CliRunner().invoke(main, ["compact", "--umask", text])

    assert ended.exit_code == 2
    assert "is not a umask that leaves this user its own files and keeps them from others; write 077" in " ".join(
        ended.stderr.replace("│", " ").split()
    )


def test_the_umask_of_a_command_ends_with_it(tmp_path):
    ended = CliRunner(env={"UNSKEW_UMASK": "022"}).invoke(main, ["compact", "--log", str(tmp_path)])

    assert ended.exit_code == 0
    assert os.umask(0o077) == 0o077
