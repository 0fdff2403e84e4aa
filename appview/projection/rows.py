"""The tables of schema `bsky` that records fill: columns in the order of our tuples, and unique keys.

Absent here: generated columns (`sortAt`, `sortedAt`), `record` (the mirror's own table holds every record), and what
depends on other records: flags of `post`, counts, `notification`, `duplicate_record`.
"""

_SUBJECT_DID = ("uri", "cid", "creator", "subjectDid", "createdAt", "indexedAt")
_SUBJECT_URI = ("uri", "cid", "creator", "subjectUri", "createdAt", "indexedAt")
_INTERACTION = ("uri", "cid", "creator", "subject", "subjectCid", "via", "viaCid", "createdAt", "indexedAt")
_GATE = ("uri", "cid", "creator", "postUri", "createdAt", "indexedAt")
_IMAGE = ("postUri", "position", "imageCid", "alt")
_DESCRIBED = ("description", "descriptionFacets", "avatarCid", "createdAt", "indexedAt")

COLUMNS: dict[str, tuple[str, ...]] = {
    "post": (
        *("uri", "cid", "creator", "text", "replyRoot", "replyRootCid", "replyParent", "replyParentCid"),
        *("createdAt", "indexedAt", "langs", "tags"),
    ),
    "feed_item": ("uri", "cid", "type", "postUri", "originatorDid", "sortAt"),
    "quote": ("uri", "cid", "subject", "subjectCid", "createdAt", "indexedAt"),
    "op_thread_reply": ("rootUri", "parentUri", "uri"),
    "post_embed_image": _IMAGE,
    "post_embed_gallery_image": _IMAGE,
    "post_embed_external": ("postUri", "uri", "title", "description", "thumbCid"),
    "post_embed_record": ("postUri", "embedUri", "embedCid"),
    "post_embed_video": ("postUri", "videoCid", "alt"),
    "like": _INTERACTION,
    "repost": _INTERACTION,
    "follow": _SUBJECT_DID,
    "actor_block": _SUBJECT_DID,
    "profile": (
        *("uri", "cid", "creator", "displayName", "description", "avatarCid", "bannerCid"),
        *("joinedViaStarterPackUri", "createdAt", "indexedAt"),
    ),
    "list": ("uri", "cid", "creator", "name", "purpose", *_DESCRIBED),
    "list_item": ("uri", "cid", "creator", "subjectDid", "listUri", "createdAt", "indexedAt"),
    "list_block": _SUBJECT_URI,
    "reference_list_opt_out": _SUBJECT_URI,
    "starter_pack": ("uri", "cid", "creator", "name", "createdAt", "indexedAt"),
    "verification": ("uri", "cid", "rkey", "creator", "subject", "handle", "displayName", "createdAt", "indexedAt"),
    "feed_generator": ("uri", "cid", "creator", "feedDid", "displayName", *_DESCRIBED),
    "thread_gate": _GATE,
    "post_gate": _GATE,
    "labeler": ("uri", "cid", "creator", "createdAt", "indexedAt"),
}
"""Table → inserted columns (quoted camelCase in SQL). All values are str or None; `langs` and `tags` of `post` are jsonb, as
JSON text; `position` is text, as in the AppView."""

UNIQUE: dict[str, tuple[str, ...]] = {
    "like": ("subject", "creator"),
    "repost": ("creator", "subject"),
    "follow": ("creator", "subjectDid"),
    "actor_block": ("creator", "subjectDid"),
    "list_item": ("listUri", "subjectDid"),
    "list_block": ("creator", "subjectUri"),
    "reference_list_opt_out": ("creator", "subjectUri"),
    "verification": ("subject", "creator"),
    "thread_gate": ("postUri",),
    "post_gate": ("postUri",),
}
"""Table → its unique key besides `uri`. All rows of one key come from one repo (the oldest `indexedAt`, then `uri`, holds it): a
list item is only projected when its list is in its own repo, a gate only when its post has its repo and key."""

OWNER: dict[str, str] = {
    "op_thread_reply": "uri",
    "post_embed_image": "postUri",
    "post_embed_gallery_image": "postUri",
    "post_embed_external": "postUri",
    "post_embed_record": "postUri",
    "post_embed_video": "postUri",
}
"""Table → the column that holds the URI of the record that made the row; `uri` where the table is not listed."""
