"""The JSON reads: every method, every error by its lexicon's name, pages over one database and over shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from connectors.postgres.shard_identity import prepare_shards
from connectors.postgres.shards import shard_settings
from schemas.settings import Settings
from serve.xrpc import pages, record_reads, sync_reads
from steps.partitioner import partition_of
from tests.ops.settled_repos import settle_repos
from tests.serve.conftest import Reads
from tests.support.postgres import fresh_database
from tests.support.tiny_repo import Repo, sample

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
UNKNOWN = "did:plc:unknownunknownunknownunk"
HIDDEN = {
    "takendown": "RepoTakendown",
    "suspended": "RepoSuspended",
    "deactivated": "RepoDeactivated",
    "deleted": "RepoNotFound",
    "inactive": "RepoInactive",
}
OF_A_REPO: list[tuple[str, dict[str, str]]] = [
    ("sync.getRepo", {}),
    ("sync.getLatestCommit", {}),
    ("sync.getRecord", {"collection": POST, "rkey": "1"}),
    ("repo.getRecord", {"collection": POST, "rkey": "1"}),
    ("repo.listRecords", {"collection": POST}),
    ("repo.describeRepo", {}),
]


def did(number: int) -> str:
    return f"did:plc:{number:a>24}"


def account(method: str, repo: str) -> dict[str, str]:
    return {"repo" if method.startswith("repo.") else "did": repo}


@pytest.fixture
def reads(settings: Settings, reads_of: Callable[[Settings], Reads]) -> Reads:
    return reads_of(settings)


@pytest.fixture
def sharded(postgres: str, migrated_template: str, database: str) -> Iterator[Settings]:
    """A main database and two shards with nine repos."""
    with ExitStack() as closing:
        urls = [closing.enter_context(fresh_database(postgres, migrated_template)) for _ in range(2)]
        settings = Settings(database=database, shards=f"0-2={urls[0]} 3-7={urls[1]}", kafka_partitions=8)
        prepare_shards(settings)
        repos = [Repo({f"{LIKE if at % 3 else POST}/1": {"n": at}}, did=did(at)) for at in range(1, 10)]
        for number, shard in enumerate(shard_settings(settings)):
            settle_repos(shard, [repo for repo in repos if (partition_of(repo.did, 8) > 2) == (number == 1)])
        yield settings


def test_the_state_of_a_repo(reads: Reads) -> None:
    repo = sample(5, did=did(1))
    settle_repos(reads.settings, [repo])
    ((commit,),) = reads.sql("select commit from sluice.repo")
    assert reads.json("sync.getLatestCommit", did=repo.did) == {"cid": commit, "rev": repo.rev}
    assert reads.json("sync.getRepoStatus", did=repo.did) == {"did": repo.did, "active": True, "rev": repo.rev}
    assert reads.json("sync.listRepos") == {
        "repos": [{"did": repo.did, "head": commit, "rev": repo.rev, "active": True}]
    }
    reads.sql("update sluice.repo set phase = 'pending'")
    desynced = {"did": repo.did, "active": False, "status": "desynchronized"}
    assert reads.json("sync.getRepoStatus", did=repo.did) == desynced
    assert reads.json("sync.listRepos")["repos"] == [{**desynced, "head": commit, "rev": repo.rev}]
    assert reads.error("sync.getLatestCommit", did=repo.did) == (404, "RepoNotSynchronized")
    assert len(reads.json("repo.listRecords", repo=repo.did, collection=POST)["records"]) == 3, "its records stay"


def test_a_hidden_repo_has_nothing_but_its_status(reads: Reads) -> None:
    """V2."""
    repo = sample(5, did=did(1))
    settle_repos(reads.settings, [repo])
    for status, error in HIDDEN.items():
        reads.sql("update sluice.repo set active = false, phase = 'unavailable', status = %s", status)
        for method, query in OF_A_REPO:
            assert reads.error(method, **account(method, repo.did), **query) == (400, error), method
        shown = {"active": False} if status == "inactive" else {"active": False, "status": status}
        assert reads.json("sync.getRepoStatus", did=repo.did) == {"did": repo.did, **shown}
        assert reads.json("sync.listRepos")["repos"][0].items() >= shown.items()
        assert reads.json("sync.listReposByCollection", collection=POST) == {"repos": []}


def test_a_throttled_repo_is_shown(reads: Reads) -> None:
    """Throttled is the relay's word about itself: the PDS serves the account."""
    repo = sample(5, did=did(1))
    settle_repos(reads.settings, [repo])
    reads.sql("update sluice.repo set status = 'throttled'")
    assert reads.json("sync.getRepoStatus", did=repo.did)["active"] is True
    assert reads.get("sync.getRepo", did=repo.did)[0] == 200


def test_what_is_not_mirrored_is_not_found(reads: Reads) -> None:
    for method, query in [*OF_A_REPO, ("sync.getRepoStatus", {})]:
        assert reads.error(method, **account(method, UNKNOWN), **query) == (400, "RepoNotFound"), method
    assert reads.error("identity.resolveDid", did=UNKNOWN) == (400, "DidNotFound")
    assert reads.error("identity.resolveIdentity", identifier=UNKNOWN) == (400, "DidNotFound")
    assert reads.error("identity.resolveHandle", handle="nobody.test") == (400, "HandleNotFound")
    assert reads.error("identity.resolveIdentity", identifier="nobody.test") == (400, "HandleNotFound")
    assert reads.error("repo.describeRepo", repo="nobody.test") == (400, "HandleNotFound")
    assert reads.json("sync.listRepos") == {"repos": []}
    assert reads.json("sync.listReposByCollection", collection=POST) == {"repos": []}
    assert reads.json("label.queryLabels", uriPatterns="*") == {"labels": []}


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("sync.getRepo", {}),
    ("sync.getRepo", {"did": "alice.test"}),
    ("sync.getRepo", {"did": UNKNOWN, "since": "yesterday"}),
    ("sync.getRecord", {"did": UNKNOWN, "collection": "post", "rkey": "1"}),
    ("sync.getRecord", {"did": UNKNOWN, "collection": POST, "rkey": ".."}),
    ("sync.getRepoStatus", {"did": "did:plc:\x00"}),
    ("sync.listRepos", {"limit": "0"}),
    ("sync.listRepos", {"limit": "1001"}),
    ("sync.listRepos", {"limit": "²"}),
    ("sync.listRepos", {"cursor": "5"}),
    ("sync.listReposByCollection", {}),
    ("repo.getRecord", {"repo": "?", "collection": POST, "rkey": "1"}),
    ("repo.listRecords", {"repo": UNKNOWN, "collection": POST, "limit": "101"}),
    ("repo.listRecords", {"repo": UNKNOWN, "collection": POST, "reverse": "yes"}),
    ("repo.listRecords", {"repo": UNKNOWN, "collection": POST, "cursor": "\x00"}),
    ("identity.resolveHandle", {"handle": "nodots"}),
    ("identity.resolveDid", {"did": "plc"}),
    ("label.queryLabels", {}),
    ("label.queryLabels", {"uriPatterns": "*", "sources": "labeler"}),
    ("label.queryLabels", {"uriPatterns": ["a"] * 51}),
    ("label.queryLabels", {"uriPatterns": "*", "cursor": "%"}),
    ("label.queryLabels", {"uriPatterns": "*", "cursor": "WyJcdWQ4MDAiLCIiLCIiLCIiXQ"}),
    ("label.queryLabels", {"uriPatterns": "*", "cursor": "WzEsMiwzLDRd"}),
]


def test_bad_parameters_are_named(reads: Reads) -> None:
    for method, query in WRONG:
        status, body = reads.get(method, **query)
        answer = json.loads(body)
        assert (status, answer["error"]) == (400, "InvalidRequest"), (method, query)
        assert answer["message"].startswith(tuple(query) or ("did", "collection", "uriPatterns"))


def test_records_have_their_json_as_it_was_written(reads: Reads) -> None:
    repo = Repo({f"{POST}/{at}": {"text": "ü", "n": at, "link": {"x": [1, None]}} for at in range(7)}, did=did(1))
    settle_repos(reads.settings, [repo])
    ((cid, body),) = reads.sql("select cid, json::text from sluice.record where rkey = '3'")
    one = {"repo": repo.did, "collection": POST, "rkey": "3"}
    status, answer = reads.get("repo.getRecord", **one)
    assert status == 200
    assert body.encode() in answer
    assert json.loads(answer) == {"uri": f"at://{repo.did}/{POST}/3", "cid": cid, "value": json.loads(body)}
    assert reads.json("repo.getRecord", **one, cid=cid)["cid"] == cid
    other = "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454"
    assert reads.error("repo.getRecord", **one, cid=other) == (400, "RecordNotFound")
    assert reads.error("repo.getRecord", **one | {"rkey": "8"}) == (400, "RecordNotFound")
    assert reads.error("repo.getRecord", **one | {"collection": "no.such.one"}) == (400, "RecordNotFound")


def test_pages_of_records_in_both_directions(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = Repo({f"{POST}/r{at:02}": {"text": "x" * 100} for at in range(23)}, did=did(1))
    settle_repos(reads.settings, [repo])
    reads.sql("update sluice.record set json = null where rkey in ('r05', 'r22')")
    query = {"repo": repo.did, "collection": POST}
    for reverse, limit, most in ((False, 5, 5), (True, 5, 5), (False, 100, 100), (True, 23, 23)):
        found = reads.pages("repo.listRecords", "records", **query, limit=limit, reverse=str(reverse).lower())
        uris = [one["uri"].rpartition("/")[2] for page in found for one in page]
        expected = [f"r{at:02}" for at in range(23) if at not in (5, 22)]
        assert uris == (expected if reverse else expected[::-1])
        assert max(map(len, found)) <= most
    monkeypatch.setattr(record_reads, "PAGE_BYTES", 350)
    found = reads.pages("repo.listRecords", "records", **query, limit=50)
    assert [len(page) for page in found] == [3] * 7, "bounded in bytes"
    monkeypatch.setattr(record_reads, "PAGE_BYTES", 1)
    assert sum(map(len, reads.pages("repo.listRecords", "records", **query, limit=50))) == 21, "one by one"


def test_identities_are_what_the_mirror_knows(reads: Reads) -> None:
    repo = sample(3, did=did(1))
    settle_repos(reads.settings, [repo])
    reads.sql("update sluice.repo set host = 'https://old.example', handle = 'old.test'")
    key = repo.key.did_key
    known = reads.json("identity.resolveDid", did=repo.did)["didDoc"]
    assert known["service"][0]["serviceEndpoint"] == "https://old.example", "of the last fetch"
    reads.sql(
        "insert into sluice.identity (did, pds, handle, signing_key, label_key, labeler) values (%s, %s, %s, %s, %s, %s)",
        *(repo.did, "https://pds.example", "alice.test", key, key, "https://labeler.example"),
    )
    document = reads.json("identity.resolveDid", did=repo.did)["didDoc"]
    multibase = key.removeprefix("did:key:")
    assert document == {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": repo.did,
        "alsoKnownAs": ["at://alice.test"],
        "verificationMethod": [
            {"id": f"{repo.did}#{name}", "type": "Multikey", "controller": repo.did, "publicKeyMultibase": multibase}
            for name in ("atproto", "atproto_label")
        ],
        "service": [
            {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://pds.example"},
            {"id": "#atproto_labeler", "type": "AtprotoLabeler", "serviceEndpoint": "https://labeler.example"},
        ],
    }
    unproven = {"did": repo.did, "handle": "handle.invalid", "didDoc": document}
    assert reads.json("identity.resolveIdentity", identifier=repo.did) == unproven
    assert reads.json("repo.describeRepo", repo=repo.did) == {
        **unproven,
        "collections": [LIKE, POST],
        "handleIsCorrect": False,
    }
    reads.sql("insert into sluice.handle (did, handle, verified, verified_at) values (%s, 'alice.test', true, now())", repo.did)  # fmt: skip
    assert reads.json("identity.resolveHandle", handle="Alice.TEST") == {"did": repo.did}
    assert reads.json("identity.resolveIdentity", identifier="alice.test")["handle"] == "alice.test"
    assert reads.json("repo.describeRepo", repo="alice.test")["handleIsCorrect"] is True
    assert reads.json("repo.getRecord", repo="alice.test", collection=LIKE, rkey=rkey_in(repo))["cid"]


def rkey_in(repo: Repo) -> str:
    return next(path for path in repo.records if path.startswith(LIKE)).partition("/")[2]


def test_lists_go_over_the_shards_in_one_order(sharded: Settings, reads_of: Callable[[Settings], Reads]) -> None:
    reads = reads_of(sharded)
    everyone = [did(at) for at in range(1, 10)]
    for limit in (1, 2, 4, 500):
        found = reads.pages("sync.listRepos", "repos", limit=limit)
        assert [row["did"] for page in found for row in page] == everyone
        assert max(map(len, found)) <= limit
    assert reads.get("sync.getRepo", did=did(3))[0] == reads.get("sync.getRepo", did=did(4))[0] == 200


def test_repos_of_a_collection_are_found_by_probes(
    sharded: Settings, reads_of: Callable[[Settings], Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short pages and rounds: a page reads a bounded number of repos of each shard."""
    reads = reads_of(sharded)
    for scan, rounds, limit in ((5000, 10, 2), (1, 10, 500), (2, 1, 500), (1, 1, 1)):
        monkeypatch.setattr(sync_reads, "COLLECTION_SCAN", scan)
        monkeypatch.setattr(pages, "ROUNDS", rounds)
        found = reads.pages("sync.listReposByCollection", "repos", collection=POST, limit=limit)
        assert [row["did"] for page in found for row in page] == [did(3), did(6), did(9)]
        assert max(map(len, found)) <= limit
    assert reads.pages("sync.listReposByCollection", "repos", collection="no.such.one") == [[]]


def test_labels_by_prefix_source_and_page(sharded: Settings, reads_of: Callable[[Settings], Reads]) -> None:
    reads = reads_of(sharded)
    uris = [
        did(1),
        did(4),
        f"at://{did(1)}/{POST}/1",
        f"at://{did(4)}/{POST}/1",
        f"at://{did(4)}/{POST}/2",
        "https://x.example",
    ]
    rows = []
    for number, shard in enumerate(shard_settings(sharded)):
        with psycopg.connect(shard.database, autocommit=True) as db:
            for at, uri in enumerate(uris):
                if at % 2 == number:
                    for src in ("did:plc:labeler1", "did:plc:labeler2"):
                        rows.append((uri, src, "spam", "cid" if at == 2 else ""))
                        db.execute(
                            "insert into sluice.label (src, uri, val, cid, neg, cts, exp, sig, seq)"
                            " values (%s, %s, 'spam', %s, %s, '2026-01-01T00:00:00.000Z', null, 'c2ln', 1)",
                            (src, uri, "cid" if at == 2 else "", at == 3),
                        )
    rows.sort()

    def found(limit: int, **query: Any) -> list[tuple[Any, ...]]:
        found = reads.pages("label.queryLabels", "labels", limit=limit, **query)
        assert max(map(len, found)) <= limit
        return [(one["uri"], one["src"], one["val"], one.get("cid", "")) for page in found for one in page]

    for limit in (1, 3, 250):
        assert found(limit, uriPatterns="*") == rows
        assert found(limit, uriPatterns=[f"at://{did(4)}/*", did(1), f"{did(1)}*"]) == [
            row for row in rows if row[0].startswith(f"at://{did(4)}/") or row[0] == did(1)
        ]
        one = "did:plc:labeler2"
        assert found(limit, uriPatterns="at://*", sources=[one, "did:plc:none"]) == [
            row for row in rows if row[1] == one and row[0].startswith("at://")
        ]
    labels = reads.json("label.queryLabels", uriPatterns=uris[3], sources="did:plc:labeler1")["labels"]
    assert labels == [
        {"ver": 1, "src": "did:plc:labeler1", "uri": uris[3], "val": "spam", "neg": True,
         "cts": "2026-01-01T00:00:00.000Z", "sig": {"$bytes": "c2ln"}}
    ]  # fmt: skip


def test_a_shard_that_does_not_answer_is_no_short_list(
    sharded: Settings, reads_of: Callable[[Settings], Reads]
) -> None:
    first, second = sharded.shards.split()
    gone = sharded.model_copy(update={"shards": f"{first} {second.partition('=')[0]}=postgresql://127.0.0.1:9/none"})
    reads = reads_of(gone)
    assert reads.error("sync.listRepos") == (503, "UpstreamFailure")
    here = next(did(at) for at in range(1, 10) if partition_of(did(at), 8) <= 2)
    assert reads.get("sync.getRepo", did=here)[0] == 200
