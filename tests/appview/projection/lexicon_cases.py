"""Records, valid and broken in every place: what our validator and the official ones are asked about.

`asked()` is deterministic: `recorded/verdicts.json` holds what the official validators said of each, in this order.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec

DID = "did:plc:" + "a" * 24
CID = "bafyreib7xb2qc2xq5k3mzfjc4uzdyxsw2bukmlvtt3b7ptp4hnxq7gz6ai"
RAW = "bafkreib7xb2qc2xq5k3mzfjc4uzdyxsw2bukmlvtt3b7ptp4hnxq7gz6ai"
NOW = "2024-01-02T03:04:05.678Z"
POST = f"at://{DID}/app.bsky.feed.post/3k2aaaaaaaaaa"
LIST = f"at://{DID}/app.bsky.graph.list/3k2aaaaaaaaaa"
BLOB = {"$type": "blob", "ref": {"$link": RAW}, "mimeType": "image/jpeg", "size": 1000}
VIDEO = BLOB | {"mimeType": "video/mp4"}
REF = {"uri": POST, "cid": CID}
SELF_LABELS = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "porn"}]}
FACET = "app.bsky.richtext.facet"
FACETS = [
    {"$type": FACET, "index": {"byteStart": 0, "byteEnd": 3}, "features": [{"$type": f"{FACET}#mention", "did": DID}]},
    {"index": {"byteStart": 4, "byteEnd": 9}, "features": [{"$type": f"{FACET}#link", "uri": "https://example.com"}]},
    {"index": {"byteStart": 4, "byteEnd": 9}, "features": [{"$type": f"{FACET}#tag", "tag": "tag"}]},
]
IMAGES = {
    "$type": "app.bsky.embed.images",
    "images": [{"image": BLOB, "alt": "", "aspectRatio": {"width": 3, "height": 2}}],
}
EMBEDS = [
    IMAGES,
    {
        "$type": "app.bsky.embed.gallery",
        "items": [{"$type": "app.bsky.embed.gallery#image", "image": BLOB, "alt": "a", "aspectRatio": {"width": 1, "height": 1}}],
    },
    {
        "$type": "app.bsky.embed.video",
        "video": VIDEO, "alt": "a", "captions": [{"lang": "en", "file": BLOB | {"mimeType": "text/vtt"}}],
        "aspectRatio": {"width": 3, "height": 2},
    },
    {
        "$type": "app.bsky.embed.external",
        "external": {"uri": "https://example.com", "title": "t", "description": "d", "thumb": BLOB},
    },
    {"$type": "app.bsky.embed.record", "record": REF},
    {"$type": "app.bsky.embed.recordWithMedia", "record": {"record": REF}, "media": IMAGES},
    {"$type": "com.example.embed", "anything": 5},
]  # fmt: skip
TIMED = {"createdAt": NOW}
WHOLE: list[dict[str, Any]] = [
    {"$type": "app.bsky.feed.like", "subject": REF, "via": REF} | TIMED,
    {"$type": "app.bsky.feed.repost", "subject": REF, "via": REF} | TIMED,
    {"$type": "app.bsky.graph.follow", "subject": DID, "via": REF} | TIMED,
    {"$type": "app.bsky.graph.block", "subject": DID} | TIMED,
    {
        "$type": "app.bsky.feed.post",
        "text": "hi", "entities": [{"index": {"start": 0, "end": 1}, "type": "mention", "value": DID}], "facets": FACETS,
        "reply": {"root": REF, "parent": REF}, "langs": ["en"], "labels": SELF_LABELS, "tags": ["tag"],
    } | TIMED,
    *({"$type": "app.bsky.feed.post", "text": "", "embed": embed} | TIMED for embed in EMBEDS),
    {
        "$type": "app.bsky.actor.profile",
        "displayName": "n", "description": "d", "pronouns": "they", "website": "https://example.com", "avatar": BLOB,
        "banner": BLOB, "labels": SELF_LABELS, "joinedViaStarterPack": REF, "pinnedPost": REF,
    } | TIMED,
    {
        "$type": "app.bsky.actor.status",
        "status": "app.bsky.actor.status#live", "embed": EMBEDS[3], "durationMinutes": 5,
    } | TIMED,
    {
        "$type": "app.bsky.graph.list",
        "name": "n", "purpose": "app.bsky.graph.defs#curatelist", "description": "d", "descriptionFacets": FACETS,
        "avatar": BLOB, "labels": SELF_LABELS,
    } | TIMED,
    {"$type": "app.bsky.graph.listitem", "subject": DID, "list": LIST} | TIMED,
    {"$type": "app.bsky.graph.listblock", "subject": LIST} | TIMED,
    {"$type": "app.bsky.graph.referencelistoptout", "subject": LIST} | TIMED,
    {
        "$type": "app.bsky.graph.starterpack",
        "name": "n", "description": "d", "descriptionFacets": FACETS, "list": LIST,
        "feeds": [{"uri": f"at://{DID}/app.bsky.feed.generator/a"}],
    } | TIMED,
    {
        "$type": "app.bsky.graph.verification",
        "subject": DID, "handle": "a.example.com", "displayName": "n",
    } | TIMED,
    {
        "$type": "app.bsky.feed.generator",
        "did": "did:web:feed.example.com", "displayName": "n", "description": "d", "descriptionFacets": FACETS,
        "avatar": BLOB, "acceptsInteractions": True, "labels": SELF_LABELS, "contentMode": "app.bsky.feed.defs#contentModeVideo",
    } | TIMED,
    {
        "$type": "app.bsky.feed.threadgate",
        "post": POST, "hiddenReplies": [POST],
        "allow": [
            {"$type": "app.bsky.feed.threadgate#mentionRule"}, {"$type": "app.bsky.feed.threadgate#followerRule"},
            {"$type": "app.bsky.feed.threadgate#followingRule"}, {"$type": "app.bsky.feed.threadgate#listRule", "list": LIST},
            {"$type": "com.example.rule"},
        ],
    } | TIMED,
    {
        "$type": "app.bsky.feed.postgate",
        "post": POST, "detachedEmbeddingUris": [POST], "embeddingRules": [{"$type": "app.bsky.feed.postgate#disableRule"}],
    } | TIMED,
    {
        "$type": "app.bsky.labeler.service",
        "policies": {
            "labelValues": ["spam"],
            "labelValueDefinitions": [
                {
                    "identifier": "spam", "severity": "inform", "blurs": "media", "defaultSetting": "warn", "adultOnly": False,
                    "locales": [{"lang": "en", "name": "n", "description": "d"}],
                }
            ],
        },
        "labels": SELF_LABELS, "reasonTypes": ["com.atproto.moderation.defs#reasonSpam"], "subjectTypes": ["account"],
        "subjectCollections": ["app.bsky.feed.post"],
    } | TIMED,
    {"$type": "app.bsky.notification.declaration", "allowSubscriptions": "followers"},
    {
        "$type": "com.germnetwork.declaration",
        "version": "1.0.0", "currentKey": {"$bytes": "AAAA"}, "keyPackage": {"$bytes": "AAAA"},
        "messageMe": {"messageMeUrl": "https://example.com", "showButtonTo": "everyone"}, "continuityProofs": [{"$bytes": "AA"}],
    },
]  # fmt: skip

FAMILY = "\U0001f468‍\U0001f469‍\U0001f467‍\U0001f466"
TEXTS = [
    *("", "x", "x\0y", " ", "é", "\U0001f600", "e\u0301" * 70, FAMILY * 20, FAMILY * 64, FAMILY * 65, "क्षि" * 65, "\r\n" * 65),
    *("ก็" * 64, "가" * 65, "\U0001f1e9\U0001f1ea" * 64, "\U0001f1e9\U0001f1ea" * 65, "\u200d" * 65, "\u0600a" * 64, "❤️" * 65),
    *("x" * count for count in (64, 65, 100, 101, 128, 129, 200, 256, 257, 300, 301, 500, 501, 640, 641, 1000, 1001, 2560)),
    *("é" * count for count in (32, 33, 63, 64, 300, 301, 320, 321)),
    *("x" * count for count in (2561, 3000, 3001, 10000, 10001)),
    # datetimes
    *(NOW[:-1], NOW[:19], "2024-01-02T03:04:05Z", "2024-01-02T03:04Z", "2024-01-02", "2024-01-02T03:04:05.678901Z"),
    *("2024-01-02T03:04:05.1234567891Z", "2024-01-02T03:04:05+01:45", "2024-01-02T03:04:05-00:00", "2024-01-02T03:04:05+0100"),
    *("2023-02-29T00:00:00Z", "2024-01-02T03:04:60Z", "2024-01-02T24:00:00Z", "0000-01-01T00:00:00+01:00", "2024-01-02t03:04:05z"),
    *("2024-01-02 03:04:05Z", NOW + "\n", "2024-13-02T03:04:05Z", "２０２４-01-02T03:04:05Z", "2024-01-02T03:04:05." + "1" * 60 + "Z"),
    # identifiers
    *(DID, "did:web:example.com", "did:web:example.com:", "did:plc:", "did:PLC:a", "did:a:b%", "did:a:b%20c", "did:a", "did::a"),
    *("did:a:" + "b" * 2042, "did:a:" + "b" * 2043, f"{DID}\n", f"{DID}#a", "example.com", "EXAMPLE.com", "example", "a.-b.com"),
    *("a.b-", "1.example.com", "example.1com", "a." * 126 + "a", "a." * 127 + "a", "x" * 63 + ".com", "x" * 64 + ".com", "a_b.com"),
    *("app.bsky.feed.post", "app.bsky", "app.bsky.feed-post", "app.bsky.1post", "a.b.c", "A.b.C", "1a.b.c", "a..b.c"),
    # AT-URIs
    *(POST, f"at://{DID}", f"at://{DID}/", f"at://{DID}/app.bsky.feed.post", f"at://{DID}/app.bsky.feed.post/", POST + "/"),
    *(POST + "/a", POST + "?a=b", POST + "?", POST + "#/a/b", POST + "#", POST + "#a", POST + "#/a b", POST + "#/%zz", POST + "//"),
    *("at://example.com/app.bsky.feed.post/a", "at://example/app.bsky.feed.post/a", "at://did:plc:/app.bsky.feed.post/a"),
    *(f"at://{DID}/app.bsky/a", f"at://{DID}//a", "at:///app.bsky.feed.post/a", f"AT://{DID}/app.bsky.feed.post/a", f" {POST}"),
    *(f"at://{DID}/app.bsky.feed.post/a%20b", f"at://{DID}/app.bsky.feed.post/.", f"at://{DID}/app.bsky.feed.post/a@b", f"{POST}\n"),
    *(f"at://{DID}/app.bsky.feed.post/é", f"at://{DID}/app.bsky.feed.post/a|b", f"at://{DID}/app.bsky.feed.post/" + "a" * 512),
    *(f"at://{DID}/app.bsky.feed.post/" + "a" * 513, f"at://{DID}/app.bsky.feed.post/" + "a" * 8200, "at://did:a:b%/a.b.c/d"),
    *(POST.replace("did:plc", "did:Plc"), POST.replace("3k2", "3~2"), POST.replace("3k2", "3\\2"), "at://did:a:b:/a.b.c/d"),
    *(f"at://{DID}/" + ".".join("x" * 63 for _ in range(4)) + ".y/a", f"at://{DID}/" + "x" * 64 + ".y.z/a", f"at://{DID}/a.b.c1-/d"),
    # CIDs
    *(CID, RAW, CID[:-1], CID + "a", CID[:-1] + "b", CID.upper(), "B" + CID[1:].upper(), "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR"),
    *("zdpuAyvkgEDQm9TenwGkd5eNaosSxjgEYd8QatfPetgB1CdEZ", "Qm", "b", "bafy", "k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r"),
    *("QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMn0", "bagaaierasords4njcts6vs7qvdjfcvgnume4hqohf65zsfguprqphs3icwea", "f01711220"),
    # URIs
    *("https://example.com", "https://", "http:", "mailto:a@b", "a b:c", "https://a b", "https:///a", "a:/", "a:b", "ä:b", "a-b:c", ":a"),
    *("at:x", "https://x\n", "//example.com", "https://" + "x" * 9000, "a1_:b", "x:// "),
    # languages
    *("en", "de-CH-1996", "zh-Hant-TW", "x-a", "i-klingon", "en-", "e", "en_US", "abcdefghi", "sl-rozaj-biske", "en-a-bbb-x-a", "en-x"),
    *("abcd", "abcde", "en-a", "en-aa-bb", "EN-GB-oed", "zh-cmn-Hans-CN", "de-419-DE", "a-DE", "ar-a-aaa-b-bbb-a-ccc", "en-abc-def-ghi-jkl"),
]  # fmt: skip
OTHERS: list[Any] = [
    *(None, True, False, 0, 1, -1, 5, 1.0, 1.5, 128, 2**31, 2**53, 2**53 + 2, 2**63, [], [5], [None], ["x"], {}, {"$type": "x"}),
    *({"$type": 5}, {"$type": None}, {"$type": ""}, {"$link": CID}, {"$bytes": "AAAA"}, {"uri": POST}, REF, BLOB, IMAGES, SELF_LABELS),
    *({"cid": RAW, "mimeType": "image/png"}, {"cid": RAW, "mimeType": ""}, {"cid": RAW, "mimeType": "image/png", "a": 1}),
    *(BLOB | {"size": -1}, BLOB | {"size": 1.5}, BLOB | {"size": 2**31}, BLOB | {"mimeType": "x"}, BLOB | {"mimeType": 5}, BLOB | {"more": 1}),
    *(BLOB | {"ref": RAW}, BLOB | {"ref": {"$link": CID}}, BLOB | {"ref": {}}, BLOB | {"mimeType": "text/plain"}),
    *({"$type": "app.bsky.embed.images#main", "images": []}, {"$type": "app.bsky.embed.images#view", "images": 5}),
    *({"$type": "app.bsky.embed.record#main", "record": REF}, {"$type": "app.bsky.embed.images", "images": 5}),
]  # fmt: skip
GONE = object()
SIZES = (0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 20, 21, 50, 51, 300, 301, 1001)


def cases(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Hundreds or thousands of records, most of them wrong in one place."""
    seen: set[tuple[str, ...]] = set()
    yield whole
    yield whole | {"$type": f"{whole['$type']}#main"}
    yield whole | {"$type": "app.bsky.feed.lik"}
    for path in places(whole):
        kind = tuple(key for key in path if isinstance(key, str))
        yield from broken(whole, path, TEXTS if kind not in seen else TEXTS[:2])
        seen.add(kind)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value within, in a fixed order. A link's text and a byte string's come from our own encoder."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key in {"$link", "$bytes"}:
            return
        yield (*path, key)
        yield from places(item, (*path, key))


def broken(whole: dict[str, Any], path: tuple[str | int, ...], texts: list[str]) -> Iterator[dict[str, Any]]:
    """The record with something else, more or nothing at that path."""
    old: Any = whole
    for key in path:
        old = old[key]
    others = texts if isinstance(old, str) and path[-1] != "$type" else TEXTS[:2]
    sizes = [(old * size)[:size] for size in SIZES] if isinstance(old, list) else []
    more = [old | {"unknown": 5}, old | {"$type": "x"}] if isinstance(old, dict) else []
    for value in [*others, *OTHERS, *sizes, *more]:
        yield replaced(whole, path, value)
    if isinstance(path[-1], str):
        yield replaced(whole, path, GONE)


def replaced(value: Any, path: tuple[str | int, ...], by: Any) -> Any:
    """A copy, shared but along the path."""
    if not path:
        return by
    key, *rest = path
    inner = replaced(value[key], tuple(rest), by)
    if isinstance(value, list):
        return [inner if at == key else item for at, item in enumerate(value)]
    return {name: inner if name == key else item for name, item in value.items() if name != key or inner is not GONE}


def asked() -> list[tuple[str, dict[str, Any]]]:
    """(collection, record) of every case; one with a wrong $type is asked about as what it was."""
    found: list[tuple[str, dict[str, Any]]] = []
    for whole in WHOLE:
        found += [(whole["$type"], case) for case in cases(whole)]
    return found


def line(collection: str, record: dict[str, Any]) -> bytes:
    """The same as JSON, the record as JSON text within."""
    return msgspec.json.encode([collection, msgspec.json.encode(record).decode()])


def digest(of: list[tuple[str, dict[str, Any]]]) -> str:
    """Tells whether recorded verdicts are about these cases."""
    found = hashlib.sha256()
    for case in of:
        found.update(line(*case))
    return found.hexdigest()
