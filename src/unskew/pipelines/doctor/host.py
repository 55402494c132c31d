"""This machine: the versions of what runs, and whether the kernel is compiled."""

import importlib.metadata
import logging
import platform

from unskew.pipelines import compiling
from unskew.pipelines.doctor.finding import Finding, made

_PACKAGES = ("bytewax", "confluent-kafka", "numba", "polars", "pyarrow", "redis")

_log = logging.getLogger("unskew.doctor")


def examine() -> list[Finding]:
    """Look at this machine."""
    return [*made("versions", _versions), *made("kernel", _kernel)]


def _versions() -> str:
    found = [f"unskew {importlib.metadata.version('unskew')}", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            _log.error("%s is not installed: pip install 'unskew[pipeline]'", name)
    return ", ".join(found)


def _kernel() -> str:
    if compiling.is_done():
        return "it is compiled"
    _log.warning(
        "it is not compiled for this installation and processor, so the first run takes half a minute longer; unskew warm "
        "compiles it now"
    )
    return ""
