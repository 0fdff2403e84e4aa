"""The rules between records, as values: who holds a unique key, who may reply, who may be quoted, which thread is broken.

The index decides them in SQL, set by set (appview/sql/reconcile.sql); these are the same rules one by one, which its tests hold it to.
Records are valid ones, decoded from JSON. "Known" is whatever the caller knows: the official indexer takes what it has
indexed so far, the mirror what exists and is not younger than the record that is judged.
"""

from collections.abc import Iterable

import msgspec

from appview.projection.gate_terms import DISABLED, THREAD
from appview.projection.values import Record


class Relations(msgspec.Struct, frozen=True):
    """What is known of the account that replies, as seen from the author of the thread's root."""

    mentioned: bool = False  # by a facet of the root post
    follows: bool = False  # the root's author
    followed: bool = False  # by the root's author
    lists: frozenset[str] = frozenset()  # AT-URIs of the lists that it is in


class Parent(msgspec.Struct, frozen=True):
    """The record that a reply answers; of any collection, since even a list can be answered."""

    root: str | None  # its own reply's root; None if it is no reply
    invalid: bool  # its own invalidReplyRoot


def holder(claims: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Which (indexedAt, uri) of those with one unique key is in the table: the oldest; the others are duplicates of it.

    On its deletion the oldest of the rest follows. ValueError if there is none.
    """
    return min(claims)


def may_reply(gate: Record | None, owner: str, author: str, relations: Relations) -> bool:
    """Whether `author` may reply in the thread of `owner`; violatesThreadGate is the opposite.

    Without a gate, or without `allow`, everyone may reply; with an empty `allow` only the owner. Rules add up; those of
    unknown types admit no one.
    """
    if author == owner or gate is None or "allow" not in gate:
        return True
    for rule in gate["allow"]:
        match rule["$type"].removeprefix(THREAD):
            case "#mentionRule" if relations.mentioned:
                return True
            case "#followerRule" if relations.follows:
                return True
            case "#followingRule" if relations.followed:
                return True
            case "#listRule" if rule["list"] in relations.lists:
                return True
    return False


def may_quote(gate: Record | None, owner: str, author: str) -> bool:
    """Whether `author` may embed a post of `owner`; violatesEmbeddingRules is the opposite."""
    if author == owner or gate is None:
        return True
    return all(rule["$type"] != DISABLED for rule in gate.get("embeddingRules", ()))


def is_invalid_reply(root: str, parent: str, known: Parent | None) -> bool:
    """invalidReplyRoot of a reply to `parent` (which is `known`) in the thread of `root`."""
    if known is None or known.invalid:
        return True
    return known.root is not None if parent == root else known.root != root
