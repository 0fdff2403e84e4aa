"""What of the AppView depends on records of several repos: flags of replies and quotes, quotes, reposts in feeds, post notifications.

Index transactions cannot decide it: two of them that write a post and its reply at the same time do not see each other. They
note what they touched in `sluice.appview_dirty`; a fold, after their commit, looks at what stands in the tables now and brings
the derived rows to it. One process folds at a time (advisory lock), in a thread of an index worker. So the result follows from
the records alone, whatever the order in which repos arrive; the rules are in docs/appview.md.
"""

import logging
import threading
import time
from collections.abc import Collection
from typing import Any

import psycopg
from psycopg import errors

from connectors import metrics
from connectors.appview import Projection, feed_items
from connectors.appview_changes import Changes
from connectors.appview_counts import QUOTES, REPLIES, Counts
from connectors.appview_state import read
from connectors.arrays import array
from schemas.settings import Settings
from schemas.sql import queries

SQL = {name: text.encode() for name, text in queries("appview_fold").items()}
BATCH = 5000
IDLE_SECONDS = 0.2
STANDBY_SECONDS = 1.0
UNDONE_SECONDS = 2.0
DRAIN_SECONDS = 10.0
LOOK_SECONDS = 10.0

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]


class FoldDied(Exception):
    """The fold's thread ended with an error, which is its cause."""


def fold(db: Db, limit: int = BATCH) -> int:
    """One transaction: bring what was touched up to date; the number of notes taken. Zero: nothing waits."""
    removed = _removed(db, limit)
    with db.transaction():
        posts, reposts, gates, judged = _take(db, limit)
        taken = len(posts) + len(reposts) + len(gates) + len(judged)
        if not taken:
            return removed
        counts = Counts()
        flagged = _flags(db, posts, gates, judged, counts)
        _quotes(db, posts, counts)
        both = {"posts": array(sorted(posts)), "reposts": array(sorted(reposts))}
        if posts or reposts:
            db.execute(SQL["drop_feed_items"], both)
            db.execute(SQL["add_feed_items"], both)
            _duplicate_items(db, both)
        _notifications(db, posts, flagged)
        counts.write(db)
    return taken + removed


def _removed(db: Db, limit: int) -> int:
    """Rows of records that are gone without the index; the number of notes taken."""
    with db.transaction():
        keys = set(db.execute(SQL["take_gone"], {"limit": limit}).fetchall())
        if not keys:
            return 0
        dids, collections, rkeys = (array(column) for column in zip(*keys, strict=True))
        db.execute(SQL["lock_repos"], {"dids": dids})
        paths = {"dids": dids, "collections": collections, "rkeys": rkeys}
        changes = Changes()
        changes.gone(keys - set(db.execute(SQL["standing"], paths).fetchall()))
        Projection(db).write(changes)
    return len(keys)


def _take(db: Db, limit: int) -> tuple[set[str], set[str], set[str], set[str]]:
    judged = {row[0] for row in db.execute(SQL["settled"])}
    db.execute(SQL["horizon"])
    kinds: dict[str, set[str]] = {"post": set(), "repost": set(), "gate": set(), "judge": judged}
    for kind, uri in db.execute(SQL["take"], {"limit": limit}):
        kinds[kind].add(uri)
    return kinds["post"], kinds["repost"], kinds["gate"], kinds["judge"]


def _uris(db: Db, statement: str, **lists: Collection[str]) -> set[str]:
    return {row[0] for row in db.execute(SQL[statement], {name: array(sorted(uris)) for name, uris in lists.items()})}


def _flags(db: Db, posts: set[str], gates: set[str], judged: set[str], counts: Counts) -> set[str]:
    """Judge these posts and whatever follows from them; all that were looked at for a gate or have changed."""
    looked = judged | _uris(db, "concerned", posts=posts, gates=gates)
    if posts:
        db.execute(SQL["forget_gated"], {"posts": array(sorted(posts))})
    frontier, changed = looked, set(looked - posts)
    while frontier:
        values = {"posts": array(sorted(frontier))}
        db.execute(SQL["note_gated"], values)
        broken: set[str] = set()
        for uri, parent, violated, violates, turned in db.execute(SQL["judge"], values).fetchall():
            changed.add(uri)
            if violated != violates:
                counts.post(parent, REPLIES, -1 if violates else 1)
            if turned:
                broken.add(uri)
        frontier = _uris(db, "children", posts=broken) if broken else set()
    return changed


def _quotes(db: Db, posts: set[str], counts: Counts) -> None:
    if posts:
        values = {"posts": array(sorted(posts))}
        for (subject,) in db.execute(SQL["drop_quotes"], values).fetchall():
            counts.post(subject, QUOTES, -1)
        for (subject,) in db.execute(SQL["add_quotes"], values).fetchall():
            counts.post(subject, QUOTES, 1)


def _duplicate_items(db: Db, concerned: dict[str, str]) -> None:
    keys = db.execute(SQL["duplicate_reposts"], concerned).fetchall()
    if items := feed_items(db, keys):
        uris, cids, types, posts, dids, times = (array(column) for column in zip(*items, strict=True))
        values = {"uris": uris, "cids": cids, "types": types, "posts": posts, "dids": dids, "times": times}
        db.execute(SQL["add_duplicate_items"], values)


def _notifications(db: Db, posts: set[str], flagged: set[str]) -> None:
    concerned = posts | flagged
    if posts:
        concerned |= _uris(db, "descendants", posts=posts)
    if concerned:
        values = {"posts": array(sorted(concerned))}
        db.execute(SQL["want_notifications"], values)
        db.execute(SQL["drop_notifications"], values)
        db.execute(SQL["add_notifications"], values)


class Folding:
    """A thread that folds whenever there is something to fold and nobody else does. `check()` raises what ended it (B8)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="appview fold", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def check(self) -> None:
        """Raise FoldDied if the thread ended with an error."""
        if self._error is not None:
            raise FoldDied from self._error

    def close(self) -> None:
        """Fold what is noted, for a while, and end the thread; the rest stays noted."""
        self._stop.set()
        self._thread.join(2 * DRAIN_SECONDS)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    with self._connect() as db:
                        self._work(db)
                except (
                    psycopg.OperationalError
                ) as err:  # the database is gone or has undone it: all of it is still noted
                    log.warning("fold undone", extra={"error": str(err).strip()})
                    self._stop.wait(UNDONE_SECONDS)
        except BaseException as err:  # handed to the flow's thread, which dies of it
            self._error = err

    def _connect(self) -> Db:
        db: Db = psycopg.connect(self._settings.database, autocommit=True, application_name="sluice appview fold")
        db.execute(SQL["make_stage"])
        return db

    def _work(self, db: Db) -> None:
        """Until the process stops and nothing waits, or not for too long after that."""
        ours, until, look_at = False, 0.0, 0.0
        while True:
            now = time.monotonic()
            if now >= look_at:
                metrics.APPVIEW_LACKING.set(not read(db).current)
                look_at = now + LOOK_SECONDS
            if self._stop.is_set():
                until = until or now + DRAIN_SECONDS
                if now > until:
                    return
            ours = ours or db.execute(SQL["lock"]).fetchone() == (True,)
            if db.execute(SQL["waits"]).fetchone() != (True,):
                if self._stop.is_set():
                    return
                self._stop.wait(IDLE_SECONDS if ours else STANDBY_SECONDS)
            elif not ours or not self._fold(db):
                time.sleep(IDLE_SECONDS)

    def _fold(self, db: Db) -> int:
        try:
            with metrics.FOLD_SECONDS.time():
                taken = fold(db)
        except errors.DeadlockDetected as err:  # with an index transaction that removes what we flag
            log.warning("fold undone", extra={"error": str(err).strip()})
            return 0
        metrics.FOLDED.inc(taken)
        return taken
