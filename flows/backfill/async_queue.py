"""RepoQueue for the event loop: one transaction at a time, in a thread, because psycopg's connection blocks."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import psycopg

from connectors.postgres.repo_queue import RepoQueue
from connectors.runtime.retry_database import OUTAGE_SECONDS, is_transient

X = TypeVar("X")

RETRY_SECONDS = 1.0

log = logging.getLogger("backfill")


class AsyncRepoQueue:
    """Runs transactions of a RepoQueue one after the other."""

    def __init__(self, queue: RepoQueue) -> None:
        self._queue = queue
        self._turn = asyncio.Lock()

    async def run(self, transaction: Callable[[RepoQueue], X]) -> X:
        """The transaction's result. Retries while the database is unavailable, for OUTAGE_SECONDS; then raises."""
        deadline = time.monotonic() + OUTAGE_SECONDS
        async with self._turn:
            while True:
                try:
                    return await _uninterrupted(asyncio.to_thread(transaction, self._queue))
                except psycopg.OperationalError as err:
                    if not is_transient(err) or time.monotonic() > deadline:
                        raise
                    log.warning(
                        "the database is unavailable; trying again", extra={"error": " ".join(str(err).split())}
                    )
                    await asyncio.sleep(RETRY_SECONDS)


async def _uninterrupted(call: Coroutine[Any, Any, X]) -> X:
    """Delay a cancellation until the call has ended: a thread cannot be stopped, and the next would share its transaction."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # a second cancellation may arrive: one from a lost lease, one from the shutdown
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
