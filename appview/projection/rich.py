"""Parts that many records share: blobs, facets, JSON kept as text."""

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
    """JSON as text; None for what is absent or empty."""
    return _encode(value).decode() if value else None


def facets_text(facets: list[Record] | None) -> str | None:
    """JSON as text; None only where there are no facets: an empty list stays one."""
    return None if facets is None else _encode(facets).decode()


def mentions(record: Record) -> tuple[str, ...]:
    """DIDs mentioned by a post's valid facets, each once, in their order."""
    found = [
        feature["did"]
        for facet in record.get("facets", ())
        for feature in facet["features"]
        if feature["$type"] == MENTION
    ]
    return tuple(dict.fromkeys(found))
