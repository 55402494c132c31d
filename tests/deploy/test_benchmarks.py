"""Benchmarks are run by hand, so what would break them is looked for here."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(ROOT.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_takes_from_the_package_exists(script: Path) -> None:
    lacking = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unskew":
            module = importlib.import_module(node.module or "")
            for one in node.names:
                if not hasattr(module, one.name):
                    try:
                        importlib.import_module(f"{node.module}.{one.name}")
                    except ImportError:
                        lacking.append(f"{node.module}.{one.name}")

    assert not lacking


def test_every_benchmark_is_in_the_table_and_is_run_with_the_others() -> None:
    names = {script.stem for script in SCRIPTS if script.stem.startswith("bench_")}
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    run = ast.parse((ROOT / "__main__.py").read_text(encoding="utf-8"))
    (together,) = (
        ast.literal_eval(node.value)
        for node in run.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "NAMES"
    )

    assert set(together) == names
    assert not [name for name in names if f"`{name}.py`" not in table]


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
