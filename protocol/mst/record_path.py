"""The bytes of a tree's key → (collection, rkey) of its row. Never raises on wire input.

The mapping is one to one, also for keys with invalid syntax, so that the rows of a repo can always rebuild its tree. A part that
is not printable ASCII, or contains a backslash, becomes a backslash and its base64. A key without a slash gets the rkey `\\`. No
valid collection or rkey contains a backslash.
"""

from base64 import b64encode
from typing import Final

from protocol.syntax import split_path

NO_SLASH: Final = "\\"
_MARK: Final = "\\"


def row_path(path: str) -> tuple[str, str, bool]:
    """(collection, rkey, whether the path is valid). The characters of `path` are the bytes of the key (Latin-1)."""
    parts = split_path(path)
    if parts is not None:
        return *parts, True
    collection, slash, rkey = path.partition("/")
    return _written(collection), _written(rkey) if slash else NO_SLASH, False


def _written(part: str) -> str:
    if part.isascii() and part.isprintable() and _MARK not in part:
        return part
    return _MARK + b64encode(part.encode("latin-1")).decode()
