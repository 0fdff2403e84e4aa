"""Gates of threads and posts in every state: what they refuse, let in, and what becomes of it when they change."""

from __future__ import annotations

from datetime import timedelta

from tests.acceptance.appview_author import FOLLOW, GATE, ITEM, LIST, POST_GATE, Author, Written, rkey, stamp


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
