import contextlib
from hashlib import sha256

import cbrrr
import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import cid
from tests.support.tiny_repo import base58, cid_of

KNOWN = "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"  # the empty tree of every repo without records


def test_known_cid() -> None:
    empty_tree = b"\xa2\x61e\x80\x61l\xf6"
    assert cid.dag_cbor_cid(empty_tree) == KNOWN
    assert cid.cid_bytes(KNOWN) == cid_of(empty_tree)


@given(st.binary(min_size=32, max_size=32), st.sampled_from([cid.DAG_CBOR, cid.RAW]))
def test_text_and_bytes_are_one_to_one(digest: bytes, prefix: bytes) -> None:
    text = cid.cid_str(prefix + digest)
    assert len(text) == 59
    assert cid.cid_bytes(text) == prefix + digest


@pytest.mark.parametrize(
    "text",
    ["", "b", "bafy", KNOWN.upper(), "b" + KNOWN[1:].upper(), KNOWN + "=", KNOWN[:-1] + "n", KNOWN[:-1] + "1", KNOWN + "\n", "z" + KNOWN[1:], "é" + KNOWN[1:], "b" + "a" * 58,
     "QmNLei78zWmzUdbeRB3CiUfAizWUrbeeZh5K1rhAQKCh51"],
)  # fmt: skip
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the library's sentences differ)
        cid.cid_bytes(text)


@given(st.text())
def test_only_value_errors(text: str) -> None:
    for candidate in (text, "b" + text, KNOWN[:30] + text):
        with contextlib.suppress(ValueError):
            cid.cid_bytes(candidate)


@given(st.binary(max_size=40))
def test_only_value_errors_for_bytes(raw: bytes) -> None:
    try:
        assert cid.cid_bytes(cid.cid_str(raw)) == raw or not cid.is_cid(raw)
    except ValueError:
        assert not cid.is_cid(raw)


@given(
    st.binary(max_size=90)
    | st.tuples(
        st.sampled_from([b"\x01\x71\x12\x20", b"\x01\x55\x13\x40", b"\x12\x20", b"\x01\x85\x01\x1e\x20"]),
        st.binary(min_size=31, max_size=65),
    ).map(b"".join)
)
def test_cids_of_any_kind_have_one_spelling(raw: bytes) -> None:
    """G3: what the tree may name has a text that leads back to its bytes; a node's decoder takes it as well."""
    if not cid.is_any_cid(raw):
        return
    text = cid.cid_str(raw)
    assert cid.any_cid_bytes(text) == raw
    assert libipld.decode_dag_cbor(cbrrr.encode_dag_cbor(cbrrr.CID(raw))) == raw
    with pytest.raises(ValueError):  # noqa: PT011 (the library's sentences differ)
        cid.any_cid_bytes(text + "a")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x12\x20" + sha256(b"x").digest(), base58(b"\x12\x20" + sha256(b"x").digest())[1:]),
        (b"\x01\x55\x00\x05hello", "bafkqablimvwgy3y"),
    ],
)
def test_known_foreign_cids(raw: bytes, text: str) -> None:
    assert cid.cid_str(raw) == text
    assert cid.any_cid_bytes(text) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\x02\x71\x12\x20" + bytes(32),
        b"\x01\xf1\x00\x12\x20" + bytes(32),
        b"\x01\x71\x12\x20" + bytes(33),
        b"\x01\x71\x00\x41" + bytes(65),
    ],
)
def test_bytes_that_are_no_cid_are_refused(raw: bytes) -> None:
    """Cut off, of a version nobody knows, a long spelling, bytes behind the digest, a digest above 64 bytes."""
    assert not cid.is_any_cid(raw)


@given(st.text())
def test_only_value_errors_for_cids_of_any_kind(text: str) -> None:
    for candidate in (text, "b" + text, "Qm" + text, "bafkqabtimvw" + text):
        with contextlib.suppress(ValueError):
            cid.any_cid_bytes(candidate)
