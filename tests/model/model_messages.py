"""What the model's backfill workers produce, and how its trace shows an event."""

from dataclasses import dataclass
from typing import Any

from connectors.postgres.repo_queue import Claim
from schemas import wire
from tests.model.model_filters import COLLECTIONS
from tests.model.model_network import Commit


@dataclass(slots=True)
class Job:
    """A worker's claim: what it has fetched and how much of that it has produced."""

    claim: Claim
    worker: str
    min_rev: str
    messages: list[Any] | None = None
    sent: int = 0
    outcome_at: int | None = None


def snapshot(job: Job, commit: Commit) -> list[Any]:
    claim = job.claim
    creates = [
        wire.CreateEvent(
            did=claim.did,
            attempt=claim.attempt,
            rev=commit.rev,
            collection=COLLECTIONS[rkey],
            rkey=rkey,
            cid=cid,
            time="t",
            commit=f"commit{commit.rev}",
        )
        for rkey, cid in sorted(commit.records.items())
    ]
    end = outcome(
        job,
        "synced",
        active=True,
        rev=commit.rev,
        commit=f"commit{commit.rev}",
        commit_block="AAAA",
        data=commit.data,
        count=len(creates),
    )
    return [*creates, end]


def outcome(job: Job, status: Any, **fields: Any) -> Any:
    claim = job.claim
    return wire.RepoOutcome(
        did=claim.did,
        attempt=claim.attempt,
        status=status,
        time="t",
        account_time=claim.account_time,
        account_seq=claim.account_seq,
        account_relay=claim.account_relay,
        account_seen=claim.account_seen,
        **fields,
    )


def short(event: Any) -> str:
    if isinstance(event, wire.CommitEvent):
        ops = [(op.action, op.rkey, op.cid, op.reason or "") for op in event.ops]
        return f"commit {event.did} {event.rev} since={event.since} {event.prev_data!r} -> {event.data!r} {ops}"
    if isinstance(event, wire.SyncEvent):
        return f"#sync {event.did} {event.rev} {event.data!r}"
    if isinstance(event, wire.CreateEvent):
        return f"create {event.did} attempt={event.attempt} {event.rev} {event.rkey}={event.cid}"
    if isinstance(event, wire.RepoOutcome):
        return (
            f"{event.status} {event.did} attempt={event.attempt} {event.rev} count={event.count} {event.account_time}"
        )
    return f"{type(event).__name__} {event.did} {event.time}/{event.seq} {getattr(event, 'status', '')}"
