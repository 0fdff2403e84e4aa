"""What a live commit writes of its repo's row."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any

import psycopg
from msgspec.structs import replace

from flows.index.store import IndexStore
from flows.index.transaction import SQL
from protocol.cid import DAG_CBOR, cid_bytes, cid_str
from protocol.commit import usual_commit
from schemas.settings import Settings
from steps.gate.model import Repo

ALL = sorted(f"did:plc:{sha256(b'%d' % number).hexdigest()[:24]}" for number in range(1000))
DIDS = ALL[::10]
"""Repos with commits: one or two of a page of the table, as in a table of millions."""
MOST_LOG = 300
"""Bytes of write-ahead log for the row of one live commit: 262 were measured, 376 with the whole block."""


@dataclass
class Counted:
    """A connection whose statements are explained: how much write-ahead log they write."""

    db: Any
    log_bytes: int = 0
    statements: list[bytes] = field(default_factory=list)

    def execute(self, statement: bytes, values: dict[str, Any]) -> None:
        (plan,) = self.db.execute(b"explain (analyze, wal, format json) " + statement, values).fetchone()
        self.log_bytes += plan[0]["Plan"]["WAL Bytes"]
        self.statements.append(statement)


def moved(random: Random, repo: Repo, rev: str) -> Repo:
    """The repo after a live commit: as the gate leaves it."""
    data, commit = (cid_str(DAG_CBOR + random.randbytes(32)) for _ in range(2))
    block = b64encode(usual_commit(repo.did, rev, cid_bytes(data), random.randbytes(64))).decode().rstrip("=")
    return replace(repo, rev=rev, data=data, commit=commit, commit_block=block, from_snapshot=False)


def test_a_live_commit_writes_little_of_its_row(database: str) -> None:
    """One short entry in the log and no index entry: a few columns that stand together, the signature alone of the block."""
    random, tables = Random(1), IndexStore(Settings(database=database), "c", None)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(
            "insert into sluice.repo (did, phase, attempt, first_attempt, host, handle, signing_key, account_relay)"
            " select did, 'sync', 1, 1, 'https://pds.example', 'user.example', repeat('k', 57), 'https://relay.example'"
            " from unnest(%s::text[]) as u (did)",
            (ALL,),
        )
        spent = []
        for step in range(2, 6):
            with tables.transaction() as transaction:
                repos = transaction.lock(DIDS)
                after = {did: moved(random, repo, f"3l2222222222{step}") for did, repo in repos.items()}
                counted = Counted(transaction.db)
                transaction.db = counted  # type: ignore[assignment]
                transaction.save(repos, after)
                assert counted.statements == [SQL["advance"]]
                spent.append(counted.log_bytes / len(DIDS))
            loaded = {did: replace(repo, commit_block=None) for did, repo in after.items()}
            with tables.transaction() as transaction:
                assert transaction.lock(DIDS) == loaded
                transaction.db.execute("select pg_stat_force_next_flush()")
        assert min(spent) < MOST_LOG, "bytes of log a commit, where no whole page is logged"
        sizes = db.execute("select min(octet_length(commit_block)), max(octet_length(commit_block)) from sluice.repo")
        assert sizes.fetchone() == (64, 64)
        of_table = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'sluice.repo'::regclass"
        assert db.execute(of_table).fetchone() == (4 * len(DIDS), 4 * len(DIDS)), "HOT: no index is written"
