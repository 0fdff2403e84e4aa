"""Rules between records, and what no record may do to the projection (N10)."""

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appview.projection.project import KNOWN, Source, project
from appview.projection.rows import COLUMNS
from tests.appview.projection.gates import Parent, Relations, holder, is_invalid_reply, may_quote, may_reply
from tests.appview.projection.lexicon_cases import CID, DID, LIST, NOW, WHOLE, places, replaced

YOU = "did:plc:" + "b" * 24
ROOT, OTHER = f"at://{YOU}/app.bsky.feed.post/a", f"at://{YOU}/app.bsky.feed.post/b"
THREAD = "app.bsky.feed.threadgate"


def gate(*rules: str) -> dict[str, Any]:
    return {"allow": [{"$type": f"{THREAD}#{rule}"} | ({"list": LIST} if rule == "listRule" else {}) for rule in rules]}


NOBODY, EVERYTHING = Relations(), Relations(True, True, True, frozenset({LIST}))


@pytest.mark.parametrize(
    ("record", "relations", "may"),
    [
        (None, NOBODY, True),
        ({}, NOBODY, True),
        (gate(), EVERYTHING, False),
        (gate("mentionRule"), Relations(mentioned=True), True),
        (gate("mentionRule"), Relations(follows=True, followed=True, lists=frozenset({LIST})), False),
        (gate("followerRule"), Relations(follows=True), True),
        (gate("followerRule"), Relations(followed=True), False),
        (gate("followingRule"), Relations(followed=True), True),
        (gate("followingRule"), Relations(follows=True), False),
        (gate("listRule"), Relations(lists=frozenset({LIST})), True),
        (gate("listRule"), Relations(lists=frozenset({LIST + "b"})), False),
        (gate("mentionRule", "followerRule"), Relations(follows=True), True),
        (gate("newRule"), EVERYTHING, False),
    ],
)
def test_gate_lets_in_whom_a_rule_names(record: Any, relations: Relations, may: bool) -> None:
    assert may_reply(record, YOU, DID, relations) is may
    assert may_reply(record, YOU, YOU, NOBODY), "the author of the root may always"


@pytest.mark.parametrize(
    ("record", "may"),
    [
        (None, True),
        ({}, True),
        ({"embeddingRules": []}, True),
        ({"embeddingRules": [{"$type": "com.example.rule"}]}, True),
        ({"embeddingRules": [{"$type": "com.example.rule"}, {"$type": "app.bsky.feed.postgate#disableRule"}]}, False),
    ],
)
def test_gate_of_a_post_forbids_quoting_to_others(record: Any, may: bool) -> None:
    assert may_quote(record, YOU, DID) is may
    assert may_quote(record, YOU, YOU)


@pytest.mark.parametrize(
    ("parent", "known", "invalid"),
    [
        (ROOT, Parent(None, False), False),
        (ROOT, Parent(OTHER, False), True),
        (ROOT, None, True),
        (OTHER, Parent(ROOT, False), False),
        (OTHER, Parent(ROOT, True), True),
        (OTHER, Parent(OTHER, False), True),
        (OTHER, Parent(None, False), True),
        (OTHER, None, True),
    ],
)
def test_reply_must_hang_in_the_thread_that_it_names(parent: str, known: Parent | None, invalid: bool) -> None:
    assert is_invalid_reply(ROOT, parent, known) is invalid


@pytest.mark.parametrize(
    "claims", list(permutations([("2024-01-02", "at://b"), ("2024-01-02", "at://a"), ("2024-01-03", "at://0")]))
)
def test_holder_of_a_key_does_not_depend_on_the_order(claims: tuple[tuple[str, str], ...]) -> None:
    assert holder(claims) == ("2024-01-02", "at://a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$type", "uri", "cid", "ref"]) | st.text(), inner, max_size=4)
    ),
    max_leaves=10,
)
WHAT = st.sampled_from([(whole, path) for whole in WHOLE for path in places(whole)])


@given(WHAT, JSON)
def test_no_value_in_a_record_makes_it_raise(what: tuple[Any, Any], value: Any) -> None:
    whole, path = what
    for collection in (whole["$type"], "chat.bsky.actor.declaration"):
        found = project(Source(DID, collection, "self", CID, json.dumps(replaced(whole, path, value)), NOW))
        assert found is not None
        assert found.invalid is None or (found.rows, found.notices) == ({}, [])
        for table, rows in found.rows.items():
            for row in rows:
                assert len(row) == len(COLUMNS[table])
                assert all(text is None or (type(text) is str and "\0" not in text) for text in row)


@given(st.sampled_from(sorted(KNOWN)), st.binary() | st.text() | JSON.map(json.dumps))
def test_no_text_instead_of_a_record_makes_it_raise(collection: str, text: bytes | str) -> None:
    assert project(Source(DID, collection, "self", CID, text, NOW)) is not None


@pytest.mark.parametrize(
    "deep",
    [
        b"[" * 5000,
        b'{"$type":"app.bsky.feed.post","a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        "\ud800",
        r'{"a":"\ud800"}',
    ],
)
def test_what_no_decoder_takes_is_invalid(deep: bytes | str) -> None:
    found = project(Source(DID, "app.bsky.feed.post", "a", CID, deep, NOW))
    assert found is not None
    assert found.invalid is not None
    assert found.invalid.startswith(": is not JSON")


@pytest.mark.parametrize(
    ("collection", "record"),
    [
        ("app.bsky.graph.follow", {"subject": "did:web:" + "a" * 2000}),
        ("app.bsky.graph.block", {"subject": "did:web:" + "a" * 2000}),
        (
            "app.bsky.feed.like",
            {"subject": {"uri": f"at://did:web:{'a' * 1900}/app.bsky.feed.post/3k", "cid": CID}},
        ),
    ],
)
def test_a_subject_that_no_index_holds_is_found_by_its_size(collection: str, record: dict[str, Any]) -> None:
    """H3: or PostgreSQL would refuse the batch, for each of a thousand such records."""
    whole = {"$type": collection, "createdAt": NOW, **record}
    found = project(Source(DID, collection, "a", CID, json.dumps(whole), NOW))
    assert found is not None
    assert "which no index holds" in (found.invalid or "")
    assert not found.rows
