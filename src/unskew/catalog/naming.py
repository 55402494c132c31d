"""The file of each page: a name that every file system and every link takes, whatever the thing is called."""

import hashlib
import re

_MOST = 150
_OTHERS = re.compile(r"[^A-Za-z0-9@._-]")


def page_of(kind: str, name: str) -> str:
    """Return the file name of a thing's page: equal for equal things only. It needs no escapes in a link."""
    # "=" is escaped too, so no two names become one.
    text = _OTHERS.sub(lambda found: f"={ord(found[0]):x}=", name)
    if len(text) > _MOST:
        text = f"{text[:_MOST]}={hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    return f"{kind}-{text}.html"
