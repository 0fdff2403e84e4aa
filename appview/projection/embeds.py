"""A post's valid embed → rows of the post_embed_ tables.

An embed of an unknown type makes no row, nor does an empty list of images (on which the official indexer fails and loses the
post).
"""

from collections.abc import Callable

from appview.projection.rich import blob_cid
from appview.projection.values import Record, Row

EMBED = "app.bsky.embed."
RECORD = f"{EMBED}record"
GALLERY_IMAGE = f"{EMBED}gallery#image"


def embed_rows(uri: str, embed: Record) -> dict[str, list[Row]]:
    """Table → rows, without empty tables. `uri`: of the post."""
    if embed["$type"] == f"{EMBED}recordWithMedia":
        inner = embed["record"]
        rows = _record(uri, inner) if inner.get("$type", RECORD) == RECORD else {}
        return rows | _rows(uri, embed["media"])
    return _rows(uri, embed)


def _rows(uri: str, embed: Record) -> dict[str, list[Row]]:
    make = _MAKERS.get(embed["$type"])
    return {} if make is None else make(uri, embed)


def _images(uri: str, embed: Record) -> dict[str, list[Row]]:
    rows: list[Row] = [(uri, str(at), blob_cid(item["image"]), item["alt"]) for at, item in enumerate(embed["images"])]
    return {"post_embed_image": rows} if rows else {}


def _gallery(uri: str, embed: Record) -> dict[str, list[Row]]:
    """Items may have unknown types; positions count them too."""
    rows: list[Row] = [
        (uri, str(at), blob_cid(item["image"]), item["alt"])
        for at, item in enumerate(embed["items"])
        if item["$type"] == GALLERY_IMAGE
    ]
    return {"post_embed_gallery_image": rows} if rows else {}


def _external(uri: str, embed: Record) -> dict[str, list[Row]]:
    link = embed["external"]
    row = (uri, link["uri"], link["title"], link["description"], blob_cid(link.get("thumb")))
    return {"post_embed_external": [row]}


def _video(uri: str, embed: Record) -> dict[str, list[Row]]:
    return {"post_embed_video": [(uri, blob_cid(embed["video"]), embed.get("alt"))]}


def _record(uri: str, embed: Record) -> dict[str, list[Row]]:
    record = embed["record"]
    return {"post_embed_record": [(uri, record["uri"], record["cid"])]}


_MAKERS: dict[str, Callable[[str, Record], dict[str, list[Row]]]] = {
    f"{EMBED}images": _images,
    f"{EMBED}gallery": _gallery,
    f"{EMBED}external": _external,
    f"{EMBED}video": _video,
    RECORD: _record,
}
