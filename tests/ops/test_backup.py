"""`sluice backup` and `sluice restore` on a real PostgreSQL, and what control does first with a restored database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from cli.main import app
from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control.tasks.restored import RestoreBarrier
from ops import backup as module
from ops.backup import backup, find_tool, restore
from schemas import wire
from schemas.errors import OperatorError
from schemas.settings import Settings, load
from tests.support.flow_process import wait_until
from tests.support.postgres import data_folder, fresh_database

DIDS = [f"did:plc:{letter * 24}" for letter in "abc"]


@pytest.fixture
def empty(postgres: str) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


def dumped(database: str, folder: Path) -> Path:
    backup(load(database=database), folder / "sluice.backup")
    return folder / "sluice.backup"


def test_a_backup_is_restored_whole_and_once(database: str, empty: str, tmp_path: Path) -> None:
    """G1: rows and positions in one snapshot; the file is the owner's alone; an empty database only."""
    store = RepoQueue(Settings(database=database))
    store.discover([ListedRepo(did) for did in DIDS])
    store.close()
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(
            "insert into sluice.stream_offset (cluster, group_id, topic, part, next) values ('c', 'g', 't', 0, 42)"
        )
    told = CliRunner().invoke(app, ["backup", str(tmp_path / "one"), "--json"], env={"SLUICE_DATABASE": database})
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["bytes"] == (tmp_path / "one").stat().st_size
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    told = CliRunner().invoke(app, ["restore", str(tmp_path / "one"), "--database", empty])
    assert told.exit_code == 0, told.output
    with psycopg.connect(empty) as db:
        assert db.execute("select did from sluice.repo order by did").fetchall() == [(did,) for did in DIDS]
        assert db.execute("select next from sluice.stream_offset").fetchall() == [(42,)]
    again = CliRunner().invoke(app, ["restore", str(tmp_path / "one"), "--database", empty])
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "--database already has a mirror; restore into an empty database" in again.stderr


def test_each_mistake_is_one_line_and_changes_nothing(
    database: str, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1."""
    settings, target = load(database=database), load(database=empty)
    file = dumped(database, tmp_path)
    with pytest.raises(OperatorError, match="exists already; choose another name, or give --replace"):
        backup(settings, file)
    with pytest.raises(OperatorError, match="cannot be written"):
        backup(settings, tmp_path / "no" / "folder")
    with pytest.raises(OperatorError, match="give a file that `sluice backup` wrote"):
        restore(target, tmp_path / "nothing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(OperatorError, match="is not a backup"):
        restore(target, tmp_path / "text")
    (tmp_path / "torn").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OperatorError, match=r"pg_restore failed \(.*\); nothing was changed"):
        restore(target, tmp_path / "torn")
    with psycopg.connect(empty) as db:
        assert db.execute("select to_regnamespace('sluice')").fetchone() == (None,)
    fake = tmp_path / "pg_dump"
    fake.write_text("#!/bin/sh\necho 'pg_dump: error: could not write to file: No space left on device' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(module, "find_tool", lambda *_: fake)
    with pytest.raises(OperatorError, match="is full; make room there"):
        backup(settings, tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_a_tool_without_progress_is_ended(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G10: no call without a deadline of ours."""
    fake = tmp_path / "pg_dump"
    fake.write_text("#!/bin/sh\nexec sleep 600\n")
    fake.chmod(0o755)
    monkeypatch.setattr(module, "find_tool", lambda *_: fake)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.5)
    with pytest.raises(OperatorError, match="the database made no progress for"):
        backup(load(database=database), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["pg_dump"]


def test_the_tool_is_of_the_servers_release_or_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1: the system's pg_dump refuses a newer server."""
    for release in (14, 16, 17):
        (tmp_path / str(release)).mkdir()
        tool = tmp_path / str(release) / "pg_dump"
        tool.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {release}.3 (Debian)'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", ":".join([*(str(tmp_path / one) for one in ("14", "17", "16")), "/bin"]))
    assert find_tool("pg_dump", 16).parent.name == "16"
    assert find_tool("pg_dump", 18).parent.name == "bin"  # beside the embedded server
    with pytest.raises(OperatorError, match=r"PostgreSQL 99 needs pg_dump 99 or newer; found: .*; install"):
        find_tool("pg_dump", 99)


def test_the_data_folders_own_database_is_replaced_when_the_new_one_is_complete(database: str, tmp_path: Path) -> None:
    """G1: `sluice up` with its embedded server."""
    store = RepoQueue(Settings(database=database))
    store.discover([ListedRepo(DIDS[0])])
    store.close()
    file = dumped(database, tmp_path)
    with data_folder() as folder:
        settings = Settings(data_dir=folder / "data")
        restore(settings, file)
        with pytest.raises(OperatorError, match="already has a mirror; give --replace"):
            restore(settings, file)
        restore(settings, file, replace=True)
        with module._own_server(settings) as server, psycopg.connect(server.url) as db:
            assert db.execute("select did from sluice.repo").fetchall() == [(DIDS[0],)]
            names = db.execute("select datname from pg_database where datname like 'sluice%%'").fetchall()
            assert names == [("sluice",)]


def test_nothing_is_claimed_until_the_index_has_read_the_log(
    settings_of: Callable[..., Settings], database: str, empty: str, tmp_path: Path
) -> None:
    """G1: attempts in the log were numbered after the backup. Dead letters since then are indexed again."""
    store = RepoQueue(Settings(database=database))
    store.discover([ListedRepo(did) for did in DIDS])
    store.close()
    restore(load(database=empty), dumped(database, tmp_path))
    settings = settings_of(database=empty)
    store, positions = RepoQueue(settings), Offsets(settings)
    task = wire.RepoTask(did=DIDS[0], attempt=0, reason="listed")
    letter = wire.DeadLetter(topic="firehose_live", reason="bad_field", error="x", time="2026-01-01T00:00:00Z")
    LogProducer(settings).send([Out("dead_letter", DIDS[0], wire.encode(letter))])
    producer: Any = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    producer.produce(settings.topic("firehose_live"), b"{}", DIDS[0], partition=1)
    assert producer.flush(60) == 0
    restored = RestoreBarrier(settings, positions)
    with psycopg.connect(empty, autocommit=True) as db:
        assert restored.pending(db)
        assert store.claim([task], "w") == []
        assert db.execute("select reason from sluice.dead_letter").fetchall() == [("bad_field",)]
        producer.produce(settings.topic("firehose_live"), b"{}", DIDS[0], partition=1)  # later: nothing waits for this
        assert producer.flush(60) == 0
        assert RestoreBarrier(settings, positions).pending(db)
        place = (positions.cluster, settings.group("index"), settings.topic("firehose_live"))
        db.execute(
            "insert into sluice.stream_offset (cluster, group_id, topic, part, next) values (%s, %s, %s, 1, 1)", place
        )
        wait_until(lambda: not restored.pending(db))
        assert [claim.did for claim in store.claim([task], "w")] == [DIDS[0]]
        assert db.execute("select count(*) from sluice.cursor where flow = 'restore'").fetchone() == (0,)
    store.close()
