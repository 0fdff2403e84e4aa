"""Realistic and hostile records, drawn from a random generator. A record is (path, value to be encoded as DAG-CBOR).

`bulk` makes the records of a new repository, `fresh` one record for the live writer, `changed` an update. `hostile_records`
are valid DAG-CBOR that breaks careless decoders.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cbrrr import CID, encode_dag_cbor

from simulator.repo.car import cid_of, cid_text
from simulator.repo.tid import tid

Record = tuple[str, dict[str, Any]]

POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
PROFILE = "app.bsky.actor.profile"
GENERATOR = "app.bsky.feed.generator"
LIST = "app.bsky.graph.list"
LIST_ITEM = "app.bsky.graph.listitem"
RECIPE = "com.example.recipe"  # docs/own-lexicon.md
GAME = "net.playground.game.score"

_EPOCH = datetime.fromtimestamp(0, UTC)
_MIX = (
    [LIKE] * 44 + [POST] * 22 + [FOLLOW] * 18 + [REPOST] * 8 + [BLOCK] * 3 + [RECIPE] * 2 + [LIST_ITEM, GAME, LIST]
)  # out of 100
_VOCABULARY = (
    "the quick sluice opens when water rises over gate and stone while every boat waits for its turn "
    "to go up or down; 今日はいい天気 ☔️ café naïve Ünïcödé 🙂 posts about cats, trains, bread & maps <i>#atproto</i>"
)
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class Subjects:
    """Pools to draw from: DIDs of the network, references (AT-URI, CID) to posts that need not exist, and texts."""

    dids: tuple[str, ...]
    posts: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]


def make_subjects(dids: list[str], seed: int) -> Subjects:
    """The pools of a network. Drawing from pools makes generation fast."""
    rng = random.Random(f"{seed}/subjects")
    posts = []
    for number in range(256):
        uri = f"at://{dids[number % len(dids)]}/{POST}/{tid(1_700_000_000_000_000 + number * 7_919_000)}"
        posts.append((uri, cid_text(cid_of(encode_dag_cbor({"uri": uri})))))
    texts = tuple(" ".join(rng.choices(_WORDS, k=rng.randint(3, 40)))[:300] for _ in range(512))
    return Subjects(tuple(dids), tuple(posts), texts)


def bulk(rng: random.Random, count: int, newest_micros: int, subjects: Subjects) -> Iterator[Record]:
    """A profile and `count - 1` records with increasing TIDs, all before `newest_micros`."""
    if count <= 0:
        return
    yield f"{PROFILE}/self", _profile(rng, subjects, newest_micros)
    draw = rng.random
    step = 1_000_000 + int(draw() * 600_000_000)
    micros = newest_micros - step * count
    # formatting a date is slow: do it once per minute of record time
    minute, prefix = -1, ""
    for _ in range(count - 1):
        micros += 1 + int(draw() * step)
        if micros // 60_000_000 != minute:
            minute = micros // 60_000_000
            prefix = timestamp(minute * 60_000_000)[:17]
        created = f"{prefix}{micros // 1000 % 60000 / 1000:06.3f}Z"
        collection = _MIX[int(draw() * 100)]
        yield f"{collection}/{tid(micros)}", _value(collection, draw, subjects, created)


def fresh(rng: random.Random, micros: int, subjects: Subjects) -> Record:
    """One new record for the live writer; its rkey is the TID of `micros`."""
    pick = rng.random()
    if pick < 0.01:
        return f"{GENERATOR}/feed{tid(micros)}", _generator(rng, subjects, micros)
    collection = _MIX[int(rng.random() * 100)]
    return f"{collection}/{tid(micros)}", _value(collection, rng.random, subjects, timestamp(micros))


def changed(rng: random.Random, path: str, micros: int, subjects: Subjects) -> dict[str, Any]:
    """A new value for an existing path."""
    collection = path.partition("/")[0]
    if collection == PROFILE:
        return _profile(rng, subjects, micros)
    value = _value(collection, rng.random, subjects, timestamp(micros))
    return {**value, "revision": micros}


def timestamp(micros: int) -> str:
    """ISO 8601 in milliseconds with Z."""
    moment = _EPOCH + timedelta(microseconds=micros)  # isoformat is several times as fast as strftime
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _value(collection: str, draw: Any, subjects: Subjects, created: str) -> dict[str, Any]:
    if collection in (LIKE, REPOST):
        uri, cid = subjects.posts[int(draw() * len(subjects.posts))]
        return {"$type": collection, "subject": {"uri": uri, "cid": cid}, "createdAt": created}
    if collection in (FOLLOW, BLOCK):
        return {"$type": collection, "subject": subjects.dids[int(draw() * len(subjects.dids))], "createdAt": created}
    text = subjects.texts[int(draw() * len(subjects.texts))]
    if collection == POST:
        return _post(text, draw, subjects, created)
    if collection == LIST:
        return {
            "$type": LIST,
            "name": text[:60],
            "purpose": "app.bsky.graph.defs#curatelist",
            "createdAt": created,
        }
    if collection == LIST_ITEM:
        uri, _ = subjects.posts[int(draw() * len(subjects.posts))]
        did = subjects.dids[int(draw() * len(subjects.dids))]
        return {"$type": LIST_ITEM, "subject": did, "list": uri.replace(POST, LIST), "createdAt": created}
    if collection == GAME:
        return {"$type": GAME, "score": int(draw() * 1_000_000), "level": int(draw() * 50), "playedAt": created}
    words = text.split()
    return {"$type": RECIPE, "title": text[:40], "minutes": len(words), "ingredients": words[:4], "createdAt": created}


def _post(text: str, draw: Any, subjects: Subjects, created: str) -> dict[str, Any]:
    post: dict[str, Any] = {"$type": POST, "text": text, "langs": ["en"], "createdAt": created}
    kind = draw()
    if kind < 0.35:
        root = subjects.posts[int(draw() * len(subjects.posts))]
        reference = {"uri": root[0], "cid": root[1]}
        post["reply"] = {"root": reference, "parent": reference}
    elif kind < 0.5:
        post["embed"] = {
            "$type": "app.bsky.embed.external",
            "external": {
                "uri": "https://example.com/" + text[:12].replace(" ", "-"),
                "title": text[:50],
                "description": text,
            },
        }
    elif kind < 0.65:
        post["embed"] = {"$type": "app.bsky.embed.images", "images": [{"alt": text[:80], "image": _blob(draw)}]}
    elif kind < 0.75:
        post["facets"] = [
            {
                "index": {"byteStart": 0, "byteEnd": 3},
                "features": [{"$type": "app.bsky.richtext.facet#tag", "tag": "atproto"}],
            }
        ]
    return post


def _blob(draw: Any) -> dict[str, Any]:
    # a blob is a raw block: multicodec 0x55
    link = CID(b"\x01\x55\x12\x20" + int(draw() * 2**52).to_bytes(8, "big") * 4)
    return {"$type": "blob", "ref": link, "mimeType": "image/jpeg", "size": int(draw() * 900_000)}


def _profile(rng: random.Random, subjects: Subjects, micros: int) -> dict[str, Any]:
    return {
        "$type": PROFILE,
        "displayName": rng.choice(subjects.texts)[:60],
        "description": rng.choice(subjects.texts),
        "avatar": _blob(rng.random),
        "createdAt": timestamp(micros),
    }


def _generator(rng: random.Random, subjects: Subjects, micros: int) -> dict[str, Any]:
    return {
        "$type": GENERATOR,
        "did": "did:web:feeds.example.com",
        "displayName": rng.choice(subjects.texts)[:24],
        "description": rng.choice(subjects.texts),
        "createdAt": timestamp(micros),
    }


def hostile_records() -> list[Record]:
    """Valid DAG-CBOR that careless decoders, JSON encoders and databases cannot handle. Always the same list."""
    link = CID(cid_of(b"\xa0"))
    deep: Any = {"end": 1}
    for _ in range(100):
        deep = {"a": [deep]}
    when = "2024-05-05T05:05:05.005Z"
    return [
        (f"{POST}/nul", {"$type": POST, "text": "before\x00after", "nul\x00key": "\x00", "createdAt": when}),
        (
            f"{POST}/escapes",
            {"$type": POST, "text": '\\u0000 \\\\ \\N \t\r\n " \x7f \x1b \ufffe \U0010ffff', "createdAt": when},
        ),
        (f"{POST}/huge", {"$type": POST, "text": "grüße " * 12_800, "createdAt": when}),  # over 90 kB of UTF-8
        (f"{POST}/baddate", {"$type": POST, "text": "when?", "createdAt": "the day after tomorrow"}),
        (f"{POST}/nodate", {"$type": POST, "text": "never"}),
        (f"{POST}/datenumber", {"$type": POST, "text": "number", "createdAt": 1_700_000_000}),
        (f"{POST}/farfuture", {"$type": POST, "text": "later", "createdAt": "9999-12-31T23:59:59.999999999+14:00"}),
        (f"{POST}/yearzero", {"$type": POST, "text": "earlier", "createdAt": "0000-01-01T00:00:00.000Z"}),
        (f"{POST}/wrongtypes", {"$type": POST, "text": ["not", "text"], "langs": "en", "reply": 7, "createdAt": when}),
        (f"{LIKE}/wrongsubject", {"$type": LIKE, "subject": "at://nobody", "createdAt": when}),
        ("com.example.hostile/ints", {"max": 2**63 - 1, "min": -(2**63), "unsafe": 2**53 + 1, "zero": 0}),
        ("com.example.hostile/unsigned", {"max": 2**64 - 1}),
        ("com.example.hostile/floats", {"half": 1.5, "tiny": 5e-324, "big": 1.7976931348623157e308, "one": 1.0}),
        ("com.example.hostile/bytes", {"bytes": bytes(range(256)), "none": b"", "list": [1, 2, 3]}),
        ("com.example.hostile/links", {"link": link, "links": [link, {"deep": link}]}),
        (
            "com.example.hostile/linklike",
            {"a": {"$link": "not a cid"}, "b": {"$link": cid_text(bytes(link))}, "c": {"$link": 1}},
        ),
        (
            "com.example.hostile/byteslike",
            {"a": {"$bytes": "AAEC"}, "b": {"$bytes": "%"}, "c": {"$bytes": None, "x": 1}},
        ),
        ("com.example.hostile/deep", {"deep": deep}),
        ("com.example.hostile/empty", {}),
        ("com.example.hostile/keys", {"": 1, "z": 2, "aa": 3, "__proto__": {}, "constructor": 4, "ключ": 5}),
        ("com.example.hostile/typeless", {"$type": 12, "value": None, "flag": True, "no": False}),
        ("com.example.hostile/mismatch", {"$type": POST, "text": "a post in the wrong collection"}),
        ("com.example.hostile/~._-:", {"$type": "com.example.hostile", "rkey": "odd but legal"}),
        (f"com.example.{'very' * 14}.long/{'k' * 400}", {"$type": "long path"}),
        (
            "unknown.lexicon.thing/self",
            {"$type": "unknown.lexicon.thing", "sql": "'; drop table record; --", "copy": "\\.\n"},
        ),
    ]
