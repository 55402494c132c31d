"""Folders and files of this machine, and what is mistaken for one."""

import os
import re
from pathlib import Path

from unskew.features.errors import RequestError

# A scheme with one slash is what pathlib makes of an address. A drive, too, would become a folder of that name here.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):[/\\]")
_SHARE = "\\\\"


def local_path(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path; ``what``: the option or argument that gives it, for the error.

    Raises ``RequestError`` for an address such as ``s3://bucket/log``, which would silently become a folder ``s3:``,
    and for an empty path, which would become the current folder.
    """
    text = os.fspath(path)
    if not text:
        raise RequestError(f"{what}: the path is empty; give a file or folder, or . for the current folder")
    if (found := _ADDRESS.match(text)) or text.startswith(_SHARE):
        scheme = f"{found[1]}:" if found else text
        raise RequestError(
            f"{what} {text}: it is an address, and only paths of this machine's file system are supported (log, archive and dead "
            "letters may also be at s3://bucket/name, gs:// or az://); mount the store and give the folder (if the folder is "
            f"really called {scheme}, write ./{scheme})"
        )
    return Path(text)


def existing_folder(path: Path, option: str) -> Path:
    """Return the path of a folder that ``unskew run`` wrote; ``option`` gives it.

    Raises ``RequestError`` if it is not a folder.
    """
    if path.is_dir():
        return path
    what = "it is not a folder" if path.exists() else "there is no such folder"
    raise RequestError(f"{path}: {what}; give the folder of 'unskew run' with {option}")
