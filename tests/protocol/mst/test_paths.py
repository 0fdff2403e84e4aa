"""Keys of a tree and the rows that stand for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.mst.record_path import row_path
from tests.protocol.mst.row_key import key_of

ODD = [
    b"nonsense",
    b"nonsense/",
    b"/nonsense",
    b"/",
    b"x/y/z",
    b"\\/x",
    b"\\",
    b"a.b.c/\xff\x00",
    b"\xc3\xbc/1",
    b"a/\\YQ==",
]


@given(st.lists(st.binary(min_size=1, max_size=40), unique=True, max_size=30))
def test_every_key_has_a_row_of_its_own(keys: list[bytes]) -> None:
    """G3: whatever the bytes, rows give back the keys, and no two keys share a row."""
    rows = [row_path(key.decode("latin-1"))[:2] for key in [*keys, *ODD]]
    assert [key_of(*row) for row in rows] == [*keys, *ODD]
    assert len(set(rows)) == len({*keys, *ODD})
    assert all(part.isascii() and part.isprintable() for row in rows for part in row)


def test_a_valid_path_is_itself() -> None:
    assert row_path("app.bsky.feed.post/3kabc") == ("app.bsky.feed.post", "3kabc", True)


@pytest.mark.parametrize("row", [("a.b.c", "\\%"), ("\\a", "x")])
def test_a_row_without_a_valid_key_is_refused(row: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        key_of(*row)
