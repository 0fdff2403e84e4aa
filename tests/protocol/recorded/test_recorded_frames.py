"""What the official PDS said, recorded once (`record_official.py`): every frame decodes, and every commit is verified."""

from __future__ import annotations

import base64
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.firehose.encode import commit_message
from protocol.encoding.record_json import body_cid
from protocol.event_stream import Account, Commit, Identity, Sync, decode
from protocol.mst.tree import build
from protocol.verify_commit import Refused, Verified, VerifyReason, signed, verify
from schemas import wire

FILE = Path(__file__).parent / "official_pds.json.xz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    page: dict[str, Any] = json.loads(lzma.decompress(FILE.read_bytes()))
    return {**page, "frames": [base64.b64decode(frame) for frame in page["frames"]]}


def test_the_recorded_frames_are_of_every_kind(recorded: dict[str, Any]) -> None:
    """B4"""
    kinds = Counter(type(decode(frame)) for frame in recorded["frames"])
    assert kinds.keys() == {Commit, Sync, Identity, Account}
    assert kinds[Commit] > 300


def test_every_commit_passes_structure_inversion_and_signature(recorded: dict[str, Any]) -> None:
    """N1: nothing of the reference implementation's is refused, loosened or in need of another fetch."""
    actions: Counter[str] = Counter()
    for event in map(decode, recorded["frames"]):
        if not isinstance(event, Commit | Sync):
            continue
        found = verify(event, recorded["recorded_micros"])
        assert isinstance(found, Verified), found
        assert (found.problem, found.counted, found.bad_paths) == (None, (), 0)
        assert signed(found, recorded["keys"][event.did])
        if isinstance(event, Sync):
            continue
        assert (event.data_before is None) == (event.since is None)  # an account's first commit has nothing before it
        assert found.data_before == (event.data_before or build([]))
        message = wire.decode_live(commit_message(found, "", "2026-01-01T00:00:00.000Z").value)
        assert isinstance(message, wire.CommitEvent)
        actions.update(op.action for op in message.ops)
        for op in message.ops:
            raw = None if op.raw is None else base64.b64decode(op.raw + "==")
            assert op.cid is None or body_cid(wire.body(op.record), raw) == op.cid
    assert min(actions[name] for name in ("create", "update", "delete")) > 20


def test_every_commit_is_refused_once_it_is_another_s(recorded: dict[str, Any]) -> None:
    """N1: under another account's key, or with one operation less, none of them stands."""
    keys = recorded["keys"]
    refused: Counter[VerifyReason] = Counter()
    for event in map(decode, recorded["frames"]):
        if not isinstance(event, Commit):
            continue
        found = verify(event, recorded["recorded_micros"])
        assert isinstance(found, Verified)
        assert not any(signed(found, key) for did, key in keys.items() if did != event.did)
        if event.ops:
            fewer = Commit(**{name: getattr(event, name) for name in event.__struct_fields__} | {"ops": event.ops[1:]})
            verdict = verify(fewer, recorded["recorded_micros"])
            # where the tree before would need a block that nobody had to send, nothing can be said: that asks for a fetch
            problem = verdict if isinstance(verdict, Refused) else verdict.problem
            assert problem is not None
            refused[problem.reason] += 1
    assert refused.keys() <= {VerifyReason.WRONG_PREV_DATA, VerifyReason.MISSING_PROOF}
    assert refused[VerifyReason.WRONG_PREV_DATA] > 300
