"""Positions of upstreams and groups: listed, moved, and never under a process that holds them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import psycopg
import pytest

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.stream_cursors import CursorStore
from schemas.settings import Settings, load
from steps.shares import Share
from tests.support import zygote
from tests.support.flow_process import create_topics, wait_until

RELAY = "https://relay.test"


@dataclass
class Desk:
    settings: Settings
    db: psycopg.Connection[tuple]

    def sluice(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        settings = self.settings
        environment = {
            **os.environ, "SLUICE_DATABASE": settings.database, "SLUICE_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "SLUICE_KAFKA_TOPIC_PREFIX": settings.kafka_topic_prefix,
        }  # fmt: skip
        return zygote.run(["sluice", "cursors", *arguments], env=environment, timeout=120)

    def group(self, group: str, topic: str) -> dict[int, dict]:
        rows = json.loads(self.sluice("list", "--json").stdout)["groups"]
        return {row["partition"]: row for row in rows if (row["group"], row["topic"]) == (group, topic)}


@pytest.fixture
def desk(log: str, database: str) -> Iterator[Desk]:
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, 2)
    settings = load(kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix, transport_session_seconds=60)
    with psycopg.connect(database, autocommit=True) as db:
        yield Desk(settings, db)


def test_the_index_is_moved_in_the_tables_and_in_the_broker(desk: Desk) -> None:
    """B9: what it steps over is a loss that a re-list answers."""
    sent = LogProducer(desk.settings).send([Out("firehose_live", f"did:plc:{n}", b"{}") for n in range(40)], range(40))
    ends = {part: sum(place.partition == part for place in sent.values()) for part in (0, 1)}
    assert desk.sluice("set", "index", "firehose_live", "0:3").returncode == 2  # says what it would do, and wants --yes
    moved = desk.sluice("set", "index", "firehose_live", "0:3", "--yes")
    assert (moved.returncode, "0 → 3 (skipped" in moved.stdout) == (0, True)
    standing = desk.group("index", "firehose_live")
    assert [(row["position"], row["end"], row["lag"]) for row in standing.values()] == [
        (3, ends[0], ends[0] - 3),
        (0, ends[1], ends[1]),
    ]
    gaps = desk.db.execute("select upstream, from_seq, to_seq, answered_at from sluice.stream_gap").fetchall()
    assert gaps == [(f"log:{desk.settings.topic('firehose_live')}/0", 0, 3, None)]
    assert desk.sluice("reset", "index", "firehose_live", "--to", "end", "--yes").returncode == 0
    assert all(row["lag"] == 0 for row in desk.group("index", "firehose_live").values())
    assert desk.sluice("set", "index", "firehose_live", f"1:{ends[1] + 1}", "--yes").returncode == 2


def test_a_group_past_the_end_is_reported(desk: Desk) -> None:
    """B9"""
    assert desk.sluice("reset", "index", "label_live", "--yes").returncode == 0
    assert desk.sluice("list").returncode == 0
    desk.db.execute("update sluice.stream_offset set next = 99 where part = 1")
    listed = desk.sluice("list")
    assert (listed.returncode, "index is at 99 of label_live/1" in listed.stderr) == (1, True)
    assert desk.sluice("reset", "index", "label_live", "--yes").returncode == 0
    assert desk.sluice("list").returncode == 0


def test_a_group_with_members_is_not_moved(desk: Desk) -> None:
    """B9"""
    member = GroupConsumer(desk.settings, "backfill", ["repo_backfill"])
    wait_until(lambda: member.poll(1) == [] and member.assigned)
    refused = desk.sluice("reset", "backfill", "repo_backfill", "--yes")
    assert (refused.returncode, "stop them first" in refused.stderr) == (2, True)
    member.close()
    wait_until(lambda: desk.sluice("reset", "backfill", "repo_backfill", "--yes").returncode == 0)


def test_an_upstream_is_moved_only_while_its_flow_is_stopped(desk: Desk) -> None:
    """A running flow has its position in memory, and would overwrite a change."""
    store = CursorStore(desk.settings, "firehose")
    store.save({RELAY: 41}, {})
    refused = desk.sluice("set", "firehose", RELAY, "7", "--yes")
    assert (refused.returncode, "firehose is running" in refused.stderr) == (2, True)
    store.close()
    wait_until(lambda: desk.sluice("set", "firehose", RELAY, "7", "--yes").stdout == f"firehose {RELAY}: 41 → 7\n")
    assert desk.sluice("set", "firehose", RELAY, "seven", "--yes").returncode == 2
    assert desk.sluice("reset", "firehose", "https://other.test", "--yes").returncode == 2
    assert desk.sluice("reset", "firehose", RELAY, "--yes").returncode == 0
    assert json.loads(desk.sluice("list", "--json").stdout)["upstreams"] == []
    assert desk.sluice("set", "nobody", RELAY, "7", "--yes").returncode == 2


def test_all_shares_of_a_stream_are_shown_and_moved_together(desk: Desk) -> None:
    """S3: with one epoch, or a change of their number would look like a restarted sequence."""
    for number, position in enumerate((50, 9, 41)):
        with closing(CursorStore(desk.settings, "firehose", Share(number, 3))) as store:
            store.save({RELAY: position}, {RELAY: {"epoch": 100 + number}})
    desk.db.execute("update sluice.cursor set updated_at = now() - interval '1 h' where share = 1")
    listed = json.loads(desk.sluice("list", "--json").stdout)["upstreams"]
    shown = [(row["share"], row["position"], row["in_use"]) for row in listed]
    assert shown == [("0 of 3", "50", True), ("1 of 3", "9", True), ("2 of 3", "41", True)]
    wait_until(lambda: desk.sluice("set", "firehose", RELAY, "7", "--yes").stdout == f"firehose {RELAY}: 9 → 7\n")
    moved = desk.db.execute(
        "select distinct position, (detail ->> 'epoch')::bigint > 102 from sluice.cursor"
    ).fetchall()
    assert moved == [("7", True)]
    assert desk.db.execute("select count(distinct detail) from sluice.cursor").fetchone() == (1,)
    assert desk.sluice("reset", "firehose", RELAY, "--yes").returncode == 0
    assert desk.db.execute("select * from sluice.cursor").fetchall() == []


def test_a_flows_name_may_be_typed_in_both_spellings_and_is_stored_in_one(desk: Desk) -> None:
    desk.db.execute("insert into sluice.cursor (flow, upstream, position) values ('list_repos', %s, '5')", (RELAY,))
    assert desk.sluice("set", "list-repos", RELAY, "7", "--yes").stdout == f"list-repos {RELAY}: 5 → 7\n"
    assert desk.sluice("set", "list_repos", RELAY, "9", "--yes").stdout == f"list_repos {RELAY}: 7 → 9\n"
    assert desk.db.execute("select flow, position from sluice.cursor").fetchall() == [("list_repos", "9")]
