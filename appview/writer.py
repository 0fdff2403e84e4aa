"""The AppView's tables, written in the index transaction (SLUICE_APPVIEW=true).

`AppViewWriter.write` turns the record changes of a transaction into rows, once, at its end. The tables depend only on the
records in `sluice.record`, not on the order of their arrival. Rows that depend on one repo are exact here; those that depend
on several are left to `appview.reconcile`, by notes in `sluice.appview_dirty`.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psycopg

from appview import gate_versions as gates
from appview import statements as tables
from appview.changes import Changes
from appview.counts import FOLLOWERS, FOLLOWS, LIKES, POSTS, REPLIES, REPOSTS, Counts
from appview.projection.gate_terms import post_terms, thread_terms
from appview.projection.rows import UNIQUE
from appview.projection.values import Projected, Source
from appview.record_pages import GATES, POST, RecordPage, key_of, paths_of, project_row, records_at
from appview.sql import queries
from appview.unique_conflicts import UniqueConflict
from connectors.postgres.connection import REFUSALS
from connectors.postgres.pg_array import array
from flows.index.projection import Key
from steps.gate.batch import Row as RecordRow

SQL = queries("writer")
REPOST = "app.bsky.feed.repost"
GATE_RECORDS = ("app.bsky.feed.threadgate", "app.bsky.feed.postgate")

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]


@dataclass(slots=True)
class AppViewWriter:
    """The rows of one transaction: `write` for the index; `remove_repos`, `add` and `finish` for a rebuild."""

    db: Db
    dirty: set[tuple[str, str]] = field(default_factory=set)
    flagged: set[str] = field(default_factory=set)  # posts whose gates may have changed
    followed: set[tuple[str, str]] = field(default_factory=set)  # follows that were added or removed
    listed: set[str] = field(default_factory=set)  # accounts that were added to lists or removed
    counts: Counts = field(default_factory=Counts)
    ended: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)  # URI → (came, gone)
    lapsed: set[tuple[str, str, int, int]] = field(default_factory=set)
    duplicates: set[str] | None = None  # of a rebuild: URIs that were duplicates before

    def write(self, changes: Changes, *, singly: bool = False) -> None:
        """Apply the changes. Raises psycopg.Error; with `singly`, a record that the database refuses is flagged instead."""
        former, records = changes.former(), changes.current()
        self.ended = changes.ended()
        if former:
            records += self._remove(former, changes)
        self._pass(changes)
        if singly:
            self.add_singly(records)
        else:
            self.add(records)
        if lost := [f"at://{did}/{of}/{rkey}" for did, of, rkey in former if of in GATE_RECORDS]:
            gates.end(self.db, lost, {uri: gone for uri, (_, gone) in self.ended.items()})
        if changes.invalid:
            self._flag_kept(changes.invalid)
        self.finish()

    def remove_repos(self, dids: list[str]) -> None:
        """Remove the rows of these repos, also of records that are gone. Decisions about gates stay."""
        known = self.db.execute(SQL["duplicates_of_repos"], {"dids": array(dids)}).fetchall()
        self.duplicates = (self.duplicates or set()) | {row[0] for row in known}
        for table in tables.REMOVE:
            gone = tables.remove_repos(self.db, table, dids)
            self._count_gone(table, gone)
            if table in ("post", "repost"):
                self.dirty |= {(table, str(row[0])) for row in gone}
        self.db.execute(SQL["forget_repos"], {"dids": array(dids)})

    def add(self, records: list[RecordRow]) -> int:
        """Insert the rows of records that have none; returns how many records are invalid."""
        page = RecordPage()
        for record in records:
            project_row(record, page)
        if records:
            self.db.execute(SQL["add_uris"], paths_of(record[:3] for record in records))
        duplicates = self._insert(page)
        self._insert_sides(page, duplicates)
        return len(page.invalid)

    def add_singly(self, records: list[RecordRow]) -> int:
        """Like `add`, one record per savepoint; a record that the database refuses is flagged with its error."""
        invalid = 0
        for record in records:
            one = AppViewWriter(self.db, duplicates=self.duplicates)
            try:
                with self.db.transaction():
                    invalid += one.add([record])
                    one.finish()
            except REFUSALS as err:
                invalid += 1
                log.warning("rejected by the AppView's tables", extra={"record": "/".join(record[:3]), "why": str(err)})
                self._mark_invalid([(*record[:3], f": is rejected by the database: {err}"[:500])])
        return invalid

    def finish(self) -> None:
        """Update flags, write notes, then counters: last, since their rows are hot."""
        if self.flagged:
            self.db.execute(SQL["flag_gates"], {"uris": array(sorted(self.flagged))})
        self._judge_again()
        if self.dirty:
            _copy(self.db, "copy_dirty", self.dirty)
        if self.lapsed:
            gates.note_lapsed(self.db, sorted(self.lapsed))
        self.counts.write(self.db)

    def _remove(self, former: list[Key], changes: Changes) -> list[RecordRow]:
        """Remove the rows of these paths; returns records that were duplicates of them, to project again."""
        by_collection: dict[str, list[str]] = {}
        for did, collection, rkey in former:
            by_collection.setdefault(collection, []).append(f"at://{did}/{collection}/{rkey}")
        for collection in sorted(by_collection):
            uris = sorted(by_collection[collection])
            for table in tables.OF_COLLECTION.get(collection, ()):
                self._count_gone(table, tables.delete(self.db, table, uris))
            if collection == POST:
                self.db.execute(SQL["drop_mentions"], {"uris": array(uris)})
                self.db.execute(SQL["forget_gated"], {"uris": array(uris)})
                self.dirty |= {("post", uri) for uri in uris}
            elif collection == REPOST:
                self.dirty |= {("repost", uri) for uri in uris}
        gone = [uri for uris in by_collection.values() for uri in uris]
        self.db.execute(SQL["drop_notifications"], {"uris": array(gone)})
        self.db.execute(SQL["drop_uris"], {"uris": array(gone)})  # those that still exist are added again
        self._unmark(former, changes)
        return self._next_owners(by_collection, changes)

    def _count_gone(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        if table == "like":
            for _, subject in rows:
                self.counts.post(subject, LIKES, -1)
        elif table == "repost":
            for _, subject in rows:
                self.counts.post(subject, REPOSTS, -1)
        elif table == "follow":
            for uri, creator, subject in rows:
                self._lapse(uri, creator, subject)
                self.counts.profile(creator, FOLLOWS, -1)
                self.counts.profile(subject, FOLLOWERS, -1)
                self.followed.add((creator, subject))
        elif table == "list_item":
            for uri, subject, of in rows:
                self._lapse(uri, of, subject)
                self.listed.add(subject)
        elif table == "post":
            self._count_posts_gone(rows)
        elif table in GATES and rows:
            self._gates_changed(post for _, post in rows)

    def _count_posts_gone(self, rows: list[tuple[Any, ...]]) -> None:
        for _, creator, parent, _, violates in rows:
            self.counts.profile(creator, POSTS, -1)
            if parent is not None and not violates:
                self.counts.post(parent, REPLIES, -1)
        if own := [(root, uri) for uri, _, _, root, _ in rows if root is not None]:
            roots, uris = zip(*own, strict=True)
            self.db.execute(SQL["drop_thread_replies"], {"roots": array(roots), "uris": array(uris)})

    def _lapse(self, uri: str, holder: str, member: str) -> None:
        """Store a removed follow or list item, to judge replies from its lifetime."""
        came, gone = self.ended.get(uri, (None, None))
        if came is not None and gone is not None:
            self.lapsed.add((holder, member, max(came, gates.EVER), gone))

    def _pass(self, changes: Changes) -> None:
        """Store follows, list items and gates that existed only within this transaction."""
        back: dict[Key, int | None] = {}
        for row, gone in changes.transient:
            page = RecordPage()
            project_row(row, page)
            for source, made in page.made:
                for table, (values, *_) in made.rows.items():
                    self.ended[made.uri] = row[10], gone
                    if table == "follow":
                        self._lapse(made.uri, source.did, str(values[3]))
                    elif table == "list_item":
                        self._lapse(made.uri, str(values[4]), str(values[3]))
                    elif table in GATES:
                        self._add_gate(source, made, table, str(values[3]), row[10])
                        gates.end(self.db, [made.uri], {made.uri: gone}, existing=True)
                        back[row[:3]] = gone
        for record in records_at(self.db, [key for key in back if not changes.changed(key)]):  # the version before
            page = RecordPage()
            project_row(record, page)
            for source, made in page.made:
                for table, (values, *_) in made.rows.items():
                    self._add_gate(source, made, table, str(values[3]), back[record[:3]])

    def _gates_changed(self, posts: Iterable[str]) -> None:
        for post in posts:
            self.flagged.add(post)
            self.dirty.add(("gate", post))

    def _unmark(self, former: list[Key], changes: Changes) -> None:
        for name, keys in (
            ("forget_marks", [key for key in former if not changes.exists(key)]),
            ("clear_invalid", [key for key in former if changes.exists(key) and key not in changes.invalid]),
        ):
            if keys:
                self.db.execute(SQL[name], paths_of(keys))

    def _next_owners(self, by_collection: dict[str, list[str]], changes: Changes) -> list[RecordRow]:
        """Records that were duplicates of removed ones."""
        uris = [
            uri
            for of, uris in by_collection.items()
            for uri in uris
            if tables.OF_COLLECTION.get(of, ("",))[0] in UNIQUE
        ]
        if not uris:
            return []
        next_owners = [row[0] for row in self.db.execute(SQL["duplicates_of_uris"], {"uris": array(uris)})]
        self.db.execute(SQL["forget_duplicates"], {"uris": array(uris + next_owners)})
        keys = [key_of(uri) for uri in sorted(next_owners)]
        return sorted(records_at(self.db, [key for key in keys if not changes.exists(key)]), key=lambda row: row[:3])

    def _insert(self, page: RecordPage) -> set[str]:
        """Insert rows; returns the URIs of records whose unique key another record owns."""
        duplicates: set[str] = set()
        for table, rows in page.rows.items():
            if table not in UNIQUE:
                tables.copy(self.db, table, rows)
                continue
            if tables.insert(self.db, table, rows) != len(rows):
                conflict = UniqueConflict(
                    self.db, table, rows, self.duplicates or set(), by_uri=self.duplicates is not None
                )
                conflict.resolve()
                duplicates |= conflict.duplicates
                self._count_gone(table, conflict.removed)
                for removed in conflict.evicted:
                    self.db.execute(SQL["drop_notifications"], {"uris": array([removed])})
                    if table == "repost":
                        self.dirty.add(("repost", removed))
        return duplicates

    def _insert_sides(self, page: RecordPage, duplicates: set[str]) -> None:
        """Insert notifications, mentions and marks, and count."""
        notifications: list[tuple[str | None, ...]] = []
        mentions: list[tuple[str, int, str]] = []
        for source, made in page.made:
            if made.uri in duplicates:
                if source.collection == REPOST:
                    self.dirty.add(("repost", made.uri))
                continue
            if source.collection == POST:
                mentions += [(made.uri, n, did) for n, did in enumerate(made.mentions)]
            else:
                notifications += [
                    (notice.did, made.uri, source.cid, source.did, notice.reason, notice.subject, notice.sort_at)
                    for notice in made.notices
                ]
            self._count(source, made, page.came.get(made.uri))
        if mentions:
            _copy(self.db, "copy_mentions", mentions)
        if notifications:
            _copy(self.db, "copy_notifications", notifications)
            if self.db.execute(SQL["has_muted"]).fetchone() == (True,):
                self.db.execute(SQL["drop_muted"], {"uris": array([str(row[1]) for row in notifications])})
        if page.invalid:
            self._mark_invalid(page.invalid)

    def _mark_invalid(self, records: list[tuple[str, str, str, str]]) -> None:
        dids, collections, rkeys, reasons = (array(column) for column in zip(*records, strict=True))
        self.db.execute(
            SQL["mark_invalid"], {"dids": dids, "collections": collections, "rkeys": rkeys, "reasons": reasons}
        )

    def _flag_kept(self, kept: Mapping[Key, tuple[str, int | None]]) -> None:
        """Flag invalid edits; the version that stays visible keeps its own `came`."""
        reasons, times = (array(column) for column in zip(*kept.values(), strict=True))
        self.db.execute(SQL["flag_kept"], {**paths_of(kept), "reasons": reasons, "times": times})

    def _count(self, source: Source, made: Projected, came: int | None) -> None:
        for table, rows in made.rows.items():
            if table == "like":
                self.counts.post(str(rows[0][3]), LIKES, 1)
            elif table == "repost":
                self.counts.post(str(rows[0][3]), REPOSTS, 1)
                self.dirty.add(("repost", made.uri))
            elif table == "follow":
                self.counts.profile(source.did, FOLLOWS, 1)
                self.counts.profile(str(rows[0][3]), FOLLOWERS, 1)
                self.followed.add((source.did, str(rows[0][3])))
            elif table == "list_item":
                self.listed.add(str(rows[0][3]))
            elif table == "post":
                self.counts.profile(source.did, POSTS, 1)
                if made.reply is not None:
                    self.counts.post(made.reply.parent, REPLIES, 1)
                self.dirty.add(("post", made.uri))
                self.flagged.add(made.uri)
            elif table in GATES:
                self._add_gate(source, made, table, str(rows[0][3]), came)

    def _judge_again(self) -> None:
        """Note replies whose gate depends on a changed follow or list item."""
        if not self.followed and not self.listed:
            return
        if self.db.execute(SQL["has_gated"]).fetchone() == (True,):
            pairs = self.followed | {(subject, creator) for creator, subject in self.followed}
            authors, owners = [author for author, _ in pairs], [owner for _, owner in pairs]
            values = {"authors": array(authors), "owners": array(owners), "listed": array(sorted(self.listed))}
            self.db.execute(SQL["judge_again"], values)

    def _add_gate(self, source: Source, made: Projected, table: str, post: str, came: int | None) -> None:
        record = msgspec.json.decode(source.json)
        terms = thread_terms(record) if table == "thread_gate" else post_terms(record)
        gates.add(self.db, made.uri, post, terms, came)
        self._gates_changed([post])


def _copy(db: Db, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with db.cursor() as cursor, cursor.copy(SQL[statement]) as stream:
        for row in rows:
            stream.write_row(row)
