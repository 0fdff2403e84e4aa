import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_repo import cid_of

from steps import cid

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
