"""Benchmark (b): PDS → log. Records per second of the backfill flow, from the first message in the log to the last.

    .venv/bin/python -m bench.backfill [--repos 2000] [--records-per-repo 100]
    .venv/bin/python -m bench.backfill --sizes

`--sizes`: one line each for repos of three sizes: small ones, the network's mean, large ones.

Floor, measured in the same run on the same CARs: hashing, decoding, walking the tree and encoding the JSON, in a plain loop.
The simulator makes all repositories beforehand; it shares the machine, and `cpu_seconds` includes its share.
"""

import argparse
from typing import Any

from bench.support.simulated import Simulated, simulated
from bench.support.stack import Ends, Floor, Stack, floor, report, stack, watch
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from flows.backfill.encode import Attempt, create_messages
from protocol.car import index_bytes
from protocol.cid import cid_str
from protocol.commit import CommitObject, parse_commit
from protocol.snapshot import Limits, Snapshot, SnapshotHead
from schemas import wire
from schemas.topics import FIREHOSE_BACKFILL, MAX_VALUE_BYTES, REPO_BACKFILL

SIZES = ((5000, 20), (500, 440), (40, 5000))  # (repos, records in each)


def main() -> None:
    """Run and print one JSON line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=int, default=2000)
    parser.add_argument("--records-per-repo", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--sizes", action="store_true", help="repos of three sizes, one after the other")
    options = parser.parse_args()
    for repos, records in SIZES if options.sizes else [(options.repos, options.records_per_repo)]:
        measure(repos, records, options.concurrency)


def measure(repos: int, records_per_repo: int, concurrency: int) -> None:
    """Run once, and print the figures."""
    network = {"repos": repos, "records_per_repo": records_per_repo, "inactive_share": 0.0}
    with simulated(**network, prebuild=True) as sim:
        accounts = sim.accounts()
        cars = sim.cars(accounts)
        records, bottom = floor_of(cars)
        size = sum(map(len, cars))
        del cars
        overrides: dict[str, Any] = {
            "pds_requests": 1_000_000,
            "backfill_concurrency": concurrency,
            "pds_concurrency": concurrency,
        }
        with stack(plc=sim.urls["plc"], **overrides) as running:
            seconds, figures = backfill(running, sim, accounts, records)
    rate = records / seconds
    report(
        "backfill",
        repos=len(accounts),
        records=records,
        car_mb=size // 1_000_000,
        records_per_second=round(rate),
        repos_per_second=round(rate * len(accounts) / records),
        **bottom.figures(rate),
        **figures,
    )


LIMITS = Limits(1 << 40, 1 << 40)


def floor_of(cars: list[bytes]) -> tuple[int, Floor]:
    """The number of records, and the cost of the unavoidable work."""
    attempt = Attempt("did:plc:floor", 1, "2026-01-01T00:00:00.000Z")
    records, size = 0, 0
    with floor() as measured:
        for car in cars:
            index = index_bytes(car)
            root = index.root or b""
            block = index.get(root) or b""
            commit = parse_commit(block)
            assert isinstance(commit, CommitObject), commit
            head = SnapshotHead(commit.did, commit.rev, cid_str(root), block, cid_str(commit.data))
            snapshot = Snapshot(index, head, commit.data)
            for _ in snapshot.survey(LIMITS):
                pass
            size += sum(len(value) for value in create_messages(snapshot, attempt, MAX_VALUE_BYTES))
            records += snapshot.count
        measured.count = records
    assert size > records
    return records, measured


def backfill(
    running: Stack, sim: Simulated, accounts: list[tuple[str, str]], records: int
) -> tuple[float, dict[str, object]]:
    """Seconds for all records (without start-up), and the cost."""
    store = RepoQueue(running.settings)
    tasks = store.discover([ListedRepo(did, host=pds) for did, pds in accounts]).tasks
    store.close()
    LogProducer(running.settings).send([Out(REPO_BACKFILL, task.did, wire.encode(task)) for task in tasks])
    ends, wanted = Ends(running.settings, FIREHOSE_BACKFILL), records + len(accounts)
    with running.process("backfill") as process:
        seen = watch(running, ends.messages, wanted, backfill=process.pid, simulator=sim.pid)
        left = running.sql("select count(*) from sluice.repo where phase <> 'backfill' or attempt <> 1")[0][0]
        assert left == 0, left
    assert ends.messages() == wanted
    rest = max(1, wanted - seen.first)  # 1: a tiny run ends before the first look
    return seen.seconds * wanted / rest, seen.figures | {"cpu_seconds_per_million": seen.per_million(rest)}


if __name__ == "__main__":
    main()
