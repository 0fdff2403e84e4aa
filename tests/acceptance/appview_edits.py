"""Edits and deletions, and edits into what is invalid or there already."""

from __future__ import annotations

import json

from tests.acceptance.appview_author import (
    BLOCK,
    FOLLOW,
    GATE,
    ITEM,
    LIKE,
    LIST,
    PROFILE,
    REPOST,
    Author,
    Doubled,
    rkey,
    stamp,
)


def edit_and_delete(authors: list[Author], name: str) -> None:
    one, two, three, *_ = authors
    edited = one.post(f"{name}: to be edited", tags=["before"])
    two.create(LIKE, subject=edited)
    two.reply(f"{name}: a reply to what will be edited", edited)
    one.update(edited, text=f"{name}: edited", tags=["after"])
    one.update({"uri": f"at://{one.did}/{PROFILE}/self"}, displayName=f"{name} renamed", description="edited")
    turned = three.create(LIKE, subject=edited)
    three.update(turned, subject=two.post(f"{name}: liked by an edit"))
    gone = one.post(f"{name}: to be deleted")
    likes = [author.create(LIKE, subject=gone) for author in (two, three)]
    two.create(REPOST, subject=gone)
    two.quote(f"{name}: quotes what will be deleted", gone)
    three.reply(f"{name}: replies to what will be deleted", gone)
    two.delete(likes[0])
    one.delete(gone)
    one.posts.remove(gone)
    follow = two.create(FOLLOW, subject=authors[-1].did) if len(authors) > 6 else None
    if follow:
        two.delete(follow)
    passing = three.post(f"{name}: comes and goes")
    gate = three.create(f"{GATE}/{rkey(passing)}", post=passing["uri"], allow=[])
    three.delete(gate)
    shared = two.create(REPOST, subject=one.posts[0])
    two.delete(shared)
    listed = two.create(LIST, purpose="app.bsky.graph.defs#curatelist", name=f"{name} short")
    item = two.create(ITEM, list=listed["uri"], subject=one.did)
    two.create(ITEM, list=listed["uri"], subject=three.did)
    two.delete(item)
    two.update(listed, purpose="app.bsky.graph.defs#curatelist", name=f"{name} shorter")


def edit_what_others_answered(authors: list[Author], name: str) -> None:
    """A post that is edited when it was reposted, quoted, liked and answered already."""
    one, two, three, _, five, *_ = authors
    known = two.post(f"{name}: to be edited when everybody knows it")
    for author in (three, five):
        author.create(REPOST, subject=known)
        author.create(LIKE, subject=known)
    quotes = [author.quote(f"{name}: quotes what will be edited", known) for author in (three, five, one)]
    three.reply(f"{name}: answers what will be edited", known)
    again = two.update(known, text=f"{name}: edited when everybody knew it", langs=["en"])
    three.delete(quotes[0])
    three.quote(f"{name}: quotes what was edited", again)
    five.update(quotes[1], text=f"{name}: quotes it no more")


def edit_into_invalid(authors: list[Author], name: str) -> None:
    """What a PDS does not look at: the AppView shows the record as it was before."""
    one, two, *_ = authors
    post = one.post(f"{name}: to be edited into nonsense", tags=["before"])
    two.create(LIKE, subject=post)
    two.reply(f"{name}: answers what will be nonsense", post)
    one.invalid_edit(post, text=7, createdAt=stamp())
    two.quote(f"{name}: quotes what is nonsense", post)


def edit_into_duplicates(one: Author, two: Author, other: Author, name: str) -> list[Doubled]:
    """Likes and follows that are edited: to another subject; to one that their author has already; duplicates, and whose
    duplicates wait for them. The later record is always the duplicate. No repost is edited into one: feeds show when it was
    indexed, which is with the edit or, where that is refused, before."""
    posts = [other.post(f"{name}: wanted twice {at}") for at in range(6)]
    one.update(one.create(REPOST, subject=posts[0]), subject=posts[1])
    two.update(two.create(FOLLOW, subject=one.did), subject=f"did:plc:{name:b<24}")  # whom nobody follows yet
    doubled = []
    for collection, first, second in (
        (LIKE, posts[0], posts[1]),
        (FOLLOW, two.did, other.did),
        (BLOCK, f"did:plc:{name:c<24}", f"did:plc:{name:d<24}"),
    ):
        owner, late = (one.create(collection, subject=subject) for subject in (first, second))
        value = {"subject": first, "createdAt": stamp()}
        now = one.update(late, **value)
        doubled.append(Doubled(now["uri"], now["cid"], json.dumps({"$type": collection, **value}), owner["uri"]))
    one.together((LIKE, {"subject": posts[3]}))
    one.update(one.together((LIKE, {"subject": posts[3]}))[0], subject=posts[4])  # no duplicate any more
    owner = two.together((LIKE, {"subject": posts[3]}))[0]
    two.together((LIKE, {"subject": posts[3]}))
    two.update(owner, subject=posts[5])  # makes room
    return doubled
