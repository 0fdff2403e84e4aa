"""Gate records → terms, the columns of `sluice.appview_gate`, which `appview/sql/reconcile.sql` applies to many replies at once.

Expects valid records; never raises for others.
"""

from typing import Any

import msgspec

THREAD = "app.bsky.feed.threadgate"
DISABLED = "app.bsky.feed.postgate#disableRule"


class Terms(msgspec.Struct, frozen=True):
    """`closed`: replying (or embedding) is restricted. `mentioned` to `lists`: accounts that may do so."""

    closed: bool
    mentioned: bool = False
    follower: bool = False  # followers of the owner
    following: bool = False  # accounts that the owner follows
    lists: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()  # hidden replies


def stricter(one: Terms, other: Terms) -> Terms:
    """Terms that admit only accounts that both admit, and hide no replies."""
    if not one.closed or not other.closed:
        shut = one if one.closed else other
        return msgspec.structs.replace(shut, hidden=())
    return Terms(
        closed=True,
        mentioned=one.mentioned and other.mentioned,
        follower=one.follower and other.follower,
        following=one.following and other.following,
        lists=tuple(uri for uri in one.lists if uri in other.lists),
    )


def thread_terms(record: dict[str, Any]) -> Terms:
    """Terms of an app.bsky.feed.threadgate."""
    rules = record.get("allow")
    hidden = tuple(uri for uri in record.get("hiddenReplies") or () if isinstance(uri, str))
    if not isinstance(rules, list):
        return Terms(closed=False, hidden=hidden)
    kinds = {str(rule.get("$type", "")).removeprefix(THREAD) for rule in rules if isinstance(rule, dict)}
    lists = [rule.get("list") for rule in rules if isinstance(rule, dict) and rule.get("$type") == f"{THREAD}#listRule"]
    return Terms(
        closed=True,
        mentioned="#mentionRule" in kinds,
        follower="#followerRule" in kinds,
        following="#followingRule" in kinds,
        lists=tuple(uri for uri in lists if isinstance(uri, str)),
        hidden=hidden,
    )


def post_terms(record: dict[str, Any]) -> Terms:
    """Terms of an app.bsky.feed.postgate."""
    rules = record.get("embeddingRules")
    closed = isinstance(rules, list) and any(isinstance(rule, dict) and rule.get("$type") == DISABLED for rule in rules)
    return Terms(closed=closed)
