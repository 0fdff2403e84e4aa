"""The firehose's `dedup` step by itself: which of several relays' copies of an event goes on."""

from __future__ import annotations

from typing import Any

from connectors.atproto.deferred_events import new_deferred
from connectors.atproto.stream_sockets import Frame
from flows.firehose.flow import deduplicator
from flows.streams import Received
from protocol.event_stream import Commit
from protocol.syntax import tid_micros
from protocol.verify_commit import Verified, verify
from steps.dedup import DedupCache
from tests.support.tiny_repo import DID, REV, car, sample

REPO = sample(3)
TIME = "2026-01-01T00:00:00.000Z"


def copy(relay: str, **changes: Any) -> Received:
    """A verified copy of one commit, as a relay brings it."""
    ops = [{"action": "create", "path": path, "cid": cid} for path, cid in REPO.leaves.items()]
    fields: dict[str, Any] = {"since": None, "commit": REPO.commit, "blocks": REPO.car(), "ops": ops}
    fields |= {"data_before": None, "no_blocks": False}
    event = Commit(seq=1, did=DID, rev=REV, time=TIME, **fields | changes)
    found = verify(event, tid_micros(REV) + 1)
    assert isinstance(found, Verified), found
    return Received(Frame(relay, b""), found)


def broken(relay: str) -> Received:
    return copy(relay, commit=b"")


def relays(received: list[Received]) -> list[str]:
    return [one.frame.upstream for one in received]


def test_a_broken_copy_never_masks_a_whole_one() -> None:
    """H6: whichever comes first, and in one batch the whole copy goes alone."""
    step = deduplicator(DedupCache(100), new_deferred())
    assert relays(step([broken("a")])) == ["a"]
    assert relays(step([broken("b"), copy("c")])) == ["c"]
    assert relays(step([copy("a"), broken("d")])) == []


def test_a_broken_copy_behind_a_whole_one_is_a_duplicate() -> None:
    """H6: it would only cost a look."""
    step = deduplicator(DedupCache(100), new_deferred())
    assert relays(step([copy("a")])) == ["a"]
    lost = next(iter(REPO.leaves.values()))
    lean = car(REPO.commit, {cid: block for cid, block in REPO.blocks.items() if cid != lost})
    assert relays(step([broken("b"), copy("b", blocks=lean), copy("b")])) == []
