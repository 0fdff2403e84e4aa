"""Terms of thread and post gates over time (`sluice.appview_gate`): each change of a gate is a version from when the log took it on.

A reply is judged by the version of its own time, so that neither an edit nor a deletion of the gate undoes what was decided. A
gate counts as being there for ever (0) where nobody knows since when: the first fetch of its repo brought it, or it came no
later than its post. A version that only hides other replies is the former one. Versions have a bound: the oldest are merged to
what the stricter of them says.
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
Version = tuple[int, bool, Terms]  # since when, whether the record is there, what it says


def add(db: Db, uri: str, post_uri: str, terms: Terms, came: int | None) -> None:
    """A gate as its record says it now. `came`: as in `sluice.record`."""
    since = _since(db, uri, came)
    versions = _versions(db, uri)
    if since == EVER and versions:
        _forget(db, uri, versions)
        versions = []
    if versions:
        newest, standing, former = versions[-1]
        since = max(since, newest)  # the log's order is the gate's
        if standing and msgspec.structs.replace(terms, hidden=()) == former:
            since = newest
        db.execute(SQL["hide_none"], {"uri": uri})
    _put(db, uri, post_uri, (since, True, terms))
    _merge(db, uri, post_uri, [version for version in versions if version[0] != since])


def end(db: Db, uris: Iterable[str], ended: Mapping[str, int | None], *, whatever: bool = False) -> None:
    """Those of these gates that are no record any more, or `whatever` is. `ended`: when the log took that; else it is now."""
    for uri, post_uri in db.execute(SQL["posts"], {"uris": array(sorted(uris)), "whatever": whatever}).fetchall():
        versions = _versions(db, uri)
        if not versions or not versions[-1][1]:
            continue
        gone = ended.get(uri)
        since = max(versions[-1][0], now(db) if gone is None else gone)
        db.execute(SQL["hide_none"], {"uri": uri})
        _put(db, uri, post_uri, (since, False, OPEN))
        _merge(db, uri, post_uri, [version for version in versions if version[0] != since])


def end_lost(db: Db, dids: list[str]) -> None:
    """Gates of these repos that hold here and have no record any more."""
    end(db, [row[0] for row in db.execute(SQL["lost"], {"dids": array(dids)}).fetchall()], {})


def now(db: Db) -> int:
    """The database's clock, as `steps.gate.batch.came_at` has times."""
    ((at,),) = db.execute(SQL["now"]).fetchall()
    return int(at)


def note_lapsed(db: Db, lapsed: Iterable[tuple[str, str, int, int]]) -> None:
    """Follows and list items that have ended: (who followed or the list, who was followed or listed, from, to)."""
    with db.cursor() as cursor, cursor.copy(SQL["copy_lapsed"]) as stream:
        for row in lapsed:
            stream.write_row(row)


def prune_lapsed(db: Db) -> None:
    """Those of an hour ago, or too many, are forgotten: replies that come later than that are judged without them."""
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
        (came, standing, Terms(closed, mentioned, follower, following, tuple(lists)))
        for came, standing, closed, mentioned, follower, following, lists in rows
    ]


def _put(db: Db, uri: str, post_uri: str, version: Version) -> None:
    came, standing, terms = version
    values = {**msgspec.structs.asdict(terms), "lists": list(terms.lists), "hidden": list(terms.hidden)}
    db.execute(SQL["put"], {**values, "uri": uri, "post_uri": post_uri, "came": came, "standing": standing})


def _forget(db: Db, uri: str, versions: list[Version]) -> None:
    db.execute(SQL["forget"], {"uri": uri, "times": [version[0] for version in versions]})


def _merge(db: Db, uri: str, post_uri: str, former: list[Version]) -> None:
    """Keeps the bound; `former` are all but the newest."""
    if len(former) < MAX_VERSIONS:
        return
    one, other, *_ = former
    _forget(db, uri, [one, other])
    _put(db, uri, post_uri, (one[0], True, stricter(one[2], other[2])))
