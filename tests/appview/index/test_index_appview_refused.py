"""What the AppView's tables refuse costs only itself, is kept visible, and is tried again by a rebuild."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from appview.rebuild import check, rebuild
from appview.reconcile import SQL as RECONCILE_SQL
from connectors.kafka.producer import LogProducer
from tests.appview.index.appview_tables_seen import differences, everything, network
from tests.appview.index.appview_world import REPOST, World, did, follow, gone, like, post, quote, reply, thread_gate
from tests.appview.index.test_index_appview_process import appview_settings, out, settled
from tests.support.flow_process import FlowProcess, wait_until
from tests.support.postgres import fresh_database


def quarantine(world: World) -> list[tuple[str, str]]:
    return world.sql("select kind, uri from sluice.appview_refused order by kind, uri")


def refused_by_check(world: World) -> tuple[int, str | None]:
    with psycopg.connect(world.database, autocommit=True) as db:
        return check(db).found["refused"]


def test_what_only_the_fold_is_refused_costs_only_itself(
    log: str, database: str, postgres: str, appview_template: str, tmp_path: Path
) -> None:
    """G5, G7, N10: the process keeps running, the rest of the transaction is written, and a later rebuild repairs it."""
    root = post("ann", "3kaaaaaaaaaa2", 1)
    quotes = [quote("bob", f"3kbbbbbbbb{at:03d}".translate(str.maketrans("0189", "wxyz")), 2, root) for at in range(30)]
    answer = reply("eve", "3keeeeeeeeee2", 2, root, root)
    shares = [like(name, "3kccccccccccc", 3, root, REPOST) for name in ("cat", "dan")]
    bad = {("post", quotes[7].uri), ("post", quotes[8].uri), ("post", quotes[22].uri), ("repost", shares[1].uri)}
    bad |= {("post", root.uri)}  # whose quotes are not all there
    with fresh_database(postgres, appview_template) as other:
        peaceful = World(other)
        events = [*peaceful.snapshot("ann", [root]), *peaceful.snapshot("bob", quotes)]
        events += [
            *peaceful.snapshot("cat", shares[:1]),
            *peaceful.snapshot("dan", shares[1:]),
            *peaceful.snapshot("eve", [answer]),
        ]
        peaceful.index(*events)
        peaceful.reconcile()
        wanted = everything(peaceful)
        peaceful.tables.close()
    settings = appview_settings(log, database)
    world = World(database)
    for table, those in (("quote", quotes), ("feed_item", shares)):
        never = ", ".join(f"'{one.uri}'" for one in those if one.uri in {uri for _, uri in bad})
        own = "type <> 'repost' or " if table == "feed_item" else ""
        world.sql(f"alter table bsky.{table} add constraint only_here check ({own}uri not in ({never}))")
    LogProducer(settings).send([out(event) for event in events])
    # the root is refused only with its quotes: nothing is reconciled before all are there, in however many batches they come
    held = psycopg.connect(database, autocommit=True)
    assert held.execute(RECONCILE_SQL["lock"]).fetchone() == (True,)
    index = FlowProcess("index", settings, tmp_path / "index.log")
    try:
        wait_until(lambda: settled(world) >= len(events), what="the snapshots")
        held.close()
        wait_until(lambda: world.sql("select count(*) from sluice.appview_dirty") == [(0,)], what="the reconciliation")
    finally:
        code = index.terminate()
    assert code == 0
    assert set(quarantine(world)) == bad
    assert world.sql("select count(*) from bsky.quote") == [(len(quotes) - 3,)]
    assert world.sql('select "quoteCount" from bsky.post_agg where uri = %s', root.uri) == [(len(quotes) - 3,)]
    assert world.sql("select uri from bsky.feed_item where type = 'repost'") == [(shares[0].uri,)]
    assert ("reply", root.uri) in world.sql('select reason, "reasonSubject" from bsky.notification')
    lines = [json.loads(line) for line in (tmp_path / "index.log").read_text().splitlines() if "quarantined" in line]
    assert {(line["kind"], line["uri"]) for line in lines} == bad
    count, one = refused_by_check(world)
    assert count == len(bad)
    assert one is not None
    assert 'violates check constraint "only_here"' in one
    rebuild(settings, lambda _: None)
    assert set(quarantine(world)) == bad, "they are refused still"
    world.sql("alter table bsky.quote drop constraint only_here; alter table bsky.feed_item drop constraint only_here")
    rebuild(settings, lambda _: None)
    assert quarantine(world) == []
    assert differences(wanted, everything(world)) == {}
    assert refused_by_check(world) == (0, None)


def test_a_quarantined_note_that_recurs_leaves_quarantine(database: str) -> None:
    world = World(database)
    root = post("ann", "3kaaaaaaaaaa2", 1)
    quoted = quote("bob", "3kbbbbbbbbbb2", 2, root)
    world.sql(f"alter table bsky.quote add constraint only_here check (uri <> '{quoted.uri}')")
    world.index(*world.snapshot("ann", [root]), *world.snapshot("bob", [quoted]))
    world.reconcile()
    assert quarantine(world) == [("post", root.uri), ("post", quoted.uri)]
    world.index(world.commit("bob", gone(quoted, 3)))
    world.reconcile()
    assert quarantine(world) == [("post", root.uri)]
    world.index(world.commit("ann", gone(root, 3)))
    world.reconcile()
    assert quarantine(world) == []


def test_a_rejected_removal_or_new_decision_affects_only_its_own_rows(database: str) -> None:
    """G5, G7: notes of pruned records, and of replies under a gate whose transactions have ended."""
    world = World(database)
    fan = {"$type": "app.bsky.feed.threadgate#followerRule"}
    closed, other = post("bob", "3kbbbbbbbbbb2", 1), post("bob", "3kbbbbbbbbbb3", 1)
    welcome, second = reply("dan", "3kdddddddddd2", 3, closed, closed), reply("eve", "3keeeeeeeeee2", 3, closed, closed)
    likes = [
        like("dan", "3kdddddddddd3", 4, closed),
        like("dan", "3kdddddddddd4", 4, other),
        like("eve", "3keeeeeeeeee4", 4, other),
    ]
    follows = [follow("dan", "3kdddddddddd6", 2, "bob"), follow("eve", "3keeeeeeeeee6", 2, "bob")]
    world.index(*world.snapshot("bob", [closed, other, thread_gate(closed, 1.5, fan)]))
    world.index(*world.snapshot("dan", [welcome, likes[0], likes[1], follows[0]]))
    world.index(*world.snapshot("eve", [second, likes[2], follows[1]]))
    world.reconcile()
    assert world.sql("select count(*) from sluice.appview_gated") == [(2,)]
    for pruned in (*likes[:2], *follows):  # as `sluice filters prune` removes and notes them
        world.sql("delete from sluice.record where did = %s and rkey = %s", did(pruned.name), pruned.rkey)
        world.sql("insert into sluice.appview_dirty (kind, uri) values ('gone', %s)", pruned.uri)
    world.sql(f"alter table bsky.post_agg add constraint only_here check (\"likeCount\" >= 0 or uri <> '{closed.uri}')")
    world.sql(
        f"alter table bsky.post add constraint only_here check (\"violatesThreadGate\" is not true or uri <> '{welcome.uri}')"
    )
    world.sql("update sluice.appview_gated set settled = false, horizon = null, let_in = null")
    world.reconcile()
    assert quarantine(world) == [("gone", likes[0].uri), ("judge", welcome.uri)]
    assert world.sql('select uri from bsky."like" order by uri') == sorted([(likes[0].uri,), (likes[2].uri,)])
    assert world.sql("select count(*) from bsky.follow") == [(0,)]
    assert world.sql('select "violatesThreadGate" from bsky.post where uri = %s', second.uri) == [(True,)]
    world.sql("alter table bsky.post drop constraint only_here; alter table bsky.post_agg drop constraint only_here")
    rebuild(world.settings, lambda _: None)
    mended = everything(world)
    rebuild(world.settings, lambda _: None, from_empty=True)
    assert differences(mended, everything(world)) == {}
    with psycopg.connect(database, autocommit=True) as db:
        assert check(db).total == 0


def test_a_missing_table_is_not_blamed_on_a_note(database: str) -> None:
    """What no note is to blame for puts nothing aside: everything stays noted for when it is mended."""
    world = World(database)
    for name, writes in network().items():
        world.index(*world.snapshot(name, writes))
    noted = world.sql("select count(*) from sluice.appview_dirty")
    world.sql("alter table bsky.quote rename to away")
    with pytest.raises(psycopg.errors.UndefinedTable):
        world.reconcile()
    assert quarantine(world) == []
    assert world.sql("select count(*) from sluice.appview_dirty") == noted
    world.sql("alter table bsky.away rename to quote")
    world.reconcile()
    assert world.sql("select count(*) > 0 from bsky.quote") == [(True,)]
