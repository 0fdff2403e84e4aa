"""Counts of the AppView as differences: collected over a transaction, written sorted as its last statement.

No count is ever taken anew. All writers take the rows in the order of their keys, first posts, then profiles, so that two
workers whose repos like the same post wait for each other but never deadlock; a hot row is locked only until the commit.
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
    """Differences per post (and whatever else is liked) and per profile."""

    def __init__(self) -> None:
        self._posts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self._profiles: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def post(self, uri: str, which: int, by: int) -> None:
        """`by` more likes, replies, reposts or quotes of what `uri` names."""
        self._posts[uri][which] += by

    def profile(self, did: str, which: int, by: int) -> None:
        """`by` more followers, follows or posts of an account."""
        self._profiles[did][which] += by

    def write(self, db: psycopg.Connection[Any]) -> None:
        """Add the differences to the tables."""
        if posts := sorted((uri, *by) for uri, by in self._posts.items() if any(by)):
            uris, likes, replies, reposts, quotes = (array(column) for column in zip(*posts, strict=True))
            values = {"uris": uris, "likes": likes, "replies": replies, "reposts": reposts, "quotes": quotes}
            db.execute(SQL["count_posts"], values)
            if fewer := sorted(uri for uri, by in self._posts.items() if min(by) < 0):
                db.execute(SQL["drop_empty"], {"uris": array(fewer)})
        if profiles := sorted((did, *by) for did, by in self._profiles.items() if any(by)):
            dids, followers, follows, of = (array(column) for column in zip(*profiles, strict=True))
            db.execute(SQL["count_profiles"], {"dids": dids, "followers": followers, "follows": follows, "posts": of})
