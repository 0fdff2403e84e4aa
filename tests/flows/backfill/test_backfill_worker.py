"""What the pipelines of a worker share: the one database connection, and the fetch slots."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from connectors.atproto.pds import FetchFailed
from connectors.postgres.repo_queue import Claim
from flows.backfill.async_queue import AsyncRepoQueue
from flows.backfill.worker import BackfillWorker
from protocol.did_document import ResolvedIdentity
from schemas.settings import Settings
from steps.host_speed import Transfer
from steps.retry import Failure, FailureReason


def test_a_cancelled_transaction_ends_before_the_next_begins() -> None:
    """A lost claim is cancelled while its thread is in a transaction: no other may run on that connection yet."""
    inside, most, running = threading.Event(), 0, 0
    go_on = threading.Event()

    def transaction(_: Any) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        inside.set()
        go_on.wait(60)
        running -= 1

    async def run() -> None:
        unused: Any = None
        queue = AsyncRepoQueue(unused)
        first = asyncio.create_task(queue.run(transaction))
        await asyncio.to_thread(inside.wait, 60)
        first.cancel()
        await asyncio.sleep(0.05)
        first.cancel()  # once by a lost lease, once by the end of the process
        second = asyncio.create_task(queue.run(transaction))
        await asyncio.sleep(0.1)
        assert not first.done(), "it waits for its thread"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second

    asyncio.run(run())
    assert (most, running) == (1, 0)


def test_a_transfer_that_is_ended_for_others_is_deferred_once_and_then_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """G5: `host_slow` is uncounted and names a wait; from then on the host is slow, and its next one counts."""
    monkeypatch.setattr("steps.host_speed.SLOW_SECONDS", 0.1)
    monkeypatch.setattr("connectors.atproto.fetch_slots.CONFINED_SECONDS", 0.3)
    ended: list[tuple[str, str, bool]] = []
    closed: list[str] = []

    class Network:
        async def resolve(self, did: str, *, fresh: bool = False) -> ResolvedIdentity:
            return ResolvedIdentity(did, f"https://{did.rpartition(':')[2]}.test", None, None, None, None)

        async def get_repo(self, did: str, host: str, transfer: Transfer) -> Any:
            transfer.request_sent(time.monotonic())
            try:
                if "drip" not in host:
                    raise FetchFailed(Failure(FailureReason.HTTP_STATUS, "503"), host)
                await asyncio.sleep(5)
            finally:
                closed.append(did)

        async def record_failure(self, host: str, error: str) -> None:
            pass

    class Store:
        def retry(
            self, did: str, attempt: int, error: str, seconds: float, *, counted: bool, last: bool, **more: Any
        ) -> str:
            assert counted or 30.0 <= seconds <= 3600.0
            ended.append((did, error.partition(":")[0], counted))
            return "pending"

    network: Any = Network()
    store: Any = Store()
    unused: Any = None
    worker = BackfillWorker(
        Settings(backfill_concurrency=1, pds_concurrency=1),
        queue=store,
        resolver=network,
        budget=network,
        client=network,
        small=unused,
        large=unused,
    )

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for attempt in (1, 2):
                worker.start(group, Claim("did:plc:drip", attempt, "", None, "listed", "t", 0, 0), resync=False)
                await asyncio.sleep(0.05)
                worker.start(group, Claim("did:plc:good", attempt, "", None, "listed", "t", 0, 0), resync=False)
                while len(ended) < 2 * attempt:
                    worker.evict_overdue()
                    await asyncio.sleep(0.02)

    asyncio.run(run())
    assert ended == [
        ("did:plc:drip", "host_slow", False),
        ("did:plc:good", "http_status", True),
        ("did:plc:drip", "too_slow", True),
        ("did:plc:good", "http_status", True),
    ]
    assert closed == [did for did, *_ in ended]
