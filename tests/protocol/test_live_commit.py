"""Live commits: from an event to its message, and every way in which an event can be refused."""

import json
from hashlib import sha256
from typing import Any

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flows.firehose import encode as live_messages
from flows.firehose.encode import commit_message, moment
from protocol.cid import cid_str
from protocol.encoding.record_json import body_cid
from protocol.enforcement import Enforcement
from protocol.event_stream import Sync
from protocol.mst.invert import Change, invert
from protocol.syntax import FUTURE_MICROS, tid_from_micros
from protocol.verify_commit import MAX_OPS, Refused, Verified, VerifyReason, signed, verify
from schemas import wire
from tests.protocol.live_events import NOW, TIME, event, following, message, problem_of, refusal, verified
from tests.support.tiny_repo import DID, REV, Repo, car, cid_of, sample, tree


def test_a_commit_becomes_its_message_and_every_body_hashes_back_to_its_cid() -> None:
    repo = sample(12)
    result = message(verified(event(repo)))
    assert (result.did, result.rev, result.data, result.commit) == (DID, REV, cid_str(repo.data), cid_str(repo.commit))
    assert {f"{op.collection}/{op.rkey}": op.cid for op in result.ops} == {
        p: cid_str(c) for p, c in repo.leaves.items()
    }
    assert all(body_cid(wire.body(op.record), None) == op.cid for op in result.ops)


def test_empty_ops_are_a_commit() -> None:
    result = message(verified(event(sample(3), ops=[])))
    assert (result.ops, result.data) == ([], cid_str(sample(3).data))


def test_updates_and_deletes_carry_what_they_replace() -> None:
    repo = sample(1)
    ((path, cid),) = repo.leaves.items()
    gone, old = "app.bsky.feed.post/3kgone", sample(2).data
    ops = [
        {"action": "update", "path": path, "cid": cid, "prev": old},
        {"action": "delete", "path": gone, "cid": None, "prev": old},
    ]
    first, second = message(verified(event(repo, ops=ops))).ops
    assert (first.action, first.cid, first.prev) == ("update", cid_str(cid), cid_str(old))
    assert (second.action, second.cid, second.prev, wire.body(second.record)) == ("delete", None, cid_str(old), None)


def test_one_missing_record_block_does_not_drop_its_siblings() -> None:
    """G7"""
    repo = sample(5)
    lost = next(iter(repo.leaves.values()))
    blocks = {cid: block for cid, block in repo.blocks.items() if cid != lost}
    result = commit_message(verified(event(repo, blocks=car(repo.commit, blocks))), "", TIME)
    ops = wire.decode_live(result.value).ops
    assert result.missing == 1
    assert [(op.reason, wire.body(op.record) is None) for op in ops if op.cid == cid_str(lost)] == [
        ("missing_block", True)
    ]
    assert sum(wire.body(op.record) is not None for op in ops) == 4


def test_an_odd_record_keeps_its_block() -> None:
    repo = Repo({"app.bsky.feed.post/3kabc": {"$type": "x", "ratio": 1.5}})
    (op,) = message(verified(event(repo))).ops
    assert op.reason == "float"
    assert op.raw


def test_an_op_on_a_leaf_that_cannot_be_checked_is_a_row_without_a_body_as_in_a_snapshot() -> None:
    """G3: one rule live and in a snapshot; the other ops of the commit are applied, and nothing counts as missing."""
    repo = sample(3)
    raw, sha512 = b"\x01\x55\x12\x20" + sha256(b"bytes").digest(), b"\x01\x71\x13\x40" + bytes(64)
    leaves = repo.leaves | {"a.b.c/raw": raw, "a.b.c/sha512": sha512}
    blocks = repo.blocks | {raw: b"bytes", sha512: b"no hash of ours"}
    root = tree(leaves, blocks)
    signed_repo = Repo({}, overrides={"data": cbrrr.CID(root)}, key=repo.key)
    ops = [{"action": "create", "path": path, "cid": cid} for path, cid in leaves.items()]
    it = event(repo, ops, commit=signed_repo.commit, blocks=car(signed_repo.commit, blocks | signed_repo.blocks))
    it = replace(it, data_before=tree({}, {}))
    encoded = commit_message(verified(it), "", TIME)
    found = {op.rkey: op for op in wire.decode_live(encoded.value).ops if op.collection == "a.b.c"}
    assert (encoded.problem, encoded.missing) == (None, 0)
    assert {rkey: (op.cid, op.reason, op.raw, wire.body(op.record)) for rkey, op in found.items()} == {
        "raw": (cid_str(raw), "raw_block", "Ynl0ZXM", None),
        "sha512": (cid_str(sha512), "foreign_cid", None, None),
    }
    deleted = [Change(path.encode(), cid, None) for path, cid in leaves.items()]
    assert invert(root, blocks.get, deleted) == tree({}, {})


def test_a_record_above_the_limit_of_a_block_makes_us_fetch_the_repo() -> None:
    """G7: nothing of it is false, so it is no dead letter that leaves the repo behind."""
    assert problem_of(event(Repo({"a.b.c/large": {"text": "x" * (3 << 20)}}))) is VerifyReason.BLOCKS_TOO_LARGE
    lax = verify(event(Repo({"a.b.c/large": {"text": "x" * (3 << 20)}})), NOW, Enforcement.REPORT)
    assert isinstance(lax, Verified)
    assert message(lax).ops[0].reason == "missing_block", "the gate fetches the repo"


def test_a_path_that_no_record_can_have_costs_that_op_its_body_only() -> None:
    """G7, G3: the tree holds the leaf, so a row stands for it."""
    records: dict[str, object] = {f"app.bsky.feed.post/{rkey}": {"$type": "x"} for rkey in ("3ka", "..", "3kb")}
    result = verified(event(Repo(records)))
    assert (len(result.ops or []), result.bad_paths) == (3, 1)
    odd = message(result).ops[1]
    assert (odd.collection, odd.rkey, odd.reason, wire.body(odd.record)) == (
        "app.bsky.feed.post",
        "..",
        "bad_path",
        None,
    )


@pytest.mark.parametrize(
    "op",
    [
        "text",
        {"action": "create", "cid": b"x" * 36},
        {"action": "create", "path": "app.bsky.feed.post/3k"},
        {"action": "create", "path": "app.bsky.feed.post/3k", "cid": b"short"},
        {"action": "explode", "path": "app.bsky.feed.post/3k", "cid": None},
        {"action": "delete", "path": "app.bsky.feed.post/3k", "cid": b"x" * 36},
        {"action": "delete", "path": "app.bsky.feed.post/3k", "cid": None, "prev": "text"},
    ],
)
def test_contradictory_ops_become_a_sync_so_that_the_repo_is_fetched(op: Any) -> None:
    """G7: the repo's state is known, how it came about is not."""
    repo = sample(2)
    result = verified(event(repo, ops=[op]))
    assert result.problem
    encoded = commit_message(result, "", TIME)
    synced = wire.decode_live(encoded.value)
    assert isinstance(synced, wire.SyncEvent)
    assert (synced.rev, synced.data, encoded.problem) == (REV, cid_str(repo.data), result.problem)


def test_one_path_twice_makes_no_sense() -> None:
    repo = sample(1)
    ops = [{"action": "create", "path": path, "cid": cid} for path, cid in repo.leaves.items()]
    assert problem_of(event(repo, ops=ops * 2)) is VerifyReason.DUPLICATE_PATH


def test_too_big_and_rebase_become_a_sync() -> None:
    repo = sample(2)
    encoded = commit_message(verified(event(repo, no_blocks=True)), "", TIME)
    assert encoded.problem is not None
    assert encoded.problem.reason is VerifyReason.TOO_BIG
    assert isinstance(wire.decode_live(encoded.value), wire.SyncEvent)


def test_a_message_that_is_too_large_becomes_a_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §5.5."""
    repo = Repo({"app.bsky.feed.post/3kabc": {"$type": "x", "text": "\0" * 100_000}})
    assert wire.decode_live(commit_message(verified(event(repo)), "", TIME).value).ops
    monkeypatch.setattr(live_messages, "MAX_VALUE_BYTES", 500_000)  # NUL takes six bytes in JSON
    encoded = commit_message(verified(event(repo)), "", TIME)
    assert isinstance(wire.decode_live(encoded.value), wire.SyncEvent)
    assert encoded.problem is not None
    assert encoded.problem.reason is VerifyReason.MESSAGE_TOO_LARGE


def test_a_sync_event_carries_the_commit() -> None:
    repo = sample(3)
    blocks = car(repo.commit, {repo.commit: repo.blocks[repo.commit]})
    synced = message(verified(Sync(7, DID, REV, TIME, blocks)))
    assert isinstance(synced, wire.SyncEvent)
    assert (synced.seq, synced.data) == (7, cid_str(repo.data))


def test_refusals() -> None:
    """G7, G9: no commit of the account is found, or one that could freeze it. Each names its DID."""
    repo = sample(3)
    late = tid_from_micros(NOW + FUTURE_MICROS + 1_000_000)
    assert refusal(event(repo, blocks=b"")) is VerifyReason.BAD_CAR
    assert refusal(event(repo, blocks=car(repo.commit, {}))) is VerifyReason.NO_COMMIT_BLOCK
    assert refusal(event(sample(1, did="did:plc:somebodyelse"))) is VerifyReason.WRONG_DID
    assert refusal(event(sample(1, rev=late), rev=late)) is VerifyReason.FUTURE_REV
    assert refusal(event(sample(1, rev=late))) is VerifyReason.FUTURE_REV
    assert refusal(event(sample(1, overrides={"version": 2}))) is VerifyReason.BAD_COMMIT
    block = cbrrr.encode_dag_cbor({"not": "a commit"})
    odd = car(cid_of(block), {cid_of(block): block})
    assert refusal(event(repo, commit=cid_of(block), blocks=odd)) is VerifyReason.BAD_COMMIT
    assert refusal(event(repo, wrong_field="ops", blocks=b"")) is VerifyReason.BAD_FIELD


@pytest.mark.parametrize("blocks", [b"", car(sample(3).commit, {})], ids=["empty", "header"])
def test_too_big_without_its_block_names_its_rev(blocks: bytes) -> None:
    """H6: control asks the PDS whether there is news. The rev of a frame that is odd may be none."""
    result = verify(event(sample(3), blocks=blocks, ops=[], no_blocks=True), NOW)
    assert result == Refused(VerifyReason.TOO_BIG_NO_BLOCK, REV, DID)
    odd = verify(event(sample(3), blocks=blocks, ops=[], no_blocks=True, rev="", wrong_field="rev"), NOW)
    assert isinstance(odd, Refused)
    assert odd.reason is VerifyReason.BAD_FIELD


def test_a_commit_is_not_lost_for_its_unsigned_frame() -> None:
    """H6: the signed rev and root hold, the operations do not, and the reason is named."""
    repo, other = sample(3), sample(4)
    late = tid_from_micros(NOW + FUTURE_MICROS + 1_000_000)
    old = tid_from_micros(NOW - 5)
    assert problem_of(event(repo, commit=other.commit)) is VerifyReason.ROOT_IS_NOT_COMMIT
    first = car(repo.commit, {repo.commit: repo.blocks[repo.commit]} | repo.blocks)
    assert problem_of(event(repo, blocks=first[:-1])) is VerifyReason.BAD_CAR
    assert problem_of(event(repo, wrong_field="prevData")) is VerifyReason.BAD_FIELD
    for claimed in (old, late, ""):
        result = verified(event(repo, rev=claimed))
        assert result.problem is not None
        assert (result.problem.reason, message(result).rev) == (VerifyReason.WRONG_REV, REV)


@pytest.mark.parametrize("last", [False, True])
def test_a_commit_block_is_found_at_any_place_of_a_damaged_car(last: bool) -> None:
    """H6"""
    repo = sample(3)
    rest = {cid: block for cid, block in repo.blocks.items() if cid != repo.commit}
    own = {repo.commit: repo.blocks[repo.commit]}
    spoiled = {next(iter(rest)): b"not what it hashes to"}
    blocks = car(repo.commit, rest | spoiled | own if last else own | rest | spoiled)
    assert problem_of(event(repo, blocks=blocks)) is VerifyReason.BAD_CAR
    assert signed(verified(event(repo, blocks=blocks)), repo.key.did_key)
    tampered = blocks.replace(repo.blocks[repo.commit], bytes(len(repo.blocks[repo.commit])))
    assert refusal(event(repo, blocks=tampered)) is VerifyReason.BAD_CAR


def test_the_protocol_s_limits() -> None:
    """N1: a commit above them stands, and its operations are not taken; a #sync above them is news too."""
    repo = sample(3)
    many = [{"action": "delete", "path": f"a.b.c/{at}", "cid": None, "prev": repo.data} for at in range(MAX_OPS + 1)]
    assert problem_of(event(repo, ops=many)) is VerifyReason.TOO_MANY_OPS
    padding = {cid_of(block): block for block in (bytes([at]) * 1_000_000 for at in (1, 2))}
    large = event(repo, blocks=car(repo.commit, repo.blocks | padding))
    assert problem_of(large) is VerifyReason.BLOCKS_TOO_LARGE
    assert len(verified(event(repo, ops=many[:MAX_OPS], data_before=None)).ops or []) == MAX_OPS
    small = {cid_of(block): block for block in (b"\1" * 10_000,)}
    sync = Sync(7, DID, REV, TIME, car(repo.commit, {repo.commit: repo.blocks[repo.commit]} | small))
    assert problem_of(sync) is VerifyReason.SYNC_TOO_LARGE
    result = verify(large, NOW, Enforcement.REPORT)
    assert isinstance(result, Verified)
    assert (len(result.ops or []), result.counted) == (3, (VerifyReason.BLOCKS_TOO_LARGE,))


def test_a_reported_failure_passes_and_is_named() -> None:
    before = sample(20)
    after, _ = following(before)
    _, commit = following(before, data_before=after.data)
    result = verify(commit, NOW, Enforcement.REPORT)
    assert isinstance(result, Verified)
    assert (len(result.ops or []), result.data_before) == (3, after.data)
    assert result.counted == (VerifyReason.WRONG_PREV_DATA,)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_no_damage_raises(at: int, junk: bytes) -> None:
    """G7"""
    repo = sample(3)
    whole = repo.car()
    verify(event(repo, blocks=whole[:at] + junk + whole[at + len(junk) :]), NOW)


def test_moments() -> None:
    latest = "2026-01-01T00:05:00.000Z"
    assert moment("2025-12-31T23:00:00-01:00", TIME, latest) == TIME
    assert moment("2026-01-01T00:04:59.9999Z", TIME, latest) == "2026-01-01T00:04:59.999Z"
    assert moment("2027-01-01T00:00:00Z", TIME, latest) == TIME
    assert moment(None, TIME, latest) == TIME


def test_the_messages_are_the_definition_s() -> None:
    from schemas.events import CommitEvent

    value = commit_message(verified(event(sample(2))), "https://relay.example", TIME).value
    assert CommitEvent.model_validate(json.loads(value)).type == "commit"
