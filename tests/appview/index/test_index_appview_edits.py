"""Edits that the AppView refuses, records of one key, and accounts that come back (N10)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from appview.rebuild import rebuild
from schemas import wire
from tests.appview.index.appview_tables_seen import differences, everything
from tests.appview.index.appview_world import (
    BLOCK,
    LIKE,
    World,
    Write,
    at,
    cid_of,
    did,
    gone,
    like,
    post,
    quote,
    reply,
    thread_gate,
)


@pytest.fixture
def world(database: str) -> World:
    made = World(database)
    made.index(*made.snapshot("ann", []), *made.snapshot("bob", []))
    return made


HELLO = post("ann", "3kaaaaaaaaaa2", 1)
BROKEN = replace(HELLO, record={**(HELLO.record or {}), "text": 7}, minute=3)


def shown(world: World, write: Write) -> list[tuple[Any, ...]]:
    return world.sql(
        "select p.text, p.cid, r.cid, r.json::jsonb ->> 'text', r.\"indexedAt\" from bsky.post p left join bsky.record r using (uri) where uri = %s",
        write.uri,
    )


def invalid(world: World, write: Write) -> list[tuple[Any, ...]]:
    return world.sql("select invalid is not null from sluice.appview_record where rkey = %s", write.rkey)


def rebuilt_alike(world: World) -> None:
    before = everything(world)
    for from_empty in (False, True):
        rebuild(world.settings, lambda _: None, from_empty=from_empty)
        assert differences(before, everything(world)) == {}, f"from_empty={from_empty}"


@pytest.mark.parametrize("together", [False, True])
def test_a_post_that_is_edited_into_an_invalid_record_stays_as_it_was(world: World, together: bool) -> None:
    """With its likes, replies, quotes and notifications, flagged; the mirror has the record as its author left it."""
    commits = [world.commit("ann", HELLO), world.commit("ann", BROKEN)]
    if together:
        world.index(*commits)
    else:
        world.index(commits[0])
        world.index(
            world.commit("bob", like("bob", "3kbbbbbbbbbb2", 2, HELLO)),
            world.commit("bob", quote("bob", "3kbbbbbbbbbb3", 2, HELLO)),
        )
        world.index(world.commit("bob", reply("bob", "3kbbbbbbbbbb4", 2, HELLO, HELLO)))
        world.reconcile()
        before = everything(world)
        world.index(commits[1])
        world.reconcile()
        assert differences(before, everything(world)) == {}
    world.reconcile()
    text, cid = "ann 3kaaaaaaaaaa2", cid_of(HELLO.record)
    assert shown(world, HELLO) == [(text, cid, cid, text, at(1))]
    assert invalid(world, HELLO) == [(True,)]
    assert world.sql("select cid from sluice.record where rkey = %s", HELLO.rkey) == [(cid_of(BROKEN.record),)]
    rebuilt_alike(world)
    again = replace(BROKEN, record={**(BROKEN.record or {}), "text": 8}, minute=4)
    world.index(world.commit("ann", again))
    world.reconcile()
    assert shown(world, HELLO) == [(text, cid, cid, text, at(1))]
    mended = replace(HELLO, record={**(HELLO.record or {}), "text": "mended"}, minute=5)
    world.index(world.commit("ann", mended))
    world.reconcile()
    assert shown(world, HELLO) == [("mended", cid_of(mended.record), cid_of(mended.record), "mended", at(5))]
    assert invalid(world, HELLO) == [(False,)]
    world.index(world.commit("ann", BROKEN), world.commit("ann", gone(HELLO, 6)))
    world.reconcile()
    assert shown(world, HELLO) == []
    assert invalid(world, HELLO) == []


def test_what_was_deleted_is_not_kept_when_an_invalid_record_takes_its_key(world: World) -> None:
    world.index(world.commit("ann", HELLO))
    world.index(world.commit("ann", gone(HELLO, 2)), world.commit("ann", BROKEN))
    world.reconcile()
    assert shown(world, HELLO) == []
    assert world.sql("select * from bsky.record where did = %s", did("ann")) == []
    world.index(world.commit("ann", HELLO), world.commit("ann", gone(HELLO, 2)), world.commit("ann", BROKEN))
    world.reconcile()
    assert shown(world, HELLO) == []


def test_a_gate_and_a_reply_that_are_edited_into_invalid_records_decide_as_before(world: World) -> None:
    gate, answer = thread_gate(HELLO, 3), reply("bob", "3kbbbbbbbbbb2", 2, HELLO, HELLO)
    world.index(world.commit("ann", HELLO), world.commit("bob", answer), world.commit("ann", gate))
    broken = replace(answer, record={**(answer.record or {}), "text": 7}, minute=4)
    open_gate = replace(gate, record={**(gate.record or {}), "allow": "everybody"}, minute=4)
    world.index(world.commit("bob", broken), world.commit("ann", open_gate))
    late = reply("bob", "3kbbbbbbbbbb3", 5, HELLO, HELLO)
    world.index(world.commit("bob", late))
    world.reconcile()
    assert world.sql('select uri from bsky.post where "violatesThreadGate"') == [(late.uri,)]
    rebuilt_alike(world)


def test_a_record_that_this_release_takes_is_shown_by_a_rebuild(world: World) -> None:
    """An edit that an older release refused and kept out."""
    world.index(world.commit("ann", HELLO))
    world.index(world.commit("ann", BROKEN))
    good = {**(HELLO.record or {}), "text": "good now"}
    world.sql("update sluice.record set json = %s where rkey = %s", json.dumps(good), HELLO.rkey)
    rebuild(world.settings, lambda _: None)
    assert [row[0] for row in shown(world, HELLO)] == ["good now"]
    assert invalid(world, HELLO) == [(False,)]


def test_of_two_likes_in_one_commit_the_first_holds_the_key(world: World) -> None:
    """Whatever their keys; the order outlives a rebuild. When the first goes, the second takes its place."""
    world.index(world.commit("ann", HELLO))
    first, second = like("bob", "3kzzzzzzzzzz2", 2, HELLO), like("bob", "3kbbbbbbbbbb2", 2, HELLO)
    world.index(world.commit("bob", first, second))
    world.reconcile()
    assert world.sql('select uri from bsky."like"') == [(first.uri,)]
    assert world.sql('select uri, "duplicateOf" from bsky.duplicate_record') == [(second.uri, first.uri)]
    rebuilt_alike(world)
    third = like("bob", "3kaaaaaaaaaa2", 2, HELLO)
    world.index(world.commit("bob", third))
    assert world.sql('select uri from bsky."like"') == [(first.uri,)]
    rebuilt_alike(world)
    world.index(world.commit("bob", gone(first, 3)))
    assert world.sql('select uri from bsky."like"') == [(third.uri,)]
    assert world.sql('select "likeCount" from bsky.post_agg') == [(1,)]
    assert LIKE in first.uri


def test_an_edit_into_a_duplicate_block_is_taken_and_makes_room_again(world: World) -> None:
    """As for likes, reposts and follows: the record is as its author left it."""

    def block(rkey: str, whom: str, minute: float) -> Write:
        return Write("ann", BLOCK, rkey, {"$type": BLOCK, "subject": did(whom), "createdAt": at(minute)}, minute)

    one, other = block("3kaaaaaaaaa22", "bob", 1), block("3kaaaaaaaaa23", "cat", 2)
    world.index(world.commit("ann", one), world.commit("ann", other))
    world.index(world.commit("ann", block("3kaaaaaaaaa23", "bob", 3)))
    assert world.sql('select uri, "subjectDid" from bsky.actor_block') == [(one.uri, did("bob"))]
    assert world.sql('select uri, "duplicateOf" from bsky.duplicate_record') == [(other.uri, one.uri)]
    world.index(world.commit("ann", gone(one, 4)))
    assert world.sql('select uri, "subjectDid" from bsky.actor_block') == [(other.uri, did("bob"))]
    rebuilt_alike(world)


def test_the_handle_of_an_account_that_comes_back_is_checked_again(world: World) -> None:
    """Its host may have denied the handle while the account was taken down."""

    def account(seq: int, *, active: bool, status: str | None) -> None:
        event = wire.AccountEvent(
            seq=seq, time=at(seq), did=did("ann"), active=active, status=status, relay="https://relay.example"
        )
        world.index(event)

    account(1, active=False, status="takendown")
    world.sql(
        "insert into sluice.handle (did, handle, verified, checked_at, next_check_at) values (%s, 'ann.example', false, now(), now() + interval '1 day')"
        " on conflict (did) do update set verified = false, checked_at = now(), next_check_at = now() + interval '1 day'",
        did("ann"),
    )
    account(2, active=True, status=None)
    assert world.sql(
        "select next_check_at <= now() + interval '11 seconds' from sluice.handle where did = %s", did("ann")
    ) == [(True,)]


def test_a_buffered_event_keeps_the_time_when_the_log_took_it(world: World) -> None:
    """N10: a reply that waited for its repo's fetch came when the log took it, not when it was applied."""
    world.index(*world.snapshot("cat", []))
    world.sql("update sluice.repo set phase = 'backfill', attempt = 2 where did = %s", did("cat"))
    answer = reply("cat", "3kccccccccc22", 2, HELLO, HELLO)
    waiting = world.commit("cat", answer)
    world.index(waiting)
    assert world.sql("select count(*) from sluice.buffered_event where received is not null") == [(1,)]
    world.index(world.commit("ann", HELLO), world.commit("ann", thread_gate(HELLO, 3)))
    fetched = world.snapshot("cat", [], attempt=2)
    outcome = msgspec.structs.replace(fetched[-1], rev=waiting.since, data=waiting.prev_data)
    world.index(outcome, received=9)
    world.reconcile()
    assert world.sql("select came from sluice.record where rkey = %s", answer.rkey) != [(None,)]
    assert world.sql('select "violatesThreadGate" from bsky.post where uri = %s', answer.uri) == [(None,)]
