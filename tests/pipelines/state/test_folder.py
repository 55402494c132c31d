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
