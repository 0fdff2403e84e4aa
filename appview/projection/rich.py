"""Parts shared by many records: blobs, facets, JSON kept as text."""

from typing import Any

import msgspec

from appview.projection.values import Record

MENTION = "app.bsky.richtext.facet#mention"

_encode = msgspec.json.Encoder().encode


def blob_cid(blob: Record | None) -> str | None:
    """The CID of a valid blob of either form."""
    if blob is None:
        return None
    cid: str = blob["ref"]["$link"] if "ref" in blob else blob["cid"]
    return cid


def json_text(value: Any) -> str | None:
    """JSON as text; None if absent or empty."""
    return _encode(value).decode() if value else None


def facets_text(facets: list[Record] | None) -> str | None:
    """JSON as text; None if absent. An empty list stays an empty list."""
    return None if facets is None else _encode(facets).decode()


def mentions(record: Record) -> tuple[str, ...]:
    """DIDs that the facets of a post mention, each once, in order."""
    found = [
        feature["did"]
        for facet in record.get("facets", ())
        for feature in facet["features"]
        if feature["$type"] == MENTION
    ]
    return tuple(dict.fromkeys(found))
