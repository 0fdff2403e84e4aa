"""Counters of the AppView: increments of one transaction, written sorted as its last statements.

No counter is ever recounted. All writers lock the rows in key order, first posts, then profiles, so two workers whose repos like
the same post may block but never deadlock. A hot row is locked only just before the commit.
"""

from collections import defaultdict
from typing import Any

import psycopg

from appview.sql import queries
from connectors.postgres.pg_array import array

SQL = queries("writer")
LIKES, REPLIES, REPOSTS, QUOTES = range(4)
FOLLOWERS, FOLLOWS, POSTS = range(3)


class Counts:
    """Increments per liked or answered record, and per profile."""

    def __init__(self) -> None:
        self._posts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self._profiles: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def post(self, uri: str, which: int, by: int) -> None:
        """Add `by` to the likes, replies, reposts or quotes of `uri`."""
        self._posts[uri][which] += by

    def profile(self, did: str, which: int, by: int) -> None:
        """Add `by` to the followers, follows or posts of an account."""
        self._profiles[did][which] += by

    def write(self, db: psycopg.Connection[Any]) -> None:
        """Add the increments to the tables."""
        if posts := sorted((uri, *by) for uri, by in self._posts.items() if any(by)):
            uris, likes, replies, reposts, quotes = (array(column) for column in zip(*posts, strict=True))
            values = {"uris": uris, "likes": likes, "replies": replies, "reposts": reposts, "quotes": quotes}
            db.execute(SQL["count_posts"], values)
            if fewer := sorted(uri for uri, by in self._posts.items() if min(by) < 0):
                db.execute(SQL["drop_empty"], {"uris": array(fewer)})
        if profiles := sorted((did, *by) for did, by in self._profiles.items() if any(by)):
            dids, followers, follows, of = (array(column) for column in zip(*profiles, strict=True))
            db.execute(SQL["count_profiles"], {"dids": dids, "followers": followers, "follows": follows, "posts": of})
