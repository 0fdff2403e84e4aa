"""The AppView's tables as the pure rules say them, record by record: what the set-based SQL must come to.

`expected(writes)` takes the records that stand in the end. Quadratic and without any shortcut; for small networks.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from appview_world import GATE, POST_GATE, Write, at, cid_of, did
from gates import Parent, Relations, holder, is_invalid_reply, may_quote, may_reply

from steps.appview.project import Projected, Source, project
from steps.appview.rows import COLUMNS, UNIQUE

REPLY_LEVELS = 4

Rows = dict[str, dict[str, Any]]


@dataclass
class Model:
    """Records that stand, projected, with the keys that they hold."""

    made: dict[str, tuple[Write, Projected]]
    tables: dict[str, Rows]  # table → uri → row
    duplicates: dict[str, str]

    def post(self, uri: str | None) -> dict[str, Any] | None:
        return self.tables["post"].get(uri or "")

    def author(self, uri: str) -> str:
        return uri.split("/")[2]

    def gate(self, post: str, kind: str, sort_at: str | None = None) -> dict[str, Any] | None:
        """The gate record of a post, if it is not younger."""
        found = self.made.get(post.replace("/app.bsky.feed.post/", f"/{kind}/"))
        if found is None or (sort_at is not None and found[1].sort_at > sort_at):
            return None
        return found[0].record

    def stands(self, table: str, sort_at: str, **values: Any) -> bool:
        return any(
            self.made[uri][1].sort_at <= sort_at and all(row[key] == value for key, value in values.items())
            for uri, row in self.tables[table].items()
        )

    def flags(self, uri: str) -> tuple[bool, bool, bool]:
        """invalidReplyRoot, violatesThreadGate, violatesEmbeddingRules."""
        row = self.tables["post"][uri]
        sort_at, creator, root = self.made[uri][1].sort_at, row["creator"], row["replyRoot"]
        quoted = [quote["embedUri"] for quote in self.rows_of(uri, "post_embed_record")]
        embeds = any(not may_quote(self.gate(post, POST_GATE, sort_at), self.author(post), creator) for post in quoted)
        if root is None:
            return False, False, embeds
        parent = self.post(row["replyParent"])
        known = None if parent is None else Parent(parent["replyRoot"], self.flags(row["replyParent"])[0])
        owner = self.author(root)
        lists = {row["listUri"] for row in self.tables["list_item"].values()}
        relations = Relations(
            mentioned=root in self.made and creator in self.made[root][1].mentions,
            follows=self.stands("follow", sort_at, creator=creator, subjectDid=owner),
            followed=self.stands("follow", sort_at, creator=owner, subjectDid=creator),
            lists=frozenset(uri for uri in lists if self.stands("list_item", sort_at, listUri=uri, subjectDid=creator)),
        )
        violates = not may_reply(self.gate(root, GATE, sort_at), owner, creator, relations)
        return is_invalid_reply(root, row["replyParent"], known), violates, embeds

    def rows_of(self, uri: str, table: str) -> list[dict[str, Any]]:
        return [dict(zip(COLUMNS[table], row, strict=True)) for row in self.made[uri][1].rows.get(table, ())]

    def notifications(self) -> Iterator[tuple[Any, ...]]:
        for uri, (_, made) in self.made.items():
            if uri in self.duplicates:
                continue
            told = {self.author(uri)} if uri in self.tables["post"] else set()
            for notice in [*made.notices, *self.replies(uri)]:
                if notice.did in told or (notice.reason == "quote" and self.flags(uri)[2]):
                    continue
                if uri in self.tables["post"]:
                    told.add(notice.did)
                yield notice.did, uri, notice.reason, notice.subject, notice.sort_at

    def replies(self, uri: str) -> list[Any]:
        """Authors above a reply, nearest first; nobody above one that the thread's owner has hidden."""
        from steps.appview.project import Notice

        row, found = self.post(uri), []
        if row is None or row["replyParent"] is None or self.flags(uri)[1]:
            return []
        hidden = (self.gate(row["replyRoot"], GATE) or {}).get("hiddenReplies", ())
        above: str | None = row["replyParent"]
        while above is not None and len(found) < REPLY_LEVELS and (at_it := self.post(above)) is not None:
            found.append(Notice(self.author(above), "reply", above, self.made[uri][1].sort_at))
            above = None if above in hidden else at_it["replyParent"]
        return found


def expected(writes: list[Write]) -> dict[str, Any]:
    """What `seen` of a database shows."""
    model = _model(writes)
    posts = model.tables["post"]
    flags = {uri: model.flags(uri) for uri in posts}
    quotes = [row for uri in posts for row in model.rows_of(uri, "quote") if row["subject"] in posts]
    items = [row for uri in model.made for row in model.rows_of(uri, "feed_item") if row["postUri"] in posts]
    answered = [row["replyParent"] for uri, row in posts.items() if row["replyParent"] and not flags[uri][1]]
    follows = model.tables["follow"].values()
    return {
        "flags": {uri: (told[0], told[1]) if any(told[:2]) else (None, None) for uri, told in flags.items()},
        "embeds": {uri for uri, told in flags.items() if told[2]},
        "quote": {(row["uri"], row["subject"]) for row in quotes},
        "feed_item": {row["uri"] for row in items},  # of duplicates too
        "held": {table: set(model.tables[table]) for table in UNIQUE},
        "duplicates": model.duplicates,
        "notifications": sorted(model.notifications(), key=str),
        "likes": Counter(row["subject"] for row in model.tables["like"].values()),
        "replies": Counter(answered),
        "reposts": Counter(row["subject"] for row in model.tables["repost"].values()),
        "quotes": Counter(row["subject"] for row in quotes),
        "followers": Counter(row["subjectDid"] for row in follows),
        "follows": Counter(row["creator"] for row in follows),
        "posts": Counter(row["creator"] for row in posts.values()),
    }


def _model(writes: list[Write]) -> Model:
    model = Model({}, defaultdict(dict), {})
    claims: dict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
    for write in writes:
        source = Source(
            did(write.name),
            write.collection,
            write.rkey,
            cid_of(write.record),
            json.dumps(write.record),
            at(write.minute),
        )
        made = project(source)
        assert made is not None
        assert made.invalid is None, (made.invalid, write)
        model.made[made.uri] = write, made
        for table in made.rows:
            for row in model.rows_of(made.uri, table):
                if table in UNIQUE:
                    claims[table, *(row[column] for column in UNIQUE[table])].append((source.indexed_at, made.uri))
                model.tables[table][made.uri] = row
    for (table, *_), rivals in claims.items():
        owner = holder(rivals)[1]
        for _, uri in rivals:
            if uri != owner:
                model.duplicates[uri] = owner
                del model.tables[table][uri]
    return model
