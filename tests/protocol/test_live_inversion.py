"""A live commit's operations are proven by inverting them on its tree."""

import cbrrr

from protocol.cid import cid_str
from protocol.verify_commit import VerifyReason, signed
from tests.protocol.live_events import event, following, message, problem_of, verified
from tests.support.tiny_repo import Key, Repo, car, cid_of, sample


def test_operations_are_proven_by_inversion() -> None:
    """N1"""
    before = sample(20)
    after, commit = following(before)
    result = verified(commit)
    assert (len(result.ops or []), result.data_before) == (3, before.data)
    assert signed(result, after.key.did_key)
    assert not signed(result, Key().did_key)


def test_without_prev_data_the_message_has_the_root_of_the_inversion() -> None:
    """A legacy event: the gate then compares a proven root, not a claim."""
    before = sample(20)
    _, commit = following(before, data_before=None)
    assert message(verified(commit)).prev_data == cid_str(before.data)


def test_operations_that_the_trees_deny_are_not_taken() -> None:
    """N1, H6: each is named, none passes, and the commit stands without them."""
    before = sample(20)
    after, commit = following(before)
    create, update, delete = commit.ops
    hidden = event(after, ops=[create, update], blocks=commit.blocks, data_before=before.data)
    assert problem_of(hidden) is VerifyReason.WRONG_PREV_DATA
    swapped = {**update, "cid": before.leaves[update["path"]]}
    assert problem_of(following(before, ops=[create, swapped, delete])[1]) is VerifyReason.OP_NOT_IN_TREE
    kept = {**delete, "path": sorted(after.leaves)[5]}
    assert problem_of(following(before, ops=[create, update, kept])[1]) is VerifyReason.OP_NOT_IN_TREE
    lied = {**update, "prev": before.data}
    assert problem_of(following(before, ops=[create, lied, delete])[1]) is VerifyReason.WRONG_PREV_DATA
    assert problem_of(following(before, data_before=after.data)[1]) is VerifyReason.WRONG_PREV_DATA


def test_a_malformed_tree_is_refused() -> None:
    records: dict[str, object] = {"app.bsky.feed.post/3ka": {"$type": "x"}}
    node = cbrrr.encode_dag_cbor({"e": "none", "l": None})
    repo = Repo(records, overrides={"data": cbrrr.CID(cid_of(node))})
    assert problem_of(event(repo, blocks=car(repo.commit, repo.blocks | {cid_of(node): node}))) is VerifyReason.BAD_TREE


def test_what_cannot_be_proven_is_not_called_false() -> None:
    """G7: the commit stands, its operations are unknown, the repo is fetched."""
    before = sample(20)
    after, commit = following(before)
    lean = {cid: block for cid, block in after.blocks.items() if cid != after.data}
    assert problem_of(event(after, ops=commit.ops, blocks=car(after.commit, lean))) is VerifyReason.MISSING_PROOF


def test_an_update_or_delete_without_prev_makes_us_fetch() -> None:
    """H6: no root that never existed is named, beside a prevData and in a legacy event alike."""
    before = sample(20)
    create, update, delete = following(before)[1].ops
    bare, lone = ({key: value for key, value in op.items() if key != "prev"} for op in (delete, update))
    for root in (before.data, None):
        assert problem_of(following(before, ops=[create, update, bare], data_before=root)[1]) is VerifyReason.NO_PREV
        assert problem_of(following(before, ops=[create, lone, delete], data_before=root)[1]) is VerifyReason.NO_PREV
        assert problem_of(following(before, ops=[{**update, "prev": None}], data_before=root)[1]) is (
            VerifyReason.NO_PREV
        )
