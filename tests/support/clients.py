"""Programs of others that read what unskew serves; where one is missing, the tests that need it are skipped."""

import os
import shutil

import pytest

FEAST_PYTHON = os.environ.get("UNSKEW_TEST_FEAST_PYTHON", "")  # noqa: TID251 - of the tests, not of the package
"""The Python of an environment with Feast, whose dependencies do not fit those of unskew."""
NODE_MODULES = os.environ.get("UNSKEW_TEST_NODE_MODULES", "")  # noqa: TID251 - the same
"""A folder ``node_modules`` with the package ``redis``."""

needs_feast = pytest.mark.skipif(not FEAST_PYTHON, reason="UNSKEW_TEST_FEAST_PYTHON does not name a Python with Feast")
needs_node_modules = pytest.mark.skipif(
    not NODE_MODULES, reason="UNSKEW_TEST_NODE_MODULES does not name a folder with the package redis"
)


def needs(program: str) -> pytest.MarkDecorator:
    """Skip where a program is not installed."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program}")
