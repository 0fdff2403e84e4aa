"""The index takes fewer messages at once while the database is slow: its clock, and a running index before a held table."""

from __future__ import annotations

import json
import time

import psycopg

from connectors.kafka.producer import LogProducer, Out
from flows.index.batch_timer import BatchSize
from schemas import wire
from schemas.settings import Settings
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import wait_until

TIME = "2026-01-01T00:00:00.000Z"


def label(number: int) -> Out:
    did = f"did:plc:{number:024d}"
    return Out("label_live", did, wire.encode(wire.LabelEvent(seq=number, src="did:plc:l", uri=did, val="a", cts=TIME)))


def test_time_counts_from_the_poll_to_the_first_end() -> None:
    now = [0.0]
    size = BatchSize(Settings(index_batch_messages=1000, index_batch_seconds=2), clock=lambda: now[0])
    size.ended()
    size.begun(1000)
    now[0] = 3.0
    size.ended()
    now[0] = 9.0
    size.ended()
    assert size.limit == 500, "once"
    size.begun(0)
    now[0] = 99.0
    size.ended()
    assert size.limit == 500, "waiting for messages is not work"
    size.begun(500)
    now[0] = 99.5
    size.ended()
    assert size.limit == 1000


def test_a_batch_that_waited_for_the_database_is_followed_by_smaller_ones(flow_bed: FlowBed) -> None:
    """G6: a rebalance waits for a member's batch; a database that is slow must not make that minutes."""
    messages = [label(number) for number in range(3000)]
    LogProducer(Settings(**flow_bed.base)).send(messages)
    with psycopg.connect(flow_bed.base["database"]) as held:
        held.execute("lock table sluice.label in access exclusive mode")
        index = flow_bed.start("index", index_batch_messages=2000, index_batch_seconds=0.3)
        waiting = "select count(*) from pg_locks where not granted and relation = 'sluice.label'::regclass"
        waiting += " and database = (select oid from pg_database where datname = current_database())"
        wait_until(lambda: flow_bed.rows(waiting) == [(1,)], what="the index waits for the table")
        time.sleep(0.4)  # longer than a batch may take
    wait_until(lambda: flow_bed.rows("select count(*) from sluice.label") == [(3000,)])
    assert index.terminate() == 0
    lines = [json.loads(line) for line in index.log_file.read_text().splitlines() if "slow batch" in line]
    first = lines[0]
    assert first["limit"] == max(10, first["messages"] // 2)
    sizes = flow_bed.rows("select count(*) from sluice.label group by xmin order by min(xmin::text::bigint)")
    assert sizes[0] == (first["messages"],)
    assert sizes[1][0] <= first["limit"]
