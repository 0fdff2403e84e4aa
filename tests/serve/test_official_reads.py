"""`@atproto/api` reads a served repo unmodified, and `@atproto/repo` verifies its CAR and the proofs of its records."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.cid import cid_str
from schemas.settings import Settings
from tests.ops.settled_repos import settle_repos
from tests.serve.conftest import Reads
from tests.support import ROOT
from tests.support.official.servers import install
from tests.support.tiny_repo import Key, Repo

HERE = ROOT / "tests" / "serve" / "official_reads"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def modules() -> Path:
    """The `node_modules` folder of the official packages."""
    return install()


@pytest.mark.parametrize("curve", ["secp256k1", "p256"])
def test_the_official_client_and_library_accept_a_served_repo(
    modules: Path, settings: Settings, reads_of: Callable[[Settings], Reads], curve: str
) -> None:
    """V2: what the library verifies is the signed repo, and the errors have their names."""
    records = {
        f"{collection}/3k{at:a>11}": {"$type": collection, "text": f"number {at}", "bytes": b"\0", "deep": {"at": [at]}}
        for collection in ("app.bsky.feed.post", "app.bsky.feed.like", "com.example.own")
        for at in (str(number).translate(str.maketrans("0189", "wxyz")) for number in range(40))
    }
    repo = Repo(records, did="did:plc:aaaaaaaaaaaaaaaaaaaaaaab", key=Key(curve))
    settle_repos(settings, [repo])
    reads = reads_of(settings)
    command = ["node", HERE / "reads.mjs", modules, f"http://127.0.0.1:{reads.port}", repo.did, repo.key.did_key]
    ran = subprocess.run([*command, "3kzzzzzzzzzzz"], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    leaves = sorted((path, cid_str(cid)) for path, cid in repo.leaves.items())
    assert (found["root"], found["blocks"]) == (cid_str(repo.commit), len(repo.blocks))
    assert sorted(map(tuple, found["records"])) == leaves
    assert sorted(map(tuple, found["pages"])) == leaves
    assert found["proven"] > 10
    assert found["latest"] == {"cid": cid_str(repo.commit), "rev": repo.rev}
    assert found["status"] == {"did": repo.did, "active": True, "rev": repo.rev}
    assert found["listed"] == [repo.did]
    assert found["collections"] == ["app.bsky.feed.like", "app.bsky.feed.post", "com.example.own"]
    assert found["identity"]["handle"] == "handle.invalid"
    assert found["labels"] == 0
    assert found["errors"] == {
        "getRepo": ["RepoNotFoundError", 400, "RepoNotFound"],
        "getLatestCommit": ["RepoNotFoundError", 400, "RepoNotFound"],
        "getRecord": ["RecordNotFoundError", 400, "RecordNotFound"],
        "resolveHandle": ["HandleNotFoundError", 400, "HandleNotFound"],
    }
