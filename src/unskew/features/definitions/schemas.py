"""Reading of a stream's schema from a path, JSON text, or parsed JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unskew.features.definitions.vocabulary import Schema
from unskew.features.errors import DefinitionError


def read_schema(schema: Schema, folder: Path | None = None) -> Mapping[str, Any]:
    """Return the parsed JSON; a path is relative to ``folder``, or to the working directory if that is None.

    Raises ``DefinitionError`` with half a sentence if there is no such file or no JSON object in it.
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
    if not isinstance(parsed, dict):
        raise DefinitionError(f"{origin} is not a JSON object; an Avro record schema is one")
    return parsed
