"""What of the AppView depends on records of several repos: flags of replies and quotes, quotes, reposts in feeds, post notifications.

Index transactions cannot decide it: two of them that write a post and its reply at the same time do not see each other. They
note what they touched in `sluice.appview_dirty`; a fold, after their commit, looks at what stands in the tables now and brings
the derived rows to it. One process folds at a time (advisory lock, `appview.reconcile_thread`). So the result follows from
the records alone, whatever the order in which repos arrive; the rules are in docs/appview.md. What follows
from a note and is refused by the database costs nothing else: the note is put aside until it comes again or `sluice appview
rebuild` is run.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import psycopg

from appview.changes import Changes, Key
from appview.counts import QUOTES, REPLIES, Counts
from appview.record_pages import feed_items
from appview.sql import queries
from appview.writer import AppViewWriter
from connectors.postgres.connection import REFUSALS
from connectors.postgres.pg_array import array

SQL = queries("reconcile")
BATCH = 5000
KINDS = ("post", "repost", "gate", "judge")
NOBODYS = {(kind, "at://did:example:nobody/none/none") for kind in KINDS}

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]
Note = tuple[str, str]  # kind, URI
Work = Callable[[Db, set[Note], bool], list[str]]


@dataclass(slots=True)
class _Touched:
    """URIs of what was noted, by kind; `flagged`: posts whose flags were looked at because of it."""

    posts: set[str]
    reposts: set[str]
    gates: set[str]
    judged: set[str]
    flagged: set[str] = field(default_factory=set)


def fold(db: Db, limit: int = BATCH) -> int:
    """Bring what was touched up to date, in a transaction or two; the number of notes taken. Zero: nothing waits.

    Raises psycopg.Error; what the database refuses for the sake of single notes is put aside in `sluice.appview_refused`.
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
            work(db, NOBODYS, False)  # raises what no note is to blame for: a table or a right that is missing
        return _piecemeal(db, db.execute(SQL["waiting"], {"limit": limit, "gone": gone}).fetchall(), work)
    return len(notes)


def _piecemeal(db: Db, notes: list[Note], work: Work) -> int:
    """Halves of halves, each a transaction, down to the notes that are refused alone; the number of notes that are dealt with."""
    pieces = [notes]
    while pieces:
        piece = pieces.pop()
        kinds, uris = (array(column) for column in zip(*piece, strict=True))
        try:
            with db.transaction():
                db.execute(SQL["take_these"], {"kinds": kinds, "uris": uris})
                if refused := work(db, set(piece), len(piece) == 1):
                    _put_aside(db, *piece[0], refused)
        except REFUSALS:
            if len(piece) == 1:
                raise
            half = len(piece) // 2
            pieces += [piece[half:], piece[:half]]
    return len(notes)


def _put_aside(db: Db, kind: str, uri: str, refused: list[str]) -> None:
    reason = "; ".join(refused)[:500]
    log.warning("refused by the AppView's tables, put aside", extra={"kind": kind, "uri": uri, "why": reason})
    db.execute(SQL["put_aside"], {"kind": kind, "uri": uri, "reason": reason})


def _across(db: Db, notes: set[Note], alone: bool) -> list[str]:
    """What follows from these in other repos, in steps. `alone`: those that are refused are left out; what the database says."""
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
    """Rows of records that are gone without the index. `alone`: a record that takes a place which becomes free is flagged if
    the database refuses it; what it says if it refuses that one goes."""
    keys: set[Key] = {(did, of, rkey) for _, _, did, of, rkey in (uri.split("/", 4) for _, uri in notes)}
    dids, collections, rkeys = (array(column) for column in zip(*keys, strict=True))
    db.execute(SQL["lock_repos"], {"dids": dids})
    paths = {"dids": dids, "collections": collections, "rkeys": rkeys}
    changes = Changes()
    changes.gone([(*key, None) for key in keys - set(db.execute(SQL["standing"], paths).fetchall())], {})
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
    """Judge posts and whatever follows from them; `flagged` are all that were looked at for a gate or have changed."""
    posts = touched.posts
    looked = touched.judged | _uris(db, "concerned", posts=posts, gates=touched.gates)
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
