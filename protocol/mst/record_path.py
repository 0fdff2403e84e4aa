"""Paths of records as rows address them: the bytes of an MST key → (collection, rkey). Never raises on wire input.

Every key has exactly one pair, also one of bad syntax, so that the rows of a repo always rebuild its tree. A part that is
not plain printable ASCII, or holds a backslash, is written as a backslash and its base64; a key without a slash has the
rkey `\\` alone. No valid collection or rkey contains a backslash.
"""

from base64 import b64encode

from protocol.syntax import split_path

NO_SLASH = "\\"
_MARK = "\\"


def row_path(path: str) -> tuple[str, str, bool]:
    """(collection, rkey, whether the path is valid) of a key whose bytes are the characters of `path` (Latin-1)."""
    parts = split_path(path)
    if parts is not None:
        return *parts, True
    collection, slash, rkey = path.partition("/")
    return _written(collection), _written(rkey) if slash else NO_SLASH, False


def _written(part: str) -> str:
    if part.isascii() and part.isprintable() and _MARK not in part:
        return part
    return _MARK + b64encode(part.encode("latin-1")).decode()
