"""Patterns of collections: wildcards match at a dot, and one list of them covers another or not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.filter_spec import FilterSpec
from steps.gate.filters import EVERYTHING, Filter, covers

label = st.sampled_from(["a", "b", "ab", "abc", "feed-x"])
nsid = st.lists(label, min_size=3, max_size=5).map(".".join)
wild = st.lists(label, min_size=1, max_size=4).map(lambda parts: ".".join(parts) + ".*")
pattern = st.one_of(nsid, wild, st.just("*"))
patterns = st.lists(pattern, min_size=1, max_size=4)


def matches(one: str, collection: str) -> bool:
    """The rule as a regular expression, independent of the code."""
    if one == "*":
        return True
    expression = re.escape(one.removesuffix(".*")) + (r"\..+" if one.endswith(".*") else "")
    return re.fullmatch(expression, collection, re.DOTALL) is not None


@given(patterns, st.one_of(nsid, st.text(max_size=20)))
def test_a_collection_is_kept_where_some_pattern_matches(chosen: list[str], collection: str) -> None:
    """N9"""
    # a name that ends in a dot is none, and what becomes of it is of no interest
    if not collection.endswith("."):
        assert Filter(collections=tuple(chosen)).keeps(collection) == any(matches(one, collection) for one in chosen)


@given(patterns, patterns, nsid)
def test_what_is_covered_is_kept(one: list[str], other: list[str], collection: str) -> None:
    """N9: a change that widens nothing schedules nothing, so it must not lie."""
    if covers(one, other) and Filter(collections=tuple(other)).keeps(collection):
        assert Filter(collections=tuple(one)).keeps(collection)


@given(patterns)
def test_everything_covers_and_a_list_covers_itself(chosen: list[str]) -> None:
    assert covers(["*"], chosen)
    assert covers(chosen, chosen)
    assert covers(chosen, ["*"]) == ("*" in chosen)


@given(pattern)
def test_patterns_are_patterns(one: str) -> None:
    assert FilterSpec(collections=[one]).collections == [one]


@pytest.mark.parametrize(
    "text", ["", ".", "app", "app.bsky", "app.bsky*", "*.bsky.feed", "app..feed.*", "app.*.post", "a b.c.d"]
)
def test_other_texts_are_none(text: str) -> None:
    with pytest.raises(ValidationError):
        FilterSpec(collections=[text])


def test_a_boundary_has_one_kind() -> None:
    for wrong in ({"boundary": "dids"}, {"dids": ["did:plc:a"]}, {"boundary": "collection"}, {"signal": "a.b.c"}):
        with pytest.raises(ValidationError):
            FilterSpec(**wrong)
    assert EVERYTHING.keeps("anything")
