"""Records whose rows the official indexer was asked for: each collection, each embed, each rule, each oddity."""

from typing import Any

from tests.appview.projection.lexicon_cases import (
    BLOB,
    CID,
    DID,
    EMBEDS,
    FACETS,
    IMAGES,
    LIST,
    NOW,
    POST,
    RAW,
    REF,
    WHOLE,
)

INDEXED = "2024-01-02T03:04:06.000Z"
KEY = "3k2aaaaaaaaaa"
YOU = "did:plc:" + "b" * 24
YOURS = f"at://{YOU}/app.bsky.feed.post/{KEY}"
YOUR_REF = {"uri": YOURS, "cid": CID}
YOUR_REPOST = {"uri": f"at://{YOU}/app.bsky.feed.repost/{KEY}", "cid": CID}
OLD_BLOB = {"cid": RAW, "mimeType": "image/jpeg"}
MENTION = "app.bsky.richtext.facet#mention"
SELF = {
    "app.bsky.actor.profile",
    "app.bsky.labeler.service",
    "app.bsky.actor.status",
    "app.bsky.notification.declaration",
}

Case = tuple[str, str, dict[str, Any]]


def record(collection: str, rkey: str = KEY, **fields: Any) -> Case:
    """One case: collection, record key, record."""
    return collection, rkey, {"$type": collection, "createdAt": NOW} | fields


def post(**fields: Any) -> Case:
    return record("app.bsky.feed.post", "3k2bbbbbbbbbb", **({"text": "hi"} | fields))


def facets(*dids: str) -> list[dict[str, Any]]:
    return [
        {"index": {"byteStart": 0, "byteEnd": 1}, "features": [{"$type": MENTION, "did": did}]} for did in dids
    ]  # fmt: skip


def quoting(uri: str) -> dict[str, Any]:
    return {"$type": "app.bsky.embed.record", "record": {"uri": uri, "cid": CID}}


def with_media(record: dict[str, Any], media: dict[str, Any]) -> dict[str, Any]:
    return {"$type": "app.bsky.embed.recordWithMedia", "record": record, "media": media}


GALLERY: Any = EMBEDS[1]
CASES: list[Case] = [
    *((whole["$type"], "self" if whole["$type"] in SELF else KEY, whole) for whole in WHOLE),
    ("chat.bsky.actor.declaration", "self", {"$type": "app.bsky.feed.like", "what": "ever"}),
    # likes, reposts, follows
    *(record(f"app.bsky.feed.{kind}", subject=YOUR_REF) for kind in ("like", "repost")),
    *(record(f"app.bsky.feed.{kind}", subject=YOUR_REF, via=YOUR_REPOST) for kind in ("like", "repost")),
    *(record(f"app.bsky.feed.{kind}", subject=REF, via=YOUR_REPOST) for kind in ("like", "repost")),
    record("app.bsky.feed.like", subject={"uri": f"at://{YOU}", "cid": CID}),
    record("app.bsky.feed.like", subject={"uri": "at://you.example.com/app.bsky.feed.post/a", "cid": CID}),
    record("app.bsky.feed.like", subject={"uri": f"at://{YOU}/app.bsky.feed.generator/a", "cid": RAW}, createdAt="0000-01-01T00:00:00Z"),
    record("app.bsky.feed.repost", subject=YOUR_REF, createdAt="2099-01-01T00:00:00+02:00"),
    record("app.bsky.graph.follow", subject=DID, createdAt="2024-01-02T03:04:05"),
    record("app.bsky.graph.follow", subject="did:web:example.com", createdAt="2024-01-02T03:04:60Z"),
    # profiles, labelers
    record("app.bsky.actor.profile", "other", displayName="n"),
    record("app.bsky.actor.profile", "self", createdAt="2024-01-02T03:04:05+02:00", avatar=OLD_BLOB, displayName=""),
    record("app.bsky.labeler.service", "other", policies={"labelValues": []}),
    record("app.bsky.actor.profile", "self", displayName="a\0b"),
    # lists
    record("app.bsky.graph.list", name="n", purpose="app.bsky.graph.defs#modlist"),
    record("app.bsky.graph.list", name="n", purpose="p", descriptionFacets=[], description=""),
    record("app.bsky.graph.list", name="n", purpose="p", description="ü\n\"'\\"),
    record("app.bsky.graph.list", name="n\0", purpose="p"),
    record("app.bsky.graph.listitem", subject=YOU, list=f"at://{YOU}/app.bsky.graph.list/{KEY}"),
    record("app.bsky.graph.listitem", subject=YOU, list=f"at://{DID}/app.bsky.graph.list/{KEY}?a=b"),
    record("app.bsky.graph.listitem", subject=YOU, list="at://me.example.com/app.bsky.graph.list/a"),
    record("app.bsky.feed.generator", did=YOU, displayName="n", descriptionFacets=[]),
    record("app.bsky.graph.starterpack", name="n", list=LIST),
    record("app.bsky.graph.verification", subject=DID, handle="a.example.com", displayName="n"),
    # gates
    *(
        record(f"app.bsky.feed.{kind}", rkey, post=uri)
        for kind in ("threadgate", "postgate")
        for rkey, uri in [
            *(("other", POST), (KEY, YOURS), (KEY, f"at://{DID}/com.example.thing/{KEY}"), (KEY, f"{POST}/")),
            *((KEY, f"at://{DID}"), (KEY, f"at://{DID}/app.bsky.feed.post"), (KEY, f"{POST}#/a")),
        ]
    ),
    # posts: replies, mentions, quotes
    post(reply={"root": YOUR_REF, "parent": YOUR_REF}),
    post(reply={"root": REF, "parent": YOUR_REF}, langs=[], tags=[]),
    post(langs=["en", "de-CH"], tags=["a", "ü\"'"], facets=FACETS, createdAt="2024-01-02T03:04:07Z"),
    post(facets=facets(YOU, DID, "did:web:example.com", YOU)),
    post(facets=facets(YOU), embed=quoting(YOURS)),
    *(post(embed=quoting(uri)) for uri in (YOURS, POST, LIST, f"at://{YOU}", f"{YOURS}/", "at://you.example.com/app.bsky.feed.post/a")),
    post(embed=with_media({"record": YOUR_REF}, IMAGES)),
    post(embed=with_media(quoting(YOURS), EMBEDS[3])),
    post(embed=with_media({"$type": "com.example.other", "record": YOUR_REF}, {"$type": "com.example.media"})),
    post(embed=with_media(quoting(LIST), EMBEDS[2] | {"captions": []})),
    post(embed=with_media(quoting(YOURS), GALLERY)),
    # posts: media
    post(embed={"$type": "app.bsky.embed.images", "images": [{"image": BLOB, "alt": "a"}, {"image": OLD_BLOB, "alt": ""}]}),
    post(embed=IMAGES | {"$type": "app.bsky.embed.images#main"}),
    post(embed=IMAGES | {"images": []}),
    post(embed=GALLERY | {"items": [{"$type": "com.example.item"}, *GALLERY["items"]]}),
    post(embed=GALLERY | {"items": []}),
    post(embed={"$type": "app.bsky.embed.video", "video": BLOB}),
    post(embed={"$type": "app.bsky.embed.external", "external": {"uri": "https://example.com", "title": "", "description": ""}}),
    post(embed={"$type": "app.bsky.embed.external", "external": {"uri": "https://example.com", "title": "\0", "description": ""}}),
    # texts that PostgreSQL cannot hold, and some that it can
    post(text="a\0b"),
    post(tags=["a\0b"]),
    post(unknown="a\0b"),
    post(tags=["a\\u0000b"], text="\\u0000"),
    post(text="\U0001f468‍\U0001f469‍\U0001f467 ü\n\t\u2028"),
    record("app.bsky.feed.generator", did=YOU, displayName="n", descriptionFacets=[{"a": "\0"} | FACETS[0]]),
]  # fmt: skip
