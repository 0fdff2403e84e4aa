"""Accounts of the official network as authors: each method is one commit; and what the comparison has to know of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.official.servers import OfficialNetwork, operation

POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
LIST = "app.bsky.graph.list"
ITEM = "app.bsky.graph.listitem"
PACK = "app.bsky.graph.starterpack"
GENERATOR = "app.bsky.feed.generator"
GATE = "app.bsky.feed.threadgate"
POST_GATE = "app.bsky.feed.postgate"
PROFILE = "app.bsky.actor.profile"

Ref = dict[str, str]  # {uri, cid}


def stamp(offset: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + offset).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rkey(ref: Ref) -> str:
    return ref["uri"].rsplit("/", 1)[1]


@dataclass
class Author:
    """One account; each method is one commit."""

    network: OfficialNetwork
    did: str
    handle: str
    image: Any = None
    posts: list[Ref] = field(default_factory=list)

    def create(self, path: str, /, **value: Any) -> Ref:
        made: Ref = self.network.write(self.did, "create", path, **{"createdAt": stamp(), **value})
        return made

    def update(self, ref: Ref, /, **value: Any) -> Ref:
        path = ref["uri"].removeprefix(f"at://{self.did}/")
        made: Ref = self.network.write(self.did, "update", path, **{"createdAt": stamp(), **value})
        return made

    def delete(self, ref: Ref) -> None:
        self.network.write(self.did, "delete", ref["uri"].removeprefix(f"at://{self.did}/"))

    def together(self, *writes: tuple[str, dict[str, Any]]) -> list[Ref]:
        made: list[Ref] = self.network.write_together(
            self.did, *(operation("create", path, createdAt=stamp(), **value) for path, value in writes)
        )
        return made

    def invalid(self, path: str, /, **value: Any) -> None:
        """What no lexicon allows."""
        self.network.order("write", did=self.did, writes=[{**operation("create", path, **value), "validate": False}])

    def invalid_edit(self, ref: Ref, /, **value: Any) -> None:
        """The same of a record that is there."""
        path = ref["uri"].removeprefix(f"at://{self.did}/")
        self.network.order("write", did=self.did, writes=[{**operation("update", path, **value), "validate": False}])

    def post(self, text: str, **value: Any) -> Ref:
        ref = self.create(POST, text=text, **value)
        self.posts.append(ref)
        return ref

    def reply(self, text: str, parent: Ref, root: Ref | None = None, **value: Any) -> Ref:
        return self.post(text, reply={"root": root or parent, "parent": parent}, **value)

    def quote(self, text: str, subject: Ref, **value: Any) -> Ref:
        return self.post(text, embed={"$type": "app.bsky.embed.record", "record": subject}, **value)

    def mention(self, text: str, *others: Author) -> Ref:
        facets = [
            {
                "index": {"byteStart": 0, "byteEnd": 1},
                "features": [{"$type": "app.bsky.richtext.facet#mention", "did": other.did}],
            }
            for other in others
        ]
        return self.post(text, facets=facets)


def authors_of(network: OfficialNetwork) -> list[Author]:
    """Every active account of the network, with an uploaded picture."""
    return [
        Author(network, did, account["handle"], network.order("image", did=did))
        for did, account in network.truth().items()
        if account["active"]
    ]


@dataclass(frozen=True)
class Doubled:
    """An edit that made a record want what another record of its author has."""

    uri: str
    cid: str
    json: str  # as it stands now
    owner: str  # URI of the other


@dataclass
class Written:
    """What the comparison of tables has to know of a run of `write_everything`.

    doubled  edits into duplicates
    early    replies and quotes that their gate did not refuse, and refuses where nobody knows what came first
    undone   those that a gate refused which is no more
    """

    doubled: list[Doubled] = field(default_factory=list)
    early: list[Ref] = field(default_factory=list)
    undone: list[Ref] = field(default_factory=list)
