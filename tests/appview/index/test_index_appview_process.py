"""Index processes with the projection on: killed in the middle, and given what the tables refuse."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import psycopg

from appview.rebuild import check, rebuild
from appview.state import read
from connectors.kafka.producer import LogProducer, Out
from ops.rebuild_from_log import as_text
from ops.rebuild_from_log import rebuild as rebuild_from_log
from schemas import wire
from schemas.settings import Settings, load
from tests.appview.index.appview_tables_seen import differences, everything, network
from tests.appview.index.appview_world import World, at, follow, like, ms, post
from tests.support.flow_process import FlowProcess, create_topics, read_topic, wait_until
from tests.support.postgres import fresh_database

PARTITIONS = 4
FANS = 300
STARTED = int(
    time.time() * 1000
)  # the minute 0: the log takes events in the order of their minutes, as `World.index` does
SNAPSHOT = wire.CreateEvent | wire.RepoOutcome
BLOCKED = """
select count(*) from pg_stat_activity
where application_name = 'sluice index' and wait_event_type = 'Lock' and datname = current_database()
"""


def test_workers_that_are_killed_leave_the_same_tables(
    log: str, plain_database: str, postgres: str, appview_template: str, tmp_path: Path
) -> None:
    """G1, G2, N10: kill -9 of one of two workers, which all like the same posts; nothing is missing or counted twice.

    Both switch the projection on, in a database that has never had it."""
    with fresh_database(postgres, appview_template) as other:
        peaceful = World(other)
        batches = events(peaceful)
        for batch in batches:
            peaceful.index(*batch)
        peaceful.reconcile()
        wanted = everything(peaceful)
        peaceful.tables.close()
    settings = appview_settings(log, plain_database)
    producer = LogProducer(settings)

    def sql(statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(plain_database, autocommit=True) as db:
            return db.execute(statement.encode()).fetchall()

    def settled() -> int:
        return int(sql("select coalesce(sum(next), 0)::bigint from sluice.stream_offset")[0][0])

    *firsts, fans = ([event for event in batch if isinstance(event, SNAPSHOT)] for batch in batches)
    backfill = len(fans) + sum(map(len, firsts))
    producer.send([out(event) for batch in firsts for event in batch])
    logs = [tmp_path / f"index{n}.log" for n in range(2)]
    workers = [FlowProcess("index", settings, path) for path in logs]
    try:
        wait_until(
            lambda: settled() > 0 and all(map(assigned, logs)),
            what="the first transaction, and work for both",
            of=workers,
        )
        with psycopg.connect(plain_database) as held:
            held.execute("lock table sluice.record_row in share mode")
            producer.send([out(event) for event in fans])
            wait_until(lambda: sql(BLOCKED) == [(2,)], what="both in the middle of a transaction", of=workers)
            workers[0].kill()
            assert settled() < backfill
        workers[0] = FlowProcess("index", settings, tmp_path / "index2.log")
        wait_until(lambda: settled() >= backfill, what="the snapshots", of=workers)
        live = [out(event) for batch in batches for event in batch if isinstance(event, wire.CommitEvent)]
        producer.send(live)
        wait_until(lambda: settled() >= backfill + len(live), what="the commits", of=workers)
    finally:
        codes = [worker.terminate() for worker in workers]
    assert codes == [0, 0]
    assert sql("select count(*) from sluice.appview_dirty") == [(0,)], "a worker that stops reconciles what is noted"
    found = everything_of(plain_database)
    assert differences(wanted, found) == {}
    with psycopg.connect(plain_database, autocommit=True) as db:
        assert check(db).total == 0


def test_what_only_the_projection_refuses_costs_only_itself(log: str, database: str, tmp_path: Path) -> None:
    """G7, N10: the record stays in the mirror, flagged with what the database said; its siblings and its batch are projected,
    by the index and by a rebuild, and there is no dead letter."""
    settings = appview_settings(log, database)
    world = World(database)
    world.sql("alter table bsky.post add constraint only_here check (text not like '%%poison%%')")
    bad, worse = post("ann", "3kaaaaaaaaaa3", 2, text="poison"), post("bob", "3kbbbbbbbbbb3", 2, text="more poison")
    good = [post("ann", "3kaaaaaaaaaa2", 1), post("ann", "3kaaaaaaaaaa4", 3), post("bob", "3kbbbbbbbbbb4", 3)]
    last = good[0]
    first = [*world.snapshot("bob", []), *world.snapshot("ann", [good[0], bad, good[1]])]
    then = [world.commit("bob", worse, good[2], like("bob", "3kbbbbbbbbbb5", 4, last))]
    producer = LogProducer(settings)
    producer.send([out(event) for event in first])
    index = FlowProcess("index", settings, tmp_path / "index.log")
    try:
        wait_until(lambda: settled(world) >= len(first), what="the snapshots", of=[index])
        producer.send([out(event) for event in then])
        wait_until(lambda: settled(world) >= len(first) + 1, what="the commit", of=[index])
    finally:
        code = index.terminate()
    assert code == 0
    assert world.sql("select count(*) from sluice.record") == [(6,)]
    seen = everything(world)
    assert {row[0] for row in world.sql("select uri from bsky.post")} == {one.uri for one in good}
    assert world.sql('select "likeCount" from bsky.post_agg where uri = %s', last.uri) == [(1,)]
    flagged = world.sql("select rkey, invalid from sluice.appview_record where invalid is not null order by did")
    assert [rkey for rkey, _ in flagged] == [bad.rkey, worse.rkey]
    assert all('violates check constraint "only_here"' in why for _, why in flagged)
    assert read_topic(log, settings.topic("dead_letter")) == []
    done = rebuild(settings, lambda _: None, from_empty=True)
    assert (done.repos, done.invalid) == (2, 2)
    assert differences(seen, everything(world)) == {}
    with psycopg.connect(database, autocommit=True) as db:
        assert check(db).total == 0


def test_a_database_made_from_the_log_has_the_appviews_tables_too(log: str, database: str, blank_database: str) -> None:
    """G2, N10: `sluice replay --all --into` with the projection on, reconciled to its end; nothing has to be rebuilt afterwards."""
    world = World(database)
    batches = events(world)
    for batch in batches:
        world.index(*batch)
    world.reconcile()
    settings = appview_settings(log, database)
    LogProducer(settings).send([out(event) for batch in batches for event in batch])
    done = rebuild_from_log(settings, blank_database, lambda _: None)
    assert (done.unfinished, done.appview) == ({}, True)
    assert "AppView" in as_text(done)
    with psycopg.connect(blank_database, autocommit=True) as db:
        assert read(db).current
        assert db.execute("select count(*) from sluice.appview_dirty").fetchone() == (0,)
        assert check(db).total == 0
    found = everything(World(blank_database))
    assert found["quote"]
    assert differences(everything(world), found) == {}


def assigned(path: Path) -> bool:
    """Whether an index has some of the partitions and leaves some to the other, by its log."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if '"assigned"' in line and line.endswith("}")]
    return bool(lines) and 0 < lines[-1]["partitions"] < 3 * PARTITIONS


def appview_settings(log: str, database: str) -> Settings:
    """Of an index with the projection on, over topics of its own."""
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, PARTITIONS)
    return load(
        kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix, transport_session_seconds=6, epoch_seconds=0.1,
        index_batch_messages=40, appview=True,
    )  # fmt: skip


def settled(world: World) -> int:
    """Messages that the index has passed."""
    return int(world.sql("select coalesce(sum(next), 0)::bigint from sluice.stream_offset")[0][0])


def events(world: World) -> list[list[Any]]:
    """The network, whose second half of records comes live, and many who like the same."""
    repos = network()
    hot = repos["ann"][0]
    batches = []
    for name, writes in repos.items():
        half = len(writes) // 2
        batches.append(world.snapshot(name, writes[:half]))
        batches.append([world.commit(name, write) for write in writes[half:]])
    fans: list[Any] = []
    for number in range(FANS):
        name = f"fan{number:03d}".translate(str.maketrans("0189", "bcde"))
        fans += world.snapshot(name, [like(name, "3kaaaaaaaaaa2", 3, hot), follow(name, "3kaaaaaaaaaa3", 3, "ann")])
    batches.append(fans)
    return batches


def out(event: Any) -> Out:
    topic = "firehose_live" if isinstance(event, wire.CommitEvent) else "firehose_backfill"
    return Out(topic, event.did, wire.encode(event), STARTED + ms(event.time) - ms(at(0)))


def everything_of(database: str) -> dict[str, list[Any]]:
    world = World(database)
    world.tables.close()
    return everything(world)
