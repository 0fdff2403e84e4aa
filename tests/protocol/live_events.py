"""Live commits and #sync events of a small repo, and what verification makes of them."""

from typing import Any

from flows.firehose.encode import commit_message
from protocol.event_stream import Commit, Sync
from protocol.syntax import tid_micros
from protocol.verify_commit import Refused, Verified, VerifyReason, verify
from schemas import wire
from tests.support.tiny_repo import DID, REV, Repo, car

NOW = tid_micros(REV) + 1_000_000
TIME = "2026-01-01T00:00:00.000Z"


def event(repo: Repo, ops: list[Any] | None = None, **changes: Any) -> Commit:
    if ops is None:
        ops = [{"action": "create", "path": path, "cid": cid} for path, cid in repo.leaves.items()]
    fields: dict[str, Any] = {
        "seq": 5,
        "did": DID,
        "rev": REV,
        "time": TIME,
        "since": None,
        "commit": repo.commit,
        "blocks": repo.car(),
        "ops": ops,
        "data_before": None,
        "no_blocks": False,
    }
    return Commit(**fields | changes)


def verified(it: Commit | Sync) -> Verified:
    result = verify(it, NOW)
    assert isinstance(result, Verified), result
    return result


def problem_of(it: Commit | Sync) -> VerifyReason:
    """Why the commit stands and its operations are unknown."""
    result = verify(it, NOW)
    assert isinstance(result, Verified), result
    assert (result.ops, result.problem is None) == (None, False)
    assert isinstance(message(result), wire.SyncEvent)
    assert result.problem is not None
    return result.problem.reason


def message(result: Verified) -> Any:
    return wire.decode_live(commit_message(result, "https://relay.example", TIME).value)


def refusal(it: Commit | Sync) -> VerifyReason:
    result = verify(it, NOW)
    assert isinstance(result, Refused), result
    assert result.did == DID
    return result.reason


def following(before: Repo, **changes: Any) -> tuple[Repo, Commit]:
    """A commit upon a repo: one record more, one changed, one gone; the blocks of both trees at hand."""
    paths = sorted(before.records)
    records = {path: value for path, value in before.records.items() if path != paths[0]}
    records[paths[1]] = {"$type": "x", "text": "changed"}
    records["app.bsky.feed.post/3knew"] = {"$type": "x", "text": "new"}
    after = Repo(records, key=before.key)
    ops = [
        {"action": "create", "path": "app.bsky.feed.post/3knew", "cid": after.leaves["app.bsky.feed.post/3knew"]},
        {"action": "update", "path": paths[1], "cid": after.leaves[paths[1]], "prev": before.leaves[paths[1]]},
        {"action": "delete", "path": paths[0], "cid": None, "prev": before.leaves[paths[0]]},
    ]
    blocks = {cid: before.blocks[cid] for cid in before.nodes} | after.blocks
    fields: dict[str, Any] = {"ops": ops, "blocks": car(after.commit, blocks), "data_before": before.data}
    return after, event(after, **fields | changes)
