"""The AppView's tables as the pure rules say them, record by record: what the set-based SQL must come to.

`expected(writes, removed)` takes the final records, all brought by a first fetch of their repos, and those
that were removed since, with the minute when that was. Quadratic and without any shortcut; for small networks.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from appview.projection.project import Projected, Source, project
from appview.projection.rows import COLUMNS, UNIQUE
from tests.appview.index.appview_world import GATE, POST_GATE, Write, at, cid_of, did
from tests.appview.projection.gates import Parent, Relations, holder, is_invalid_reply, may_quote, may_reply

REPLY_LEVELS = 4

Rows = dict[str, dict[str, Any]]


@dataclass
class Model:
    """Existing records, projected, with the unique keys that they own."""

    made: dict[str, tuple[Write, Projected]]
    tables: dict[str, Rows]  # table → uri → row
    duplicates: dict[str, str]
    past: list[tuple[Write, Projected, float]]  # removed, and when

    def post(self, uri: str | None) -> dict[str, Any] | None:
        return self.tables["post"].get(uri or "")

    def author(self, uri: str) -> str:
        return uri.split("/")[2]

    def gate(self, post: str, kind: str, minute: float | None = None) -> dict[str, Any] | None:
        """The gate of a post, now or at that minute."""
        uri = post.replace("/app.bsky.feed.post/", f"/{kind}/")
        if uri in self.made:
            return self.made[uri][0].record
        return next(
            (w.record for w, made, gone in self.past if made.uri == uri and minute is not None and minute < gone), None
        )

    def existed(self, table: str, minute: float, **values: Any) -> bool:
        """Whether such a row existed at that minute."""
        rows = list(self.tables[table].values())
        rows += [row for _, made, gone in self.past if minute < gone for row in rows_in(made, table)]
        return any(all(row[key] == value for key, value in values.items()) for row in rows)

    def mentioned(self, root: str, who: str, minute: float) -> bool:
        past = [made for _, made, gone in self.past if minute < gone]
        return any(who in made.mentions for made in [*(m for _, m in self.made.values()), *past] if made.uri == root)

    def flags(self, uri: str) -> tuple[bool, bool, bool]:
        """invalidReplyRoot, violatesThreadGate, violatesEmbeddingRules."""
        row = self.tables["post"][uri]
        minute, creator, root = self.made[uri][0].minute, row["creator"], row["replyRoot"]
        quoted = [quote["embedUri"] for quote in self.rows_of(uri, "post_embed_record")]
        embeds = any(not may_quote(self.gate(post, POST_GATE, minute), self.author(post), creator) for post in quoted)
        if root is None:
            return False, False, embeds
        parent = self.post(row["replyParent"])
        known = None if parent is None else Parent(parent["replyRoot"], self.flags(row["replyParent"])[0])
        owner = self.author(root)
        items = [
            *self.tables["list_item"].values(),
            *(row for _, made, _ in self.past for row in rows_in(made, "list_item")),
        ]
        relations = Relations(
            mentioned=self.mentioned(root, creator, minute),
            follows=self.existed("follow", minute, creator=creator, subjectDid=owner),
            followed=self.existed("follow", minute, creator=owner, subjectDid=creator),
            lists=frozenset(
                uri
                for uri in {row["listUri"] for row in items}
                if self.existed("list_item", minute, listUri=uri, subjectDid=creator)
            ),
        )
        violates = not may_reply(self.gate(root, GATE, minute), owner, creator, relations)
        return is_invalid_reply(root, row["replyParent"], known), violates, embeds

    def rows_of(self, uri: str, table: str) -> list[dict[str, Any]]:
        return rows_in(self.made[uri][1], table)

    def notifications(self) -> Iterator[tuple[Any, ...]]:
        for uri, (_, made) in self.made.items():
            if uri in self.duplicates:
                continue
            notified = {self.author(uri)} if uri in self.tables["post"] else set()
            for notice in [*made.notices, *self.replies(uri)]:
                if notice.did in notified or (notice.reason == "quote" and self.flags(uri)[2]):
                    continue
                if uri in self.tables["post"]:
                    notified.add(notice.did)
                yield notice.did, uri, notice.reason, notice.subject, notice.sort_at

    def replies(self, uri: str) -> list[Any]:
        """Authors above a reply, nearest first; none above one that the thread's owner has hidden."""
        from appview.projection.project import Notice

        row, found = self.post(uri), []
        if row is None or row["replyParent"] is None or self.flags(uri)[1]:
            return []
        hidden = (self.gate(row["replyRoot"], GATE) or {}).get("hiddenReplies", ())
        above: str | None = row["replyParent"]
        while above is not None and len(found) < REPLY_LEVELS and (at_it := self.post(above)) is not None:
            found.append(Notice(self.author(above), "reply", above, self.made[uri][1].sort_at))
            above = None if above in hidden else at_it["replyParent"]
        return found


def rows_in(made: Projected, table: str) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS[table], row, strict=True)) for row in made.rows.get(table, ())]


def expected(writes: list[Write], removed: Sequence[tuple[Write, float]] = ()) -> dict[str, Any]:
    """What `seen` of a database shows."""
    model = _model(writes)
    model.past += [(write, _projected(write), gone) for write, gone in removed]
    posts = model.tables["post"]
    flags = {uri: model.flags(uri) for uri in posts}
    quotes = [row for uri in posts for row in model.rows_of(uri, "quote") if row["subject"] in posts]
    items = [row for uri in model.made for row in model.rows_of(uri, "feed_item") if row["postUri"] in posts]
    answered = [row["replyParent"] for uri, row in posts.items() if row["replyParent"] and not flags[uri][1]]
    follows = model.tables["follow"].values()
    return {
        "flags": {uri: (of[0], of[1]) if any(of[:2]) else (None, None) for uri, of in flags.items()},
        "embeds": {uri for uri, of in flags.items() if of[2]},
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


def _projected(write: Write) -> Projected:
    source = Source(
        did(write.name), write.collection, write.rkey, cid_of(write.record), json.dumps(write.record), at(write.minute)
    )
    made = project(source)
    assert made is not None
    assert made.invalid is None, (made.invalid, write)
    return made


def _model(writes: list[Write]) -> Model:
    model = Model({}, defaultdict(dict), {}, [])
    claims: dict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
    for write in writes:
        made = _projected(write)
        model.made[made.uri] = write, made
        for table in made.rows:
            for row in model.rows_of(made.uri, table):
                if table in UNIQUE:
                    claims[table, *(row[column] for column in UNIQUE[table])].append((at(write.minute), made.uri))
                model.tables[table][made.uri] = row
    for (table, *_), rivals in claims.items():
        owner = holder(rivals)[1]
        for _, uri in rivals:
            if uri != owner:
                model.duplicates[uri] = owner
                del model.tables[table][uri]
    return model
