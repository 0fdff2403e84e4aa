"""Events and repos for examples of the gate, with defaults that do not matter to the example."""

from schemas import wire
from steps.gate.model import Drop, Phase, Reason, Repo, Transition

DID = "did:plc:one"
TIME = "2026-01-01T00:00:00.000Z"


def op(action: str, rkey: str, cid: str | None = "cid", reason: str | None = None) -> wire.Op:
    return wire.Op(action=action, collection="c.o.l", rkey=rkey, cid=cid, reason=reason)  # type: ignore[arg-type]  # a Literal


def commit(
    rev: str, before: str | None, after: str, *ops: wire.Op, since: str | None = None, did: str = DID
) -> wire.CommitEvent:
    """A commit that leads from the root `before` to the root `after`."""
    return wire.CommitEvent(
        seq=1,
        time=TIME,
        did=did,
        rev=rev,
        commit="commit" + rev,
        commit_block="AAAA",
        data=after,
        prev_data=before,
        since=since,
        ops=list(ops),
    )


def sync_event(rev: str, data: str) -> wire.SyncEvent:
    return wire.SyncEvent(seq=1, time=TIME, did=DID, rev=rev, data=data)


def account(
    time: str, seq: int = 1, *, active: bool = True, status: str | None = None, relay: str = ""
) -> wire.AccountEvent:
    return wire.AccountEvent(seq=seq, time=time, did=DID, active=active, status=status, relay=relay)


def identity(time: str, seq: int = 1, handle: str | None = None) -> wire.IdentityEvent:
    return wire.IdentityEvent(seq=seq, time=time, did=DID, handle=handle)


def create(attempt: int, rev: str, rkey: str, cid: str = "cid", did: str = DID) -> wire.CreateEvent:
    return wire.CreateEvent(
        did=did, attempt=attempt, rev=rev, collection="c.o.l", rkey=rkey, cid=cid, time=TIME, commit="commit" + rev
    )


def synced(attempt: int, rev: str, data: str, count: int, ratchet: tuple[str, int] = ("", 0)) -> wire.RepoOutcome:
    return wire.RepoOutcome(
        did=DID,
        attempt=attempt,
        status="synced",
        active=True,
        time=TIME,
        rev=rev,
        commit="commit" + rev,
        data=data,
        count=count,
        account_time=ratchet[0],
        account_seq=ratchet[1],
    )


def ended(attempt: int, reason: str, ratchet: tuple[str, int] = ("", 0), *, deleted: bool = False) -> wire.RepoOutcome:
    """The outcome of an account that cannot be fetched."""
    return wire.RepoOutcome(
        did=DID,
        attempt=attempt,
        status="deleted" if deleted else "unavailable",
        active=False,
        time=TIME,
        reason=reason,
        account_time=ratchet[0],
        account_seq=ratchet[1],
    )


def repo_in(phase: Phase, **fields: object) -> Repo:
    """A repo under attempt 1 at rev 5 with root "five", from live commits."""
    defaults: dict[str, object] = {"attempt": 1, "rev": "5", "data": "five", "first_attempt": 1}
    return Repo(DID, phase=phase, **(defaults | fields))  # type: ignore[arg-type]  # fields of Repo by name


SYNC = repo_in(Phase.SYNC)
BACKFILL = repo_in(Phase.BACKFILL, rev="", data=None, first_attempt=None)


def dropped(step: Transition) -> Reason | None:
    return next((effect.reason for effect in step.effects if isinstance(effect, Drop)), None)
