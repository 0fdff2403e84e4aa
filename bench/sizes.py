"""Bytes on disk per record in the log and in PostgreSQL, of a mirrored simulated network and of recorded real frames.

    .venv/bin/python -m bench.sizes [--repos 600] [--records-per-repo 100] [--live 4000]

The simulated network's records have the real one's mix (44 % likes, 22 % posts, 18 % follows, …). Its repos pass the whole
pipeline; then its accounts write `--live` times at 400 a second; then recorded frames of the official PDS
(tests/protocol/recorded, one record or a few each) are written to `firehose_live` of a separate log. Segments are compressed by the
producer (zstd); PostgreSQL's figures are of the tables as the backfill leaves them, after the live writes, and after `vacuum full`.
"""

import argparse
import base64
import json
import lzma
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.support.simulated import Simulated, simulated
from bench.support.stack import Ends, Stack, report, stack, until
from connectors.kafka.producer import LogProducer, Out
from flows.firehose.encode import commit_message
from protocol.event_stream import Commit, Sync, decode
from protocol.verify_commit import Verified, verify
from schemas.topics import FIREHOSE_BACKFILL, FIREHOSE_LIVE

RECORDED = Path(__file__).resolve().parent.parent / "tests" / "protocol" / "recorded" / "official_pds.json.xz"
KINDS = ("control", "index", "backfill", "firehose", "list-repos")
WRITER = 400.0
TIME = "2026-01-01T00:00:00.000Z"
MIX = """
select collection, count(*) * 100.0 / sum(count(*)) over (), avg(octet_length(json::text)), avg(octet_length(rkey))
from sluice.record group by 1 order by 2 desc
"""
RELATIONS = """
select sum(pg_relation_size(t)), sum(pg_indexes_size(t)), sum(pg_total_relation_size(t) - pg_relation_size(t) - pg_indexes_size(t)),
       (select count(*) from {0} where %s)
from (select relid as t from pg_partition_tree('{0}') where isleaf union select '{0}'::regclass) parts
"""


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=int, default=600)
    parser.add_argument("--records-per-repo", type=int, default=100)
    parser.add_argument("--live", type=int, default=4000)
    options = parser.parse_args()
    os.environ["PGOPTIONS"] = "-c sluice.record_parts=4"  # 64 parts of so few rows would be mostly empty pages
    network: dict[str, Any] = {"repos": options.repos, "records_per_repo": options.records_per_repo, "churn": 0.0}
    with simulated(**network, labelers=0, inactive_share=0.0, prebuild=True, window=1_000_000) as sim:
        overrides = {"relays": sim.urls["relays"], "plc": sim.urls["plc"], "pds_requests": 1_000_000}
        with stack(**overrides) as running:
            backfilled = mirror(running, sim, options.repos, options.live)
            figures = {
                FIREHOSE_BACKFILL: segments(running, FIREHOSE_BACKFILL),
                FIREHOSE_LIVE: segments(running, FIREHOSE_LIVE),
                "body": round(running.sql("select avg(octet_length(json::text)) from sluice.record")[0][0]),
                "mix": {row[0]: [round(float(row[1]), 1), round(row[2]), round(row[3])] for row in running.sql(MIX)},
                "backfilled": backfilled,
                "tables": {name: table(running, name) for name in ("sluice.record_row", "sluice.repo")},
            }
            running.sql("vacuum full sluice.record_row")
            figures["packed"] = table(running, "sluice.record_row")
    with stack() as alone:
        frames = replayed(alone)
        figures["recorded"] = {"ops": frames, **segments(alone, FIREHOSE_LIVE)}
    report("sizes", repos=options.repos, **figures)


def mirror(running: Stack, sim: Simulated, repos: int, live: int) -> dict[str, int]:
    """Mirror every repo, then live commits; returns the figures of the records between."""
    synced = "select count(*) from sluice.repo where phase = 'sync'"
    ends = Ends(running.settings, FIREHOSE_LIVE)
    with ExitStack() as open_:
        for kind in KINDS:
            open_.enter_context(running.process(kind))
        until(lambda: running.sql(synced)[0][0] >= repos)
        running.sql("vacuum analyze sluice.record_row")
        backfilled = table(running, "sluice.record_row")
        sim.ask("/writer", {"rate": WRITER})
        until(lambda: ends.messages() >= live)
        sim.ask("/quiesce", {})
        waiting = "select coalesce(sum(next), 0) from sluice.stream_offset where topic = %s"
        topic = running.settings.topic(FIREHOSE_LIVE)
        until(lambda: running.sql(waiting, topic)[0][0] >= ends.messages())
    running.sql("vacuum analyze sluice.record_row")
    return backfilled


def replayed(running: Stack) -> int:
    """Write the recorded frames as the firehose does; returns the number of operations."""
    page = json.loads(lzma.decompress(RECORDED.read_bytes()))
    found, out = 0, []
    for event in (decode(base64.b64decode(frame)) for frame in page["frames"]):
        if isinstance(event, Commit | Sync):
            verified = verify(event, page["recorded_micros"])
            assert isinstance(verified, Verified)
            out.append(Out(FIREHOSE_LIVE, event.did, commit_message(verified, "wss://relay.example", TIME).value))
            found += len(verified.ops or ())
    LogProducer(running.settings).send(out)
    return found


def segments(running: Stack, topic: str) -> dict[str, int]:
    """Messages of a topic, and bytes of its segments per message."""
    time.sleep(1.0)  # until the broker has written everything to the files
    messages = Ends(running.settings, topic).messages()
    files = running.folder.rglob(f"{running.settings.topic(topic)}-*/*.log")
    size = sum(path.stat().st_size for path in files)
    return {"messages": messages, "bytes": round(size / max(1, messages))}


def table(running: Stack, name: str, rows: int = 0) -> dict[str, int]:
    """Rows (counted, unless they are given), and bytes per row: of the heap, of the indexes, of TOAST and maps."""
    heap, indexes, rest, counted = running.sql(RELATIONS.format(name), not rows)[0]
    rows = rows or counted
    return {
        "rows": rows,
        "heap": round(heap / rows),
        "indexes": round(indexes / rows),
        "rest": round(rest / rows),
    }


if __name__ == "__main__":
    main()
