"""Definition files: Python modules and YAML documents with the same words.

A Python file is run, and its module-level ``Entity``, ``Stream``, ``Table``, ``Sessions`` and ``FeatureView`` objects
are its definitions. A YAML file has one definition in each document, as ``documents`` describes.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec
import yaml
from typing_extensions import override

from unskew.features.definitions.compile import compiled
from unskew.features.definitions.documents import definition_of
from unskew.features.definitions.places import document_parts, line_of, located, names_of
from unskew.features.definitions.schemas import read_schema
from unskew.features.definitions.streams import is_known_format
from unskew.features.definitions.vocabulary import Definition, FeatureView, Sessions, Stream, Table
from unskew.features.definitions.yaml_text import MAX_CHARACTERS, read_documents
from unskew.features.errors import DefinitionError, RequestError
from unskew.features.local import local_path
from unskew.features.plan import Plan

SUFFIXES = (".py", ".yaml", ".yml")
NAMED = "in a Python file, what is only in a list or made in a function is not read: give it a name of its own, as in my_view = ..."
"""What to do where a definition was not found."""
_ENVIRONMENT = "pyvenv.cfg"
# Python takes over a hundred times the memory of what it compiles.
_MOST_BYTES = {".py": 4_000_000}
_MOST_YAML_BYTES = 4 * MAX_CHARACTERS


def load(*paths: str | Path) -> Plan:
    """Read definition files, or all files in folders, and compile them.

    Raises one ``DefinitionError`` with all faults, each with its file and, if the file shows it, its line. If
    something cannot be read, what was read is compiled all the same, and only names that may be in the rest are passed
    over.
    """
    faults: list[str] = []
    found = list(_read(paths, faults))
    try:
        plan = compiled([definition for _, definition in found], complete=not faults)
        if not faults:
            return plan
    except DefinitionError as error:
        homes = {name: path for path, definition in reversed(found) for name in names_of(definition)}
        files = dict.fromkeys(path for path, _ in found)
        faults += located(error.faults, files, homes)
    raise DefinitionError(faults)


def with_places(said: Iterable[str], paths: Iterable[str | Path]) -> list[str]:
    """Return texts about definitions that could be loaded, each with its file and line, as far as a file shows it."""
    return located(said, (path for path, _ in _files(paths, [])), {})


def load_definitions(paths: Iterable[str | Path]) -> list[Definition]:
    """Read definitions from files and folders, in the order given; in a folder its files by name, then its subfolders.

    The definition files of a folder are the ``.py``, ``.yaml`` and ``.yml`` files in it and below it. Names that begin
    with ``_`` or a dot are left out, and so are virtual environments. Schemas are read; their paths are relative to the
    folder of the definition file. Where one cannot be read, its path stays, and compiling reports it. Python files are
    run, and may import their neighbours and what lies in the given folder: load only your own.
    Raises one ``DefinitionError`` with the faults of all files.
    """
    faults: list[str] = []
    definitions = [definition for _, definition in _read(list(paths), faults)]
    if faults:
        raise DefinitionError(faults)
    return definitions


def _read(paths: Sequence[str | Path], faults: list[str]) -> Iterator[tuple[Path, Definition]]:
    """Yield each definition with its file; add what cannot be read to ``faults``."""
    if not paths:
        raise DefinitionError("no definition files were given; give a Python or YAML file, or a folder of them")
    is_empty = True
    for path, root in _files(paths, faults):
        try:
            _check_size(path)
            found = _from_python(path, root) if path.suffix == ".py" else _from_yaml(path, faults)
        except DefinitionError as error:
            faults += error.faults
            continue
        for each in found:
            is_empty = False
            yield path, _with_schema(each, path)
    if is_empty and not faults:
        raise DefinitionError(
            f"{', '.join(map(str, paths))}: there are no definitions; write an Entity, a Stream and a FeatureView ({NAMED})"
        )


def _check_size(path: Path) -> None:
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        raise DefinitionError(f"{path}: it cannot be read ({error.strerror}); correct the path") from error
    most = _MOST_BYTES.get(path.suffix, _MOST_YAML_BYTES)
    if n_bytes > most:
        raise DefinitionError(f"{path}: it has {n_bytes:,} bytes, more than {most:,}; definitions are shorter")


def _files(paths: Iterable[str | Path], faults: list[str]) -> Iterator[tuple[Path, Path]]:
    """Yield each definition file, and the folder from which it may import besides its own."""
    for text in paths:
        path = Path(text)
        if not os.fspath(text):
            # pathlib takes it for the current folder, whose Python files would be run.
            faults.append("the path is empty; give a Python or YAML file, or a folder of them")
        elif path.is_dir():
            before = len(faults)
            files = list(_below(path, faults, set()))
            if not files and len(faults) == before:
                faults.append(
                    f"{path}: the folder has no {', '.join(SUFFIXES)} file, nor has a folder in it; give the folder of the "
                    "definitions"
                )
            yield from ((file, path) for file in files)
        elif not path.exists():
            faults.append(f"{path}: there is no such file or folder; correct the path")
        elif not path.is_file():
            faults.append(f"{path}: it is neither a file nor a folder; give a Python or YAML file, or a folder of them")
        elif path.suffix not in SUFFIXES:
            faults.append(f"{path}: definition files are {', '.join(SUFFIXES)} files; correct the path")
        else:
            yield path, path.parent


def _below(folder: Path, faults: list[str], seen: set[Path]) -> Iterator[Path]:
    """Yield the definition files of a folder and those below it; ``seen``: folders that links may lead back to."""
    real = folder.resolve()
    if real in seen or (folder / _ENVIRONMENT).exists():
        return
    seen.add(real)
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name[0] not in "_.")
    except OSError as error:
        faults.append(f"{folder}: the folder cannot be read ({error.strerror}); make it readable, or move it elsewhere")
        return
    # A link to a file that is gone is read too, and then reported.
    yield from (entry for entry in entries if entry.suffix in SUFFIXES and (entry.is_file() or not entry.exists()))
    for entry in entries:
        if entry.is_dir():
            yield from _below(entry, faults, seen)


def _with_schema(definition: Definition, path: Path) -> Definition:
    """Replace a schema's path by the file's content, because only the loader knows what the path is relative to."""
    if isinstance(definition, (FeatureView, Sessions)):
        if isinstance(definition.stream, (Stream, Table, Sessions)):
            return msgspec.structs.replace(definition, stream=_with_schema(definition.stream, path))
        return definition
    if isinstance(definition, Table):
        definition = msgspec.structs.replace(definition, path=_beside(definition.path, path.parent))
    if isinstance(definition, Table) or (isinstance(definition, Stream) and is_known_format(definition)):
        try:
            return msgspec.structs.replace(definition, schema=read_schema(definition.schema, path.parent))
        except DefinitionError:
            # Compiling reads it again, and reports it with the other faults of the stream.
            return msgspec.structs.replace(definition, schema=_schema_beside(definition.schema, path.parent))
    return definition


def _schema_beside(schema: Any, folder: Path) -> Any:
    """Return the path of a schema as seen from a folder; what is no path stays what it is."""
    is_path = isinstance(schema, Path) or (isinstance(schema, str) and not schema.lstrip().startswith("{"))
    return str(folder / schema) if is_path else schema


def _beside(path: object, folder: Path) -> object:
    """Return a path, or each of several, as seen from a folder; what is not a path stays what it is."""
    if isinstance(path, (list, tuple)):
        return [_beside(one, folder) for one in path]
    if isinstance(path, (str, os.PathLike)) and path != "":
        # An address stays what it is too, and is refused with the definition.
        with contextlib.suppress(RequestError):
            return str(folder / local_path(path, "path"))
    return path


class _FromSource(SourceFileLoader):
    """Compiles a file whenever it is imported, and keeps nothing.

    What Python keeps beside a file it takes for the file's as long as size and second of the last change are equal, so
    that of two changes in one second it may see the first alone. Nor is a folder of definitions to be written to.
    """

    @override
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _from_python(path: Path, root: Path) -> list[Definition]:
    name, file = f"unskew_definitions.{path.stem}", path.resolve()
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        # Standard output is the command's own: what the file prints is no part of it.
        with _importing_from(path.resolve().parent, root.resolve()), contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except DefinitionError as error:
        raise DefinitionError([f"{path}: {fault}" for fault in error.faults]) from error
    # Whatever the user's code raises is a fault of that file; a call of exit() is one too.
    except (Exception, SystemExit) as error:
        raise DefinitionError(f"{_place(path, error)}: {type(error).__name__}: {error}") from error
    return [each for each in vars(module).values() if isinstance(each, Definition)]


@contextlib.contextmanager
def _importing_from(*folders: Path) -> Iterator[None]:
    """Let a definition file import what lies in these folders, the first ones first, and then forget it.

    Another folder may have files of the same names.
    """
    before = set(sys.modules)
    here = [str(folder) for folder in folders]
    # An environment's packages may lie below, but they are not definitions.
    apart = [entry for entry in sys.path if entry not in here and _is_below(entry, here)]

    def is_here(entry: str) -> bool:
        return _is_below(entry, here) and not _is_below(entry, apart)

    def finder_of(entry: str) -> FileFinder:
        if not is_here(entry):
            raise ImportError(f"{entry} has no definitions")
        return FileFinder(
            entry,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (_FromSource, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )

    def forget_finders() -> None:
        for entry in [entry for entry in sys.path_importer_cache if is_here(entry)]:
            del sys.path_importer_cache[entry]

    sys.path[:0] = here
    sys.path_hooks.insert(0, finder_of)
    # A folder that was looked into before may have other files by now.
    forget_finders()
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path_hooks.remove(finder_of)
        forget_finders()
        for folder in here:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and _is_below(str(Path(file).resolve()), here):
                del sys.modules[name]


def _is_below(path: str, folders: Sequence[str]) -> bool:
    """Return whether a path is one of these folders or lies below one; objects for paths would take longer."""
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _place(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        # It may lie in a file that this one imports. A file with null characters has no line.
        file = path if error.filename in {None, str(path.resolve()), "<string>"} else error.filename
        return str(file) if error.lineno is None else f"{file}:{error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _from_yaml(path: Path, faults: list[str]) -> list[Definition]:
    """Return the definitions of a YAML file; add what is wrong with the form of others to ``faults``."""
    try:
        text = path.read_text("utf-8-sig")
        documents = read_documents(text)
    except OSError as error:
        raise DefinitionError(f"{path}: it cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path}: it is not text in UTF-8 ({error}); give a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = str(path) if mark is None else f"{path}:{mark.line + 1}"
        raise DefinitionError(f"{place}: it is not YAML: {_said_of(error)}") from error
    definitions: list[Definition] = []
    faulty: list[tuple[int, Any, list[str]]] = []
    for number, document in enumerate(documents):
        if document is None:
            continue
        of_form: list[str] = []
        try:
            definitions.append(definition_of(document, of_form))
        except DefinitionError as error:
            of_form += error.faults
        if of_form:
            faulty.append((number, document, of_form))
    parts = document_parts(text) if faulty else []
    for number, document, of_form in faulty:
        faults += [f"{path}:{line_of(parts[number], _after_name(document, fault))}: {fault}" for fault in of_form]
    return definitions


def _said_of(error: yaml.YAMLError) -> str:
    """Return an error of YAML in one line; the text has no file for it, whose name stands before it already."""
    return " ".join(str(error).replace(' in "<unicode string>",', " in").split())


def _after_name(document: Any, fault: str) -> str:
    """Return what follows the name of the definition in a fault of its form; all if it does not begin with that."""
    begins = re.match(r"[\w-]+( [^:]*)?: ", fault)
    return fault if begins is None or not isinstance(document, Mapping) else fault[begins.end() :]
