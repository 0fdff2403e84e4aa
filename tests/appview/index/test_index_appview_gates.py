"""Thread and post gates decide in the order in which the log took things, and what was decided stays (N10)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from appview import gate_versions as appview_gates
from appview.rebuild import rebuild
from tests.appview.index.appview_dates import DATES, dated
from tests.appview.index.appview_tables_seen import differences, everything
from tests.appview.index.appview_world import (
    GATE,
    World,
    Write,
    at,
    did,
    follow,
    gone,
    post,
    post_gate,
    quote,
    reply,
    thread_gate,
)

FOLLOWERS = {"$type": f"{GATE}#followerRule"}
FOLLOWED = {"$type": f"{GATE}#followingRule"}
LIST, ITEM = "app.bsky.graph.list", "app.bsky.graph.listitem"
ROOT = post("ann", "3kaaaaaaaaaa2", 1)


@pytest.fixture
def world(database: str) -> World:
    made = World(database)
    for name in ("ann", "bob", "cat", "dan"):
        made.index(*made.snapshot(name, []))
    return made


def live(world: World, *writes: Write) -> None:
    """Each a commit of its own, taken by the log at its minute."""
    for write in writes:
        world.index(world.commit(write.name, write))
    world.reconcile()


def refused(world: World) -> set[str]:
    """Keys of replies that violate the thread gate, or of quotes that violate the post gate."""
    rows = world.sql('select uri from bsky.post where "violatesThreadGate" or "violatesEmbeddingRules"')
    return {uri.rsplit("/", 1)[1] for (uri,) in rows}


def answers(world: World, minute: float, key: str, **more: Any) -> Write:
    write = reply("bob", f"3kbbbbbbbbbb{key}", minute, ROOT, ROOT, **more)
    live(world, write)
    return write


def assert_a_rebuild_opens_nothing(world: World) -> None:
    """Neither over existing rows nor from empty tables, and it changes nothing else."""
    before = everything(world)
    for from_empty in (False, True):
        rebuild(world.settings, lambda _: None, from_empty=from_empty)
        assert differences(before, everything(world)) == {}, f"from_empty={from_empty}"


@pytest.mark.parametrize("date", DATES)
def test_no_date_lets_a_reply_or_a_quote_in(world: World, date: str) -> None:
    """Bullet 1: a stranger's reply or quote after the gate, dated back or ahead, live; and a reply before it stays."""
    live(
        world,
        ROOT,
        reply("cat", "3kccccccccc22", 1.5, ROOT, ROOT, createdAt=date),
        thread_gate(ROOT, 2),
        post_gate(ROOT, 2),
    )
    live(
        world,
        reply("bob", "3kbbbbbbbbb22", 3, ROOT, ROOT, createdAt=date),
        dated(quote("bob", "3kbbbbbbbbb23", 3, ROOT), date),
    )
    assert refused(world) == {"3kbbbbbbbbb22", "3kbbbbbbbbb23"}
    assert world.sql('select "replyCount" from bsky.post_agg where uri = %s', ROOT.uri) == [(1,)]
    assert_a_rebuild_opens_nothing(world)


@pytest.mark.parametrize("date", DATES[1:4])
def test_a_reply_of_unknown_order_is_refused_by_the_current_gate(world: World, date: str) -> None:
    """Bullet 1, backfilled: reply and gate come by first fetches, in either order, whatever their dates say."""
    strange = reply("eve", "3keeeeeeeee22", 1.5, ROOT, ROOT, createdAt=date)
    early = reply("fay", "3kfffffffff22", 1.5, ROOT, ROOT, createdAt=date)
    world.index(*world.snapshot("eve", [strange]), received=0.5)
    world.index(
        *world.snapshot(
            "gus", [post("gus", "3kggggggggg22", 1), dated(thread_gate(post("gus", "3kggggggggg22", 1), 2), date)]
        )
    )
    live(world, ROOT, thread_gate(ROOT, 2))
    world.index(*world.snapshot("fay", [early]), received=3)
    other = post("gus", "3kggggggggg22", 1)
    world.index(
        *world.snapshot("hal", [reply("hal", "3khhhhhhhhh22", 1.2, other, other, createdAt=date)]), received=0.1
    )
    world.reconcile()
    assert refused(world) == {"3kfffffffff22", "3khhhhhhhhh22"}, "what was fetched before the gate came is older"
    assert_a_rebuild_opens_nothing(world)


def test_an_edited_gate_lets_in_nothing_that_it_refused(world: World) -> None:
    """Bullet 2: clients write a new createdAt when a reply is hidden or a quote detached."""
    live(world, ROOT, thread_gate(ROOT, 2), post_gate(ROOT, 2))
    first = answers(world, 3, "2")
    live(world, quote("cat", "3kccccccccc22", 3, ROOT))
    detached = post_gate(ROOT, 5)
    detached = replace(detached, record={**(detached.record or {}), "detachedEmbeddingUris": [first.uri]})
    live(world, thread_gate(ROOT, 5, hidden=[first.uri]), detached)
    second = answers(world, 6, "3")
    assert refused(world) == {first.rkey, second.rkey, "3kccccccccc22"}
    assert world.sql("select count(*), max(came) from sluice.appview_gate where uri like '%%threadgate%%'")[0][0] == 1
    assert_a_rebuild_opens_nothing(world)


def test_a_gate_that_is_opened_closed_or_deleted_changes_no_decision(world: World) -> None:
    """Bullets 2 and 5: what a gate refused before its deletion or its opening stays refused; what came then stays allowed."""
    everybody = thread_gate(ROOT, 4)
    everybody = replace(
        everybody, record={key: value for key, value in (everybody.record or {}).items() if key != "allow"}
    )
    live(world, ROOT)
    kept = [answers(world, 1.5, "2")]
    live(world, thread_gate(ROOT, 2), post_gate(ROOT, 2))
    shut = [answers(world, 3, "3")]
    live(world, quote("cat", "3kccccccccc22", 3, ROOT), everybody, gone(post_gate(ROOT, 2), 4))
    kept += [answers(world, 5, "4")]
    live(world, quote("cat", "3kccccccccc23", 5, ROOT), thread_gate(ROOT, 6))
    shut += [answers(world, 7, "5")]
    live(world, gone(everybody, 8))
    kept += [answers(world, 9, "a")]
    assert refused(world) == {*(one.rkey for one in shut), "3kccccccccc22"}
    assert world.sql('select "hasThreadGate", "hasPostGate" from bsky.post where uri = %s', ROOT.uri) == [
        (False, False)
    ]
    assert_a_rebuild_opens_nothing(world)
    assert world.sql('select "hasThreadGate", "hasPostGate" from bsky.post where uri = %s', ROOT.uri) == [
        (False, False)
    ]


def test_whom_a_follow_or_a_list_let_in_stays_in(world: World) -> None:
    """Bullet 3: unfollowing, or leaving a list, hides nothing; and a follow that comes after the reply lets nothing in."""
    by_list = {"$type": f"{GATE}#listRule", "list": f"at://{did('dan')}/{LIST}/3kddddddddd22"}
    theirs = follow("bob", "3kbbbbbbbbb92", 2, "ann")
    mine = follow("ann", "3kaaaaaaaaa92", 2, "cat")
    listed = Write(
        "dan",
        LIST,
        "3kddddddddd22",
        {"$type": LIST, "name": "x", "purpose": "app.bsky.graph.defs#curatelist", "createdAt": at(1)},
        1,
    )
    item = Write(
        "dan", ITEM, "3kddddddddd23", {"$type": ITEM, "list": listed.uri, "subject": did("eve"), "createdAt": at(1)}, 1
    )
    world.index(*world.snapshot("eve", []), *world.snapshot("fay", []))
    live(world, ROOT, listed, item, thread_gate(ROOT, 1.5, FOLLOWERS, FOLLOWED, by_list), theirs, mine)
    allowed = [reply(name, f"3k{name[0] * 9}22", 3, ROOT, ROOT) for name in ("bob", "cat", "eve")]
    late = reply("fay", "3kfffffffff22", 3, ROOT, ROOT)
    live(world, *allowed, late)
    live(world, *(gone(one, 4) for one in (theirs, mine, item)), follow("fay", "3kfffffffff92", 4, "ann"))
    live(world, reply("bob", "3kbbbbbbbbb23", 5, ROOT, ROOT), thread_gate(ROOT, 6, FOLLOWERS, hidden=[late.uri]))
    assert refused(world) == {late.rkey, "3kbbbbbbbbb23"}
    assert_a_rebuild_opens_nothing(world)


def test_a_follow_that_lapses_before_the_reply_is_folded_counts_for_its_time(world: World) -> None:
    """Bullet 3: reply, unfollow, gate edit and all in one transaction, or reconciled much later: the time of each decides."""
    theirs = follow("bob", "3kbbbbbbbbb92", 2, "ann")
    live(world, ROOT, thread_gate(ROOT, 1.5, FOLLOWERS))
    world.index(
        *(world.commit("bob", one) for one in (theirs, reply("bob", "3kbbbbbbbbb22", 3, ROOT, ROOT), gone(theirs, 4), reply("bob", "3kbbbbbbbbb23", 5, ROOT, ROOT)))
    )  # fmt: skip
    world.index(
        world.commit("cat", follow("cat", "3kccccccccc92", 2, "ann")),
        world.commit("cat", reply("cat", "3kccccccccc22", 3, ROOT, ROOT)),
    )
    world.index(world.commit("cat", gone(follow("cat", "3kccccccccc92", 2, "ann"), 4)))
    world.reconcile()
    assert refused(world) == {"3kbbbbbbbbb23"}


def test_versions_of_a_gate_in_one_transaction_are_all_kept(world: World) -> None:
    """Closed, opened and deleted before the reconciliation, and before the reply's partition is read: the time of each decides."""
    everybody = replace(thread_gate(ROOT, 3), record={"$type": GATE, "post": ROOT.uri, "createdAt": at(3)})
    world.index(
        *(
            world.commit("ann", one)
            for one in (ROOT, thread_gate(ROOT, 2), everybody, gone(everybody, 4), thread_gate(ROOT, 6))
        )
    )
    live(
        world,
        *(reply("bob", f"3kbbbbbbbbb2{n}", minute, ROOT, ROOT) for n, minute in enumerate((2.5, 3.5, 4.5, 6.5), 2)),
    )
    assert refused(world) == {"3kbbbbbbbbb22", "3kbbbbbbbbb25"}


def test_a_gate_dated_ahead_holds_live_and_backfilled(world: World) -> None:
    """Bullet 4."""
    ahead = "2099-01-01T00:00:00.000Z"
    live(world, ROOT, dated(thread_gate(ROOT, 2), ahead), dated(post_gate(ROOT, 2), ahead))
    answers(world, 3, "2")
    other = post("eve", "3keeeeeeeee22", 1)
    world.index(
        *world.snapshot("eve", [other, dated(thread_gate(other, 2), ahead), dated(post_gate(other, 2), ahead)]),
        received=4,
    )
    live(world, reply("cat", "3kccccccccc22", 5, other, other), quote("cat", "3kccccccccc23", 5, other))
    assert refused(world) == {"3kbbbbbbbbbb2", "3kccccccccc22", "3kccccccccc23"}
    assert_a_rebuild_opens_nothing(world)


def test_a_gate_of_its_posts_own_commit_is_as_old_as_the_post(world: World) -> None:
    """A reply that reached our log before the post and its gate did is younger than both: it names the post's CID."""
    live(world, reply("bob", "3kbbbbbbbbb22", 1, ROOT, ROOT))
    world.index(world.commit("ann", replace(ROOT, minute=2), thread_gate(ROOT, 2)))
    world.reconcile()
    assert refused(world) == {"3kbbbbbbbbb22"}


def test_an_edited_reply_is_judged_again(world: World) -> None:
    """Otherwise a reply from before the gate could get any text later; the official indexer judges again too."""
    live(world, ROOT, reply("bob", "3kbbbbbbbbb22", 1.5, ROOT, ROOT), thread_gate(ROOT, 2))
    assert refused(world) == set()
    live(world, reply("bob", "3kbbbbbbbbb22", 3, ROOT, ROOT, text="another"))
    assert refused(world) == {"3kbbbbbbbbb22"}


def test_an_account_that_was_deleted_comes_back_with_its_gate_closed(world: World) -> None:
    """The first fetch after a deletion: the start of the gate is unknown."""
    world.index(*world.snapshot("eve", [reply("eve", "3keeeeeeeee22", 1, ROOT, ROOT)]), received=1)
    live(world, ROOT, thread_gate(ROOT, 2))
    world.sql("update sluice.repo set first_attempt = null where did = %s", did("ann"))
    world.sql("delete from sluice.record where did = %s", did("ann"))
    world.sql(
        "insert into sluice.appview_dirty (kind, uri) values ('gone', %s), ('gone', %s)",
        ROOT.uri,
        thread_gate(ROOT, 2).uri,
    )
    world.reconcile()
    assert refused(world) == set()
    world.sql("update sluice.repo set phase = 'backfill', attempt = 2 where did = %s", did("ann"))
    world.index(*world.snapshot("ann", [ROOT, thread_gate(ROOT, 2)], attempt=2), received=9)
    world.reconcile()
    assert refused(world) == {"3keeeeeeeee22"}


def test_a_gate_that_changes_all_the_time_has_few_versions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is bounded: the two oldest become the stricter of both."""
    monkeypatch.setattr(appview_gates, "MAX_VERSIONS", 4)
    live(world, ROOT)
    for turn in range(12):
        live(world, thread_gate(ROOT, 2 + turn, *([FOLLOWERS] if turn % 2 else [])))
    assert world.sql("select count(*) from sluice.appview_gate") == [(4,)]
    assert world.sql("select closed, follower from sluice.appview_gate order by came limit 1") == [(True, False)]


def test_versions_of_gates_go_with_what_they_decided(world: World) -> None:
    gate = thread_gate(ROOT, 2)
    live(world, ROOT, gate, follow("bob", "3kbbbbbbbbb92", 2, "ann"))
    answer = answers(world, 3, "2")
    live(world, gone(gate, 4), gone(ROOT, 4))
    assert refused(world) == {answer.rkey}
    live(world, gone(answer, 5), ROOT)
    live(world, gone(ROOT, 6), gone(follow("bob", "3kbbbbbbbbb92", 2, "ann"), 6))
    assert world.sql("select count(*) from sluice.appview_gate") == [(0,)]
    assert world.sql("select count(*) from sluice.appview_lapsed") == [(1,)]
    world.sql("update sluice.appview_lapsed set noted_at = now() - interval '2 hours'")
    with psycopg.connect(world.database, autocommit=True) as db:
        appview_gates.prune_lapsed(db)
    assert world.sql("select count(*) from sluice.appview_lapsed") == [(0,)]


def test_a_gate_that_went_while_the_projection_was_off_is_ended_by_a_rebuild(world: World) -> None:
    live(world, ROOT, thread_gate(ROOT, 2))
    shut = answers(world, 3, "2")
    off = World(world.database, appview=False)
    off.revs = world.revs
    off.index(off.commit("ann", gone(thread_gate(ROOT, 2), 4)))
    on = World(world.database)
    on.revs = off.revs
    rebuild(on.settings, lambda _: None)
    assert refused(on) == {shut.rkey}, "what was decided stays"
    assert on.sql('select "hasThreadGate" from bsky.post where uri = %s', ROOT.uri) == [(False,)]
