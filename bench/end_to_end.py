"""Benchmark (d): listRepos → PostgreSQL with every process of the pipeline, during live commits.

    .venv/bin/python -m bench.end_to_end [--repos 3000] [--records-per-repo 100] [--writer 50] [--big-mb 0]

Records per second from the first getRepo to the last row. Meanwhile the simulated network commits `--writer` times a second.
`live_p99_seconds`: delay from an event to its visible row (commit timestamp of the transaction minus the event's time), over
the events during the backfill. Of them, `buffered` are those that came while their own repo was being fetched, and waited for it;
`direct` are the others. `--big-mb 200`: adds one repository of that size; see `peak_mb`.
"""

import argparse
import time
from contextlib import ExitStack
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from bench.support.simulated import Simulated, simulated
from bench.support.stack import Stack, report, stack, until
from protocol.encoding.timestamps import from_unix
from schemas import wire
from schemas.topics import FIREHOSE_LIVE

KINDS = ("control", "index", "backfill", "firehose", "list-repos")
BIG_RECORD_BYTES = 4000


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=int, default=3000)
    parser.add_argument("--records-per-repo", type=int, default=100)
    parser.add_argument("--writer", type=float, default=50.0)
    parser.add_argument("--big-mb", type=int, default=0)
    options = parser.parse_args()
    network: dict[str, Any] = {"repos": options.repos, "records_per_repo": options.records_per_repo, "churn": 0.0}
    network |= {"labelers": 0, "inactive_share": 0.0, "prebuild": True, "window": 1_000_000}
    if options.big_mb:
        records = options.big_mb * 1_000_000 // BIG_RECORD_BYTES
        network |= {"big_repos": 1, "big_repo_records": records, "big_record_bytes": BIG_RECORD_BYTES - 400}
    with simulated(**network) as sim:
        overrides = {"relays": sim.urls["relays"], "plc": sim.urls["plc"], "pds_requests": 1_000_000}
        with stack(**overrides) as running:
            figures = mirror(running, sim, options.repos, options.writer)
    report("end_to_end", repos=options.repos, writer=options.writer, **figures)


def mirror(running: Stack, sim: Simulated, repos: int, writer: float) -> dict[str, Any]:
    """Start everything, wait for every repo to be in sync, measure."""
    in_sync = "select count(*) from sluice.repo where phase = 'sync'"
    rows = "select count(*) from sluice.record"
    started = "select count(*) from sluice.repo where phase <> 'pending'"
    with ExitStack() as processes:
        pids = {}
        for kind in KINDS:
            if kind == "list-repos":
                # the stream is connected before the first repo is claimed, so that no live event is missed
                until(lambda: sim.ask("/streams", {})[0]["readers"] > 0)
                sim.ask("/writer", {"rate": writer})
            pids[kind] = processes.enter_context(running.process(kind)).pid
        until(lambda: running.sql(started)[0][0] > 0, every=0.02)
        began, begin = time.time(), time.monotonic()
        usage = running.usage(**pids, simulator=sim.pid)
        until(lambda: running.sql(in_sync)[0][0] >= repos, every=0.3)
        seconds, ended = time.monotonic() - begin, time.time()
        records = running.sql(rows)[0][0]
        cost = usage.stop()
        sim.ask("/quiesce", {})
        head = commits_in_log(running)
        settled = "select coalesce(sum(next), 0)::bigint from sluice.stream_offset where topic = 'firehose_live'"
        until(lambda: running.sql(settled)[0][0] >= sum(end for end in head.values()), seconds=60)
        live = latencies(running, head, from_unix(began), from_unix(ended))
    truth = sim.ask("/state/summary")["records"]
    found = running.sql(rows)[0][0]
    assert found == truth, (found, truth)
    return {"records": records, "records_per_second": round(records / seconds), **live, **cost}


def commits_in_log(running: Stack) -> dict[int, int]:
    """Partition of the live topic → its end."""
    topic, parts = running.settings.topic(FIREHOSE_LIVE), range(running.settings.kafka_partitions)
    consumer = Consumer({"bootstrap.servers": running.settings.kafka_bootstrap, "group.id": "bench", "log_level": 0})
    try:
        return {part: consumer.get_watermark_offsets(TopicPartition(topic, part), timeout=10)[1] for part in parts}
    finally:
        consumer.close()


def latencies(running: Stack, ends: dict[int, int], began: str, ended: str) -> dict[str, Any]:
    """Seconds from event to visible row, of this period's live rows that no later event has changed."""
    written = live_writes(running, ends, began, ended)
    rows = running.sql(
        "select r.did, c.name, p.rkey, sluice.tid_text(p.rev), sluice.time_text(p.indexed_at), p.indexed_at > r.completed_at,"
        " extract(epoch from pg_xact_commit_timestamp(p.xmin) - p.indexed_at)::float8"
        " from sluice.record_row p join sluice.repo r on r.id = p.repo join sluice.collection c on c.id = p.collection"
        " where p.indexed_at between %s and %s",
        *(began, ended),
    )
    waits = {True: list[float](), False: list[float]()}  # direct, buffered
    for *key, direct, wait in rows:
        if tuple(key) in written:
            waits[direct].append(wait)
    kinds = {"live": waits[True] + waits[False], "direct": waits[True], "buffered": waits[False]}
    return {name: value for kind, found in kinds.items() for name, value in quantiles(kind, sorted(found)).items()}


def quantiles(kind: str, waits: list[float]) -> dict[str, Any]:
    """Number, median, p99 and maximum of sorted seconds."""
    if not waits:
        return {f"{kind}_rows": 0}
    at = {share: waits[min(len(waits) - 1, int(len(waits) * share))] for share in (0.5, 0.99)}
    return {
        f"{kind}_rows": len(waits),
        f"{kind}_p50_seconds": round(at[0.5], 2),
        f"{kind}_p99_seconds": round(at[0.99], 2),
        f"{kind}_max_seconds": round(waits[-1], 2),
    }


def live_writes(running: Stack, ends: dict[int, int], began: str, ended: str) -> set[tuple[str, str, str, str, str]]:
    """(did, collection, rkey, rev, time) of every create and update of this period in the live topic."""
    consumer = Consumer({"bootstrap.servers": running.settings.kafka_bootstrap, "group.id": "bench", "log_level": 0})
    topic = running.settings.topic(FIREHOSE_LIVE)
    left = {part: end for part, end in ends.items() if end}
    consumer.assign([TopicPartition(topic, part, 0) for part in left])
    found: set[tuple[str, str, str, str, str]] = set()
    try:
        while left:
            for message in consumer.consume(5000, 0.2):
                event = wire.decode_live(message.value() or b"")
                if isinstance(event, wire.CommitEvent) and began <= event.time <= ended:
                    ops = (op for op in event.ops if op.action != "delete")
                    found |= {(event.did, op.collection, op.rkey, event.rev, event.time) for op in ops}
                if (message.offset() or 0) + 1 >= left.get(message.partition() or 0, 1 << 62):
                    del left[message.partition() or 0]
    finally:
        consumer.close()
    return found


if __name__ == "__main__":
    main()
