"""Some hundreds of questions to an AppView, made from what the network holds; two AppViews' answers compared by path.

An answer is compared as it came: order of lists, cursors, times and counts; but the address of the AppView that answered is
taken out of it, and what the AppView itself leaves to chance, see `LEFT_TO_CHANCE`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tests.support.official.appview_servers import SERVICE, AppView
from tests.support.official.servers import OfficialNetwork
from tests.support.size import sized

AT_ONCE = 4
ASKED_AGAIN = 3
THREADS, REST, VIEWED = sized((4, 8, 24), (2, 4, 12))
"""Every so many-th post is asked for its thread, for everything else, and for its thread as a viewer."""
WHOLE = sized(3, 1000)  # so many accounts that answer are asked everything, and each that is hidden or gone
REPOSTED = sized(8, 1)  # every so many-th post that was not reposted is asked who did
FILTERS = (
    "posts_with_replies",
    "posts_no_replies",
    "posts_with_media",
    "posts_with_video",
    "posts_and_author_threads",
)
POST = "app.bsky.feed.post"
Answer = tuple[int, Any]


class Question(NamedTuple):
    """One XRPC query; `viewer` is the DID that asks, None for anybody."""

    method: str
    parameters: tuple[tuple[str, Any], ...]
    viewer: str | None = None

    def __str__(self) -> str:
        asked = " ".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.method} {asked}" + (f" as {self.viewer}" if self.viewer else "")


def ask(method: str, viewer: str | None = None, **parameters: Any) -> Question:
    return Question(method, tuple(parameters.items()), viewer)


def questions(
    truth: Mapping[str, Mapping[str, Any]], gone: list[str], viewers: list[str], reposted: set[str]
) -> list[Question]:
    """`truth`: of `OfficialNetwork`; `gone`: DIDs of deleted accounts; `viewers` ask some questions logged in; `reposted`: URIs."""
    dids = [*truth, *gone]
    uris: dict[str, list[str]] = {}
    for did, account in truth.items():
        for path in sorted(account.get("records", ())):
            uris.setdefault(path.split("/")[0], []).append(f"at://{did}/{path}")
    active = [did for did in dids if truth.get(did, {}).get("active")]
    some = {did: at for at, did in enumerate(active) if at >= WHOLE}
    made = [question for did in dids for question in about_actor(did, truth.get(did, {}).get("handle"), some.get(did))]
    made += [ask("app.bsky.actor.getProfiles", actors=dids[at : at + 25]) for at in range(0, len(dids), 25)]
    posts = uris.get(POST, [])
    made += [ask("app.bsky.feed.getPosts", uris=posts[at : at + 25]) for at in range(0, len(posts), 25)]
    made += [ask("app.bsky.feed.getRepostedBy", uri=uri) for uri in sorted(reposted)]
    made += [ask("app.bsky.feed.getRepostedBy", uri=uri) for uri in [u for u in posts if u not in reposted][::REPOSTED]]
    made += [question for at, uri in enumerate(posts) for question in about_post(uri, at)]
    for uri in uris.get("app.bsky.graph.list", []):
        made += [ask("app.bsky.graph.getList", list=uri), ask("app.bsky.feed.getListFeed", list=uri, limit=30)]
    packs = uris.get("app.bsky.graph.starterpack", [])
    made += [ask("app.bsky.graph.getStarterPack", starterPack=uri) for uri in packs]
    made += [ask("app.bsky.graph.getStarterPacks", uris=packs)] if packs else []
    feeds = uris.get("app.bsky.feed.generator", [])
    made += [ask("app.bsky.feed.getFeedGenerators", feeds=feeds)] if feeds else []
    made += [ask("app.bsky.feed.getLikes", uri=uri) for uri in feeds]
    labelers = [uri.split("/")[2] for uri in uris.get("app.bsky.labeler.service", [])]
    made += [ask("app.bsky.labeler.getServices", dids=labelers, detailed="true")] if labelers else []
    made += list(searches())
    for viewer in viewers:
        made += as_viewer(viewer, dids, posts)
    return made


def about_actor(did: str, handle: str | None, at: int | None) -> Iterator[Question]:
    """Everything; with a number `at`, the profile and every fourth of the others, from another one on for each number."""
    yield ask("app.bsky.actor.getProfile", actor=did)
    others = [ask("app.bsky.feed.getAuthorFeed", actor=did, filter=kind, limit=100) for kind in FILTERS]
    others += [
        ask("app.bsky.feed.getAuthorFeed", actor=did, includePins="true", limit=7),
        ask("app.bsky.feed.getActorFeeds", actor=did),
    ]
    for method in ("getFollowers", "getFollows", "getLists", "getActorStarterPacks"):
        others.append(ask(f"app.bsky.graph.{method}", actor=did))
    others.append(ask("app.bsky.graph.getFollowers", actor=did, limit=2))
    yield from others if at is None else others[at % 4 :: 4]
    if handle:
        yield ask("app.bsky.actor.getProfile", actor=handle)
        yield ask("com.atproto.identity.resolveHandle", handle=handle)


def about_post(uri: str, at: int) -> Iterator[Question]:
    """The thread and the rest, of some posts; `getPosts` has all."""
    if at % THREADS == 0:
        sort = SORTS[at // THREADS % len(SORTS)]
        yield ask("app.bsky.unspecced.getPostThreadV2", anchor=uri, below=10, branchingFactor=20, sort=sort)
    if at % REST == 0:
        yield ask("app.bsky.feed.getPostThread", uri=uri, depth=10)
        for method in ("getLikes", "getQuotes"):
            yield ask(f"app.bsky.feed.{method}", uri=uri)


SORTS = ("oldest", "newest", "top")


def searches() -> Iterator[Question]:
    for text in ("person", "renamed", "test"):
        yield ask("app.bsky.actor.searchActors", q=text)
        yield ask("app.bsky.actor.searchActorsTypeahead", q=text)
    for text in ("river", "lamp", "a", "%", "_all_", "🦋"):
        yield ask("app.bsky.feed.searchPosts", q=text)
    yield ask("app.bsky.graph.searchStarterPacks", q="start")


def as_viewer(viewer: str, dids: list[str], posts: list[str]) -> Iterator[Question]:
    yield ask("app.bsky.feed.getTimeline", viewer, limit=100)
    yield ask("app.bsky.feed.getTimeline", viewer, limit=9)
    yield ask("app.bsky.notification.listNotifications", viewer, limit=100)
    yield ask("app.bsky.notification.getUnreadCount", viewer)
    yield ask("app.bsky.actor.getProfiles", viewer, actors=dids[:25])
    yield ask("app.bsky.graph.getBlocks", viewer)
    yield ask("app.bsky.graph.getListBlocks", viewer)
    yield ask("app.bsky.graph.getRelationships", actor=viewer, others=dids[:30])
    yield ask("app.bsky.graph.getKnownFollowers", viewer, actor=dids[0])
    yield ask("app.bsky.feed.getActorLikes", viewer, actor=viewer)
    yield ask("app.bsky.feed.getAuthorFeed", viewer, actor=dids[0], filter=FILTERS[0], limit=30)
    for at in range(0, len(posts), VIEWED):
        yield ask("app.bsky.feed.getPostThread", viewer, uri=posts[at])


def tokens_of(network: OfficialNetwork, asked: list[Question]) -> dict[tuple[str, str], str]:
    """(viewer, method) → a token of the PDS."""
    wanted = {(question.viewer, question.method) for question in asked if question.viewer}
    return {
        (viewer, method): network.order("service_auth", did=viewer, service=SERVICE, method=method)
        for viewer, method in wanted
    }


def answers(appview: AppView, asked: list[Question], tokens: Mapping[tuple[str, str], str]) -> list[Answer]:
    """Status and body of each, in the order asked."""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda question: answer(appview, question, tokens), asked))


def answer(appview: AppView, question: Question, tokens: Mapping[tuple[str, str], str]) -> Answer:
    token = tokens.get((question.viewer or "", question.method))
    status, body = appview.ask(question.method, token, **dict(question.parameters))
    known = settled(json.loads(json.dumps(body).replace(appview.url, "APPVIEW")))
    for name in UNORDERED.get(question.method, ()):
        if name in known:
            known[name].sort(key=lambda each: str(each["did"]))
            known.pop("cursor", None)
    return status, known


LEFT_TO_CHANCE = (
    "knownFollowers",  # five of them, in no order, and none when the AppView's own database took 100 ms
)


# lists that come in no order, or in that in which accounts were first seen (`actor.indexedAt`)
UNORDERED = {
    "app.bsky.actor.searchActors": ("actors",),
    "app.bsky.actor.searchActorsTypeahead": ("actors",),
    "app.bsky.graph.getKnownFollowers": ("followers",),
}


def settled(body: Any) -> Any:
    """Without what the AppView leaves to chance, and without the time at which an account's profile was indexed: the mirror
    fetched what the official indexer saw as events. Notifications of one moment, which have no order, get one."""
    if isinstance(body, list):
        return [settled(part) for part in body]
    if not isinstance(body, dict):
        return body
    kept = {name: settled(value) for name, value in body.items() if name not in LEFT_TO_CHANCE}
    if "handle" in kept:
        kept.pop("indexedAt", None)
    if isinstance(notifications := kept.get("notifications"), list):
        last = notifications[-1]["indexedAt"] if "cursor" in kept else ""  # a page ends in the middle of a moment
        whole = [each for each in notifications if each["indexedAt"] != last]
        kept["notifications"] = sorted(whole, key=lambda each: (each["indexedAt"], each["uri"], each["reason"]))
    return kept


def unlike(
    one: AppView, other: AppView, asked: list[Question], tokens: Mapping[tuple[str, str], str]
) -> tuple[list[str], list[Answer]]:
    """One line for each place where the answers differ; and what `one` answered. Parts of an answer that come from another
    of its services the AppView leaves out when they took too long: an answer that differs is asked for again, of both, when
    nothing else is asked."""
    with ThreadPoolExecutor(2) as pool:
        right, others = pool.map(lambda appview: answers(appview, asked, tokens), (one, other))
    found = []
    for question, wanted, given in zip(asked, right, others, strict=True):
        places = list(different(wanted, given, ""))
        for _ in range(ASKED_AGAIN):
            if places:
                places = list(different(answer(one, question, tokens), answer(other, question, tokens), ""))
        found += [f"{question}\n    {place}" for place in places]
    return found, right


def different(right: Any, answer: Any, path: str) -> Iterator[str]:
    if isinstance(right, dict) and isinstance(answer, dict):
        for name in sorted(right.keys() | answer.keys()):
            yield from different(right.get(name, ABSENT), answer.get(name, ABSENT), f"{path}/{name}")
    elif isinstance(right, list | tuple) and isinstance(answer, list | tuple):
        if len(right) != len(answer):
            yield f"{path}: {len(right)} wanted, {len(answer)} given: {brief(right)} <> {brief(answer)}"
        else:
            for at, (one, other) in enumerate(zip(right, answer, strict=True)):
                yield from different(one, other, f"{path}/{at}")
    elif right != answer:
        yield f"{path}: {brief(right)} <> {brief(answer)}"


class Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = Absent()


def brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
