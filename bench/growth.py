"""Benchmark: the index's rate and the bytes a row, as the table grows beyond PostgreSQL's memory. One JSON line per size.

    .venv/bin/python -m bench.growth [--rows 100000000] [--at 1 10 30 100] [--buffers 512MB] [--folder DIR] [--fill]
        [--server wal_compression=on]

Fills the table as a backfill does: repos are listed, then their records are written in another order, repo by repo. At each size
the index reads `--records` records of new repos from the log (0: leave this out), with live commits of random repos beside them; then
the same while PostgreSQL vacuums one part after the other; then live commits alone. Before them all parts are vacuumed, and the
disk has what was written. Each run begins with a checkpoint, after which
PostgreSQL logs the first change of a page as the whole page: `pages_logged` per row. The blocks are those of the records'
tables and indexes: `touched` per row, and `read` from outside shared_buffers per 1,000 rows. `backend`: PostgreSQL's process for
the index; `postgres` is all of them, with autovacuum.

`--folder` keeps log and database: another run with it continues from the rows there, or measures them if `--rows` are not more.
`--fill`: fill only (with `nice`, say). 100 million rows take 50 GB and half an hour. `--server`: settings of PostgreSQL, to compare.
"""

import argparse
import os
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

MILLION = 1_000_000
PER_REPO = 60  # the network's mean is 444: fewer are harder, since each repo begins in other pages
LISTED_AT_ONCE = 20_000
WRITTEN_IN = 40  # parts, each of repos with random DIDs
MIX = ("like",) * 27 + ("post",) * 13 + ("follow",) * 11 + ("repost",) * 9
BYTES = {"like": 228, "post": 438, "follow": 117, "repost": 228}  # of JSON: the network's means
KINDS = {"like": "app.bsky.feed.like", "post": "app.bsky.feed.post", "follow": "app.bsky.graph.follow"}
KINDS |= {"repost": "app.bsky.feed.repost"}
BLOCKS = """
select sum(heap_blks_read + coalesce(idx_blks_read, 0)), sum(heap_blks_hit + coalesce(idx_blks_hit, 0)),
       pg_current_wal_insert_lsn() - '0/0'::pg_lsn, (select wal_fpi from pg_stat_wal)
from pg_statio_all_tables where relname ~ '^record_row_[0-9]+$'
"""
NEW_REPOS = f"""
insert into sluice.repo (did, phase, attempt, rev, data, commit, commit_block, host, handle, from_snapshot, first_attempt)
select {SQL_DID}, 'sync', 1, %s, %s, %s, sha512(n::text::bytea), 'https://pds.example', 'user.example', true, 1
from generate_series(%s::integer, %s::integer) n
"""
NEW_ROWS = f"""
with repo as (
    update sluice.repo set id = default
    where did in (select {SQL_DID} from generate_series(%s::integer, %s::integer, %s::integer) n) returning id
)
insert into sluice.record_row (rev, indexed_at, came, repo, collection, attempt, rkey, cid, json)
select sluice.tid_number(%s), %s, -1, repo.id, body.collection, 1, body.rkey, body.cid, body.json
from (select id from repo order by id) repo cross join body
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
    parser.add_argument("--server", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--fill", action="store_true")
    options = parser.parse_args()
    sizes = sorted({round(size * MILLION) for size in options.at if size * MILLION <= options.rows} | {options.rows})
    server = {"shared_buffers": options.buffers, **dict(one.split("=", 1) for one in options.server)}
    if options.fill:
        server |= {"autovacuum": "off"}  # it would read each part again and again
    with stack(folder=options.folder, server=server) as running:
        rows = int(running.sql("select count(*) from sluice.repo")[0][0]) * PER_REPO
        for size in [size for size in sizes if size > rows] or [rows]:
            rows += fill(running, size - rows)
            if not options.fill:
                settle(running)
                figures = measure(running, rows, options.records, options.beside, options.live)
                report("growth", server=server, rows=rows, **figures)
                rows += figures["added"]


def body(kind: str, number: int) -> bytes:
    """JSON of the network's mean length."""
    text = f'{{"$type":"{KINDS[kind]}","createdAt":"{TIME}","subject":"{number:x}","text":"'
    return f'{text}{(TEXT * 5)[: BYTES[kind] - len(text) - 2]}"}}'.encode()


RECORDS: list[Record] = [(KINDS[kind], f"3k{number:011d}", body(kind, number)) for number, kind in enumerate(MIX)]
"""Of every repo."""


def fill(running: Stack, rows: int) -> int:
    """Add at most that many rows, PER_REPO for each repo; returns their number."""
    listed = int(running.sql("select count(*) from sluice.repo")[0][0])
    last = listed + rows // PER_REPO
    began = time.monotonic()
    with psycopg.connect(running.settings.database, autocommit=True) as db:
        prepare(db)
        for first in range(listed, last, LISTED_AT_ONCE):
            end = min(last, first + LISTED_AT_ONCE) - 1
            db.execute(NEW_REPOS, ("grown", REV, CID, CID, first, end))
            for start in range(WRITTEN_IN):
                db.execute(NEW_ROWS, ("grown", first + start, end, WRITTEN_IN, REV, TIME))
        db.execute("vacuum analyze sluice.repo")
    print(f"added {(last - listed) * PER_REPO:,} rows in {time.monotonic() - began:.0f} s", flush=True, file=sys.stderr)
    return (last - listed) * PER_REPO


def prepare(db: psycopg.Connection[Any]) -> None:
    """The records of every repo, in a temporary table of the session."""
    db.execute("set synchronous_commit = off")
    db.execute(
        "set enable_hashjoin = off; set enable_mergejoin = off; set work_mem = '64MB'"
    )  # in the order of the ids
    for kind in KINDS.values():
        db.execute("insert into sluice.collection (name) values (%s) on conflict do nothing", (kind,))
    db.execute("create temporary table body (collection integer, rkey text, cid bytea, json json)")
    for kind, rkey, json in RECORDS:
        values = (rkey, CID, json.decode(), kind)
        db.execute(
            "insert into body select id, %s, sluice.cid_bytes(%s), %s from sluice.collection where name = %s", values
        )
    db.execute("analyze body")


def settle(running: Stack) -> None:
    """What the hours of a real backfill leave done: vacuumed parts, and nothing that waits to be written to the disk."""
    running.sql("checkpoint")
    with psycopg.connect(running.settings.database, autocommit=True) as db:
        for (part,) in db.execute(PARTS).fetchall():
            db.execute(f"vacuum (analyze) {part}")
        db.execute("checkpoint")
    os.sync()


def measure(running: Stack, rows: int, records: int, beside: int, live: int) -> dict[str, Any]:
    """The figures of a table of this size; `added`: rows that measuring has added."""
    size = table(running, "sluice.record_row", rows)
    repos = records // PER_REPO

    def load(family: str) -> Iterator[Out]:
        for number in range(repos):
            yield from snapshot(random_did(f"{family}{rows}", number), RECORDS)

    figures: dict[str, Any] = {"bytes": size, "added": live}
    if records:
        figures["backfill"] = index(running, [*load("new"), *commits(running, beside)], repos * PER_REPO)
        load_again = [*load("vacuumed"), *commits(running, beside)]
        figures["while_vacuuming"] = index(running, load_again, repos * PER_REPO, vacuum(running))
        figures["added"] += 2 * (repos * PER_REPO + beside)
    return {**figures, "live": index(running, commits(running, live), live)}


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
    running.sql("checkpoint")
    begun = running.sql(BLOCKS)[0]
    with (
        beside or nullcontext(),
        running.process("index") as process,
        psycopg.connect(running.settings.database, autocommit=True) as db,
    ):
        until(lambda: db.execute(BACKEND).fetchone() is not None, every=0.01)
        ((backend,),) = db.execute(BACKEND).fetchall()
        seen = watch(running, lambda: settled(db) - before, sent, index=process.pid, backend=backend)
    read, hit, wal, pages = (int(after - before) for after, before in zip(running.sql(BLOCKS)[0], begun, strict=True))
    share = (sent - seen.first) / sent or 1.0  # of the rows: those after the first transaction
    spent = seen.figures["cpu_seconds"].items()
    return {
        "per_second": round(share * rows / seen.seconds),
        "touched": round((read + hit) / rows, 2),
        "read": round(read * 1000 / rows, 1),
        "pages_logged": round(pages / rows, 2),
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
