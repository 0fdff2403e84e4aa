"""Frames that hurt a reader that is not careful: nesting, millions of items, one record named many times, keys too large."""

from __future__ import annotations

from typing import Any

import cbrrr

from tests.support.tiny_repo import DID, Key, Repo

NEST = b"\x81" * 996 + b"\0"


def framed(kind: str, body: dict[str, Any]) -> bytes:
    return bytes(cbrrr.encode_dag_cbor({"op": 1, "t": kind}) + cbrrr.encode_dag_cbor(body))


def nested_field(kind: str, body: dict[str, Any], field: str) -> bytes:
    """The same frame with a value that is nested 996 deep in place of the field's."""
    mark = "replace this text"
    return framed(kind, body | {field: mark}).replace(cbrrr.encode_dag_cbor(mark), NEST)


def nested_header(field: str) -> bytes:
    header = {"op": b"\1", "t": b"\x67#commit"} | {field: NEST}
    return b"\xa2\x61t" + header["t"] + b"\x62op" + header["op"] + b"\xa1\x63seq\x07"


def item_bomb(size: int, kind: str = "#labels", field: str = "labels", seq: int = 7) -> bytes:
    """A frame of about this size whose field is a list of empty lists."""
    bomb = b"\x9a" + size.to_bytes(4) + b"\x80" * size
    mark = "replace this text"
    body = cbrrr.encode_dag_cbor({"seq": seq, field: mark}).replace(cbrrr.encode_dag_cbor(mark), bomb)
    return bytes(cbrrr.encode_dag_cbor({"op": 1, "t": kind}) + body)


def many_names(times: int, text: str, key: Key, did: str = DID, seq: int = 7, **fields: Any) -> tuple[Repo, bytes]:
    """A commit that creates one record under many names, validly signed, and its frame."""
    record = {"$type": "app.bsky.feed.post", "text": text, "createdAt": "2026-01-01T00:00:00.000Z"}
    repo = Repo({f"app.bsky.feed.post/name{at:04}": record for at in range(times)}, key=key, did=did, **fields)
    body = {
        "seq": seq,
        "repo": repo.did,
        "commit": cbrrr.CID(repo.commit),
        "rev": repo.rev,
        "since": None,
        "blocks": repo.car(),
        "ops": [{"action": "create", "path": path, "cid": cbrrr.CID(cid)} for path, cid in repo.leaves.items()],
        "prevData": cbrrr.CID(Repo({}).data),
        "tooBig": False,
        "rebase": False,
        "blobs": [],
        "time": "2026-01-01T00:00:00.000Z",
    }
    return repo, framed("#commit", body)
