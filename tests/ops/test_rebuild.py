"""`sluice replay --all --into`: refused where the log has lost its beginning, and resumed after a kill."""

import os
import subprocess
import sys
from collections.abc import Callable

import psycopg
import pytest
from confluent_kafka import TopicPartition

from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.migrate import migrate
from local.commands import environment
from ops.rebuild_from_log import rebuild
from schemas import wire
from schemas.errors import OperatorError
from schemas.settings import Settings
from tests.support import ROOT
from tests.support.broker import LogScope
from tests.support.flow_process import wait_until

REV = "3l33333333333"
TIME = "2026-01-01T00:00:00.000Z"
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
REPOS, RECORDS = 150, 20


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


# In the middle of its partition, one repo's first row waits for a lock that the test holds.
STANDS_STILL = f"""
create function public.stand_still() returns trigger language plpgsql as $$
begin
    if (select did from sluice.repo where id = new.repo) = 'did:plc:{REPOS // 2:024}' then
        perform pg_advisory_xact_lock(7);
    end if;
    return new;
end $$;
create trigger stand_still before insert on sluice.record_row for each row
when (new.rkey = 'r0') execute function public.stand_still()
"""
WAITING = "select pid from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())"


def test_a_killed_rebuild_resumes_at_its_position(settings: Settings, blank_database: str) -> None:
    """G2: SIGKILL in the middle of a transaction; the next one begins at the durable position, and the result is whole."""
    given = os.environ | environment(settings.model_copy(update={"database": ""}), 0)
    command = [sys.executable, "-P", "-m", "cli", "replay", "--all", "--into", blank_database]
    migrate(blank_database)
    with psycopg.connect(blank_database, autocommit=True) as db:
        db.execute(STANDS_STILL)
        db.execute("select pg_advisory_lock(7)")
        with subprocess.Popen(command, cwd=ROOT, env=given, stderr=subprocess.DEVNULL) as process:
            try:
                ((session,),) = wait_until(lambda: db.execute(WAITING).fetchall())
            finally:
                process.kill()
        db.execute("select pg_terminate_backend(%s)", (session,))
        wait_until(lambda: not db.execute(WAITING).fetchall())
        db.execute("drop trigger stand_still on sluice.record_row")
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
        future.result(60)
    with pytest.raises(OperatorError, match=r"firehose_backfill/1 begins at 5: retention has removed"):
        rebuild(settings, blank_database, lambda _: None)
    assert count(blank_database, "repo") == 0
