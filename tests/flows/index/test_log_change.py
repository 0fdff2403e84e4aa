"""What the first assignment in another cluster means: the tables' positions and open attempts are those of a log that is gone."""

from __future__ import annotations

import psycopg

from flows.index.store import IndexStore
from schemas.settings import Settings

NAME = "firehose_backfill"


def repo(db: psycopg.Connection[tuple[object, ...]], did: str, part: int | None, *, phase: str = "backfill") -> None:
    db.execute(
        "insert into sluice.repo (did, phase, attempt, produced_partition, produced_offset) values (%s, %s, 1, %s, 900)",
        (did, phase, part),
    )


def test_attempts_whose_outcome_stood_in_a_lost_log_are_expired_claims(database: str) -> None:
    """G1, C4: for partitions read from the start, once, and only if another log was read before."""
    settings = Settings(database=database)
    old, new = IndexStore(settings, "old", None), IndexStore(settings, "new", None)
    with psycopg.connect(database, autocommit=True) as db:

        def gaps() -> list[tuple[object, ...]]:
            return db.execute("select upstream, from_seq, reason from sluice.stream_gap order by id").fetchall()

        def expired() -> list[str]:
            found = "select did from sluice.repo where lease_until <= now() and produced_offset is null order by did"
            return [str(row[0]) for row in db.execute(found)]

        assert old.starts({(NAME, 0): (0, 1000), (NAME, 1): (0, 1000), ("firehose_live", 0): (0, 50)}) != {}
        assert gaps() == [], "the first log of all is no other one"
        db.execute("update sluice.stream_offset set next = 700 where topic = %s", (NAME,))
        for did, part in (("did:plc:a", 0), ("did:plc:b", 1), ("did:plc:c", None)):
            repo(db, did, part)
        repo(db, "did:plc:d", 0, phase="sync")
        assert old.starts({(NAME, 0): (0, 1000)}) == {(NAME, 0): 700}
        assert (gaps(), expired()) == ([], [])

        assert new.starts({(NAME, 0): (0, 3), ("firehose_live", 0): (0, 0), ("firehose_live", 7): (0, 0)}) == {
            (NAME, 0): 0,
            ("firehose_live", 0): 0,
            ("firehose_live", 7): 0,
        }
        assert sorted(gaps()) == [
            (f"log:{NAME}/0", 700, "the log is another one"),
            ("log:firehose_live/0", 0, "the log is another one"),
        ]
        assert expired() == ["did:plc:a"], "the other partition's is not ours to say"
        assert new.starts({(NAME, 0): (0, 3), (NAME, 1): (0, 3)}) == {(NAME, 0): 0, (NAME, 1): 0}
        assert len(gaps()) == 3, "said once per partition"
        assert expired() == ["did:plc:a", "did:plc:b"]
    old.close()
    new.close()
