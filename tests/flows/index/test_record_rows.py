"""The order in which rows reach `sluice.record_row`."""

from __future__ import annotations

from random import Random
from typing import Any

import psycopg

from flows.index.collection_ids import CollectionIds
from flows.index.record_rows import RecordRows
from flows.index.store import IndexStore
from schemas.settings import Settings
from steps.gate.batch import WriteBatch

CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
TIME = "2026-01-01T00:00:00.000Z"


def batch(dids: list[str], rkey: str) -> WriteBatch:
    """The first rows of repos: two collections, 100 records each."""
    made = WriteBatch(fresh=set(dids))
    for did in dids:
        keys = [f"{rkey}{n:03d}" for n in Random(n0(did)).sample(range(100), 100)]
        paths = [(kind, key) for kind in ("com.example.b", "com.example.a") for key in keys]
        made.rows[did] = {
            (kind, key): (did, kind, key, CID, "3l22222222222", 1, b"{}", None, None, TIME, None) for kind, key in paths
        }
    return made


def write(db: psycopg.Connection[Any], collections: CollectionIds, did: str, rkey: str) -> None:
    """As a transaction writes them."""
    with db.transaction():
        (number,) = db.execute("select id from sluice.repo where did = %s for update", (did,)).fetchone() or (0,)
        RecordRows(db, collections, repos={did: number}).write(batch([did], rkey))


def n0(did: str) -> int:
    return int(did.rsplit("n", 1)[1])


def test_a_backfill_leaves_full_pages_in_the_index(database: str) -> None:
    """S8: numbers ascend in the order of the first writes, whatever the order in which repos were found; later writes keep them."""
    dids = [f"did:web:n{n}" for n in range(60)]
    collections = CollectionIds(Settings(database=database))
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(
            "insert into sluice.repo (did, phase) select did, 'sync' from unnest(%s::text[]) as u (did)", (dids,)
        )
        shuffled = Random(1).sample(dids, len(dids))
        for did in shuffled:
            write(db, collections, did, "3k")
        assert [did for (did,) in db.execute("select did from sluice.repo order by id")] == shuffled
        (size,) = db.execute(
            "select sum(pg_relation_size(t)) / 12000.0"
            " from pg_partition_tree('sluice.record_row_pkey') as p (t, parent, leaf, level) where leaf"
        ).fetchone() or (0,)
        assert size < 48, "bytes a record in the index; 65 where the pages are left half full"
        written = db.execute(
            "select p.collection, p.rkey from sluice.record_row p join sluice.repo r on r.id = p.repo where r.did = %s order by p.ctid",
            (dids[3],),
        ).fetchall()
        assert written == sorted(written)
        before: dict[str, int] = dict(db.execute("select did, id from sluice.repo").fetchall())
        write(db, collections, dids[7], "3l")
        assert dict(db.execute("select did, id from sluice.repo").fetchall()) == before
        assert db.execute("select count(*) from sluice.record where did = %s", (dids[7],)).fetchone() == (400,)
    collections.close()


def test_rows_that_were_copied_in_a_transaction_need_no_count(database: str) -> None:
    """The count of an attempt is the table's, whether it is known from the COPY or read: of later writes, and of known repos."""
    dids = [f"did:web:n{n}" for n in range(4)]
    store = IndexStore(Settings(database=database), "log", None)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into sluice.repo (did) select did from unnest(%s::text[]) as u (did)", (dids,))
    with store.transaction() as transaction:
        transaction.lock(dids[:1])
        transaction.write(batch(dids[:1], "3k"))
    with store.transaction() as transaction:
        transaction.lock(dids)
        transaction.write(batch(dids, "3l"))
        copied = transaction.rows.first
        assert set(copied) == set(dids[1:]), "the first has rows of an earlier transaction"
        transaction.write(batch(dids[1:2], "3m"))
        upserted = batch(dids[2:3], "3m")
        upserted.fresh.clear()
        transaction.write(upserted)
        assert set(copied) == {dids[3]}
        facts = transaction.facts(dict.fromkeys(dids, 1), 0)
        assert [facts[did].rows for did in dids] == [400, 400, 400, 200]
        assert transaction.facts({dids[3]: 2}, 0)[dids[3]].rows == 0
        transaction.write(WriteBatch(drop_rows=[(dids[3], 2)]))
        assert transaction.facts({dids[3]: 1}, 0)[dids[3]].rows == 0
    store.close()
