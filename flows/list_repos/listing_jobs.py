"""Jobs that list: which targets to follow, which are paused, and how far each job is.

Every check reads the job rows: an operator's change takes effect within `CHECK_SECONDS`, and a job whose wait is over
continues. A job whose lists are all throttled waits for its quota (`paused_quota_limit`, not a failure). A job whose lists all fail
backs off (`retry`) and ends as `failed`. Listings of the settings (relays, and their PDSes) never fail: they are requested
again without end, and the health page reports the problem.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from connectors.postgres.connection import outside_transaction, tuple_database
from connectors.postgres.stream_cursors import CursorStore, Stored
from flows.list_repos.crawler import Crawler
from flows.list_repos.listing_loop import FLOW, ListingLoop
from schemas.job_spec import JobStatus
from schemas.settings import Settings
from schemas.sql import queries
from steps.backoff import retry_seconds
from steps.job_states import WAITING, JobSource, Target, targets
from steps.listing.listing_progress import ListingTally
from steps.listing.paginator import Listing

JOBS = queries("jobs")
SQL = queries("listing")
AT_ONCE = 20  # jobs of operators that list at the same time; the others stay pending
SHORT_WAIT_SECONDS = 3.0  # a shorter throttling does not pause the job

Connection = psycopg.Connection[tuple[Any, ...]]
logger = logging.getLogger(FLOW)


class ListingJobs:
    """Used by the flow's thread. A listing of the settings opens its job when its first page arrives."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = tuple_database(settings, "sluice list_repos jobs")
        self._ids: dict[str, int] = {}  # key → job
        self._targets: dict[int, list[Target]] = {}  # of jobs that an operator started
        self._done: dict[int, set[str]] = defaultdict(set)  # their keys whose end is durable
        self._waited: set[int] = set()  # jobs that waited at the last check

    def close(self) -> None:
        """Close the connection of `job_of`."""
        self._database.close()

    def job_of(self, key: str) -> int:
        """Like `of`, in a transaction of its own."""
        return self._ids.get(key) or self.of(outside_transaction(self._database()), key)

    def of(self, db: Connection, key: str) -> int:
        """Id of the job that a listing belongs to."""
        if key not in self._ids:
            source = {"kind": "pds", "relay": None, "hosts": [key]}
            if key in self._settings.relays:
                source = {"kind": "relay", "relay": key, "hosts": None}
            row = db.execute(SQL["open_job"], {"name": f"list {key}", **source}).fetchone()
            self._ids[key] = row[0] if row else 0
        return self._ids[key]

    def forget(self, keys: Iterable[str]) -> None:
        """Drop cached ids: the transaction that opened these jobs may have been rolled back."""
        for key in keys:
            self._ids.pop(key, None)

    def advance(self, db: Connection, key: str, state: Listing, tally: ListingTally | None) -> None:
        """Store counters and checkpoint, in the transaction that moves the listing's cursor."""
        number = self.of(db, key)
        checkpoint: dict[str, Any] = {"cursor": state.cursor, "pass": state.passes, "done": state.done}
        if state.cut:
            checkpoint["cut"] = state.cut
        if len(group := self._targets.get(number, [])) > 1:
            (self._done[number].add if state.done else self._done[number].discard)(key)
            ended = len(self._done[number])
            checkpoint = {"lists_done": ended, "lists": len(group), "done": ended == len(group)}
        counts = tally or ListingTally()
        values = {"listed": counts.listed, "queued": counts.queued, "duplicates": counts.duplicates}
        db.execute(JOBS["advance"], {"id": number, "checkpoint": json.dumps(checkpoint), **values})

    def check(self, db: Connection, store: CursorStore, crawler: Crawler, now: float) -> None:
        """Follow new targets, pause listings of paused jobs, and change the status of jobs."""
        outside_transaction(db)
        paused = {key for row in db.execute(JOBS["halted"]) for key in self._keys(*row)}
        rows = db.execute(JOBS["live_listings"]).fetchall()
        free = AT_ONCE - sum(self._lists(row) for row in rows if row[1] == JobStatus.RUNNING)
        waiting = {row[0] for row in rows if row[1] in WAITING}
        for row in rows:
            number, status, batch_size, due, retry_count, listed_all, *source = row
            group = self._group(number, JobSource(*source), batch_size)
            if status == JobStatus.PENDING or due:
                if group[0].job is not None and not listed_all and free <= 0:
                    paused.update(target.key for target in group)
                    continue
                if db.execute(JOBS["run"], {"id": number}).fetchone() is None:
                    continue  # an operator has changed it meanwhile; the next check reads that
                logger.info("job started", extra={"job": number, "was": status})
                free -= self._lists(row)
                status = JobStatus.RUNNING
                paused.difference_update(target.key for target in group)
            if status in (JobStatus.RUNNING, JobStatus.COMPLETED):
                self._follow(store, crawler, number, group)
            if status == JobStatus.RUNNING:
                if number in self._waited:
                    for target in group:
                        crawler.request_now(target.key)
                else:
                    self._judge(db, number, [crawler.loops.get(one.key) for one in group], retry_count, now)
        self._waited = waiting
        crawler.paused = frozenset(paused)

    def _keys(self, number: int, name: str) -> list[str]:
        if number in self._targets:
            return [target.key for target in self._targets[number]]
        return [name.removeprefix("list ")]

    def _lists(self, row: tuple[Any, ...]) -> bool:
        """Whether the job counts towards AT_ONCE: not listings of the settings, nor jobs whose lists have ended."""
        listed_all, source = row[5], JobSource(*row[6:])
        return not listed_all and not self._permanent(source)

    def _permanent(self, source: JobSource) -> bool:
        return source.kind == "pds" or (source.kind == "relay" and source.relay in self._settings.relays)

    def _group(self, number: int, source: JobSource, batch_size: int) -> list[Target]:
        if self._permanent(source):
            return [Target(url, url, relay=source.kind == "relay") for url in source.hosts or [source.relay or ""]]
        return self._targets.setdefault(number, targets(source, number, batch_size))

    def _follow(self, store: CursorStore, crawler: Crawler, number: int, group: list[Target]) -> None:
        missing = [target for target in group if target.job is not None and target.key not in crawler.loops]
        if not missing:
            return
        stored: Mapping[str, Stored] = store.load()
        for target in missing:
            self._ids[target.key] = number
            position = stored.get(target.key)
            if position is not None and position.detail.get("done") is True:
                self._done[number].add(target.key)
            crawler.follow(target, position)

    def _judge(
        self, db: Connection, number: int, group: list[ListingLoop | None], retry_count: int, now: float
    ) -> None:
        """Wait for the quota if all open lists are throttled; back off if all of them fail."""
        open_lists = [one for one in group if one is not None and not one.state.done]
        if not open_lists or None in group:
            return
        until = min(one.throttled_until for one in open_lists)
        if until - now > SHORT_WAIT_SECONDS:
            values: dict[str, Any] = {
                "id": number,
                "seconds": until - now,
                "error": "the hosts are paused by their rate limits",
            }
            db.execute(JOBS["wait_for_quota"], values)
            logger.info("job waits for its quota", extra={"job": number, "seconds": round(until - now)})
        elif open_lists[0].target.job is not None and all(one.problem for one in open_lists):
            first, longest = self._settings.tuning.retry_first_seconds, self._settings.tuning.retry_max_seconds
            why = "; ".join(f"{one.target.url}: {one.problem}" for one in open_lists[:3])
            values = {
                "id": number,
                "seconds": retry_seconds(retry_count + 1, str(number), first, longest),
                "error": why[:1000],
                "max_attempts": self._settings.backfill_max_attempts,
            }
            row = db.execute(JOBS["back_off"], values).fetchone()
            logger.warning("listing of a job failed", extra={"job": number, "status": row and row[0], "why": why})
