"""Versions of thread gates and post gates (`sluice.appview_gate`): each change of a gate is a version that begins at the log's time.

A reply is judged by the version at its own time, so neither an edit nor a deletion of the gate changes earlier decisions. A gate
has existed for ever (`since` is 0) if the first fetch of its repo brought it, or if it is not younger than its post. An edit
that changes only hidden replies makes no new version. The number of versions is bounded: the two oldest are merged into
the stricter terms.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import psycopg

from appview.projection.gate_terms import Terms, stricter
from appview.sql import queries
from connectors.postgres.pg_array import array

SQL = queries("gate_versions")
MAX_VERSIONS = 64
LAPSED_SECONDS = 3600.0
MAX_LAPSED = 100_000
EVER = 0
OPEN = Terms(closed=False)

Db = psycopg.Connection[Any]
Version = tuple[int, bool, Terms]  # since, whether the record exists, its terms


def add(db: Db, uri: str, post_uri: str, terms: Terms, came: int | None) -> None:
    """Add the current version of a gate. `came`: as in `sluice.record`."""
    since = _since(db, uri, came)
    versions = _versions(db, uri)
    if since == EVER and versions:
        _forget(db, uri, versions)
        versions = []
    if versions:
        newest, exists, former = versions[-1]
        since = max(since, newest)  # versions follow the order of the log
        if exists and msgspec.structs.replace(terms, hidden=()) == former:
            since = newest
        db.execute(SQL["hide_none"], {"uri": uri})
    _put(db, uri, post_uri, (since, True, terms))
    _merge(db, uri, post_uri, [version for version in versions if version[0] != since])


def end(db: Db, uris: Iterable[str], ended: Mapping[str, int | None], *, existing: bool = False) -> None:
    """End these gates, if their records are gone or `existing` is set. `ended`: the log's time of it; else it is now."""
    for uri, post_uri in db.execute(SQL["posts"], {"uris": array(sorted(uris)), "existing": existing}).fetchall():
        versions = _versions(db, uri)
        if not versions or not versions[-1][1]:
            continue
        gone = ended.get(uri)
        since = max(versions[-1][0], now(db) if gone is None else gone)
        db.execute(SQL["hide_none"], {"uri": uri})
        _put(db, uri, post_uri, (since, False, OPEN))
        _merge(db, uri, post_uri, [version for version in versions if version[0] != since])


def end_lost(db: Db, dids: list[str]) -> None:
    """End the gates of these repos whose records are gone."""
    end(db, [row[0] for row in db.execute(SQL["lost"], {"dids": array(dids)}).fetchall()], {})


def now(db: Db) -> int:
    """The clock of the database, in the units of `steps.gate.batch.came_at`."""
    ((at,),) = db.execute(SQL["now"]).fetchall()
    return int(at)


def note_lapsed(db: Db, lapsed: Iterable[tuple[str, str, int, int]]) -> None:
    """Store follows and list items that ended, as (follower or list, followed or listed account, from, to)."""
    with db.cursor() as cursor, cursor.copy(SQL["copy_lapsed"]) as stream:
        for row in lapsed:
            stream.write_row(row)


def prune_lapsed(db: Db) -> None:
    """Remove those older than an hour, or too many. Later replies are judged without them, which is stricter."""
    db.execute(SQL["prune_lapsed"], {"seconds": LAPSED_SECONDS, "rows": MAX_LAPSED})


def _since(db: Db, uri: str, came: int | None) -> int:
    if came is None or came <= EVER:
        return EVER
    _, _, did, _, rkey = uri.split("/", 4)
    post = db.execute(SQL["post_came"], {"did": did, "rkey": rkey}).fetchone()
    return EVER if post is not None and post[0] is not None and abs(post[0]) >= came else came


def _versions(db: Db, uri: str) -> list[Version]:
    rows = db.execute(SQL["versions"], {"uri": uri}).fetchall()
    return [
        (came, exists, Terms(closed, mentioned, follower, following, tuple(lists)))
        for came, exists, closed, mentioned, follower, following, lists in rows
    ]


def _put(db: Db, uri: str, post_uri: str, version: Version) -> None:
    came, exists, terms = version
    values = {**msgspec.structs.asdict(terms), "lists": list(terms.lists), "hidden": list(terms.hidden)}
    db.execute(SQL["put"], {**values, "uri": uri, "post_uri": post_uri, "came": came, "standing": exists})


def _forget(db: Db, uri: str, versions: list[Version]) -> None:
    db.execute(SQL["forget"], {"uri": uri, "times": [version[0] for version in versions]})


def _merge(db: Db, uri: str, post_uri: str, former: list[Version]) -> None:
    """Merge the two oldest versions if there are too many. `former`: all but the newest."""
    if len(former) < MAX_VERSIONS:
        return
    one, other, *_ = former
    _forget(db, uri, [one, other])
    _put(db, uri, post_uri, (one[0], True, stricter(one[2], other[2])))
