"""Benchmark: the index's rate and the bytes a row, as the table grows beyond PostgreSQL's memory. One JSON line per size.

    .venv/bin/python -m bench.growth [--rows 100000000] [--at 1 10 30 100] [--buffers 512MB] [--folder DIR] [--fill]

Fills the table as a backfill does: repos are listed, then their records are written in another order, by the index's own code.
At each size the index reads `--records` records of new repos from the log, with live commits of random repos beside them; then the
same while PostgreSQL vacuums one part after the other; then live commits alone. The blocks are those of the records' tables and
indexes: `touched` per row, and `read` from outside shared_buffers per 1,000 rows. `backend`: PostgreSQL's process for the index;
`postgres` is all of them, with autovacuum.

`--folder` keeps log and database: another run with it continues from the rows there. `--fill`: fill only (with `nice`, say). 100
million rows take 50 GB and an hour.
"""

import argparse
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg

from bench.index import live_commit
from bench.sizes import table
from bench.support.load import CID, REV, SQL_DID, TEXT, TIME, Record, random_did, send_all, snapshot
from bench.support.stack import Stack, report, stack, until, watch
from connectors.kafka.producer import Out
from flows.index.store import IndexStore
from steps.gate.batch import Path as RecordPath
from steps.gate.batch import Row, WriteBatch

MILLION = 1_000_000
PER_REPO = 60  # the network's mean is 444: fewer are harder, since each repo begins in other pages
LISTED_AT_ONCE = 20_000
WRITTEN_AT_ONCE = 100
MIX = ("like",) * 27 + ("post",) * 13 + ("follow",) * 11 + ("repost",) * 9
BYTES = {"like": 228, "post": 438, "follow": 117, "repost": 228}  # of JSON: the network's means
KINDS = {"like": "app.bsky.feed.like", "post": "app.bsky.feed.post", "follow": "app.bsky.graph.follow"}
KINDS |= {"repost": "app.bsky.feed.repost"}
BLOCKS = """
select sum(heap_blks_read + coalesce(idx_blks_read, 0)), sum(heap_blks_hit + coalesce(idx_blks_hit, 0)),
       pg_current_wal_insert_lsn() - '0/0'::pg_lsn
from pg_statio_all_tables where relname ~ '^record_row_[0-9]+$'
"""
NEW_REPOS = f"""
insert into sluice.repo (did, phase, attempt, rev, data, commit, commit_block, host, handle, from_snapshot, first_attempt)
select {SQL_DID}, 'sync', 1, %s, %s, %s, sha512(n::text::bytea), 'https://pds.example', 'user.example', true, 1
from generate_series(%s::integer, %s::integer) n
"""
UNTOUCHED = "select did from sluice.repo where rev = %s order by random() limit %s"
PARTS = "select relid::text from pg_partition_tree('sluice.record_row') where isleaf order by random()"
BACKEND = "select pid from pg_stat_activity where application_name = 'sluice index'"
SETTLED = "select coalesce(sum(next), 0)::bigint from sluice.stream_offset"


def main() -> None:
    """Fill, measure, and print a line, for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100 * MILLION)
    parser.add_argument("--at", type=float, nargs="+", default=[1, 3, 10, 30, 100], help="sizes, in million rows")
    parser.add_argument("--buffers", default="512MB", help="shared_buffers")
    parser.add_argument("--records", type=int, default=150_000)
    parser.add_argument("--beside", type=int, default=3_000, help="live commits beside the records")
    parser.add_argument("--live", type=int, default=8_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--fill", action="store_true")
    options = parser.parse_args()
    sizes = sorted({round(size * MILLION) for size in options.at if size * MILLION <= options.rows} | {options.rows})
    with stack(folder=options.folder, server={"shared_buffers": options.buffers}) as running:
        rows = running.sql("select count(*) from sluice.record_row")[0][0]
        for size in sizes:
            if size >= rows:
                rows += fill(running, size - rows)
                if not options.fill:
                    figures = measure(running, rows, options.records, options.beside, options.live)
                    report("growth", buffers=options.buffers, rows=rows, **figures)
                    rows += figures["added"]


def body(kind: str, number: int) -> bytes:
    """JSON of the network's mean length."""
    text = f'{{"$type":"{KINDS[kind]}","createdAt":"{TIME}","subject":"{number:x}","text":"'
    return f'{text}{(TEXT * 5)[: BYTES[kind] - len(text) - 2]}"}}'.encode()


RECORDS: list[Record] = [(KINDS[kind], f"3k{number:011d}", body(kind, number)) for number, kind in enumerate(MIX)]
"""Of every repo."""


def fill(running: Stack, rows: int) -> int:
    """Add at most that many rows, PER_REPO for each repo; returns their number."""
    store = IndexStore(running.settings, "benchmark", None)
    listed = int(running.sql("select count(*) from sluice.repo")[0][0])
    last = listed + rows // PER_REPO
    began = time.monotonic()
    for first in range(listed, last, LISTED_AT_ONCE):
        numbers = range(first, min(last, first + LISTED_AT_ONCE))
        running.sql(NEW_REPOS, "grown", REV, CID, CID, numbers[0], numbers[-1])
        dids = [random_did("grown", number) for number in numbers]
        random.Random(first).shuffle(dids)
        for start in range(0, len(dids), WRITTEN_AT_ONCE):
            write(store, dids[start : start + WRITTEN_AT_ONCE])
    store.close()
    running.sql("vacuum analyze sluice.repo")
    print(f"added {(last - listed) * PER_REPO:,} rows in {time.monotonic() - began:.0f} s", flush=True, file=sys.stderr)
    return (last - listed) * PER_REPO


def write(store: IndexStore, dids: list[str]) -> None:
    """The first rows of these repos in a transaction."""
    rows: dict[str, dict[RecordPath, Row | None]] = {did: {} for did in dids}
    for did, made in rows.items():
        for kind, rkey, json in RECORDS:
            made[kind, rkey] = (did, kind, rkey, CID, REV, 1, json, None, None, TIME, -1)
    with store.transaction() as transaction:
        transaction.lock(dids)
        transaction.write(WriteBatch(fresh=set(dids), rows=rows))


def measure(running: Stack, rows: int, records: int, beside: int, live: int) -> dict[str, Any]:
    """The figures of a table of this size; `added`: rows that measuring has added."""
    size = table(running, "sluice.record_row", rows)
    repos = records // PER_REPO

    def load(family: str) -> Iterator[Out]:
        for number in range(repos):
            yield from snapshot(random_did(f"{family}{rows}", number), RECORDS)

    first = index(running, [*load("new"), *commits(running, beside)], repos * PER_REPO)
    second = index(running, [*load("vacuumed"), *commits(running, beside)], repos * PER_REPO, vacuum(running))
    alone = index(running, commits(running, live), live)
    added = 2 * (repos * PER_REPO + beside) + live
    return {"bytes": size, "backfill": first, "while_vacuuming": second, "live": alone, "added": added}


def commits(running: Stack, count: int) -> list[Out]:
    """Commits of one new record each, of random repos that have had none."""
    dids = running.sql(UNTOUCHED, REV, count)
    assert len(dids) == count, f"only {len(dids)} repos are left"
    return [live_commit(did, 1000 + number) for number, (did,) in enumerate(dids)]


def index(
    running: Stack, messages: Iterable[Out], rows: int, beside: AbstractContextManager[object] | None = None
) -> dict[str, Any]:
    """Write the messages, run the index on them; `per_second`: `rows` of them, without start-up."""
    with psycopg.connect(running.settings.database, autocommit=True) as db:
        before = settled(db)
    sent = send_all(running.settings, messages)
    begun = running.sql(BLOCKS)[0]
    with (
        beside or nullcontext(),
        running.process("index") as process,
        psycopg.connect(running.settings.database, autocommit=True) as db,
    ):
        until(lambda: db.execute(BACKEND).fetchone() is not None, every=0.01)
        ((backend,),) = db.execute(BACKEND).fetchall()
        seen = watch(running, lambda: settled(db) - before, sent, index=process.pid, backend=backend)
    read, hit, wal = (int(after - before) for after, before in zip(running.sql(BLOCKS)[0], begun, strict=True))
    share = (sent - seen.first) / sent or 1.0  # of the rows: those after the first transaction
    spent = seen.figures["cpu_seconds"].items()
    return {
        "per_second": round(share * rows / seen.seconds),
        "touched": round((read + hit) / rows, 2),
        "read": round(read * 1000 / rows, 1),
        "wal_bytes": round(wal / rows),
        "cpu_micros": {kind: round(seconds / share / rows * 1e6, 1) for kind, seconds in spent},
        "cores_taken_by_others": seen.figures["cores_taken_by_others"],
    }


def settled(db: psycopg.Connection[Any]) -> int:
    """Messages that the index has settled."""
    row = db.execute(SETTLED).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def vacuum(running: Stack) -> Iterator[None]:
    """Vacuum whole parts, one after the other, as fast as autovacuum does."""
    ended = threading.Event()

    def work() -> None:
        with psycopg.connect(running.settings.database, autocommit=True) as db:
            db.execute("set vacuum_cost_delay = '2ms'")
            while not ended.is_set():
                for (part,) in db.execute(PARTS).fetchall():
                    if not ended.is_set():
                        db.execute(f"vacuum (disable_page_skipping) {part}")

    thread = threading.Thread(target=work, name="vacuum")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
