"""`sluice replay --all --into`: refused where the log has lost its beginning, and resumed after a kill."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import TopicPartition
from fix_log import LogScope

from connectors.log_producer import LogProducer, Out
from control.errors import OperatorError
from control.rebuild import rebuild
from control.up import environment
from schemas import wire
from schemas.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
REV = "3l33333330001"
TIME = "2026-01-01T00:00:00.000Z"
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
REPOS, RECORDS = 150, 20
WAIT_SECONDS = 60.0


@pytest.fixture
def settings(settings_of: Callable[..., Settings]) -> Settings:
    """A log with the history of `REPOS` repos."""
    chosen = settings_of(index_batch_messages=20)
    LogProducer(chosen).send([message for number in range(REPOS) for message in snapshot(number)])
    return chosen


def snapshot(number: int) -> list[Out]:
    did = f"did:plc:{number:024}"
    creates = [
        wire.CreateEvent(
            did=did, attempt=1, rev=REV, collection="c.o.l", rkey=f"r{n}", cid=CID, time=TIME, commit=CID, reason="odd"
        )
        for n in range(RECORDS)
    ]
    outcome = wire.RepoOutcome(
        did=did, attempt=1, status="synced", active=True, time=TIME, rev=REV, commit=CID, data=CID, count=RECORDS
    )
    return [Out("firehose_backfill", did, wire.encode(event)) for event in (*creates, outcome)]


def count(database: str, what: str) -> int:
    try:
        with psycopg.connect(database) as db:
            row = db.execute(f"select count(*) from sluice.{what}").fetchone()
    except psycopg.errors.UndefinedTable:
        return 0
    return int(row[0]) if row else 0


def test_a_rebuild_that_was_killed_goes_on_where_it_stood(settings: Settings, blank_database: str) -> None:
    """G2, issue 3.8: SIGKILL in the middle; the next one begins at the durable position, and the result is whole."""
    given = os.environ | environment(settings.model_copy(update={"database": ""}), 0)
    command = [sys.executable, "-P", "-m", "control", "replay", "--all", "--into", blank_database]
    with subprocess.Popen(command, cwd=ROOT, env=given, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + WAIT_SECONDS
        while count(blank_database, "record") == 0:
            assert process.poll() is None, "it was done before it could be killed"
            assert time.monotonic() < deadline
        process.kill()
    written = count(blank_database, "record")
    assert 0 < written < REPOS * RECORDS
    done = rebuild(settings, blank_database, lambda _: None)
    assert done.resumed
    assert done.messages < REPOS * (RECORDS + 1)  # what was durable is not read again
    assert (done.phases, done.unfinished) == ({"sync": REPOS}, {})
    assert count(blank_database, "record") == REPOS * RECORDS
    with pytest.raises(OperatorError, match="not empty"):
        rebuild(settings, blank_database, lambda _: None)


def test_a_log_without_its_beginning_is_refused(settings: Settings, blank_database: str, log_scope: LogScope) -> None:
    """G2: named with its topic, partition and first offset, before anything is written."""
    name = settings.topic("firehose_backfill")
    for future in log_scope.admin.delete_records([TopicPartition(name, 1, 5)]).values():
        future.result(20)
    with pytest.raises(OperatorError, match=r"firehose_backfill/1 begins at 5: retention has removed"):
        rebuild(settings, blank_database, lambda _: None)
    assert count(blank_database, "repo") == 0
