"""Accounts, takedowns, labels and removals as the AppView's tables show them."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import errors

from appview.plugin import AppView
from appview.rebuild import check
from control import filter_changes
from flows.index.store import IndexStore
from schemas import wire
from schemas.filter_spec import FilterSpec
from tests.appview.index.appview_tables_seen import differences, everything
from tests.appview.index.appview_world import World, Write, at, did, follow, gone, like, post


@pytest.fixture
def world(database: str) -> World:
    return World(database)


def account(world: World, name: str, *, active: bool, status: str | None, minute: float) -> None:
    world.index(
        wire.AccountEvent(
            seq=int(minute), time=at(minute), did=did(name), active=active, status=status, relay="https://relay.example"
        )
    )


def checked(world: World, name: str, handle: str | None) -> None:
    """A check of the handle, as control settles it."""
    world.sql(
        "insert into sluice.handle (did, handle, verified, verified_at, checked_at) values (%s, %s, %s, now(), now())"
        " on conflict (did) do update set handle = excluded.handle, verified = excluded.verified, checked_at = now()",
        *(did(name), handle, handle is not None),
    )


def actors(world: World) -> list[tuple[Any, ...]]:
    return world.sql('select did, handle, "upstreamStatus", "takedownRef" from bsky.actor order by did')


def test_handles_and_statuses_are_shown_and_operators_columns_stay(world: World) -> None:
    """N10: a verified handle, one that moves to another account, deactivation, return."""
    world.index(*world.snapshot("ann", [post("ann", "3kaaaaaaaaaa2", 1)]), *world.snapshot("bob", []))
    assert actors(world) == [(did("ann"), None, None, None), (did("bob"), None, None, None)]
    checked(world, "ann", "ann.example")
    world.sql('update bsky.actor set "takedownRef" = \'why\', "trustedVerifier" = true where did = %s', did("ann"))
    account(world, "ann", active=False, status="deactivated", minute=2)
    account(world, "bob", active=False, status="suspended", minute=2)
    assert actors(world) == [
        (did("ann"), "ann.example", "deactivated", "why"),
        (did("bob"), None, "suspended", None),
    ]
    checked(world, "ann", None)
    checked(world, "bob", "ann.example")
    account(world, "bob", active=True, status=None, minute=3)
    assert [row[1:3] for row in actors(world)][1] == ("ann.example", None)
    assert world.sql('select "takedownRef", "trustedVerifier" from bsky.actor where did = %s', did("ann")) == [
        ("why", True)
    ]


def test_a_deleted_account_leaves_nothing_but_its_number(world: World) -> None:
    """Counts of others follow, and it can come back."""
    hello = post("ann", "3kaaaaaaaaaa2", 1)
    mine = [like("bob", "3kbbbbbbbbbb2", 2, hello), follow("bob", "3kbbbbbbbbbb3", 2, "ann")]
    world.index(*world.snapshot("ann", [hello]), *world.snapshot("bob", mine))
    world.reconcile()
    before = everything(world)
    account(world, "bob", active=False, status="deleted", minute=5)
    ((relay, seen),) = world.sql("select account_relay, account_seen from sluice.repo where did = %s", did("bob"))
    world.index(
        *(world.snapshot("bob", [], attempt=2)[:0]),
        wire.RepoOutcome(
            did=did("bob"), attempt=2, status="deleted", active=False, time=at(6), rev=None, commit=None, data=None, count=0,
            reason="deleted", account_time=at(5), account_seq=5, account_relay=relay, account_seen=seen,
        ),
    )  # fmt: skip
    world.reconcile()
    assert world.sql("select phase, reason from sluice.repo where did = %s", did("bob")) == [("unavailable", "deleted")]
    assert [row[0] for row in actors(world)] == [did("ann")]
    after = everything(world)
    assert [after[table] for table in ("like", "follow", "notification")] == [[], [], []]
    assert world.sql('select "likeCount" from bsky.post_agg where uri = %s', hello.uri) == []
    account(world, "bob", active=True, status=None, minute=9)
    world.index(*world.snapshot("bob", mine, attempt=3))
    world.reconcile()
    assert differences(before, everything(world)) == {}
    assert [row[0] for row in actors(world)] == [did("ann"), did("bob")]


def test_takedowns_of_records_survive_edits_and_end_with_the_record(world: World) -> None:
    hello = post("ann", "3kaaaaaaaaaa2", 1)
    world.index(*world.snapshot("ann", [hello]))
    world.sql("update bsky.record set \"takedownRef\" = 'spam', tags = '[\"x\"]' where uri = %s", hello.uri)
    assert world.sql('select "takedownRef", tags, json from bsky.record') == [("spam", ["x"], world_json(hello))]
    edited = post("ann", "3kaaaaaaaaaa2", 2, langs=["de"])
    world.index(world.commit("ann", edited))
    assert world.sql('select "takedownRef", tags, json from bsky.record') == [("spam", ["x"], world_json(edited))]
    world.index(world.commit("ann", gone(edited, 3)))
    world.index(world.commit("ann", hello))
    assert world.sql('select "takedownRef", tags from bsky.record') == [(None, None)]


def world_json(write: Write) -> str:
    import json

    return json.dumps(write.record)


def test_rows_of_pruned_records_go(world: World) -> None:
    """N9: `sluice filters prune` removes records without the index; the reconciliation removes what they made."""
    hello = post("ann", "3kaaaaaaaaaa2", 1)
    world.index(
        *world.snapshot(
            "ann", [hello, like("ann", "3kaaaaaaaaaa3", 2, hello), follow("ann", "3kaaaaaaaaaa4", 2, "bob")]
        )
    )
    with psycopg.connect(world.database, autocommit=True) as db:
        filter_changes.change(
            db, FilterSpec(collections=["app.bsky.graph.follow"], boundary="all", dids=[], signal=None)
        )
        filter_changes.prune(db)
        walk = filter_changes.FilterWalk()
        while not filter_changes.show(db).clean:
            walk.step(db)
        assert world.sql("select count(*) from sluice.record") == [(1,)]
        world.reconcile()
        left = everything(world)
        assert (left["post"], left["like"], left["feed_item"], left["post_agg"]) == ([], [], [], [])
        assert len(left["follow"]) == 1
        assert check(db).total == 0


def test_labels_are_shown_as_they_stand(world: World) -> None:
    label = wire.LabelEvent(
        seq=1,
        src=did("lab"),
        uri=did("ann"),
        cid=None,
        val="spam",
        neg=False,
        cts=at(1),
        exp=None,
        sig=None,
        relay="https://l.example",
    )
    with world.tables.transaction() as transaction:
        transaction.labels([label])
    assert world.sql("select src, uri, cid, val, neg, cts, exp from bsky.label") == [
        (did("lab"), did("ann"), "", "spam", False, at(1), None)
    ]


def test_workers_that_like_the_same_posts_lose_no_count(world: World) -> None:
    """Two index workers and a reconciliation at once, every repo likes and follows the same: exact counts, nothing stuck."""
    people, rounds = 40, 6
    hot = [post("ann", f"3kaaaaaaaaaa{n}", 1) for n in range(2, 6)]
    world.index(*world.snapshot("ann", hot))
    failed: list[BaseException] = []
    done = threading.Event()

    def work(own: range) -> None:
        tables = IndexStore(world.settings, "test", AppView(world.settings))
        mine = World.__new__(World)
        mine.__dict__ |= {
            "database": world.database,
            "settings": world.settings,
            "tables": tables,
            "revs": world.revs,
            "appview": True,
        }
        try:
            for turn in range(rounds):
                for person in own:
                    name = f"p{person:03d}".translate(str.maketrans("0189", "bcde"))
                    writes = [
                        like(name, f"3k{turn}aaaaaaaaa{n}".translate(str.maketrans("0189", "bcde")), 2 + turn, one)
                        for n, one in enumerate(hot, 2)
                    ]
                    if turn == 0:
                        again(mine, *mine.snapshot(name, [*writes, follow(name, "3kfffffffffff", 2, "ann")]))
                    else:
                        before = [
                            like(name, f"3k{turn - 1}aaaaaaaaa{n}".translate(str.maketrans("0189", "bcde")), 2, one)
                            for n, one in enumerate(hot, 2)
                        ]
                        again(mine, mine.commit(name, *[gone(one, 2 + turn) for one in before], *writes))
        except BaseException as err:
            failed.append(err)

    def reconciling() -> None:
        while not done.is_set():
            try:
                world.reconcile()
            except errors.DeadlockDetected:  # as the thread of an index does: the notes are still there
                continue
            except BaseException as err:
                failed.append(err)
                return

    threads = [threading.Thread(target=work, args=(range(start, people, 2),)) for start in (0, 1)]
    folder = threading.Thread(target=reconciling)
    for thread in (*threads, folder):
        thread.start()
    for thread in threads:
        thread.join(120)
    done.set()
    folder.join(60)
    assert failed == []
    world.reconcile()
    assert world.sql('select "likeCount" from bsky.post_agg order by uri') == [(people,)] * len(hot)
    assert world.sql('select "followersCount" from bsky.profile_agg where did = %s', did("ann")) == [(people,)]
    with psycopg.connect(world.database, autocommit=True) as db:
        assert check(db).total == 0


def again(world: World, *events: Any) -> None:
    """As the index does: a transaction that a deadlock undid is done again."""
    for _ in range(8):
        try:
            return world.index(*events)
        except errors.DeadlockDetected:
            continue
    raise AssertionError("a deadlock that does not end")
