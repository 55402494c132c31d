"""Benchmarks are run by hand, so what would break them is looked for here; mypy looks at what they call."""

import importlib
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(ROOT.glob("*.py"))


def _commands() -> tuple[str, ...]:
    """Return what ``python -m benchmarks`` runs."""
    commands: tuple[str, ...] = runpy.run_path(str(ROOT / "__main__.py"))["COMMANDS"]
    return commands


def test_every_benchmark_is_in_the_table_and_is_run_with_the_others() -> None:
    names = {script.stem for script in SCRIPTS if script.stem.startswith("bench_")}
    table = (ROOT / "README.md").read_text(encoding="utf-8")

    assert {command.split()[0] for command in _commands()} == names
    assert not [name for name in names if f"`{name}.py`" not in table]


@pytest.mark.parametrize("command", _commands())
def test_a_benchmark_has_the_options_with_which_it_is_run(command: str) -> None:
    name, *words = command.split()
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")

    assert not [word for word in words if word.startswith("--") and f'"{word}"' not in text]


def test_a_law_of_scaling_has_the_least_squares_of_relative_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    law_of = importlib.import_module("bench_scaling").law_of

    exact = law_of([5.0, 23.0, 103.0], [1, 10, 50])
    # Of y = b x through (1, 1) and (1, 2), (b - 1)^2 + (b / 2 - 1)^2 is least at b = 6/5; plain squares are at 3/2.
    apart = law_of([1.0, 2.0, 2.0, 4.0], [1, 1, 2, 2])
    of_two = law_of([7.0, 10.0, 9.0, 21.0], [1, 2, 1, 5], [1, 1, 2, 2])

    assert (exact.fixed, *exact.each, exact.deviation) == pytest.approx((3.0, 2.0, 0.0))
    assert (apart.fixed, *apart.each, apart.deviation) == pytest.approx((0.0, 1.2, 0.4))
    assert (of_two.fixed, *of_two.each, of_two.deviation) == pytest.approx((2.0, 3.0, 2.0, 0.0))
    assert of_two.at(10, 100) == pytest.approx(232.0)
