"""Benchmark (a): log → PostgreSQL. Records a second of the index flow, with rows already in the table.

    .venv/bin/python -m bench.index [--records 300000] [--present 1000000]

Floor, measured in the same run: COPY BINARY of the same rows into the same keyed table.
"""

import argparse
import time
from collections.abc import Iterator

import msgspec
import psycopg

from bench.stack import PeakMemory, Stack, report, stack, until
from connectors.log import LogProducer, Out, watermarks
from connectors.tables import COPY_TYPES, SQL
from schemas import wire

TEXT = "The quick brown fox jumps over the lazy dog, and the relay tells everybody about it at once. "
REV = "3lbenchmark22"
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--present", type=int, default=1_000_000)
    parser.add_argument("--per-repo", type=int, default=60)
    options = parser.parse_args()
    with stack() as running:
        preload(running, options.present)
        began = time.monotonic()
        produce(running, options.records, options.per_repo)
        produced = time.monotonic() - began
        seconds, memory = index(running, options.records)
        floor = copy_floor(running, options.records, options.per_repo)
        rate = options.records / seconds
        report(
            "index",
            records=options.records,
            present=options.present,
            records_per_second=round(rate),
            floor_per_second=round(floor),
            ratio=round(rate / floor, 3),
            peak_mb=memory,
            produced_per_second=round(options.records / produced),
        )


def dids(records: int, per_repo: int) -> Iterator[str]:
    """Bench repos: their DIDs."""
    return (f"did:plc:bench{number:019d}" for number in range(records // per_repo))


def body(number: int) -> bytes:
    """JSON of a typical post, about 400 bytes."""
    return (
        f'{{"text":"{TEXT}{TEXT}{number}","$type":"app.bsky.feed.post","langs":["en"],"createdAt":"2026-01-01T00:00:00.000Z",'
        f'"reply":{{"root":{{"cid":"{CID}","uri":"at://did:plc:abc/app.bsky.feed.post/3kabc"}}}}}}'
    ).encode()


def preload(running: Stack, rows: int) -> None:
    """Rows that are in the table before."""
    running.sql(
        "insert into sluice.record select 'did:plc:old' || lpad((n / 60)::text, 21, '0'), 'app.bsky.feed.post',"
        " '3k' || lpad(n::text, 11, '0'), %s, %s, 1, %s::json, null, null, '2026-01-01T00:00:00.000Z'"
        " from generate_series(1, %s) n",
        *(CID, REV, body(0).decode(), rows),
    )
    running.sql("vacuum analyze sluice.record")


def produce(running: Stack, records: int, per_repo: int) -> None:
    """A log of snapshots, each with its outcome."""
    producer, batch = LogProducer(running.settings), []
    for did in dids(records, per_repo):
        for number in range(per_repo):
            event = wire.CreateEvent(
                did=did,
                attempt=1,
                rev=REV,
                collection="app.bsky.feed.post",
                rkey=f"3k{number:011d}",
                cid=CID,
                time="2026-01-01T00:00:00.000Z",
                commit=CID,
                record=msgspec.Raw(body(number)),
            )
            batch.append(Out("firehose_backfill", did, wire.encode(event)))
        outcome = wire.RepoOutcome(
            did=did,
            attempt=1,
            status="synced",
            active=True,
            time="2026-01-01T00:00:00.000Z",
            rev=REV,
            commit=CID,
            data=CID,
            count=per_repo,
        )
        batch.append(Out("firehose_backfill", did, wire.encode(outcome)))
        if len(batch) > 10_000:
            producer.send(batch)
            batch = []
    producer.send(batch)


def index(running: Stack, records: int) -> tuple[float, int]:
    """Seconds from the first offset moved to the last (start-up not counted), and the peak memory in MB."""
    ends = sum(end for _, end in watermarks(running.settings, "firehose_backfill").values())
    settled = "select coalesce(sum(next), 0)::bigint from sluice.stream_offset where topic = 'firehose_backfill'"
    with running.process("index") as process:
        memory = PeakMemory(process)
        with psycopg.connect(running.settings.database, autocommit=True) as db:

            def at() -> int:
                memory.sample()
                row = db.execute(settled).fetchone()
                return int(row[0]) if row else 0

            until(lambda: at() > 0)
            done, begin = at(), time.monotonic()
            until(lambda: at() >= ends)
            seconds = time.monotonic() - begin
    synced = running.sql("select count(*) from sluice.repo where phase = 'sync'")[0][0]
    wrong = running.sql("select phase, reason, count(*) from sluice.repo where phase <> 'sync' group by 1, 2")
    assert not wrong, wrong
    assert synced == len(set(dids(records, 60))) or synced > 0
    return seconds * records / (records - done * records / ends), memory.megabytes


def copy_floor(running: Stack, records: int, per_repo: int) -> float:
    """Rows a second of COPY BINARY into the same table."""
    running.sql("delete from sluice.record where did like 'did:plc:bench%%'")
    running.sql("vacuum sluice.record")
    rows = [
        (did, "app.bsky.feed.post", f"3k{n:011d}", CID, REV, 1, body(n), None, None, "2026-01-01T00:00:00.000Z")
        for did in dids(records, per_repo)
        for n in range(per_repo)
    ]
    with psycopg.connect(running.settings.database) as db:
        begin = time.monotonic()
        for start in range(0, len(rows), 5000):
            with db.cursor() as cursor, cursor.copy(SQL["copy_records"]) as copy:
                copy.set_types(COPY_TYPES)
                for row in rows[start : start + 5000]:
                    copy.write_row(row)
            db.commit()
        return len(rows) / (time.monotonic() - begin)


if __name__ == "__main__":
    main()
