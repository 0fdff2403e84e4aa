"""What people write who use all of the network: the records of which the AppView's tables are made, in every way that matters.

`write_everything(authors, older)` may run several times over the same authors: as history before the mirror starts, and live
while it runs. Everything is one commit after the other, so that the stream has one order.
"""

from __future__ import annotations

from tests.acceptance.appview_author import (
    BLOCK,
    FOLLOW,
    GATE,
    GENERATOR,
    ITEM,
    LIKE,
    LIST,
    PACK,
    POST,
    POST_GATE,
    PROFILE,
    REPOST,
    Author,
    Written,
    rkey,
    stamp,
)
from tests.acceptance.appview_edits import (
    edit_and_delete,
    edit_into_duplicates,
    edit_into_invalid,
    edit_what_others_answered,
)
from tests.acceptance.appview_gates import change_gates, end_grants, evade_gates, write_gates


def write_everything(authors: list[Author], name: str) -> Written:
    """Five authors at least. `name` tells one run's texts and handles from another's."""
    written = Written()
    write_embeds(authors[0], authors[1], name)
    write_threads(authors, name)
    write_graph(authors, name)
    write_lists(authors, name)
    write_gates(authors, name, written)
    evade_gates(authors, name, written)
    change_gates(authors, name, written)
    end_grants(authors, name, written)
    write_reactions(authors)
    write_duplicates(authors[2], authors[3], authors[4], name)
    write_rarities(authors[3], authors[4], name)
    write_what_is_refused(authors[1], authors[2], name)
    edit_and_delete(authors, name)
    edit_what_others_answered(authors, name)
    if name == "live":  # a fetch knows nothing of what was valid
        edit_into_invalid(authors, name)
    written.doubled += edit_into_duplicates(authors[2], authors[3], authors[4], name)
    return written


def write_embeds(one: Author, other: Author, name: str) -> None:
    picture = {"image": one.image, "alt": "a grey dot", "aspectRatio": {"width": 1, "height": 1}}
    images = {"$type": "app.bsky.embed.images", "images": [picture, {"image": one.image, "alt": ""}]}
    external = {
        "uri": "https://example.com/a",
        "title": "A page",
        "description": "of river and lamp",
        "thumb": one.image,
    }
    plain = one.post(f"{name}: river and lamp, nothing else", langs=["en", "de"], tags=["river", "lamp"])
    one.post(f"{name}: two images", embed=images)
    one.post(f"{name}: a page", embed={"$type": "app.bsky.embed.external", "external": external}, tags=[])
    film = other.network.order("film", did=other.did)
    other.post(f"{name}: a film", embed={"$type": "app.bsky.embed.video", "video": film, "alt": "it moves"})
    gallery = {
        "$type": "app.bsky.embed.gallery#image",
        "image": one.image,
        "alt": "in a gallery",
        "aspectRatio": {"width": 1, "height": 1},
    }
    items = [gallery, {"$type": "com.example.unknown"}, gallery]
    one.post(f"{name}: a gallery", embed={"$type": "app.bsky.embed.gallery", "items": items})
    other.quote(f"{name}: a quotation", plain)
    both = {"$type": "app.bsky.embed.recordWithMedia", "record": {"record": plain}, "media": images}
    one.post(f"{name}: quoted by its author, with media", embed=both)
    one.post(f"{name}: an embed that nobody knows", embed={"$type": "com.example.embed", "some": ["thing"]})
    one.post("", langs=[])
    one.post(f"{name}: 50 % of _all_ \\ 'odd' \"text\" 🦋 ünd\nlines", labels=SELF_LABELS)


SELF_LABELS = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "graphic-media"}]}


def write_threads(authors: list[Author], name: str) -> None:
    one, two, three, four, five, *_ = authors
    root = one.post(f"{name}: a thread's root")
    first = two.reply(f"{name}: first reply", root)
    second = three.reply(f"{name}: reply to the reply", first, root)
    own = one.reply(f"{name}: its author answers", second, root)
    deep = own
    for at, author in enumerate((four, five, two, three, four, one)):
        deep = author.reply(f"{name}: {at + 4} levels deep", deep, root)
    for at in range(3):
        root = one.reply(f"{name}: an author's own thread {at}", root, root) if at else one.post(f"{name}: own thread")
    alone = two.post(f"{name}: begins alone")
    next_ = two.reply(f"{name}: and goes on", alone)
    two.reply(f"{name}: and on", next_, alone)
    four.reply(f"{name}: says that it is in another thread", first, alone)
    four.reply(f"{name}: says that a reply is a root", first, first)
    two.mention(f"{name}: everybody is meant, its author too", one, two, three, three)
    five.quote(f"{name}: quotes and mentions", first)
    three.reply(f"{name}: dated back", root, createdAt="2020-02-29T12:00:00.000Z")


def write_graph(authors: list[Author], name: str) -> None:
    """Nobody follows the first author, or is followed by it, anew: the PDS replaces a follow that is made again, and a fetch of
    today knows nothing of the first one, which let its author in."""
    steps, crowd = ((1, 2, 4), authors) if name == "history" else ((3,), authors[1:])
    for at, author in enumerate(crowd):
        for step in steps:
            author.create(FOLLOW, subject=crowd[(at + step) % len(crowd)].did)
    authors[0].create(FOLLOW, subject=authors[0].did)
    authors[3].create(FOLLOW, subject="did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
    authors[1].create(BLOCK, subject=authors[4].did)


def write_lists(authors: list[Author], name: str) -> None:
    one, two, three, four, *_ = authors
    described = {"name": f"{name} friends", "description": "people", "avatar": one.image}
    facet = {
        "index": {"byteStart": 0, "byteEnd": 1},
        "features": [{"$type": "app.bsky.richtext.facet#tag", "tag": "x"}],
    }
    friends = one.create(LIST, purpose="app.bsky.graph.defs#curatelist", descriptionFacets=[facet], **described)
    for author in (two, three, four):
        one.create(ITEM, list=friends["uri"], subject=author.did)
    modlist = two.create(LIST, purpose="app.bsky.graph.defs#modlist", name=f"{name} muted")
    two.create(ITEM, list=modlist["uri"], subject=four.did)
    three.create("app.bsky.graph.listblock", subject=modlist["uri"])
    known = three.create(LIST, purpose="app.bsky.graph.defs#referencelist", name=f"{name} known")
    three.create(ITEM, list=known["uri"], subject=one.did)
    pack = three.create(PACK, name=f"{name} start here", list=known["uri"], description="a pack")
    joined = {"displayName": "joined by a pack", "joinedViaStarterPack": pack}
    four.delete({"uri": f"at://{four.did}/{PROFILE}/self"})
    four.image = four.network.order("image", did=four.did)  # the last one may have gone with the profile
    four.create(f"{PROFILE}/self", avatar=four.image, banner=four.image, **joined)
    feed = one.create(
        f"{GENERATOR}/{name}-feed", did="did:web:feed.invalid", displayName=f"{name} feed", avatar=one.image
    )
    two.create(LIKE, subject=feed)
    for ref in (friends, pack, feed):
        four.quote(f"{name}: embeds what is no post", ref)


def write_reactions(authors: list[Author]) -> None:
    hot = authors[0].posts[0]
    for author in authors:
        author.create(LIKE, subject=hot)
    shared = authors[1].create(REPOST, subject=hot)
    authors[2].create(LIKE, subject=authors[0].posts[1], via=shared)
    authors[3].create(REPOST, subject=hot, via=shared)
    authors[4].create(REPOST, subject=authors[4].posts[-1])
    for author in authors[1:]:
        author.create(LIKE, subject=author.posts[0] if author.posts else hot)
    authors[2].create(
        LIKE, subject={"uri": f"at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/{POST}/3jzfcijpj2z2a", "cid": hot["cid"]}
    )


def write_duplicates(one: Author, two: Author, liked: Author, name: str) -> None:
    """What only applyWrites makes: the second of each is a duplicate. Then the first goes, and the second takes its place. Of two in
    one commit the first operation holds the key; a fetched history has no order but that of the keys."""
    keys = ("3jzfcijpj2z2b", "3jzfcijpj2z2a") if name == "live" else ("3jzfcijpj2z2c", "3jzfcijpj2z2d")
    both = two.post(f"{name}: liked twice in one commit")
    one.together(*((f"{LIKE}/{key}", {"subject": both}) for key in keys))
    post, kept = liked.posts[-1], liked.posts[-2]
    for subject, goes in ((post, True), (kept, False)):
        for collection in (LIKE, REPOST):
            first = one.together((collection, {"subject": subject}))[0]
            one.together((collection, {"subject": subject}))
            if goes:
                one.delete(first)
    first = two.together((BLOCK, {"subject": one.did}))[0]
    second = two.together((BLOCK, {"subject": one.did}))[0]
    two.delete(second)
    two.delete(first)


def write_rarities(one: Author, other: Author, name: str) -> None:
    for author in (one, other):
        author.update(
            {"uri": f"at://{author.did}/app.bsky.actor.status/self"},
            status="app.bsky.actor.status#live", durationMinutes=60,
        )  # fmt: skip
    verified = {"handle": other.handle, "displayName": name}
    gone = one.create("app.bsky.graph.verification", subject=other.did, **verified)
    other.create("app.bsky.graph.verification", subject=one.did, handle=one.handle, displayName=name)
    one.delete(gone)
    one.update({"uri": f"at://{one.did}/app.bsky.labeler.service/self"}, policies={"labelValues": [name.lower()]})
    one.update({"uri": f"at://{one.did}/chat.bsky.actor.declaration/self"}, allowIncoming="all")
    one.update({"uri": f"at://{one.did}/app.bsky.notification.declaration/self"}, allowSubscriptions="mutuals")
    one.update({"uri": f"at://{one.did}/com.example.sluice.trial/self"}, nobody="knows it")


def write_what_is_refused(one: Author, other: Author, name: str) -> None:
    """Valid for the PDS that was told not to look, and for no AppView; or valid, and against another rule."""
    one.invalid(POST, text="no date at all")
    one.invalid(POST, text=7, createdAt=stamp())
    one.invalid(POST, text="a date that is none", createdAt="yesterday")
    one.invalid(POST, text="too long " * 1000, createdAt=stamp())
    one.invalid(LIKE, subject="not a reference", createdAt=stamp())
    one.invalid(FOLLOW, subject="not-a-did", createdAt=stamp())
    one.invalid(f"{PROFILE}/not-self-{name}", displayName="another key than self")
    foreign = other.posts[-1]
    one.create(f"{GATE}/{rkey(foreign)}", post=foreign["uri"], allow=[])
    one.create(f"{POST_GATE}/{rkey(one.posts[-1])}", post=one.posts[0]["uri"], embeddingRules=[])
    listed = other.create(LIST, purpose="app.bsky.graph.defs#curatelist", name="not another's to fill")
    one.create(ITEM, list=listed["uri"], subject=one.did)
    one.post(f"{name}: micro-seconds", createdAt="2024-02-29T12:00:00.123456Z")
    one.post(f"{name}: another zone", createdAt="2024-02-29T23:30:00+05:30")
    one.post(f"{name}: no fraction", createdAt="2024-02-29T12:00:00Z")
