"""`sluice audit` on a real database: what was signed is proven, and whatever is changed by one byte is found."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import cbrrr
import psycopg
import pytest

from connectors.atproto.repo_lookup import AuditNetwork, LookupResult
from ops.audit import audit
from ops.audit_report import AuditOptions, AuditReport, AuditScope
from schemas.settings import Settings, load
from steps.repo_audit import StoredHead
from tests.ops.settled_repos import settle_repos
from tests.ops.tampering import TAMPERED
from tests.support import zygote
from tests.support.flow_process import wait_until
from tests.support.postgres import fresh_database
from tests.support.tiny_repo import Key, Repo, cid_of, sample
from tests.support.writable_records import make_writable

PATHS = [
    "app.bsky.feed.post/3kaaaaaaaaaa2", "app.bsky.feed.post/..", "app.bsky.feed/self", "app.bsky.feed.post-x/1",
    "app.bsky.feed.post.sub/1", "nonsense", "x/y/z", "app.bsky.feed.post/ü", "back\\slash/1", "a.b.c/\x00", "/", "b.c.d/",
]  # fmt: skip
VALUES: list[dict[str, Any]] = [
    {"text": "hello"},
    {"ratio": 1.5},
    {"$link": "user's own"},
    {"bytes": b"\0\xff", "link": cbrrr.CID(b"\x01\x71\x12\x20" + bytes(32))},
    {"nul": "a\0b", "big": 2**63 - 1},
]


def did(number: int) -> str:
    return f"did:plc:{number:a>24}"


def odd(number: int, key: Key | None = None) -> Repo:
    records = {path: VALUES[at % len(VALUES)] | {"n": number} for at, path in enumerate(PATHS)}
    plain = {f"app.bsky.feed.like/3k{at:b>11}": VALUES[at % len(VALUES)] for at in range(20)}
    return Repo({**records, **plain}, did=did(number), key=key or Key())


@pytest.fixture
def settings(database: str) -> Settings:
    return settings_over(database)


def settings_over(database: str) -> Settings:
    make_writable(database)
    return load(database=database, kafka_bootstrap="unused:1", plc="http://127.0.0.1:9", allow_private_hosts=True)


def sql(settings: Settings, statement: str, *values: object) -> list[tuple]:
    with psycopg.connect(settings.database, autocommit=True) as db:
        cursor = db.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def run(settings: Settings, *dids: str, told: Callable[[str], None] = print, **options: Any) -> AuditReport:
    return audit(settings, AuditScope(dids or None), AuditOptions(**options), told)


def test_what_was_signed_is_proven(settings: Settings) -> None:
    """G3, N5: every kind of path and body, an empty repo, both curves; by one process and by two."""
    repos = [odd(1), odd(2, Key("p256")), Repo({}, did=did(3)), sample(300, did=did(4))]
    settle_repos(settings, repos)
    for workers in (1, 2):
        report = run(settings, workers=workers, chunk=1)
        assert (report.findings, report.good, report.tally.repos) == ([], True, 4)
    assert report.tally.records == sum(len(repo.records) for repo in repos)
    assert report.tally.without_body == 2 * 9  # PATHS of bad syntax
    assert report.tally.bodies == report.tally.records - report.tally.without_body


def test_odd_leaves_are_proven_and_never_repaired(settings: Settings) -> None:
    """G3: raw blocks and odd CBOR are hashed again, what cannot be checked has a reason."""
    unordered = b"\xa2\x61b\x01\x61a\x02"
    large = cbrrr.encode_dag_cbor({"text": "x" * (3 << 20)})
    raw = b"\x01\x55\x12\x20" + sha256(b"bytes").digest()
    extra = {
        "a.b.c/raw": (raw, b"bytes"),
        "a.b.c/map": (b"\x01\x55\x12\x20" + sha256(unordered).digest(), unordered),
        "a.b.c/order": (cid_of(unordered), unordered),
        "a.b.c/large": (cid_of(large), large),
        "a.b.c/sha512": (b"\x01\x71\x13\x40" + bytes(64), b"no hash of ours"),
        "a.b.c/identity": (b"\x01\x55\x00\x05hello", None),
        "a.b.c/v0": (b"\x12\x20" + bytes(32), None),
    }
    settle_repos(settings, [Repo({"a.b.c/plain": {"a": 1}}, did=did(1), extra=extra)])
    rows = sql(settings, "select rkey, reason, json::text, raw is not null from sluice.record order by 1")
    assert rows == [
        ("identity", "foreign_cid", None, False),
        ("large", "too_large", None, False),
        ("map", "raw_block", None, True),
        ("order", "not_canonical", '{"b":1,"a":2}', True),
        ("plain", None, '{"a":1}', False),
        ("raw", "raw_block", None, True),
        ("sha512", "foreign_cid", None, False),
        ("v0", "foreign_cid", None, False),
    ]
    report = run(settings, repair=True)
    assert (report.findings, report.good, report.tally.proven, report.tally.repaired) == ([], True, 1, 0)
    assert (report.tally.records, report.tally.bodies, report.tally.without_body) == (8, 4, 4)
    sql(settings, "update sluice.record set json = null where rkey = 'order'")
    assert run(settings).good, "as a row of 0.1 is"
    for change, kind in (
        ("raw = 'other' where rkey = 'raw'", "record"),
        ("json = '{}' where rkey = 'raw'", "json"),
        ("json = '{\"a\":2}' where rkey = 'order'", "json"),
        ("cid = 'bafyrgqaaaa' where rkey = 'sha512'", "bad_cid"),
    ):
        with psycopg.connect(settings.database) as db:
            db.execute(f"create table kept as select * from sluice.record; update sluice.record set {change}")
            db.commit()
            assert kind in run(settings).tally.kinds
            db.execute("delete from sluice.record; insert into sluice.record select * from kept; drop table kept")


@pytest.fixture(scope="module")
def settled(postgres: str, migrated_template: str) -> Iterator[Settings]:
    """A database with three repos, and copies of their rows, from which each test restores what it changed."""
    with fresh_database(postgres, migrated_template) as url:
        settings = settings_over(url)
        settle_repos(settings, [odd(1), odd(2), odd(3)])
        for table in ("record", "repo"):
            sql(settings, f"create table kept_{table} as select * from sluice.{table}")
        yield settings


RESTORED = (
    "delete from sluice.record",
    "insert into sluice.record select * from kept_record",
    "update sluice.repo as r set data = k.data, rev = k.rev, commit_block = k.commit_block from kept_repo as k where k.did = r.did",
)


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_changed_is_found(settled: Settings, name: str) -> None:
    """G3, N5: and only there."""
    statement, kinds = TAMPERED[name]
    sql(settled, statement, did(2))
    report = run(settled)
    for restore in RESTORED:
        sql(settled, restore)
    assert {finding.kind.value for finding in report.findings} == kinds
    assert {finding.did for finding in report.findings} == {did(2)}
    assert (report.good, report.tally.repos, report.tally.proven) == (False, 3, 2)
    assert run(settled).good, "the restored rows are the first ones"


def test_a_repo_that_cannot_be_read_does_not_hide_the_others(settings: Settings) -> None:
    """G7"""
    settle_repos(settings, [odd(1), odd(2), odd(3)])
    sql(settings, "update sluice.record set rkey = '\\%%' where did = %s and rkey = 'self'", did(2))
    sql(settings, "delete from sluice.record where did = %s and rkey = 'self'", did(3))
    assert sorted((one.did, one.kind.value) for one in run(settings).findings) == [
        (did(2), "bad_rows"),
        (did(3), "root"),
    ]


def test_a_key_that_did_not_sign_is_asked_for_again(settings: Settings) -> None:
    """N5: nobody answers for the directory here, which proves nothing and accuses nobody."""
    settle_repos(settings, [sample(3, did=did(1))])
    sql(settings, "update sluice.repo set signing_key = %s", Key().did_key)
    report = run(settings)
    assert (report.findings, report.tally.unanswered) == ([], 1)


def test_a_stopped_audit_resumes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """N5: resumable; what the first part found is in the report of the second."""
    settle_repos(settings, [sample(3, did=did(number)) for number in range(1, 9)])
    sql(settings, "delete from sluice.record where did = %s", did(2))
    monkeypatch.setattr("ops.audit.PROGRESS_SECONDS", 0.0)
    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, chunk=1, told=stop)
    report = run(settings, chunk=1, told=told.append)
    assert report.resumed
    assert len(told) == 8
    assert (report.tally.repos, report.tally.proven) == (8, 7)
    assert [finding.did for finding in report.findings] == [did(2)]
    again = run(settings, chunk=1)
    assert (again.resumed, again.tally.repos) == (False, 8)


def test_repair_fetches_again_what_differs(settings: Settings) -> None:
    """N5: the repo is pending; rows of attempts that never were are gone, others stay until the snapshot is there."""
    settle_repos(settings, [sample(5, did=did(1)), sample(5, did=did(2))])
    sql(settings, "delete from sluice.record where did = %s and rkey like '%%4'", did(2))
    sql(settings, "update sluice.record set attempt = 9 where did = %s and rkey like '%%3'", did(2))
    report = run(settings, repair=True)
    assert report.tally.repaired == 1
    rows = sql(settings, "select did, phase, reason, attempt, queued_at is null from sluice.repo order by did")
    assert rows == [(did(1), "sync", "synced", 1, True), (did(2), "pending", "audit", 1, True)]
    assert sql(settings, "select count(*) from sluice.record where did = %s", did(2)) == [(3,)]
    settle_repos(settings, [sample(5, did=did(2), rev="3lkkkkkkkkkk2")], 2)
    assert run(settings).good


MEANWHILE = {
    1: "update sluice.repo set rev = '3lzzzzzzzzzz2' where did = %s",
    2: "update sluice.repo set phase = 'backfill', attempt = 2, lease_until = now() + interval '1 hour', worker = 'w',"
    " started_at = now(), completed_at = null where did = %s",
    3: "update sluice.repo set phase = 'pending', reason = 'desync', completed_at = null where did = %s",
    4: "update sluice.repo set phase = 'unavailable', reason = 'takendown', active = false, status = 'takendown' where did = %s",
    5: "update sluice.repo set phase = 'failed', reason = 'desync' where did = %s",
    6: "delete from sluice.repo where did = %s",
}


@pytest.mark.parametrize("whole", [False, True])
def test_each_repo_that_differs_is_repaired_queued_or_named_whatever_was_written_meanwhile(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    """N5: what the index writes between check and repair takes no repo out of it; it even holds a row's lock."""
    settle_repos(settings, [sample(5, did=did(number)) for number in range(8)])
    sql(settings, "delete from sluice.record where rkey like '%%4' and did <> %s", did(7))
    locked = psycopg.connect(settings.database)
    fired: list[int] = []
    first = AuditNetwork.signatures

    async def meanwhile(self: AuditNetwork, heads: list[StoredHead]) -> LookupResult:
        for number, statement in MEANWHILE.items():
            sql(settings, statement, did(number))
            fired.append(number)
        locked.execute("update sluice.repo set rev = '3lzzzzzzzzzz2' where did = %s", (did(0),))
        committing.start()
        return await first(self, heads)

    def commit_when_waited_for() -> None:
        waits = "select 1 from pg_stat_activity where application_name = 'sluice audit' and wait_event_type = 'Lock'"
        wait_until(lambda: sql(settings, waits), what="the repair waits for the writer")
        locked.commit()
        fired.append(0)

    committing = threading.Thread(target=commit_when_waited_for)
    monkeypatch.setattr(AuditNetwork, "signatures", meanwhile)
    dids = [] if whole else [did(number) for number in range(8)]
    report = run(settings, *dids, repair=True)
    committing.join(60)
    locked.close()
    assert sorted(fired) == list(range(7))
    assert {finding.did for finding in report.findings} == {did(number) for number in range(7)}
    assert (report.tally.repaired, report.tally.queued) == (2, 2)
    assert report.tally.not_repaired == {
        did(4): "unavailable (takendown)",
        did(5): "failed (desync)",
        did(6): "it has no row",
    }
    assert not report.good
    assert f"{did(5)}  not repaired: failed (desync)" in report.as_text()
    assert sql(settings, "select did from sluice.repo where phase = 'pending' and reason = 'audit' order by did") == [
        (did(0),),
        (did(1),),
    ]


def test_the_index_may_write_meanwhile(settings: Settings) -> None:
    """G3: rows and repo row are read from one snapshot, so a busy index is never a difference."""
    settle_repos(settings, [sample(50, did=did(1))])
    ended = threading.Event()

    def write() -> None:
        for attempt in itertools.count(2):
            if ended.is_set():
                return
            rev = f"3l{attempt:b>10}2".translate(str.maketrans("0189", "wxyz"))
            settle_repos(settings, [sample(50 + attempt % 7, did=did(1), rev=rev)], attempt)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen: set[int] = set()
        deadline = time.monotonic() + 60
        while len(seen) < 3 and time.monotonic() < deadline:
            report = run(settings, chunk=1)
            assert not report.tally.differing
            seen.add(report.tally.records)
    finally:
        ended.set()
        thread.join()
    assert len(seen) > 1  # it did write meanwhile
    assert run(settings).good


def test_the_command(settings: Settings) -> None:
    """Exit code 0: all good; 1: something differs, or was not checked; 2: what the operator can put right."""

    def sluice(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SLUICE_DATABASE": settings.database}
        return zygote.run(["sluice", "audit", *arguments], env=environment, timeout=120)

    settle_repos(settings, [odd(1), odd(2)])
    done = sluice("--all", "--json")
    assert (done.returncode, json.loads(done.stdout)["good"]) == (0, True)
    assert sluice(did(1), "--roots-only").returncode == 0
    unknown = sluice(did(1), did(9))
    assert (unknown.returncode, f"{did(9)}  not checked: not known" in unknown.stdout) == (1, True)
    sql(settings, "delete from sluice.record where did = %s and rkey = 'self'", did(2))
    found = sluice("--sample", "2")
    assert (found.returncode, f"{did(2)}  root:" in found.stdout) == (1, True)
    assert sluice("--all", did(1)).returncode == 2


def test_a_collection_filter_is_reported_and_counts_as_no_difference(settings: Settings) -> None:
    """G3, N9: rows that are left out prove no tree, and no whole tree is blamed for it."""
    settle_repos(settings, [odd(1), odd(2)])
    sql(settings, "update sluice.filter set collections = '{app.bsky.feed.post}'")
    sql(
        settings,
        "delete from sluice.record where did = %s and rkey = (select max(rkey) from sluice.record where did = %s)",
        did(1),
        did(1),
    )
    report = run(settings)
    assert (report.good, report.tally.unrooted, report.tally.proven) == (True, 1, report.tally.repos - 1)
    assert "collection filter" in report.as_text()
    sql(settings, "update sluice.filter set collections = '{*}'")
    assert not run(settings).good
