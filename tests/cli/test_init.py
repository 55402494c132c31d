"""``unskew init``: each project that it makes runs as its README says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from unskew.cli import main
from unskew.cli.init import _TEMPLATES
from unskew.demo.embedded import EmbeddedBroker

UNSKEW = f"{sys.executable} -m unskew"


def init(folder: Path, *options: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["init", str(folder), *options])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


def commands(readme: str) -> list[str]:
    """The commands of a README: its indented lines, those that go on in the next line as one."""
    text = readme.replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("template", sorted(_TEMPLATES))
def test_a_project_runs_as_its_readme_says(template: str, tmp_path: Path, redis_url: str) -> None:
    folder = tmp_path / f"my-{template}"
    code, said = init(folder, "--template", template)
    assert code == 0, said
    readme = (folder / "README.md").read_text()
    assert "$" not in readme
    with EmbeddedBroker({_TEMPLATES[template].topic: 4}) as broker:
        environment = {
            **os.environ,  # noqa: TID251 - a shell of a user has it
            "UNSKEW_BOOTSTRAP_SERVERS": broker.bootstrap,
            "UNSKEW_REDIS_URL": redis_url,
        }

        def shell(command: str) -> str:
            # This broker makes no topics when it is asked to. Of a live run, all that is there is enough.
            for written, meant in (("--create-topic 4", ""), ("--idle wall", "--idle none --end now")):
                command = command.replace(written, meant)
            # The programs of this environment need not be on the path.
            command = re.sub(r"\bunskew (?=[a-z])", f"{UNSKEW} ", command)
            command = re.sub(r"^pytest\b", "python -m pytest", command)
            command = re.sub(r"^python\b", sys.executable, command)
            done = subprocess.run(
                ["bash", "-ec", "set -o pipefail; " + command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            return done.stdout

        said_by = {}
        for command in commands(readme):
            if command.startswith(("pip ", "unskew serve", "unskew dev")):
                continue
            said_by[command] = shell(command + (" --json" if command.startswith("unskew get") else ""))

    (tested,) = (text for command, text in said_by.items() if command == "pytest")
    (got,) = (json.loads(text) for command, text in said_by.items() if command.startswith("unskew get"))
    assert "2 passed" in tested
    assert got["status"] in {"present", "warming"}
    assert any(got["features"].values())
    assert [command.split()[1] for command in said_by if command.startswith("unskew")] == [
        "check",
        "run",
        "get",
        "plan",
    ]


def test_a_seed_gives_the_same_events(tmp_path: Path) -> None:
    for template in _TEMPLATES:
        init(tmp_path / template, "--template", template)
        made = [
            [
                {name: value for name, value in json.loads(line).items() if name != "event_time"}
                for line in subprocess.run([sys.executable, "generate.py", "--events", "50", "--seed", seed], cwd=tmp_path / template, check=True, capture_output=True, text=True).stdout.splitlines()
            ]
            for seed in ("1", "1", "2")
        ]  # fmt: skip
        assert len(made[0]) == 50
        assert made[0] == made[1] != made[2]


def test_what_is_there_is_left_alone_and_a_name_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    file = tmp_path / "mine.txt"

    assert "is not empty" in init(tmp_path)[1]
    assert init(file)[0] == 2
    for name in ("a b", "class", "-x", "é", "."):
        code, said = init(tmp_path / "new" / name) if name != "." else init(tmp_path / "class")
        assert (code, "cannot be one" in said) == (1 if name != "-x" else code, True), (name, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]
    assert init(tmp_path / "empty")[0] == 0
    assert "is not empty" in init(tmp_path / "empty")[1]


def test_a_new_repository_may_be_begun_in_and_where_one_stands_needs_no_cd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop" / ".git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shop")

    code, said = init(Path())

    assert code == 0, said
    assert "  cd " not in said
    assert "  cd other\n" in init(Path("other"))[1]
