"""The official AppView on the mirror's tables gives the answers that it gives on the tables of its own indexer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.appview_accepted import reconcile
from tests.acceptance.appview_author import Author, Written, authors_of, stamp
from tests.acceptance.appview_content import write_everything
from tests.acceptance.appview_questions import answer, different, questions, tokens_of, unlike
from tests.acceptance.appview_tables import Expected, unlike_rows
from tests.acceptance.running_mirror import Mirror
from tests.support.official.appview_servers import VERSIONS, HandleServer, OfficialAppView, bsky
from tests.support.official.servers import OfficialNetwork
from tests.support.postgres import data_folder
from tests.support.size import sized

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

EQUAL_SECONDS = 120
SHOWN = 60
OLDER = sized(6, 3)  # every so many-th question is for the older version too
INDEXERS = sized(VERSIONS[-1:], VERSIONS)  # versions whose own indexer runs; the other reads the newest's tables

NEWER = {VERSIONS[0]: frozenset({"op_thread_reply", "post_embed_gallery_image"}), VERSIONS[1]: frozenset()}  # tables

# With one of these tables emptied, the answers to one of these questions must differ: the test can fail.
NEEDED = {
    "actor": "app.bsky.actor.getProfile",
    "feed_item": "app.bsky.feed.getAuthorFeed",
    "follow": "app.bsky.graph.getFollowers",
    "label": "app.bsky.actor.getProfile",
    "like": "app.bsky.feed.getLikes",
    "list_item": "app.bsky.graph.getList",
    "notification": "app.bsky.notification.listNotifications",
    "post": "app.bsky.unspecced.getPostThreadV2",
    "post_agg": "app.bsky.feed.getPosts",
    "post_embed_image": "app.bsky.feed.getAuthorFeed",
    "post_embed_video": "app.bsky.feed.getAuthorFeed",
    "profile_agg": "app.bsky.actor.getProfile",
    "quote": "app.bsky.feed.getQuotes",
    "record": "app.bsky.feed.getPosts",
    "repost": "app.bsky.feed.getRepostedBy",
    "starter_pack": "app.bsky.graph.getActorStarterPacks",
}


@pytest.fixture
def mirror_folder() -> Iterator[Path]:
    """A folder that the embedded PostgreSQL's user can reach."""
    with data_folder() as folder:
        yield folder


def test_the_official_appview_answers_the_same_from_our_tables(
    official_network: Callable[..., OfficialNetwork],
    official_appview: Callable[..., OfficialAppView],
    blank_databases: Callable[[], str],
    handle_server: Callable[[OfficialNetwork], HandleServer],
    mirror_folder: Path,
) -> None:
    """N10: history, live writes, labels, and accounts that change their handle, hide, come back, arrive and go."""
    network = official_network(ozone=blank_databases(), accounts=9, posts=2)
    *authors, hidden, early = authors_of(network)
    history = write_everything([*authors, hidden], "history")
    write_labels(network, authors, "spam")
    network.order("deactivate", did=hidden.did)
    network.order("delete_account", did=early.did)

    references = {version: blank_databases() for version in INDEXERS}
    newest = VERSIONS[-1]
    official = {v: official_appview(v, database, network, index=True) for v, database in references.items()}
    names = handle_server(network)
    mirror = Mirror(
        mirror_folder / "mirror", network,
        appview="true", handle_dns=names.address, handle_retry_seconds=1, handle_checks_per_second=100,
    )  # fmt: skip
    started = stamp()
    with mirror.running():
        mirror.await_equal(network.truth())
        arrived, lively = write_live(network, authors, hidden)
        doubled = [*history.doubled, *lively.doubled]
        gone = [early.did, authors[-1].did]
        truth = network.truth()
        mirror.await_equal(truth)
        expected = Expected(started, arrived, gone, {edit.uri for edit in doubled})
        for version, appview in official.items():
            refused = appview.await_indexed(network.order("seq"))
            print(appview.version, "\n".join(refused))
            assert sum("could not be replaced" in line for line in refused) == len(doubled)
            copy_labels(network, references[version])
            with bsky(references[version]) as reference:
                reconcile(reference, gone, doubled, history, started)
            assert_equal_tables(version, references[version], mirror, expected)

        with bsky(references[newest]) as reference:
            reposted = {uri for (uri,) in reference.execute("SELECT subject FROM repost")}
        asked = questions(truth, gone, [author.did for author in authors[:2]], reposted)
        tokens = tokens_of(network, asked)
        print(len(asked), "questions")
        assert len(asked) > sized(250, 500)
        for version in VERSIONS:
            if version not in official:
                make_readable_for_older(references[newest])
                official[version] = official_appview(version, references[newest], network)
            some = asked if version == newest else asked[::OLDER]
            with official[version].answering_from(mirror.database_url()) as ours:
                found, right = unlike(official[version].answers, ours, some, tokens)
            assert not found, f"{version}: {len(found)} places\n" + "\n".join(found[:SHOWN])

    for table, method in NEEDED.items():
        known = [pair for pair in zip(asked, right, strict=True) if pair[0].method == method]
        known.sort(key=lambda pair: -len(repr(pair)))  # who has much to say has much to lose
        with emptied(table, references[newest]):
            again = (different(was, answer(official[newest].answers, question, tokens), "") for question, was in known)
            differs = any(any(places) for places in again)
        assert differs, f"nothing is asked that needs {table}"


@contextmanager
def emptied(table: str, database: str) -> Iterator[None]:
    with bsky(database) as connection:
        connection.execute(f'ALTER TABLE "{table}" RENAME TO kept; CREATE TABLE "{table}" (LIKE kept INCLUDING ALL)')
    yield
    with bsky(database) as connection:
        connection.execute(f'DROP TABLE "{table}"; ALTER TABLE kept RENAME TO "{table}"')


def make_readable_for_older(database: str) -> None:
    """The only column that the older version needs and the newest has dropped (tests/appview/test_catalog.py)."""
    with bsky(database) as connection:
        connection.execute('ALTER TABLE actor_state ADD COLUMN "lastSeenPriorityNotifs" varchar')


def write_labels(network: OfficialNetwork, authors: list[Author], value: str) -> None:
    """On an account and on a record; and one that is taken back."""
    network.order("label", did=authors[1].did, create=[value, "rude"])
    network.order("label", did=authors[1].did, negate=["rude"])
    network.order("label", **authors[0].posts[0], create=[value])


def write_live(network: OfficialNetwork, authors: list[Author], hidden: Author) -> tuple[str, Written]:
    """All that may happen to accounts, the last of `authors` is deleted; the DID of one that arrives, and what was written."""
    network.order("activate", did=hidden.did)
    arrived: str = network.order("account", handle="arrived.test")["did"]
    *_, leaving = authors
    written = write_everything(authors[:-1], "live")
    write_labels(network, authors, "porn")
    network.order("handle", did=authors[1].did, handle="changed.test")
    network.order("deactivate", did=authors[3].did)
    network.order("takedown", did=arrived, applied=True)
    for applied in (True, False):
        network.order("takedown", did=authors[2].did, applied=applied)
    network.order("delete_account", did=leaving.did)
    return arrived, written


def copy_labels(network: OfficialNetwork, database: str) -> None:
    """The package reads this table, and no code in it writes it."""
    with bsky(database) as reference:
        for label in network.order("labels"):
            reference.execute(
                "INSERT INTO label (src, uri, cid, val, neg, cts, exp) VALUES (%(src)s, %(uri)s, %(cid)s, %(val)s, %(neg)s,"
                " %(cts)s, %(exp)s)",
                label,
            )


def assert_equal_tables(version: str, reference: str, mirror: Mirror, expected: Expected) -> None:
    """Some of the work, such as handles and what depends on other repos, is done soon after the transaction."""
    deadline = time.monotonic() + EQUAL_SECONDS
    with bsky(reference) as theirs, bsky(mirror.database_url()) as ours:
        while (found := unlike_rows(theirs, ours, expected, NEWER[version])) and time.monotonic() < deadline:
            time.sleep(0.3)
    assert not found, f"{version}: {len(found)} rows\n" + "\n".join(found[:SHOWN])
