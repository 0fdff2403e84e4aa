"""The tables that the index and the reconciliation write are those that the pure rules say (N10)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from appview.projection.rows import UNIQUE
from tests.appview.index.appview_world import (
    GATE,
    LIKE,
    POST,
    POST_GATE,
    REPOST,
    World,
    Write,
    at,
    cid_of,
    did,
    follow,
    gone,
    post,
    ref,
)
from tests.appview.projection.appview_model import expected

NAMES = ("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal")
RULES = ("mentionRule", "followerRule", "followingRule", "listRule", "newRule")
LIST, ITEM = "app.bsky.graph.list", "app.bsky.graph.listitem"


class Network:
    """Random records that refer to each other; a post answers only what was made before it, as its CID demands."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.made = 0
        self.posts: list[Write] = []
        self.writes: list[Write] = []
        for name in NAMES:
            self.add(name, LIST, {"name": name, "purpose": "app.bsky.graph.defs#curatelist"})
        self.lists = list(self.writes)
        for _ in range(30):
            self.post()
        for _ in range(90):
            self.something()

    def add(self, name: str, collection: str, record: dict[str, Any], rkey: str | None = None) -> Write:
        """A record written at some minute and dated at another."""
        self.made += 1
        minute = self.chance.randrange(5, 40)
        dated = at(max(0, minute + self.chance.randrange(-4, 3)))
        key = rkey or f"3k{self.made:011d}".translate(str.maketrans("0189", "abcd"))
        write = Write(name, collection, key, {"$type": collection, "createdAt": dated} | record, minute)
        self.writes.append(write)
        return write

    def post(self) -> None:
        chance = self.chance
        more: dict[str, Any] = {"text": "x"}
        if self.posts and chance.random() < 0.75:
            parent = chance.choice(self.posts[-2:] if chance.random() < 0.7 else self.posts)  # deep threads
            refs = (parent.record or {}).get("reply", {"root": ref(parent.uri, cid_of(parent.record))})
            root = refs["root"] if chance.random() < 0.85 else ref(chance.choice(self.posts).uri)
            above = ref(parent.uri, cid_of(parent.record)) if chance.random() < 0.9 else ref(post("ann", "gone", 1).uri)
            more["reply"] = {"root": root, "parent": above}
        if self.posts and chance.random() < 0.5:
            more["embed"] = {"$type": "app.bsky.embed.record", "record": ref(chance.choice(self.posts).uri)}
        if chance.random() < 0.4:
            mention = {"$type": "app.bsky.richtext.facet#mention", "did": did(chance.choice(NAMES))}
            more["facets"] = [{"index": {"byteStart": 0, "byteEnd": 1}, "features": [mention]}]
        self.posts.append(self.add(chance.choice(NAMES), POST, more))

    def something(self) -> None:
        chance, name, about = self.chance, self.chance.choice(NAMES), self.chance.choice(self.posts)
        if chance.random() < 0.4:  # where threads begin, gates matter
            about = chance.choice([post for post in self.posts if "reply" not in (post.record or {})])
        match chance.randrange(8):
            case 0:
                self.add(name, LIKE, {"subject": ref(about.uri)})
            case 1:
                self.add(name, REPOST, {"subject": ref(about.uri)})
            case 2 | 6:
                self.add(name, follow("ann", "", 0, "bob").collection, {"subject": did(chance.choice(NAMES))})
            case 3 | 7:
                of = self.lists[0]
                self.add(of.name, ITEM, {"list": of.uri, "subject": did(chance.choice(NAMES))})
            case 4 if not self.has(about, GATE):
                rules = chance.sample(RULES, chance.randrange(4))
                allow = [
                    {"$type": f"{GATE}#{rule}"} | ({"list": self.lists[0].uri} if rule == "listRule" else {})
                    for rule in rules
                ]
                hidden = [post.uri for post in chance.sample(self.posts, 3)]
                self.add(about.name, GATE, {"post": about.uri, "allow": allow, "hiddenReplies": hidden}, about.rkey)
            case 5 if not self.has(about, POST_GATE):
                rule = [{"$type": f"{POST_GATE}#disableRule"}] * (chance.random() < 0.7)
                self.add(about.name, POST_GATE, {"post": about.uri, "embeddingRules": rule}, about.rkey)

    def has(self, about: Write, collection: str) -> bool:
        return any(
            (made.name, made.collection, made.rkey) == (about.name, collection, about.rkey) for made in self.writes
        )


def seen(world: World) -> dict[str, Any]:
    """The tables in the form of `appview_model.expected`."""

    def counts(column: str, table: str, key: str) -> dict[str, int]:
        return dict(world.sql(f'select {key}, "{column}" from bsky.{table} where "{column}" <> 0'))

    flagged = world.sql('select uri, "invalidReplyRoot", "violatesThreadGate", "violatesEmbeddingRules" from bsky.post')
    return {
        "flags": {uri: (invalid, violates) for uri, invalid, violates, _ in flagged},
        "embeds": {uri for uri, *_, embeds in flagged if embeds},
        "quote": set(world.sql("select uri, subject from bsky.quote")),
        "feed_item": {uri for (uri,) in world.sql("select uri from bsky.feed_item")},
        "held": {table: {uri for (uri,) in world.sql(f'select uri from bsky."{table}"')} for table in UNIQUE},
        "duplicates": dict(world.sql('select uri, "duplicateOf" from bsky.duplicate_record')),
        "notifications": sorted(
            world.sql('select did, "recordUri", reason, "reasonSubject", "sortAt" from bsky.notification'), key=str
        ),
        "likes": counts("likeCount", "post_agg", "uri"),
        "replies": counts("replyCount", "post_agg", "uri"),
        "reposts": counts("repostCount", "post_agg", "uri"),
        "quotes": counts("quoteCount", "post_agg", "uri"),
        "followers": counts("followersCount", "profile_agg", "did"),
        "follows": counts("followsCount", "profile_agg", "did"),
        "posts": counts("postsCount", "profile_agg", "did"),
    }


# in 12, 43 and 60 follows and list items decide
@pytest.mark.parametrize("seed", [0, 1, 12, 43, 60])
def test_tables_are_what_the_rules_say(database: str, seed: int) -> None:
    network = Network(seed)
    world = World(database)
    writes = list(network.writes)
    for name in network.chance.sample(NAMES, len(NAMES)):
        world.index(*world.snapshot(name, [write for write in writes if write.name == name]))
    world.reconcile()
    assert seen(world) == expected(writes)
    past: list[tuple[Write, float]] = []
    for removed in network.chance.sample(writes, 25):
        world.index(world.commit(removed.name, gone(removed, 50)))
        writes.remove(removed)
        past.append((removed, 50))
    world.reconcile()
    assert seen(world) == expected(writes, past)
