"""The inverse of `protocol.mst.record_path.row_path`: a row's (collection, rkey) → the bytes of its key in the tree."""

from base64 import b64decode

from protocol.mst.record_path import NO_SLASH

MARK = "\\"


def key_of(collection: str, rkey: str) -> bytes:
    """The key of a row. ValueError for a pair that `row_path` never gives."""
    if rkey == NO_SLASH:
        return _read(collection)
    return _read(collection) + b"/" + _read(rkey)


def _read(part: str) -> bytes:
    return b64decode(part[1:], validate=True) if part.startswith(MARK) else part.encode()
