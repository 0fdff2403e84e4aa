"""Benchmark: log → PostgreSQL with one database and with three servers, in alternation on one machine.

.venv/bin/python -m bench.shards [--records 150000] [--rounds 2]
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from bench.index import produce
from bench.support.stack import REMEMBER_COMMITS, Stack, report, stack, watch
from connectors.postgres.shard_identity import prepare_shards
from local.embedded.embedded_database import EmbeddedDatabase
from schemas.settings import variables
from schemas.topics import FIREHOSE_BACKFILL

RANGES = ("0-2", "3-5", "6-7")
SETTLED = "select coalesce(sum(next), 0)::bigint from sluice.stream_offset where topic = %s"


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    rates: dict[str, list[int]] = {"one": [], "three": []}
    for _ in range(options.rounds):
        for kind, found in rates.items():
            found.append(round(measure(kind, options.records)))
    report("shards", records=options.records, records_per_second=rates)


def measure(kind: str, records: int) -> float:
    """Records per second of one index process, from the first transaction to the last."""
    with ExitStack() as closing:
        running = closing.enter_context(stack())
        databases = [running.settings.database]
        if kind == "three":
            folders = [Path(running.folder) / name for name in "abc"]
            servers = [closing.enter_context(EmbeddedDatabase(one, settings=REMEMBER_COMMITS)) for one in folders]
            databases = [server.url for server in servers]
            running = sharded(running, databases)
        messages = produce(running, records, 60)
        opened = [closing.enter_context(psycopg.connect(url, autocommit=True)) for url in databases]

        def at() -> int:
            rows: list[Any] = [db.execute(SETTLED, (FIREHOSE_BACKFILL,)).fetchone() for db in opened]
            return sum(int(row[0]) for row in rows)

        with running.process("index") as process:
            seen = watch(running, at, messages, index=process.pid)
        return (messages - seen.first) / seen.seconds * records / messages


def sharded(running: Stack, databases: list[str]) -> Stack:
    """The same log, with repos on these servers."""
    shards = " ".join(f"{name}={url}" for name, url in zip(RANGES, databases, strict=True))
    settings = running.settings.replaced(shards=shards)
    prepare_shards(settings)
    return Stack(settings, {**running.environment, **variables(settings)}, running.servers, running.folder)


if __name__ == "__main__":
    main()
