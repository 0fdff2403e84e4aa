"""Labels: what is kept, what is normalised, what is rejected."""

from typing import Any

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.labels.encode import label_value
from protocol.labels import Label, LabelReason, LabelRejected, label_signed, parse_label, subject_key
from schemas import wire
from tests.support.tiny_repo import Key

SRC = "did:plc:labeler"
DID = "did:plc:subject"
CID = "bafyreiacyogscvvcr22npdyatx6omkiu4tycp2ktbb75ryhuawyj6npl3i"
GOOD: dict[str, Any] = {
    "ver": 1,
    "src": SRC,
    "uri": f"at://{DID}/app.bsky.feed.post/3kabc",
    "val": "spam",
    "cts": "2024-01-01T00:00:00+01:00",
    "sig": b"\x01" * 64,
}


def parsed(**changes: Any) -> Label:
    label = parse_label(GOOD | changes)
    assert isinstance(label, Label)
    return label


def test_a_label_becomes_a_message() -> None:
    value = label_value(parsed(cid=CID, exp="2030-01-01T00:00:00Z"), 5, "https://l.example")
    message = wire.decode_label(value)
    assert (message.seq, message.src, message.uri, message.val, message.cid) == (5, SRC, GOOD["uri"], "spam", CID)
    assert (message.cts, message.exp) == ("2023-12-31T23:00:00.000Z", "2030-01-01T00:00:00.000Z")
    assert (message.neg, message.relay, message.sig) == (False, "https://l.example", ("AQEB" * 22)[:86])


def test_an_account_label_and_a_negation() -> None:
    label = parsed(uri=DID, neg=True)
    assert (subject_key(label.uri), label.neg, wire.decode_label(label_value(label, 5, "")).neg) == (DID, True, True)


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/page?a=b#c",
        "https://bücher.example/é",
        "at://bob.example",
        "at://bob.example/app.bsky.feed.post/3k",
        "mailto:bob@example.com",
    ],
)
def test_a_subject_without_a_did_is_kept_under_a_hash_of_its_uri(uri: str) -> None:
    """B5: the lexicon's subject is any URI."""
    assert parsed(uri=uri).uri == uri
    key = subject_key(uri)
    assert key == subject_key(uri) != subject_key(GOOD["uri"])
    assert key.startswith("uri:")
    assert len(key) < 64


def test_an_at_uri_of_a_did_is_keyed_by_the_did_whatever_its_path_is() -> None:
    """G4: all labels of an account meet in one partition."""
    assert subject_key(f"at://{DID}/not-a-collection/#fragment") == DID


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ver": 2}, LabelReason.BAD_VERSION),
        ({"src": "bob"}, LabelReason.BAD_SRC),
        ({"src": None}, LabelReason.BAD_SRC),
        ({"uri": "no scheme"}, LabelReason.BAD_URI),
        ({"uri": "https://example.com/a b"}, LabelReason.BAD_URI),
        ({"uri": "https://example.com/\x9b"}, LabelReason.BAD_URI),
        ({"uri": "https://example.com/\0"}, LabelReason.BAD_URI),
        ({"uri": "https://example.com/" + "x" * 2600}, LabelReason.BAD_URI),
        ({"uri": None}, LabelReason.BAD_URI),
        ({"val": ""}, LabelReason.BAD_VAL),
        ({"val": "x" * 129}, LabelReason.BAD_VAL),
        ({"val": "a\0b"}, LabelReason.BAD_VAL),
        ({"cts": "today"}, LabelReason.BAD_CTS),
        ({"cts": None}, LabelReason.BAD_CTS),
        ({"exp": "never"}, LabelReason.BAD_EXP),
        ({"exp": 5}, LabelReason.BAD_EXP),
        ({"cid": "nonsense"}, LabelReason.BAD_CID),
        ({"neg": "yes"}, LabelReason.BAD_NEG),
        ({"sig": "text"}, LabelReason.BAD_SIG),
    ],
)
def test_what_is_no_label_is_refused_with_its_reason(changes: dict[str, Any], reason: LabelReason) -> None:
    """G7"""
    rejected = parse_label(GOOD | changes)
    assert isinstance(rejected, LabelRejected)
    assert rejected.reason is reason


def test_a_label_that_is_no_map_is_rejected() -> None:
    assert isinstance(parse_label([1]), LabelRejected)


@given(
    st.dictionaries(st.sampled_from(list(GOOD)), st.none() | st.text() | st.binary() | st.integers() | st.booleans())
)
def test_nothing_raises(changes: dict[str, Any]) -> None:
    """G7"""
    parse_label(GOOD | changes)


def test_a_label_is_signed_as_it_came_or_as_the_official_labeler_signs_it() -> None:
    """Null values and a false `neg` are not in what the official labeler signs; any other change is refused."""
    key = Key()
    bare = {name: value for name, value in GOOD.items() if name != "sig"}
    sig = key.sign(cbrrr.encode_dag_cbor(bare))
    for value in (bare, bare | {"neg": False, "cid": None}, bare | {"x": 1}):
        assert label_signed(value | {"sig": sig}, key.did_key)
    own = bare | {"neg": False, "x": 1}
    assert label_signed(own | {"sig": key.sign(cbrrr.encode_dag_cbor(own))}, key.did_key)
    for value in (bare | {"val": "other"}, bare | {"neg": True}, bare | {"uri": object()}):
        assert not label_signed(value | {"sig": sig}, key.did_key)
    for wrong in (None, "text", sig[:-1]):
        assert not label_signed(bare | {"sig": wrong}, key.did_key)
    assert not label_signed(bare | {"sig": sig}, Key().did_key)
