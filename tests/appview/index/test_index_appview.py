"""The AppView's tables as the index's own transaction writes them."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from tests.appview.index.appview_world import LIKE, REPOST, World, Write, at, cid_of, did, follow, gone, like, post


@pytest.fixture
def world(database: str) -> World:
    return World(database)


def test_records_of_a_snapshot_and_of_commits_are_rows(world: World) -> None:
    """B6, N10: the typed tables, counts, notifications and accounts follow what the index writes."""
    hello = post("ann", "3kaaaaaaaaaa2", 1, langs=["en"], tags=["x"])
    world.index(*world.snapshot("ann", [hello]), *world.snapshot("bob", [follow("bob", "3kaaaaaaaaaa3", 2, "ann")]))
    liked, reposted = like("bob", "3kaaaaaaaaaa4", 3, hello), like("bob", "3kaaaaaaaaaa5", 4, hello, REPOST)
    world.index(world.commit("bob", liked), world.commit("bob", reposted))
    assert world.sql('select uri, text, "createdAt", "sortAt", langs, tags from bsky.post') == [
        (hello.uri, "ann 3kaaaaaaaaaa2", at(1), at(1), ["en"], ["x"])
    ]
    assert world.sql('select uri, subject from bsky."like"') == [(liked.uri, hello.uri)]
    assert world.sql('select "likeCount", "repostCount" from bsky.post_agg where uri = %s', hello.uri) == [(1, 1)]
    assert world.sql('select did, "followersCount", "followsCount", "postsCount" from bsky.profile_agg order by 1') == [
        (did("ann"), 1, 0, 1),
        (did("bob"), 0, 1, 0),
    ]
    assert world.sql('select did, author, reason, "recordUri" from bsky.notification order by "sortAt"') == [
        (did("ann"), did("bob"), "follow", f"at://{did('bob')}/app.bsky.graph.follow/3kaaaaaaaaaa3"),
        (did("ann"), did("bob"), "like", liked.uri),
        (did("ann"), did("bob"), "repost", reposted.uri),
    ]
    assert world.sql("select did from bsky.actor order by did") == [(did("ann"),), (did("bob"),)]
    assert {row[0] for row in world.sql("select uri from bsky.record where uri = any(%s)", [hello.uri, liked.uri])} == {
        hello.uri,
        liked.uri,
    }
    world.index(world.commit("bob", gone(liked, 5)), world.commit("bob", gone(reposted, 5)))
    assert world.sql('select count(*) from bsky."like"') == [(0,)]
    assert world.sql("select * from bsky.post_agg") == [], "a row that counts nothing"
    assert world.sql("select reason from bsky.notification") == [("follow",)]


def test_what_no_index_can_hold_costs_only_itself(world: World) -> None:
    """G7: a record that its lexicon allows and PostgreSQL refuses stays in the mirror, flagged; the rest of the batch is written."""
    far = post("ann", "3kaaaaaaaaaa2", 1)
    endless = Write("bob", LIKE, "3kbbbbbbbbbb2", {**(like("bob", "x", 2, far).record or {})}, 2)
    assert endless.record is not None
    name = "".join(cid_of(n)[8:] for n in range(40))[:2000]
    endless.record["subject"] = {"uri": f"at://did:web:{name}/app.bsky.feed.post/{name[:500]}", "cid": cid_of(1)}
    world.index(*world.snapshot("ann", [far]), *world.snapshot("bob", [endless, like("bob", "3kbbbbbbbbbb3", 3, far)]))
    assert world.sql("select rkey from sluice.record where did = %s order by 1", did("bob")) == [
        ("3kbbbbbbbbbb2",),
        ("3kbbbbbbbbbb3",),
    ]
    assert world.sql('select subject from bsky."like"') == [(far.uri,)]
    ((reason,),) = world.sql("select invalid from sluice.appview_record where rkey = '3kbbbbbbbbbb2'")
    assert "no index holds" in reason
    assert world.sql("select count(*) from bsky.record where did = %s", did("bob")) == [(1,)]


def test_a_resync_touches_only_what_differs(world: World) -> None:
    """By path and CID: a row of a record that did not change is the same row, with the time when it was indexed first."""
    kept, edited, lost = (post("ann", f"3kaaaaaaaaaa{n}", n) for n in (2, 3, 4))
    world.index(*world.snapshot("ann", [kept, edited, lost]))
    world.reconcile()
    before = dict(world.sql("select uri, xmin::text from bsky.post"))
    later = [
        replace(kept, minute=30),
        replace(post("ann", "3kaaaaaaaaaa3", 3, langs=["de"]), minute=30),
        post("ann", "3kaaaaaaaaaa5", 30),
    ]
    world.sql("update sluice.repo set phase = 'backfill', attempt = 2 where did = %s", did("ann"))
    world.index(*world.snapshot("ann", later, attempt=2))
    world.reconcile()
    after = {
        uri: (row, time, langs)
        for uri, row, time, langs in world.sql('select uri, xmin::text, "indexedAt", langs from bsky.post')
    }
    assert after.keys() == {kept.uri, edited.uri, later[2].uri}
    assert after[kept.uri] == (before[kept.uri], at(2), None)
    assert after[edited.uri][1:] == (at(30), ["de"])
    assert world.sql('select "postsCount" from bsky.profile_agg') == [(3,)]
    assert world.sql('select "indexedAt" from bsky.record where uri = %s', kept.uri) == [(at(2),)]


def test_a_record_is_found_by_its_uri_through_indexes(world: World) -> None:
    """One copy of the JSON: the key of a URI leads to its row."""
    hello = post("ann", "3kaaaaaaaaaa2", 1)
    world.index(*world.snapshot("ann", [hello]))
    assert world.sql("select uri from bsky.record") == [(hello.uri,)]
    with psycopg.connect(world.database) as db:
        db.execute("set enable_seqscan = off")
        plan = [
            line for (line,) in db.execute("explain select * from bsky.record where uri in (%s, 'x')", (hello.uri,))
        ]
    assert any("appview_uri_pkey" in line for line in plan), plan
    assert any("Index Scan using record_row_00_pkey" in line for line in plan), plan
    assert not any("Seq Scan on record_row" in line for line in plan), plan
