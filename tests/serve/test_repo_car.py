"""getRepo and sync.getRecord: the CAR from rows is the PDS's as a set of blocks, or there is none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import cbrrr
import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from connectors.http import server
from protocol.car import index_bytes
from protocol.mst.tree import walk
from schemas.settings import Settings
from serve.xrpc import car_responses, repo_car
from tests.ops.settled_repos import settle_repos
from tests.serve.conftest import Reads
from tests.support.flow_process import wait_until
from tests.support.tiny_repo import Key, Repo, cid_of, sample

VALUES: list[dict[str, Any]] = [
    {"text": "hello"},
    {"ratio": 1.5},
    {"$link": "user's own"},
    {"bytes": b"\0\xff", "link": cbrrr.CID(b"\x01\x71\x12\x20" + bytes(32))},
    {"nul": "a\0b", "big": 2**63 - 1},
]
COLLECTIONS = ["app.bsky.feed.post", "app.bsky.feed.post.sub", "app.bsky.feed-x.post", "app.bsky.feed", "a.b.c"]
RECORDS = st.dictionaries(
    st.builds("{}/{}".format, st.sampled_from(COLLECTIONS), st.text("aZ0.~:_-", min_size=3, max_size=5)),
    st.sampled_from(VALUES),
    max_size=40,
)


def did(number: int) -> str:
    return f"did:plc:{number:a>24}"


@pytest.fixture
def reads(settings: Settings, reads_of: Callable[[Settings], Reads]) -> Reads:
    return reads_of(settings)


def car_of(reads: Reads, repo: str, **query: str) -> tuple[bytes, dict[bytes, bytes]]:
    """Root and blocks of the CAR that is served."""
    status, body = reads.get("sync.getRepo", did=repo, **query)
    assert status == 200, body
    index = index_bytes(body)
    assert index.root is not None
    return index.root, index.blocks


def test_a_served_repo_has_the_blocks_that_its_pds_served(reads: Reads) -> None:
    """V2: both curves, every kind of body, an empty repo, a large one, an unusual commit."""
    values = {f"{COLLECTIONS[at % 5]}/r{at}": VALUES[at % 5] for at in range(40)}
    repos = [
        Repo(values, did=did(1)),
        Repo(values, did=did(2), key=Key("p256")),
        Repo({}, did=did(3)),
        sample(1200, did=did(4)),
        Repo(values, did=did(5), overrides={"extra": "field"}),
    ]
    settle_repos(reads.settings, repos)
    for repo in repos:
        assert car_of(reads, repo.did) == (repo.commit, repo.blocks)


@examples(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORDS, min_size=1, max_size=3))
def test_random_repos(reads: Reads, made: list[dict[str, Any]]) -> None:
    ((known,),) = reads.sql("select count(*) from sluice.repo")
    repos = [Repo(records, did=did(known + at)) for at, records in enumerate(made, 10)]
    settle_repos(reads.settings, repos)
    for repo in repos:
        assert car_of(reads, repo.did) == (repo.commit, repo.blocks)


def test_since_leaves_out_records_that_are_not_newer(reads: Reads) -> None:
    repo = sample(50, did=did(1))
    settle_repos(reads.settings, [repo])
    path = min(repo.records)
    old = "3kaaaaaaaaaa2"
    reads.sql("update sluice.record set rev = %s where collection || '/' || rkey <> %s", old, path)
    root, blocks = car_of(reads, repo.did, since=old)
    assert root == repo.commit
    assert blocks == {cid: repo.blocks[cid] for cid in (repo.commit, *repo.nodes, repo.leaves[path])}
    assert car_of(reads, repo.did, since="2222222222222") == (repo.commit, repo.blocks)


def test_a_proof_shows_a_record_or_that_there_is_none(reads: Reads) -> None:
    repo = sample(
        300,
        did=did(1),
        extra={"nonsense": (cid_of(b"\xa0"), b"\xa0"), "a.b.c/large": (b"\x01\x71\x13\x40" + bytes(64), None)},
    )
    settle_repos(reads.settings, [repo])
    for path in (*sorted(repo.records)[::60], "app.bsky.feed.post/absent", "zz.zz.zz/last"):
        collection, rkey = path.split("/")
        status, body = reads.get("sync.getRecord", did=repo.did, collection=collection, rkey=rkey)
        assert status == 200, body
        index = index_bytes(body)
        assert index.root == repo.commit
        assert index.blocks.items() <= repo.blocks.items()
        assert len(index) < 20
        assert proven_value(repo.data, index.blocks, path.encode()) == repo.leaves.get(path)
        assert (repo.leaves.get(path) in index.blocks) == (path in repo.leaves)
    missing = {"did": repo.did, "collection": "a.b.c", "rkey": "large"}
    assert reads.error("sync.getRecord", **missing) == (404, "RepoIncomplete")


def proven_value(root: bytes, blocks: dict[bytes, bytes], key: bytes) -> bytes | None:
    """The value of a key by the nodes of a proof; KeyError if one is missing."""
    link = cbrrr.CID(root)
    while link is not None:
        node = cbrrr.decode_dag_cbor(blocks[link.cid_bytes])
        link, full = node["l"], b""
        for one in node["e"]:
            full = full[: one["p"]] + one["k"]
            if full == key:
                return one["v"].cid_bytes
            if full > key:
                break
            link = one["t"]
    return None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("delete from sluice.record where rkey = (select min(rkey) from sluice.record)", "RepoIncomplete"),
        ("update sluice.record set json = null, reason = 'too_large' where rkey = (select min(rkey) from sluice.record)", "RepoIncomplete"),
        ("update sluice.record set cid = 'bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454' where rkey = (select max(rkey) from sluice.record)", "RepoIncomplete"),
        ("update sluice.repo set commit_block = null", "RepoIncomplete"),
        ("update sluice.repo set commit_block = set_byte(commit_block, 4, 1 # get_byte(commit_block, 4))", "RepoIncomplete"),
        ("update sluice.repo set phase = 'pending'", "RepoNotSynchronized"),
    ],
    ids=["row missing", "body missing", "other cid", "no commit", "other signature", "not in sync"],
)  # fmt: skip
def test_rows_that_do_not_give_the_signed_repo_give_no_car(reads: Reads, change: str, error: str) -> None:
    """V2."""
    repo = sample(40, did=did(1))
    settle_repos(reads.settings, [repo])
    reads.sql(change)
    assert reads.error("sync.getRepo", did=repo.did) == (404, error)


def test_a_repo_with_a_key_that_is_no_path_has_no_car_and_says_where_it_is(reads: Reads) -> None:
    repo = Repo({"a.b.c/1": VALUES[0], "nonsense": VALUES[0]}, did=did(1))
    settle_repos(reads.settings, [repo])
    reads.sql("update sluice.repo set host = 'https://pds.example'")
    status, body = reads.get("sync.getRepo", did=repo.did)
    assert (status, json.loads(body)["error"]) == (404, "RepoIncomplete")
    assert b"https://pds.example" in body


def test_a_repo_of_too_many_collections_has_no_car(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = sample(40, did=did(1))
    settle_repos(reads.settings, [repo])
    monkeypatch.setattr(repo_car, "COLLECTIONS", 1)
    assert reads.error("sync.getRepo", did=repo.did) == (404, "RepoIncomplete")


def test_a_damaged_body_ends_the_connection_within_the_car(reads: Reads) -> None:
    repo = sample(3000, did=did(1))
    settle_repos(reads.settings, [repo])
    reads.sql(
        'update sluice.record set json = \'{"text": "other"}\' where rkey = (select max(rkey) from sluice.record)'
    )
    with pytest.raises((ConnectionError, OSError, Exception), match=r"IncompleteRead|reset|closed"):
        reads.get("sync.getRepo", did=repo.did)
    assert reads.json("sync.getLatestCommit", did=repo.did)["rev"] == repo.rev


def test_a_repo_that_changes_during_the_read_is_sent_as_it_was(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two passes another commit replaces every row."""
    before, after = sample(60, did=did(1)), sample(90, did=did(1), rev="3kznmn7xqxl32")
    settle_repos(reads.settings, [before])
    whole = repo_car._check

    def checked(*arguments: Any) -> int:
        largest = whole(*arguments)
        reads.sql("delete from sluice.record")
        reads.sql("update sluice.repo set rev = %s, data = 'other'", after.rev)
        return largest

    monkeypatch.setattr(repo_car, "_check", checked)
    assert car_of(reads, before.did) == (before.commit, before.blocks)


def test_large_bodies_are_read_few_at_a_time(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory: rows of one read from the database have BATCH_BYTES together."""
    repo = Repo({f"a.b.c/{at}": {"text": f"{at}" * 100_000} for at in range(10, 40)}, did=did(1))
    settle_repos(reads.settings, [repo])
    asked: list[int] = []
    read = repo_car._read

    def noted(db: Any, statement: bytes, values: dict[str, Any], at_once: int) -> Any:
        asked.append(at_once)
        return read(db, statement, values, at_once)

    monkeypatch.setattr(repo_car, "_read", noted)
    assert car_of(reads, repo.did) == (repo.commit, repo.blocks)
    assert asked[0] == repo_car.KEYS_AT_ONCE
    assert asked[1] * 200_000 <= repo_car.BATCH_BYTES < (asked[1] + 1) * 200_020


def test_only_a_few_cars_are_made_at_once(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = sample(20, did=did(1))
    settle_repos(reads.settings, [repo])
    monkeypatch.setattr(car_responses, "WAIT_SECONDS", 0.2)
    go_on, answers = threading.Event(), []
    check = repo_car._check

    def slow(*arguments: Any) -> int:
        go_on.wait(30)
        return check(*arguments)

    monkeypatch.setattr(repo_car, "_check", slow)
    threads = [
        threading.Thread(target=lambda: answers.append(reads.get("sync.getRepo", did=repo.did)[0]))
        for _ in range(car_responses.AT_ONCE + 1)
    ]
    for thread in threads:
        thread.start()
    threads_done = threading.Event()
    while not answers and not threads_done.wait(0.05):
        pass
    assert answers == [503]
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [200] * car_responses.AT_ONCE + [503]


def test_the_first_chunk_may_take_longer_than_any_other_answer(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs all keys of the repo."""
    repo = sample(20, did=did(1))
    settle_repos(reads.settings, [repo])
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.5)
    check = repo_car._check

    def slow(*arguments: Any) -> int:
        threading.Event().wait(2 * server.SWEEP_SECONDS + 1)
        return check(*arguments)

    monkeypatch.setattr(repo_car, "_check", slow)
    assert car_of(reads, repo.did) == (repo.commit, repo.blocks)


def test_a_client_that_reads_too_slowly_gives_its_permit_to_the_next(
    reads: Reads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All permits are held by clients that read, but below the least rate; the next one gets its CAR."""
    repo = Repo({f"a.b.c/{at}": {"text": f"{at}" * 100_000} for at in range(10, 70)}, did=did(1))
    settle_repos(reads.settings, [repo])
    monkeypatch.setattr(car_responses, "PATIENCE_SECONDS", 5.0)
    monkeypatch.setattr(car_responses, "LEAST_RATE", 1 << 18)
    monkeypatch.setattr(car_responses, "WAIT_SECONDS", 30.0)
    done = threading.Event()
    slow = [
        threading.Thread(target=read_slowly, args=(reads.port, repo.did, done)) for _ in range(car_responses.AT_ONCE)
    ]
    for thread in slow:
        thread.start()
    permits = reads._server._app._runner.app[car_responses.PERMITS]  # type: ignore[attr-defined]
    wait_until(permits.locked)
    assert car_of(reads, repo.did) == (repo.commit, repo.blocks)

    def errors() -> list[str]:
        return [line.__dict__["error"] for line in caplog.records if line.getMessage() == "a CAR was not finished"]

    wait_until(lambda: len(errors()) == car_responses.AT_ONCE)
    done.set()
    for thread in slow:
        thread.join(60)
    assert errors() == ["too slow"] * car_responses.AT_ONCE


def read_slowly(port: int, repo: str, done: threading.Event) -> None:
    """Read a CAR, 1 KiB 20 times a second."""
    path = f"/xrpc/com.atproto.sync.getRepo?did={repo}"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        while not done.wait(0.05) and client.recv(1 << 10):
            pass


def test_leaves_are_read_by_the_primary_key(reads: Reads) -> None:
    """The plan: no sort, and of each collection one index scan of one part."""
    repo = sample(500, did=did(1))
    settle_repos(reads.settings, [repo])
    for name in ("keys", "bodies"):
        with psycopg.connect(reads.settings.database) as db:
            found = db.execute(repo_car.SQL["repo"], {"did": repo.did}).fetchone()
            assert found is not None
            values = repo_car._collections(db, {"id": found[0]}) | {"since": None}
            db.execute(b"analyze sluice.record_row")
            db.execute(b"set enable_seqscan = off; set enable_bitmapscan = off")
            plan = db.execute(b"explain (costs off) select" + repo_car.SQL[name].split(b"select", 1)[1], values)
            lines = "\n".join(row[0] for row in plan)
        assert "Sort" not in lines, lines
        assert "Index Scan using record_row_" in lines


def test_the_served_car_walks_to_its_end(reads: Reads) -> None:
    repo = sample(200, did=did(1))
    settle_repos(reads.settings, [repo])
    _, blocks = car_of(reads, repo.did)
    assert dict(walk(repo.data, blocks.get)) == repo.leaves
    assert all(cid[4:] == sha256(block).digest() for cid, block in blocks.items())
