"""Reading of a stream's schema from a path, JSON text, or parsed JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unskew.features.definitions.vocabulary import Schema
from unskew.features.errors import DefinitionError

MAX_DEPTH = 100
MAX_PARTS = 100_000
MAX_BYTES = 10_000_000


def read_schema(schema: Schema, folder: Path | None = None) -> Mapping[str, Any]:
    """Return the parsed JSON; a path is relative to ``folder``, or to the working directory if that is None.

    Raises ``DefinitionError`` with half a sentence if there is no such file or no JSON object in it, or if it is nested
    too deeply.
    """
    if isinstance(schema, Mapping):
        _check_depth(schema, "the schema")
        return schema
    if isinstance(schema, str) and schema.lstrip().startswith("{"):
        text, origin = schema, "the schema's text"
    elif isinstance(schema, (str, Path)):
        path = (folder or Path()) / schema
        origin = f"the schema file {path}"
        try:
            if path.exists() and not path.is_file():
                raise DefinitionError(f"{origin} is not a file; give a path relative to the definition file")
            if path.stat().st_size > MAX_BYTES:
                raise DefinitionError(f"{origin} has more than {MAX_BYTES:,} bytes; a schema is shorter")
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DefinitionError(
                f"{origin} cannot be read: {error}; give a path relative to the definition file"
            ) from error
        # No file can have this name: it contains a null character, or half of a surrogate pair, which cannot even be
        # printed.
        except ValueError as error:
            raise DefinitionError(
                f"the schema {str(schema)!r} is not a path ({error}); give a path relative to the definition file, or a JSON object"
            ) from error
    else:
        raise DefinitionError(f"the schema {schema!r} is not a path, JSON text or a JSON object")
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise DefinitionError(f"{origin} is not JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep(origin) from error
    if not isinstance(parsed, dict):
        raise DefinitionError(f"{origin} is not a JSON object; an Avro record schema is one")
    _check_depth(parsed, origin)
    return parsed


def _check_depth(schema: object, origin: str) -> None:
    level: list[object] = [schema]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for part in level:
            if isinstance(part, Mapping):
                inner += part.values()
            elif isinstance(part, (list, tuple)):
                inner += part
        level = [part for part in inner if isinstance(part, (Mapping, list, tuple))]
        if not level:
            return
        if len(level) > MAX_PARTS:
            raise DefinitionError(f"{origin} has more than {MAX_PARTS} parts; leave out what no definition reads")
    raise _too_deep(origin)


def _too_deep(origin: str) -> DefinitionError:
    return DefinitionError(
        f"{origin} is nested more than {MAX_DEPTH} levels deep, and no column can be; give a schema with the columns only"
    )
