"""A page of listRepos as an upstream answers it: what is read, and what is not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.listing.list_page import ListEntry, PageFailure, PageTrouble, RepoPage, read_page


@pytest.mark.parametrize(
    "body", [None, [], {}, {"repos": 5}, {"repos": [], "cursor": {}}, {"repos": [], "cursor": "x" * 5000}]
)
def test_invalid_pages(body: Any) -> None:
    """G7"""
    assert isinstance(read_page(body, 0), PageFailure)


def test_a_bad_entry_is_dropped_and_not_its_page() -> None:
    """G7"""
    rows = [
        {"did": "did:plc:good", "rev": "3kabcdefghijk", "head": "b", "active": True},
        {"did": "did:plc:norev", "rev": "", "head": ""},
        {"did": "did:plc:future", "rev": "bzzzzzzzzzzzz", "active": True},
        {"did": "did:plc:gone", "active": False, "status": "takendown"},
        {"did": "did:plc:odd", "active": "yes", "status": "suspended"},
        {"did": "nonsense"},
        {"rev": "3kabcdefghijk"},
        "text",
        None,
    ]
    result = read_page({"repos": rows, "cursor": 42}, 1_800_000_000_000_000)
    assert isinstance(result, RepoPage)
    assert (result.cursor, result.rejected) == ("42", 4)
    assert result.entries == [
        ListEntry("did:plc:good", "3kabcdefghijk", True, None),
        ListEntry("did:plc:norev", "", True, None),
        ListEntry("did:plc:future", "", True, None),
        ListEntry("did:plc:gone", "", False, "takendown"),
        ListEntry("did:plc:odd", "", False, "suspended"),
    ]


@pytest.mark.parametrize(
    ("status", "served"),
    [("throttled", True), ("desynchronized", True), ("takendown", False), ("something-of-tomorrow", False)],
)
def test_what_a_relay_does_not_follow_is_listed_as_served(status: str, served: bool) -> None:
    """An account above its PDS's limit at the relay is inactive there, and goes on at its PDS: it is fetched."""
    found = read_page({"repos": [{"did": "did:plc:a", "active": False, "status": status}]}, 0)
    assert isinstance(found, RepoPage)
    assert found.entries == [ListEntry("did:plc:a", "", served, status)]


@given(st.recursive(st.none() | st.text() | st.integers(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
def test_no_answer_raises(body: Any) -> None:
    """G7"""
    read_page(body, 0)
    read_page({"repos": [body], "cursor": body}, 0)


def test_text_that_no_text_column_takes() -> None:
    """G7: a page whose cursor has a NUL was read again and again, and ended the flow each time."""
    assert read_page({"repos": [], "cursor": "a\0"}, 0) == PageFailure(PageTrouble.MALFORMED, "the cursor is not text")
    found = read_page({"repos": [{"did": "did:plc:a", "active": False, "status": "gone\0"}]}, 0)
    assert isinstance(found, RepoPage)
    assert [entry.status for entry in found.entries] == ["gone\ufffd"]
