"""Repos written through the index's own transaction, without a broker: snapshots, commits, account events, in any order."""

from __future__ import annotations

import hashlib
import json
from base64 import b32encode
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import psycopg

from appview.plugin import AppView
from appview.reconcile import SQL as RECONCILE_SQL
from appview.reconcile import reconcile
from appview.state import begin
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from schemas import wire
from schemas.settings import Settings, load
from steps.gate.batch import OffsetEvent
from steps.gate.model import Rules
from tests.support.writable_records import make_writable

POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
GATE = "app.bsky.feed.threadgate"
POST_GATE = "app.bsky.feed.postgate"
ROOT = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def cid_of(value: object) -> str:
    """Something that has the form of a CID and follows from the content."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return "b" + b32encode(b"\x01\x71\x12\x20" + digest).decode().lower().rstrip("=")


def did(name: str) -> str:
    return f"did:plc:{name:a<24}"


def at(minute: float) -> str:
    """A time of the test's day."""
    whole = int(minute * 60_000)
    return (
        f"2026-01-01T{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}.{whole % 1000:03d}Z"
    )


def ms(time: str) -> int:
    """A time as the log has it."""
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def ref(uri: str, cid: str | None = None) -> dict[str, str]:
    return {"uri": uri, "cid": cid or cid_of(uri)}


@dataclass(frozen=True)
class Write:
    """One record, or its deletion (`record` None)."""

    name: str
    collection: str
    rkey: str
    record: dict[str, Any] | None
    minute: float

    @property
    def uri(self) -> str:
        return f"at://{did(self.name)}/{self.collection}/{self.rkey}"


@dataclass
class World:
    """A database and the revs of its repos."""

    database: str
    appview: bool = True
    settings: Settings = field(init=False)
    tables: IndexStore = field(init=False)
    revs: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.settings = load(database=self.database, appview=self.appview, kafka_bootstrap="none:1")
        self.tables = IndexStore(self.settings, "test", AppView(self.settings))
        begin(self.settings)
        make_writable(self.database)

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database, autocommit=True) as db:
            cursor = db.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def index(
        self,
        *events: wire.CommitEvent | wire.CreateEvent | wire.RepoOutcome | wire.AccountEvent,
        received: float | None = None,
    ) -> None:
        """One transaction of the index. `received`: the minute when the log took the events; else the one that each names."""
        queues: dict[str, list[OffsetEvent]] = defaultdict(list)
        for offset, event in enumerate(events):
            minute = ms(event.time if received is None else at(received))
            queues[event.did].append(OffsetEvent(offset, event, received=minute))
        with self.tables.transaction() as transaction:
            apply_events(transaction, queues, Rules())

    def reconcile(self) -> None:
        """Whatever is noted, until nothing is."""
        with psycopg.connect(self.database, autocommit=True) as db:
            db.execute(RECONCILE_SQL["make_stage"])
            while db.execute(RECONCILE_SQL["is_due"]).fetchone() == (True,):
                reconcile(db)

    def snapshot(self, name: str, writes: list[Write], attempt: int = 1) -> list[Any]:
        """Events of a whole repo."""
        self.revs[name] += 1
        rev = self.rev(name)
        events: list[Any] = [
            wire.CreateEvent(
                did=did(name), attempt=attempt, rev=rev, collection=write.collection, rkey=write.rkey,
                cid=cid_of(write.record), time=at(write.minute), commit=ROOT,
                record=msgspec.Raw(json.dumps(write.record).encode()),
            )
            for write in writes
        ]  # fmt: skip
        outcome = wire.RepoOutcome(
            did=did(name), attempt=attempt, status="synced", active=True, time=at(0), rev=rev, commit=ROOT, data=rev,
            count=len(writes), reason=None, account_time="",
        )  # fmt: skip
        return [*events, outcome]

    def commit(self, name: str, *writes: Write) -> wire.CommitEvent:
        """A live commit on top of what was made before."""
        before = self.rev(name)
        self.revs[name] += 1
        ops = [
            wire.Op(
                action="delete" if write.record is None else "create",
                collection=write.collection,
                rkey=write.rkey,
                cid=None if write.record is None else cid_of(write.record),
                record=None if write.record is None else msgspec.Raw(json.dumps(write.record).encode()),
                raw=None,
                reason=None,
                prev=None,
            )
            for write in writes
        ]
        rev = self.rev(name)
        return wire.CommitEvent(
            seq=self.revs[name], time=at(writes[0].minute), did=did(name), rev=rev, since=before, commit=ROOT,
            commit_block="", data=rev, prev_data=before, ops=ops, relay="https://relay.example",
        )  # fmt: skip

    def rev(self, name: str) -> str:
        return f"3l{self.revs[name]:011d}".translate(str.maketrans("0123456789", "234567abcd"))


def post(name: str, rkey: str, minute: float, **more: Any) -> Write:
    record = {"$type": POST, "text": f"{name} {rkey}", "createdAt": at(minute), **more}
    return Write(name, POST, rkey, record, minute)


def reply(name: str, rkey: str, minute: float, root: Write, parent: Write, **more: Any) -> Write:
    refs = {"root": ref(root.uri, cid_of(root.record)), "parent": ref(parent.uri, cid_of(parent.record))}
    return post(name, rkey, minute, reply=refs, **more)


def like(name: str, rkey: str, minute: float, subject: Write, kind: str = LIKE) -> Write:
    record = {"$type": kind, "subject": ref(subject.uri, cid_of(subject.record)), "createdAt": at(minute)}
    return Write(name, kind, rkey, record, minute)


def follow(name: str, rkey: str, minute: float, whom: str) -> Write:
    return Write(name, FOLLOW, rkey, {"$type": FOLLOW, "subject": did(whom), "createdAt": at(minute)}, minute)


def quote(name: str, rkey: str, minute: float, quoted: Write) -> Write:
    embed = {"$type": "app.bsky.embed.record", "record": ref(quoted.uri, cid_of(quoted.record))}
    return post(name, rkey, minute, embed=embed)


def thread_gate(of: Write, minute: float, *rules: dict[str, str], hidden: list[str] | None = None) -> Write:
    record: dict[str, Any] = {"$type": GATE, "post": of.uri, "allow": list(rules), "createdAt": at(minute)}
    if hidden:
        record["hiddenReplies"] = hidden
    return Write(of.name, GATE, of.rkey, record, minute)


def post_gate(of: Write, minute: float) -> Write:
    rules = [{"$type": f"{POST_GATE}#disableRule"}]
    record = {"$type": POST_GATE, "post": of.uri, "embeddingRules": rules, "createdAt": at(minute)}
    return Write(of.name, POST_GATE, of.rkey, record, minute)


def gone(write: Write, minute: float) -> Write:
    return Write(write.name, write.collection, write.rkey, None, minute)
