"""Rows that depend on several repos: flags of replies and quotes, quotes, reposts in feeds, notifications of posts.

An index transaction cannot decide them: two that write a post and its reply at the same time do not see each other. It writes a
note for each record it touched (`sluice.appview_dirty`). After the commit, `reconcile` derives the rows again from the tables
as they are. One process reconciles at a time (advisory lock, `appview.reconcile_thread`). So the result depends on the records
alone, not on the order of arrival; docs/appview.md has the rules. A note whose rows the database refuses is quarantined
until it is noted again, or `sluice appview rebuild` runs.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import psycopg

from appview.changes import Changes
from appview.counts import QUOTES, REPLIES, Counts
from appview.record_pages import feed_items
from appview.sql import queries
from appview.writer import AppViewWriter
from connectors.postgres.connection import REFUSALS
from connectors.postgres.pg_array import array
from flows.index.projection import Key

SQL = queries("reconcile")
BATCH = 5000
KINDS = ("post", "repost", "gate", "judge")
NO_NOTES = {(kind, "at://did:example:nobody/none/none") for kind in KINDS}

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]
Note = tuple[str, str]  # kind, URI
Work = Callable[[Db, set[Note], bool], list[str]]


@dataclass(slots=True)
class _Touched:
    """URIs of the notes, by kind. `flagged`: posts whose flags were checked because of them."""

    posts: set[str]
    reposts: set[str]
    gates: set[str]
    judged: set[str]
    flagged: set[str] = field(default_factory=set)


def reconcile(db: Db, limit: int = BATCH) -> int:
    """Process up to `limit` notes of each kind of work; returns how many. Zero: nothing is due.

    Notes whose rows the database refuses are quarantined in `sluice.appview_refused`. Raises psycopg.Error for other errors.
    """
    db.execute(SQL["note_settled"])
    db.execute(SQL["horizon"])
    return sum(_next(db, limit, gone=gone, work=work) for gone, work in ((True, _removed), (False, _across)))


def _next(db: Db, limit: int, *, gone: bool, work: Work) -> int:
    try:
        with db.transaction():
            notes = set(db.execute(SQL["take"], {"limit": limit, "gone": gone}).fetchall())
            if notes:
                work(db, notes, False)
    except REFUSALS:
        with db.transaction(force_rollback=True):
            work(db, NO_NOTES, False)  # raises if no note is at fault: a missing table or permission
        return _by_halves(db, db.execute(SQL["waiting"], {"limit": limit, "gone": gone}).fetchall(), work)
    return len(notes)


def _by_halves(db: Db, notes: list[Note], work: Work) -> int:
    """Halve the notes, one transaction each, down to those that are refused alone; returns how many were processed."""
    pieces = [notes]
    while pieces:
        piece = pieces.pop()
        kinds, uris = (array(column) for column in zip(*piece, strict=True))
        try:
            with db.transaction():
                db.execute(SQL["take_these"], {"kinds": kinds, "uris": uris})
                if refused := work(db, set(piece), len(piece) == 1):
                    _quarantine(db, *piece[0], refused)
        except REFUSALS:
            if len(piece) == 1:
                raise
            half = len(piece) // 2
            pieces += [piece[half:], piece[:half]]
    return len(notes)


def _quarantine(db: Db, kind: str, uri: str, refused: list[str]) -> None:
    reason = "; ".join(refused)[:500]
    log.warning("rejected by the AppView's tables, quarantined", extra={"kind": kind, "uri": uri, "why": reason})
    db.execute(SQL["quarantine"], {"kind": kind, "uri": uri, "reason": reason})


def _across(db: Db, notes: set[Note], alone: bool) -> list[str]:
    """Derive the rows of other repos, in steps. `alone`: skip the steps that the database refuses, and return its errors."""
    touched = _Touched(*({uri for kind, uri in notes if kind == of} for of in KINDS))
    if not alone:
        counts = Counts()
        for step in STEPS:
            step(db, touched, counts)
        counts.write(db)
        return []
    refused = []
    for step in STEPS:
        counts = Counts()
        try:
            with db.transaction():
                step(db, touched, counts)
                counts.write(db)
        except REFUSALS as err:
            refused.append(str(err))
    return refused


def _removed(db: Db, notes: set[Note], alone: bool) -> list[str]:
    """Remove the rows of records that a prune deleted. `alone`: return the error instead of raising it, and flag a record
    that the database refuses when it becomes the owner of a unique key."""
    keys: set[Key] = {(did, of, rkey) for _, _, did, of, rkey in (uri.split("/", 4) for _, uri in notes)}
    dids, collections, rkeys = (array(column) for column in zip(*keys, strict=True))
    db.execute(SQL["lock_repos"], {"dids": dids})
    paths = {"dids": dids, "collections": collections, "rkeys": rkeys}
    changes = Changes()
    changes.delete([(*key, None) for key in keys - set(db.execute(SQL["existing"], paths).fetchall())], {})
    try:
        with db.transaction():
            AppViewWriter(db).write(changes, singly=alone)
    except REFUSALS as err:
        if not alone:
            raise
        return [str(err)]
    return []


def _uris(db: Db, statement: str, **lists: Collection[str]) -> set[str]:
    return {row[0] for row in db.execute(SQL[statement], {name: array(sorted(uris)) for name, uris in lists.items()})}


def _flags(db: Db, touched: _Touched, counts: Counts) -> None:
    """Judge posts, then their replies as long as something changes. `flagged`: posts checked for a gate, or changed."""
    posts = touched.posts
    checked = touched.judged | _uris(db, "concerned", posts=posts, gates=touched.gates)
    if posts:
        db.execute(SQL["forget_gated"], {"posts": array(sorted(posts))})
    frontier, changed = checked, set(checked - posts)
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
    touched.flagged = changed
    if ended := posts | touched.gates:
        db.execute(SQL["forget_gates"], {"posts": array(sorted(ended))})


def _quotes(db: Db, touched: _Touched, counts: Counts) -> None:
    if touched.posts:
        values = {"posts": array(sorted(touched.posts))}
        for (subject,) in db.execute(SQL["drop_quotes"], values).fetchall():
            counts.post(subject, QUOTES, -1)
        for (subject,) in db.execute(SQL["add_quotes"], values).fetchall():
            counts.post(subject, QUOTES, 1)


def _feed_items(db: Db, touched: _Touched, _: Counts) -> None:
    if not touched.posts and not touched.reposts:
        return
    both = {"posts": array(sorted(touched.posts)), "reposts": array(sorted(touched.reposts))}
    db.execute(SQL["drop_feed_items"], both)
    db.execute(SQL["add_feed_items"], both)
    keys = db.execute(SQL["duplicate_reposts"], both).fetchall()
    if items := feed_items(db, keys):
        uris, cids, types, posts, dids, times = (array(column) for column in zip(*items, strict=True))
        values = {"uris": uris, "cids": cids, "types": types, "posts": posts, "dids": dids, "times": times}
        db.execute(SQL["add_duplicate_items"], values)


def _notifications(db: Db, touched: _Touched, _: Counts) -> None:
    concerned = touched.posts | touched.flagged
    if touched.posts:
        concerned |= _uris(db, "descendants", posts=touched.posts)
    if concerned:
        values = {"posts": array(sorted(concerned))}
        db.execute(SQL["want_notifications"], values)
        db.execute(SQL["drop_notifications"], values)
        db.execute(SQL["add_notifications"], values)


STEPS = (_flags, _quotes, _feed_items, _notifications)
