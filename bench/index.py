"""Benchmark (a): log → PostgreSQL. Records per second of the index flow, with rows already in the table; then live events.

    .venv/bin/python -m bench.index [--records 300000] [--present 1000000] [--workers 1]

Floor, measured in the same run: COPY BINARY of the same rows into the same keyed table.
`live`: commits of one operation, each of a different repo in sync: the worst case for locking and saving repos.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha512
from itertools import chain, islice
from typing import Any

import msgspec
import psycopg

from bench.support.load import CID, REV, SQL_DID, TEXT, TIME, random_did, send_all, snapshot
from bench.support.lock_waits import LockWaits
from bench.support.stack import Floor, Stack, floor, report, stack, watch
from connectors.kafka.producer import Out
from flows.index.record_rows import copy_rows, stored
from protocol.cid import cid_bytes
from protocol.commit import usual_commit
from protocol.encoding.unpadded_base64 import to_base64
from schemas import wire
from schemas.topics import FIREHOSE_BACKFILL, FIREHOSE_LIVE

POST = "app.bsky.feed.post"
LIVE_REV = "3lbenchmark33"
LIVE_CID = "bafyreicd7dqocjtfkvqdyfyegiwtf7ejtnwqj5lgzzvrfdpf2a6zyfwbvi"


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--present", type=int, default=1_000_000)
    parser.add_argument("--per-repo", type=int, default=60)
    parser.add_argument("--live", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with stack() as running:
        preload(running, options.present)
        messages = produce(running, options.records, options.per_repo)
        rate, figures = index(running, FIREHOSE_BACKFILL, messages, options.workers)
        rate *= options.records / messages
        bottom = copy_floor(running, options.records, options.per_repo)
        make_live_repos(running, options.live)
        produce_live(running, options.live)
        ((begin,),) = running.sql("select pg_current_wal_lsn()")
        live, live_figures = index(running, FIREHOSE_LIVE, options.live, options.workers)
        ((wal,),) = running.sql("select pg_current_wal_lsn() - %s::pg_lsn", begin)
        moved = running.sql("select count(*) from sluice.repo where rev = %s", LIVE_REV)[0][0]
        assert moved == options.live, moved
    report(
        "index",
        records=options.records,
        present=options.present,
        records_per_second=round(rate),
        **bottom.figures(rate),
        **figures,
        live={
            "events": options.live,
            "events_per_second": round(live),
            "wal_bytes_per_event": round(wal / options.live),
            **live_figures,
        },
    )


def dids(records: int, per_repo: int) -> Iterator[str]:
    """The DIDs of the benchmark's repos."""
    return (random_did("bench", number) for number in range(records // per_repo))


def body(number: int) -> bytes:
    """JSON of a typical post, about 400 bytes."""
    return (
        f'{{"text":"{TEXT}{TEXT}{number}","$type":"app.bsky.feed.post","langs":["en"],"createdAt":"2026-01-01T00:00:00.000Z",'
        f'"reply":{{"root":{{"cid":"{CID}","uri":"at://did:plc:abc/app.bsky.feed.post/3kabc"}}}}}}'
    ).encode()


def preload(running: Stack, rows: int) -> None:
    """Insert the rows that exist before the measurement."""
    running.sql(
        f"insert into sluice.repo (did, phase) select {SQL_DID}, 'sync' from generate_series(0, %s / 60) n",
        *("old", rows),
    )
    running.sql("insert into sluice.collection (name) values (%s)", POST)
    running.sql(
        "insert into sluice.record_row (rev, indexed_at, repo, collection, attempt, rkey, cid, json)"
        " select sluice.tid_number(%s), '2026-01-01Z', r.id, c.id, 1, '3k' || lpad(n::text, 11, '0'), sluice.cid_bytes(%s), %s::json"
        " from (select id, row_number() over (order by id) as k from sluice.repo) r, generate_series(60 * k - 59, least(60 * k, %s)) n,"
        " sluice.collection c",
        *(REV, CID, body(0).decode(), rows),
    )
    running.sql("vacuum analyze sluice.record_row")


def produce(running: Stack, records: int, per_repo: int) -> int:
    """Write snapshots to the log, each with its outcome; returns the number of messages."""
    rows = [(POST, f"3k{number:011d}", body(number)) for number in range(per_repo)]
    return send_all(running.settings, chain.from_iterable(snapshot(did, rows) for did in dids(records, per_repo)))


def index(running: Stack, topic: str, messages: int, workers: int) -> tuple[float, dict[str, Any]]:
    """Messages per second from the first transaction to the last (without start-up), and the cost.

    Several workers have the partitions between them; then `locks` has the waits for locks (bench/support/lock_waits.py).
    """
    settled = "select coalesce(sum(next), 0)::bigint from sluice.stream_offset where topic = %s"
    waits = LockWaits(running.settings.database)
    with ExitStack() as open_:
        db = open_.enter_context(psycopg.connect(running.settings.database, autocommit=True))
        if workers > 1:
            open_.enter_context(waits)
        pids = {"index": open_.enter_context(running.process("index")).pid}
        pids |= {f"index{n}": open_.enter_context(running.process("index")).pid for n in range(2, workers + 1)}

        def at() -> int:
            row = db.execute(settled, (topic,)).fetchone()
            return int(row[0]) if row else 0

        seen = watch(running, at, messages, **pids)
    wrong = running.sql("select phase, reason, count(*) from sluice.repo where phase <> 'sync' group by 1, 2")
    assert not wrong, wrong
    locks = {"locks": waits.figures} if workers > 1 else {}
    return (messages - seen.first) / seen.seconds, {**seen.figures, **locks}


def make_live_repos(running: Stack, commits: int) -> None:
    """Insert one repo in sync per commit, so that a batch locks and saves as many repos as it has events."""
    running.sql(
        "insert into sluice.repo (did, phase, attempt, rev, data, commit, host, handle, from_snapshot, first_attempt)"
        f" select {SQL_DID}, 'sync', 1, %s, %s, %s, 'https://pds.example', 'user.example', true, 1 from generate_series(0, %s) n",
        *("live", REV, CID, CID, commits - 1),
    )
    running.sql("vacuum analyze sluice.repo")


def produce_live(running: Stack, commits: int) -> None:
    """Write commits of one create each to the log, no repo twice."""
    send_all(running.settings, (live_commit(random_did("live", number), number) for number in range(commits)))


def live_commit(did: str, number: int) -> Out:
    """The message of a commit that creates one post."""
    block = usual_commit(did, LIVE_REV, cid_bytes(LIVE_CID), sha512(did.encode()).digest())
    op = wire.Op(
        action="create",
        collection=POST,
        rkey=f"3k{number:011d}",
        cid=CID,
        record=msgspec.Raw(body(number)),
        raw=None,
        reason=None,
        prev=None,
    )
    event = wire.CommitEvent(
        seq=number,
        time=TIME,
        did=did,
        rev=LIVE_REV,
        since=REV,
        commit=CID,
        commit_block=to_base64(block),
        data=LIVE_CID,
        prev_data=CID,
        ops=[op],
        relay="https://relay.example",
    )
    return Out(FIREHOSE_LIVE, event.did, wire.encode(event))


def copy_floor(running: Stack, records: int, per_repo: int) -> Floor:
    """Measure COPY BINARY into the same table."""
    ours = "select id from sluice.repo where did = any(%s)"
    running.sql(f"delete from sluice.record_row where repo in ({ours})", list(dids(records, per_repo)))
    running.sql("vacuum sluice.record_row")
    repos = dict(running.sql("select did, id from sluice.repo"))
    collections = dict(running.sql("select name, id from sluice.collection"))
    rows = (
        (did, POST, f"3k{n:011d}", CID, REV, 1, body(n), None, None, TIME, -1)
        for did in dids(records, per_repo)
        for n in range(per_repo)
    )
    batches = iter(lambda: list(islice(rows, 5000)), [])
    made = [list(stored(batch, repos, collections)) for batch in batches]
    with psycopg.connect(running.settings.database) as db, floor(sum(map(len, made))) as measured:
        for batch in made:
            copy_rows(db, "copy_records", batch)
            db.commit()
    return measured


if __name__ == "__main__":
    main()
