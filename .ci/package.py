"""Build the sdist, build the wheel from it, and use the wheel as a user would; ``make package`` runs this script.

    python .ci/package.py [PYTHON ...]

After the sdist is built, nothing of the checkout is used: the wheel is built from the unpacked sdist, installed in a
separate environment outside the checkout with the locked versions of its requirements, and run there; with the extra
``testing`` beside, the tests of a project that ``unskew init`` makes are run too. It is installed again without extras,
and with the extra ``serve`` alone, as on a server of models, and reads there what the pipeline wrote; also for each
``PYTHON``, which may be one that the pipeline does not run on. The sdist and the wheel stay in dist/.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from email import message_from_bytes
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
NAME = "unskew"
EXTRA = "demo"
ROWS = 20_000
MOST_SLIM_MB = 300
"""What an installation without extras may take: Polars and numpy are 240 MB of it."""
# Our modules on the path, or our settings, must not hide that the wheel lacks something.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()  # noqa: TID251 - a tool beside the package
    if not name.startswith(("PYTHON", "UNSKEW_"))
}


def main() -> None:
    began_s = time.monotonic()
    shutil.rmtree(DIST, ignore_errors=True)
    outside = Path(tempfile.mkdtemp(prefix="unskew-package-")).resolve()
    say(f"working in {outside}, which is kept after a failure")

    run("build the sdist", [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", DIST], ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        # The first versions of Python 3.11 have no filters.
        archive.extractall(outside, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = outside / sdist.name.removesuffix(".tar.gz")
    run(
        "build the wheel from the sdist",
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", DIST],
        unpacked,
    )
    (wheel,) = DIST.glob("*.whl")

    python = install(outside / "environment", locked_for(wheel, EXTRA, sys.executable), wheel, sys.executable)
    for script in ("installed.py", "slim.py"):
        shutil.copy(ROOT / ".ci" / script, outside)
    version = sdist.name.removesuffix(".tar.gz").rpartition("-")[2]
    command = [python, "-I", "installed.py", version, unpacked / "examples" / "marketplace"]
    run("use what is installed", command, outside)
    unskew = python.parent / "unskew"
    run("run the demo from it", [unskew, "demo", "--rows", ROWS, "--output", outside / "demo-output"], outside)
    add(python, locked_for(wheel, "testing", sys.executable))
    run("make a project", [unskew, "init", "project"], outside)
    run("run its tests", [python.parent / "pytest"], outside / "project")
    readers: list[Path] = []
    for number, reader in enumerate([sys.executable, *sys.argv[1:]]):
        for extra in ("", "serve"):
            slim = install(outside / f"reader{number}{extra}", locked_for(wheel, extra, reader), wheel, reader)
            say(f"what is installed {f'with {extra}' if extra else 'without extras'} takes {megabytes(slim):.0f} MB")
            if not extra and megabytes(slim) > MOST_SLIM_MB:
                raise SystemExit(f"package: an installation without extras takes more than {MOST_SLIM_MB} MB")
            readers.append(slim)
    run("read what the pipeline wrote", [python, "-I", "slim.py", outside / "demo-output", *readers], outside)
    shutil.rmtree(outside)
    say(f"{sdist.name} and {wheel.name} are good: {time.monotonic() - began_s:.0f} s")


def locked_for(wheel: Path, of: str, interpreter: str) -> str:
    """Return the part of requirements.lock that the wheel with an extra requires for a Python, by the wheel's metadata.

    Raises ``SystemExit`` if the lock lacks a requirement.
    """
    with zipfile.ZipFile(wheel) as files:
        (path,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        asked = message_from_bytes(files.read(path)).get_all("Requires-Dist", [])
    told = "import platform as p; print(p.python_version(), '.'.join(p.python_version_tuple()[:2]))"
    done = subprocess.run([interpreter, "-c", told], check=True, capture_output=True, text=True)
    where = dict(zip(("python_full_version", "python_version"), done.stdout.split(), strict=True))
    waiting = [(Requirement(text), of) for text in asked]
    needed: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra, **where}):
            continue
        for wanted in {"", *requirement.extras}:
            package = canonicalize_name(requirement.name), wanted
            if package not in needed:
                needed.add(package)
                its = asked if package[0] == NAME else requires(package[0]) or ()
                waiting += [(Requirement(text), wanted) for text in its]
    pins = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())
    names = {name for name, _ in needed} - {NAME}
    found = [pin for pin in pins if pin.partition("==")[0] in names]
    if lacking := names - {pin.partition("==")[0] for pin in found}:
        raise SystemExit(f"requirements.lock lacks {', '.join(sorted(lacking))}: run make lock")
    return "\n".join(found) + "\n"


def megabytes(python: Path) -> float:
    """Return how much the packages of an environment take, as the disk counts it, without compiled files and pip."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    files = (
        path for path in packages.rglob("*") if path.suffix != ".pyc" and path.relative_to(packages).parts[0] != "pip"
    )
    return sum(path.lstat().st_blocks * 512 for path in files) / 1e6


def install(environment: Path, locked: str, wheel: Path, interpreter: str) -> Path:
    """Make a new environment with the locked packages and the wheel, for a Python; return its python."""
    outside = environment.parent
    python = environment / "bin" / "python"
    if uv := shutil.which("uv"):
        run("make an environment", [uv, "venv", "--quiet", "--python", interpreter, environment], outside)
    else:
        run("make an environment", [interpreter, "-m", "venv", environment], outside)
    add(python, locked)
    run("install the wheel", [*pip(python, "install"), "--no-deps", wheel], outside)
    run("check that nothing is lacking", pip(python, "check"), outside)
    return python


def add(python: Path, locked: str) -> None:
    """Install locked packages in an environment."""
    environment = python.parents[1]
    lock = environment.with_suffix(".lock")
    lock.write_text(locked)
    command = [*pip(python, "install"), "--require-hashes", "--no-deps", "-r", lock]
    run("install what it requires", command, environment.parent)


def pip(python: Path, command: str) -> list[str | Path | int]:
    """Return the beginning of a command of pip, or of uv, for an environment."""
    if uv := shutil.which("uv"):
        return [uv, "pip", command, "--quiet", "--python", python]
    no_bytes = ["--no-compile"] if command == "install" else []
    return [python, "-m", "pip", "--disable-pip-version-check", command, "--quiet", *no_bytes]


def run(what: str, command: list[str | Path | int], folder: Path) -> None:
    """Run a command in a folder and print how long it took. Raises ``SystemExit`` if it fails."""
    say(f"{what}: {' '.join(map(str, command))}")
    began_s = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=folder, env=ENVIRONMENT, check=False)
    if done.returncode:
        raise SystemExit(f"package: could not {what}: the command above ended with {done.returncode}")
    say(f"{what}: {time.monotonic() - began_s:.1f} s")


def say(text: str) -> None:
    print(f"package: {text}", flush=True)


if __name__ == "__main__":
    main()
