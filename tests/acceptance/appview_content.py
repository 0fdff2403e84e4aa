"""What people write who use all of the network: the records of which the AppView's tables are made, in every way that matters.

`write_everything(authors, older)` may run several times over the same authors: as history before the mirror starts, and live
while it runs. Everything is one commit after the other, so that the stream has one order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.official.servers import OfficialNetwork, operation

POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
LIST = "app.bsky.graph.list"
ITEM = "app.bsky.graph.listitem"
PACK = "app.bsky.graph.starterpack"
GENERATOR = "app.bsky.feed.generator"
GATE = "app.bsky.feed.threadgate"
POST_GATE = "app.bsky.feed.postgate"
PROFILE = "app.bsky.actor.profile"

Ref = dict[str, str]  # {uri, cid}


def stamp(offset: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + offset).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rkey(ref: Ref) -> str:
    return ref["uri"].rsplit("/", 1)[1]


@dataclass
class Author:
    """One account; each method is one commit."""

    network: OfficialNetwork
    did: str
    handle: str
    image: Any = None
    posts: list[Ref] = field(default_factory=list)

    def create(self, path: str, /, **value: Any) -> Ref:
        made: Ref = self.network.write(self.did, "create", path, **{"createdAt": stamp(), **value})
        return made

    def update(self, ref: Ref, /, **value: Any) -> Ref:
        path = ref["uri"].removeprefix(f"at://{self.did}/")
        made: Ref = self.network.write(self.did, "update", path, **{"createdAt": stamp(), **value})
        return made

    def delete(self, ref: Ref) -> None:
        self.network.write(self.did, "delete", ref["uri"].removeprefix(f"at://{self.did}/"))

    def together(self, *writes: tuple[str, dict[str, Any]]) -> list[Ref]:
        made: list[Ref] = self.network.write_together(
            self.did, *(operation("create", path, createdAt=stamp(), **value) for path, value in writes)
        )
        return made

    def invalid(self, path: str, /, **value: Any) -> None:
        """What no lexicon allows."""
        self.network.order("write", did=self.did, writes=[{**operation("create", path, **value), "validate": False}])

    def invalid_edit(self, ref: Ref, /, **value: Any) -> None:
        """The same of a record that is there."""
        path = ref["uri"].removeprefix(f"at://{self.did}/")
        self.network.order("write", did=self.did, writes=[{**operation("update", path, **value), "validate": False}])

    def post(self, text: str, **value: Any) -> Ref:
        ref = self.create(POST, text=text, **value)
        self.posts.append(ref)
        return ref

    def reply(self, text: str, parent: Ref, root: Ref | None = None, **value: Any) -> Ref:
        return self.post(text, reply={"root": root or parent, "parent": parent}, **value)

    def quote(self, text: str, subject: Ref, **value: Any) -> Ref:
        return self.post(text, embed={"$type": "app.bsky.embed.record", "record": subject}, **value)

    def mention(self, text: str, *others: Author) -> Ref:
        facets = [
            {
                "index": {"byteStart": 0, "byteEnd": 1},
                "features": [{"$type": "app.bsky.richtext.facet#mention", "did": other.did}],
            }
            for other in others
        ]
        return self.post(text, facets=facets)


def authors_of(network: OfficialNetwork) -> list[Author]:
    """Every active account of the network, with an uploaded picture."""
    return [
        Author(network, did, account["handle"], network.order("image", did=did))
        for did, account in network.truth().items()
        if account["active"]
    ]


@dataclass(frozen=True)
class Doubled:
    """An edit that made a record want what another record of its author has."""

    uri: str
    cid: str
    json: str  # as it stands now
    owner: str  # URI of the other


@dataclass
class Written:
    """What the comparison of tables has to know of a run of `write_everything`.

    doubled  edits into duplicates
    early    replies and quotes that their gate did not refuse, and refuses where nobody knows what came first
    undone   those that a gate refused which is no more
    """

    doubled: list[Doubled] = field(default_factory=list)
    early: list[Ref] = field(default_factory=list)
    undone: list[Ref] = field(default_factory=list)


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


def write_gates(authors: list[Author], name: str, written: Written) -> None:
    one, two, three, four, five, *_ = authors
    rule = "app.bsky.feed.threadgate#"
    allowed = one.create(LIST, purpose="app.bsky.graph.defs#curatelist", name=f"{name} may reply")
    one.create(ITEM, list=allowed["uri"], subject=three.did)
    by_name = {
        "nobody": [],
        "mentioned": [{"$type": f"{rule}mentionRule"}],
        "followed": [{"$type": f"{rule}followingRule"}],
        "followers": [{"$type": f"{rule}followerRule"}],
        "listed": [{"$type": f"{rule}listRule", "list": allowed["uri"]}],
        "everybody": None,
    }
    for gate, allow in by_name.items():
        root = one.mention(f"{name}: {gate} may reply", two)
        early = five.reply(f"{name}: before the gate of {gate}", root)
        if gate in ("nobody", "mentioned", "listed"):  # the others let it in
            written.early.append(early)
        rules = {} if allow is None else {"allow": allow}
        one.create(f"{GATE}/{rkey(root)}", post=root["uri"], hiddenReplies=[early["uri"]], **rules)
        replies = [author.reply(f"{name}: after the gate of {gate}", root) for author in (one, two, three, four)]
        two.reply(f"{name}: below what the gate hides", early, root)
        three.reply(f"{name}: below a reply that may be there", replies[1], root)
    closed = one.post(f"{name}: not to be embedded")
    written.early.append(two.quote(f"{name}: embedded before it was forbidden", closed))
    one.create(f"{POST_GATE}/{rkey(closed)}", post=closed["uri"], embeddingRules=DISABLED)
    two.quote(f"{name}: embedded all the same", closed)
    one.quote(f"{name}: embedded by its author", closed)
    loose = one.post(f"{name}: one embedding is detached")
    away = three.quote(f"{name}: to be detached", loose)
    one.create(f"{POST_GATE}/{rkey(loose)}", post=loose["uri"], detachedEmbeddingUris=[away["uri"]], embeddingRules=[])


LONG_AGO, SOON = timedelta(days=-1), timedelta(days=1)


def evade_gates(authors: list[Author], name: str, written: Written) -> None:
    """No date opens anything: not that of a stranger's reply or quote, not that of the gate."""
    one, two, three, *_ = authors
    for ahead in (timedelta(), SOON):
        root = one.post(f"{name}: nobody may reply or quote")
        written.early.append(three.reply(f"{name}: before the gate", root))
        dated = stamp(ahead)
        one.create(f"{GATE}/{rkey(root)}", post=root["uri"], allow=[], createdAt=dated)
        one.create(f"{POST_GATE}/{rkey(root)}", post=root["uri"], embeddingRules=DISABLED, createdAt=dated)
        for back in (
            LONG_AGO,
            timedelta(seconds=-5),
            *([SOON] if name == "live" else []),
        ):  # fetched: sorts at the fetch
            two.reply(f"{name}: a reply dated {back}", root, createdAt=stamp(back))
            two.quote(f"{name}: a quotation dated {back}", root, createdAt=stamp(back))


DISABLED = [{"$type": "app.bsky.feed.postgate#disableRule"}]


def change_gates(authors: list[Author], name: str, written: Written) -> None:
    """What a gate refused stays refused when it is edited, opened or deleted; what it let in stays."""
    one, two, three, *_ = authors
    root = one.post(f"{name}: its gates are edited")
    written.early.append(three.reply(f"{name}: before the gate that is edited", root))
    gate = one.create(f"{GATE}/{rkey(root)}", post=root["uri"], allow=[])
    quotes = one.create(f"{POST_GATE}/{rkey(root)}", post=root["uri"], embeddingRules=DISABLED)
    refused = two.reply(f"{name}: refused by the gate", root)
    detached = two.quote(f"{name}: refused by the post gate", root)
    one.update(gate, post=root["uri"], allow=[], hiddenReplies=[refused["uri"]])
    one.update(quotes, post=root["uri"], embeddingRules=DISABLED, detachedEmbeddingUris=[detached["uri"]])
    two.reply(f"{name}: refused by the edited gate", root)

    root = one.post(f"{name}: its gates are opened, and deleted")
    gate = one.create(f"{GATE}/{rkey(root)}", post=root["uri"], allow=[])
    quotes = one.create(f"{POST_GATE}/{rkey(root)}", post=root["uri"], embeddingRules=DISABLED)
    written.undone += [two.reply(f"{name}: before it is opened", root), two.quote(f"{name}: before it is opened", root)]
    one.update(gate, post=root["uri"])
    two.reply(f"{name}: while it is open", root)
    one.update(gate, post=root["uri"], allow=[])
    written.undone.append(two.reply(f"{name}: before the gate is deleted", root))
    one.delete(gate)
    one.delete(quotes)
    three.reply(f"{name}: after the gate was deleted", root)
    three.quote(f"{name}: after the gate was deleted", root)


def end_grants(authors: list[Author], name: str, written: Written) -> None:
    """Whom a follow or a list let in stays in when that ends; what comes after the reply lets nobody in."""
    _, two, _, four, five, *_ = authors
    rule = "app.bsky.feed.threadgate#"
    two.delete(two.create(FOLLOW, subject=four.did))  # the PDS has replaced what was there
    listed = four.create(LIST, purpose="app.bsky.graph.defs#curatelist", name=f"{name} for a moment")
    item = four.create(ITEM, list=listed["uri"], subject=five.did)
    for grant, author in (
        ({"$type": f"{rule}followerRule"}, two),
        ({"$type": f"{rule}listRule", "list": listed["uri"]}, five),
    ):
        root = four.post(f"{name}: {grant['$type']} ends")
        four.create(f"{GATE}/{rkey(root)}", post=root["uri"], allow=[grant])
        two.reply(f"{name}: not yet allowed", root)
        if author is two:
            follow = two.create(FOLLOW, subject=four.did)
        written.early.append(author.reply(f"{name}: allowed", root))
        if author is two:
            two.delete(follow)
        else:
            four.delete(item)
        author.reply(f"{name}: allowed no more", root)
        four.reply(f"{name}: its author may", written.early[-1], root)
    two.delete(two.create(FOLLOW, subject=four.did))


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
