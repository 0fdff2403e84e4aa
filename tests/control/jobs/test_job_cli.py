"""`sluice backfill` as an operator types it: tables on a terminal, JSON for scripts, one line and exit code 2 for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from cli.main import app
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from schemas.settings import Settings
from schemas.sql import queries

LETTERS = str.maketrans("0123456789", "abcdefghij")  # a DID of the PLC directory has no 0, 1, 8 and 9
DIDS = [f"did:plc:{number:024}".translate(LETTERS) for number in range(6)]
RELAY, HOST = "https://relay.test", "https://pds.test"


class Cli:
    """The command line over a database of the test's own."""

    def __init__(self, database: str) -> None:
        self.db = psycopg.connect(database, autocommit=True)
        self._runner = CliRunner()

    def __call__(self, *arguments: str, exit_code: int = 0, typed: str | None = None) -> str:
        """What `sluice backfill …` prints: on standard output, or its one line of standard error where it is refused."""
        ended = self._runner.invoke(app, ["backfill", *arguments], input=typed)
        assert ended.exit_code == exit_code, (ended.output, ended.exception)
        if exit_code == 2:
            assert ended.stderr.startswith("sluice: ")
            assert ended.stderr.count("\n") == 1
            return ended.stderr
        return ended.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def status(self, number: int) -> str:
        row = self.db.execute("select status from sluice.backfill_job where id = %s", (number,)).fetchone()
        assert row is not None
        return str(row[0])


@pytest.fixture
def cli(database: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SLUICE_DATABASE", database)
    monkeypatch.setenv("SLUICE_RELAYS", RELAY)
    made = Cli(database)
    yield made
    made.db.close()


def test_a_job_is_started_once_and_steered(cli: Cli) -> None:
    """R2, R5, T3, T6: every command, and the state that the database has after it."""
    begun = cli("start", "--host", HOST)
    assert begun.splitlines()[:2] == [f"job         1  hosts {HOST}", "status      pending"]
    assert cli.json("start", "--host", HOST, "--priority", "7")["id"] == 1, "the same source is the same job"
    assert cli.json("show", "1")["spec"]["priority"] == 7
    for what, status in (("pause", "paused"), ("pause", "paused"), ("resume", "pending"), ("cancel", "cancelled")):
        assert f"status      {status}" in cli(what, "1")
        assert cli.status(1) == status
    assert "cannot be resumed; `sluice backfill retry 1`" in cli("resume", "1", exit_code=2)
    assert cli.status(1) == "cancelled"
    assert "status      retry" in cli("retry", "1")
    cli.db.execute(queries("jobs")["run"], {"id": 1})
    assert cli.json("cancel", "1")["completed_at"]
    page = cli("show", "1")
    assert "of the new  synced 0  pending 0  failed 0  unavailable 0" in page
    assert "completed   20" in page


def test_lists_show_what_scripts_and_people_need(cli: Cli) -> None:
    """R5, T4: columns on a terminal, whole values as JSON, by state and page by page."""
    assert cli("list") == "none\n"
    assert cli.json("list") == []
    cli("start")
    cli("start", "--dids-file", "-", "--split", "2", typed="\n".join(["# mine", *DIDS[:4]]))
    cli("pause", "2")
    lines = cli("list").splitlines()
    assert lines[0].split() == [
        "job",
        "status",
        "name",
        "listed",
        "new",
        "synced",
        "pending",
        "failed",
        "per",
        "second",
        "left",
    ]
    assert [line.split()[:2] for line in lines[1:]] == [["1", "pending"], ["2", "paused"], ["3", "pending"]]
    assert "0/2" in lines[2]
    assert [job["id"] for job in cli.json("list", "--status", "pending")] == [1, 3]
    assert [job["id"] for job in cli.json("list", "--after", "1", "--limit", "1")] == [2]
    assert cli.json("show", "1")["name"] == f"list {RELAY}"


def test_a_dry_run_prints_its_plan_and_changes_nothing(cli: Cli, database: str, tmp_path: Path) -> None:
    """T4"""
    store = RepoQueue(Settings(database=database))
    store.discover([ListedRepo(did) for did in DIDS[:2]])
    store.close()
    file = tmp_path / "dids"
    file.write_text("\n".join(DIDS))
    heads, row = cli("start", "--dids-file", str(file), "--dry-run").splitlines()
    assert heads.split() == ["would", "name", "job", "status", "total", "new", "known", "synced", "first"]
    assert row.split()[0] == "create"
    plan = cli.json("start", "--dids-file", str(file), "--dry-run")
    assert (plan["total"], plan["new"], plan["known"]) == (6, 4, 2)
    assert [plan["total"] for plan in cli.json("start", "--dids-file", str(file), "--dry-run", "--split", "4")] == [
        4,
        2,
    ]
    assert cli.json("list") == []


def test_failed_repos_are_retried_by_did_and_jobs_by_number(cli: Cli, database: str) -> None:
    """T6, C5"""
    store = RepoQueue(Settings(database=database))
    store.discover([ListedRepo(did) for did in DIDS])
    store.close()
    cli.db.execute("update sluice.repo set phase = 'failed', last_error = 'no' where did <> %s", (DIDS[0],))
    cli("start", "--host", HOST)
    cli("cancel", "1")
    assert cli("retry", "1", DIDS[1]).splitlines()[-1] == "retried 1"
    assert cli.status(1) == "retry"
    assert cli("retry", DIDS[0], exit_code=1) == "retried 0\n"
    assert cli("retry", "--all") == "retried 4\n"


def test_what_cannot_be_is_one_line_and_exit_code_2(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each names what is wrong and what to do; nothing is changed."""
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    said = {
        "there is no job 9; `sluice backfill list` shows them": ("show", "9"),
        "there is no job 99999999999999999999": ("pause", "99999999999999999999"),
        "name the DIDs or the jobs to retry, or give --all": ("retry",),
        "'did:plc:zzz' is not a DID": ("start", "--did", "did:plc:zzz"),
        "'x y' is not an NSID; write it as app.": ("start", "--collection", "x y"),
        "empty is empty; write one per line": ("start", "--hosts-file", str(empty)),
        "give a text file with one per line": ("start", "--dids-file", str(tmp_path / "none")),
        "is not a DID; write did:plc:": ("start", "--did", "not a did"),
        "--batch-size: ": ("start", "--batch-size", "0"),
        "SLUICE_ALLOW_PRIVATE_HOSTS": ("start", "--host", "http://127.0.0.1:1"),
    }
    for words, arguments in said.items():
        assert words in cli(*arguments, exit_code=2), arguments
    monkeypatch.setenv("SLUICE_DATABASE", "postgresql://nobody@127.0.0.1:1/none")
    assert "SLUICE_DATABASE" in cli("list", exit_code=2)
    monkeypatch.setenv("SLUICE_DATABASE", "")
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    assert "no `sluice up` runs" in cli("list", exit_code=2)
    assert cli.db.execute("select count(*) from sluice.backfill_job").fetchone() == (0,)
