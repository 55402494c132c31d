"""The sdist holds every file once, also the example's; the wheel that is built from it holds every module once."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
EXAMPLE = ROOT / "examples" / "complete_journey"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


class Built(NamedTuple):
    sdist: Path
    unpacked: Path
    wheel: Path


def hatchling(target: str, folder: Path, into: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    (made,) = into.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    folder = tmp_path_factory.mktemp("package")
    sdist = hatchling("sdist", ROOT, folder)
    with tarfile.open(sdist) as archive:
        # The first versions of Python 3.11 have no filters.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = folder / f"unskew-{VERSION}"
    return Built(sdist, unpacked, hatchling("wheel", unpacked, folder))


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as files:
        return files.namelist()


def modules() -> set[str]:
    """Every module of the package, and the example's definitions, as files of the wheel."""
    found = {str(path.relative_to(SOURCE)) for path in (SOURCE / "unskew").rglob("*.py")}
    return found | {f"unskew/demo/complete_journey/{path.name}" for path in EXAMPLE.glob("*.py")}


def twice(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def test_the_sdist_holds_every_file_once_and_no_links(built):
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    names = [member.name.removeprefix(f"{built.unpacked.name}/") for member in members]

    assert twice(names) == []
    assert [member.name for member in members if not member.isreg()] == []
    # What the links at the top lead to is in src alone.
    links = {path.name for path in ROOT.iterdir() if path.is_symlink()}
    assert links == {"features", "offline", "pipelines", "sinks"}
    assert {name.partition("/")[0] for name in names}.isdisjoint(links)


def test_the_sdist_holds_what_is_needed_to_build_check_and_read_it(built):
    assert modules() <= {str(path.relative_to(built.unpacked / "src")) for path in built.unpacked.rglob("src/**/*.py")}
    for name in ("LICENSE", "Makefile", "README.md", "requirements.lock", "docs/features.md", "tests/conftest.py"):
        assert (built.unpacked / name).is_file(), name


def test_the_wheel_from_the_sdist_is_that_of_the_checkout(built, tmp_path):
    assert hatchling("wheel", ROOT, tmp_path).read_bytes() == built.wheel.read_bytes()


def test_the_wheel_holds_every_module_once_and_nothing_beside_the_package(built):
    names = names_in(built.wheel)

    assert twice(names) == []
    assert {name for name in names if name.endswith(".py")} == modules()
    assert {name.partition("/")[0] for name in names} == {"unskew", f"unskew-{VERSION}.dist-info"}


def test_the_wheel_holds_the_example_as_it_is_in_the_repository(built):
    with zipfile.ZipFile(built.wheel) as files:
        for path in EXAMPLE.rglob("*.*"):
            if "__pycache__" not in path.parts:
                packed = files.read(f"unskew/demo/complete_journey/{path.relative_to(EXAMPLE)}")
                assert packed == path.read_bytes()


def test_the_wheel_says_version_licence_and_that_it_is_typed(built):
    names = names_in(built.wheel)
    with zipfile.ZipFile(built.wheel) as files:
        told = message_from_bytes(files.read(f"unskew-{VERSION}.dist-info/METADATA"))

    assert told["Version"] == VERSION
    assert told["License-Expression"] == "Apache-2.0"
    assert f"unskew-{VERSION}.dist-info/licenses/LICENSE" in names
    assert "unskew/py.typed" in names


def test_the_version_is_written_in_one_place():
    assignment = re.compile(r"^__version__\s*=", re.MULTILINE)

    assert [path for path in SOURCE.rglob("*.py") if assignment.search(path.read_text())] == []


def test_lint_sees_every_file_once():
    ruff = Path(sys.executable).parent / "ruff"
    shown = subprocess.run([ruff, "check", "--show-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    seen = [str(Path(line).resolve()) for line in shown.splitlines()]

    assert twice(seen) == []
    assert {str(path) for path in (SOURCE / "unskew").rglob("*.py")} <= set(seen)


def test_every_action_of_a_workflow_is_pinned_and_may_only_read():
    for path in (ROOT / ".github" / "workflows").iterdir():
        workflow = yaml.safe_load(path.read_text())
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        actions = [step["uses"] for step in steps if "uses" in step]

        assert workflow["permissions"] == {"contents": "read"}
        assert all("permissions" not in job for job in workflow["jobs"].values())
        assert actions
        assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions)
        assert [step["run"] for step in steps if "run" in step] == [".ci/run", "make package"]


def test_workflows_run_every_python_that_the_package_names():
    (workflow,) = (yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").iterdir())
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = [found[1] for text in classifiers if (found := re.fullmatch(r".*:: (3\.\d+)", text))]

    run = [job["strategy"]["matrix"]["python"] for job in workflow["jobs"].values()]
    assert run[0] + run[1] == named
