"""``make fuzz``: the property tests again and again, each time with new examples, for as long as one likes.

A test that fails is left out from then on. Its smallest example stays in Hypothesis's database, with which the next
fuzz begins, and a file says how to repeat it.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

FOUND = Path(__file__).parents[2] / ".hypothesis"
# Where Hypothesis draws the examples.
FOLDERS = ("tests/laws", "tests/pipelines/decoding", "tests/pipelines/state", "tests/features", "tests/sinks")


class Fuzz:
    """A pytest plugin that runs what was collected until the time is over. ``found``: test ids with what was said."""

    def __init__(self, minutes: float) -> None:
        self._until_s = time.monotonic() + minutes * 60
        self._began_s = time.monotonic()
        self.found: dict[str, str] = {}
        self.runs = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep what draws examples."""
        items[:] = [item for item in items if item.get_closest_marker("hypothesis")]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("a test could not be collected")
        while left := [item for item in session.items if item.nodeid not in self.found]:
            random.shuffle(left)
            for item, following in zip(left, [*left[1:], left[0]], strict=True):
                if time.monotonic() > self._until_s:
                    return True
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                self.runs += 1
                age_s = time.monotonic() - self._began_s
                print(f"{age_s:7.0f} s  {self.runs:5d} runs  {len(self.found)} found  {item.nodeid}", flush=True)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.found[report.nodeid] = report.longreprtext

    def pytest_report_teststatus(self, report: pytest.TestReport) -> Any:
        """Count as ever, but print a line for each run instead of a letter."""
        return report.outcome if report.when == "call" or not report.passed else "", "", ""


@click.command()
@click.option("--minutes", default=60.0, show_default=True, help="For how long.")
def fuzz(minutes: float) -> None:
    """Exit with 1 where an example was found that fails."""
    plugin = Fuzz(minutes)
    code = pytest.main(["-q", "--hypothesis-profile=fuzz", *FOLDERS], plugins=[plugin])
    if plugin.found:
        FOUND.mkdir(exist_ok=True)
        path = FOUND / f"found-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        path.write_text("\n\n".join(f"{nodeid}\n{said}" for nodeid, said in plugin.found.items()))
        sys.exit(f"{len(plugin.found)} tests fail with examples that are in {path}")
    if code or not plugin.runs:
        sys.exit(int(code) or "no test ran")
    print(f"{plugin.runs} runs in {minutes:g} minutes, nothing found")


if __name__ == "__main__":
    fuzz()
