"""Where a stream's schema comes from: a path, JSON text, or parsed JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unskew.features.definitions.vocabulary import Schema
from unskew.features.errors import DefinitionError


def read_schema(schema: Schema, folder: Path | None = None) -> Mapping[str, Any]:
    """Give the parsed JSON; a relative path is taken from ``folder``, the working directory if None.

    Raises ``DefinitionError`` with half a sentence where there is no such file or no JSON object in it.
    """
    if isinstance(schema, Mapping):
        return schema
    if isinstance(schema, str) and schema.lstrip().startswith("{"):
        text, origin = schema, "the schema's text"
    elif isinstance(schema, (str, Path)):
        path = (folder or Path()) / schema
        origin = f"the schema file {path}"
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DefinitionError(
                f"{origin} cannot be read: {error}; give a path relative to the definition file"
            ) from error
        # A name that no file can have: a null character, or half of a surrogate pair, which could not be printed either.
        except ValueError as error:
            raise DefinitionError(
                f"the schema {str(schema)!r} is no path ({error}); give one relative to the definition file, or a JSON object"
            ) from error
    else:
        raise DefinitionError(f"the schema {schema!r} is no path, JSON text or JSON object")
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise DefinitionError(f"{origin} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DefinitionError(f"{origin} is no JSON object; an Avro record schema is one")
    return parsed
