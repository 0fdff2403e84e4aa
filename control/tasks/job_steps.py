"""Control's part of the backfill jobs: queue lists of DIDs in batches, count the outcomes of their repos, complete the jobs.

A batch is written in this order: the rows, each statement its own transaction; counters and checkpoint in one statement; the
messages. A crash in between repeats the batch: its rows carry the job's number, so they are counted once and never queued
twice, and the scheduler's `requeue` finds a message that was never sent. A list has at most `AHEAD_BATCHES` unfinished batches, so
a pause takes effect soon, and a million DIDs of one host do not delay all other repos.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import psycopg

from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.connection import outside_transaction, tuple_database
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from connectors.postgres.shards import ShardUnavailable
from schemas import wire
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import REPO_BACKFILL
from steps.job_states import AHEAD_BATCHES, RATE_MEMORY, scaled

SQL = queries("jobs")
TOPIC = REPO_BACKFILL
COUNT_SECONDS = 1.0
COUNT_AT_ONCE = 20  # jobs counted in one step; those counted longest ago come first
EXACT_REPOS = 200_000
SAMPLED_REPOS = 20_000

Connection = psycopg.Connection[tuple[Any, ...]]
logger = logging.getLogger("control")


class JobSteps:
    """Used by the leader's scheduler; safe with two leaders at once."""

    def __init__(self, settings: Settings, store: RepoQueue, producer: LogProducer) -> None:
        self._settings = settings
        self._store = store
        self._producer = producer
        self._database = tuple_database(settings, "sluice control jobs")
        self.close = self._database.close
        self._count_at = 0.0

    def step(self) -> int:
        """One round. Returns the number of repos queued. Raises psycopg.Error and LogUnavailable."""
        queued = 0
        with suppress(ShardUnavailable):  # logged; the batch is repeated, and repos of other shards are still queued
            queued = self.queue()
        if time.monotonic() >= self._count_at:
            self._count_at = time.monotonic() + COUNT_SECONDS
            with suppress(ShardUnavailable):
                self.count()
        return queued

    def queue(self) -> int:
        """Queue batches of the lists that run or are due, by priority, up to `queue_batch` repos."""
        db, sent, room = outside_transaction(self._database()), 0, self._settings.tuning.queue_batch
        for number, status, batch_size, total, again in db.execute(SQL["live_lists"], {"limit": room}).fetchall():
            if room <= 0:
                break
            if status != "running" and db.execute(SQL["run"], {"id": number}).fetchone() is None:
                continue  # an operator changed it meanwhile
            tasks, read = self._batch(db, number, batch_size, total, again=again)
            room -= read
            if tasks:
                self._producer.send([Out(TOPIC, task.did, wire.encode(task)) for task in tasks])
                sent += len(tasks)
        return sent

    def _batch(
        self, db: Connection, number: int, batch_size: int, total: int, *, again: bool
    ) -> tuple[list[wire.RepoTask], int]:
        """The tasks of the next batch, and how many DIDs were read; nothing while enough repos are unfinished."""
        most = batch_size * AHEAD_BATCHES
        row = db.execute(SQL["place"], {"id": number}).fetchone()
        waiting = sum(count for (count,) in self._store.read(SQL["outstanding"], {"id": number, "most": most}))
        if row is None or waiting + batch_size > most:
            return [], 0
        (after,) = row
        rows = db.execute(SQL["next_dids"], {"id": number, "after": after, "limit": batch_size}).fetchall()
        dids = [did for _, did in rows]
        if again:
            self._store.fetch_again(dids, number)  # the scheduler queues them like all repos that are due
        found = self._store.discover([ListedRepo(did) for did in dids], number)
        at = rows[-1][0] if rows else after
        values: dict[str, Any] = {"id": number, "after": after, "dids": dids}
        mine = self._store.read(SQL["of_batch"], values)
        values |= {"mine": sum(row[0] for row in mine), "in_sync": sum(row[1] for row in mine)}
        checkpoint = json.dumps({"n": at, "done": at >= total})
        if db.execute(SQL["advance_list"], {**values, "checkpoint": checkpoint}).fetchone() is None:
            logger.info("another process queued this batch of a job", extra={"job": number})
        return found.tasks, len(rows)

    def count(self) -> None:
        """Count the repos of jobs by phase, update their rates, and complete the jobs that are done."""
        db = outside_transaction(self._database())
        for number, queued in db.execute(SQL["countable"], {"limit": COUNT_AT_ONCE}).fetchall():
            counts = self._phases(number, queued)
            unavailable = counts["unavailable"] + counts["excluded"]
            ended = {"synced": counts["sync"], "failed": counts["failed"], "unavailable": unavailable}
            pending = counts["pending"] + counts["backfill"]
            db.execute(SQL["count"], {"id": number, "pending": pending, "memory": RATE_MEMORY, **ended})
            if self._finished(db, number) and db.execute(SQL["complete"], {"id": number}).fetchone() is not None:
                logger.info("job completed", extra={"job": number, **ended})

    def _finished(self, db: Connection, number: int) -> bool:
        row = db.execute(SQL["all_listed"], {"id": number}).fetchone()
        if row is None:
            return False
        return not any(found for (found,) in self._store.read(SQL["unfinished"], {"id": number, "again": row[0]}))

    def _phases(self, number: int, queued: int) -> Counter[str]:
        if queued <= EXACT_REPOS:
            return _summed(self._store.read(SQL["counted_exactly"], {"id": number}))
        repos = sum(rows for (rows,) in self._store.read(SQL["repo_estimate"], {}))
        percent = min(100.0, 100.0 * SAMPLED_REPOS / repos)
        sample = self._store.read(SQL["counted_by_sample"], {"id": number, "percent": percent})
        return Counter(scaled(_summed(sample), queued))


def _summed(rows: Iterable[tuple[Any, ...]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for phase, count in rows:
        found[phase] += count
    return found
