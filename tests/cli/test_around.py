"""What is around the commands: help, completion, settings as JSON, addresses, psql."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from cli.main import app, main
from control.process_status import Process, Registry, addresses
from local.embedded.embedded_database import find_binaries
from schemas.settings import PUBLIC, Settings

Started = list[tuple[str, list[str], dict[str, str]]]  # program, its arguments, its environment


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)


def output(*arguments: str) -> str:
    ended = CliRunner().invoke(app, arguments, prog_name="sluice")
    assert ended.exit_code == 0, ended.stderr
    return ended.stdout


def test_help_of_a_command_is_the_commands_own() -> None:
    assert output("help") == output("--help")
    assert output("help", "backfill", "start") == output("backfill", "start", "--help")
    ended = CliRunner().invoke(app, ["help", "upp"], prog_name="sluice")
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "Did you mean 'up'? See `sluice --help`" in ended.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sluice back", ["backup", "backfill"]),
        ("sluice backfill st", ["start"]),
        ("sluice audit --against", ["--against-pds"]),
        ("sluice run la", ["labels"]),
        ("sluice help dead", ["dead-letters"]),
        ("sluice completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_a_shell_completes_commands_options_and_names(
    typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_SLUICE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    monkeypatch.setattr(sys, "argv", ["anything/sluice"])
    monkeypatch.setattr("faulthandler.enable", lambda: None)  # pytest's standard error is no file
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == offered


def test_the_completion_script_of_bash_is_one() -> None:
    script = output("completion", "bash")
    assert "_SLUICE_COMPLETE=complete_bash $1" in script
    told = subprocess.run(["bash", "-c", f"{script}\ncomplete -p sluice"], capture_output=True, text=True, check=True)
    assert told.stdout == "complete -o default -F _sluice_completion sluice\n"
    assert "#compdef sluice" in output("completion", "zsh")
    assert "complete --command sluice" in output("completion", "fish")


def test_settings_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_DATABASE", "postgresql://u:hunter2@h/d")
    found = {row["variable"]: row for row in json.loads(output("settings", "--json"))}
    assert list(found) == [f"SLUICE_{name.upper()}" for name in PUBLIC]
    assert found["SLUICE_DATABASE"]["value"] == "postgresql://u:***@h/d"
    assert (found["SLUICE_KAFKA_PARTITIONS"]["default"], set(found["SLUICE_RELAYS"])) == (
        "32",
        {"variable", "value", "default", "meaning"},
    )


def test_addresses(tmp_path: Path) -> None:
    """With a folder that is not the usual one the command names it; a password is in none."""
    settings = Settings(database="postgresql://u:hunter2@h:1/d", kafka_bootstrap="b:9092", kafka_topic_prefix="p-")
    up = [Process("control", "control", 1, 8080), Process("index-1", "index", 2, 8081), Process("kafka", "kafka", 3, 0)]
    assert addresses(settings, up) == {
        "psql": "sluice psql  (postgresql://u:***@h:1/d)",
        "kcat": "kcat -b b:9092 -C -t p-firehose_live -o -5 -e",
        "page": "http://127.0.0.1:8080/",
        "metrics": "http://127.0.0.1:PORT/metrics of 8080 (control), 8081 (index-1)",
    }
    usual = Settings(data_dir=Path.cwd() / ".sluice" / "simulated")
    assert addresses(usual)["psql"].startswith("sluice psql  (")
    elsewhere = Settings(data_dir=tmp_path / "a b", kafka_protocol="ssl")
    assert addresses(elsewhere)["psql"].startswith(f"sluice psql --data-dir '{tmp_path}/a b'  (")
    assert " -X security.protocol=ssl " in addresses(elsewhere)["kcat"]
    assert set(addresses(elsewhere)) == {"psql", "kcat"}, "no `sluice up` runs"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """What would take the place of this process; nothing is on its PATH."""
    found: Started = []
    monkeypatch.setattr(os, "execve", lambda *given: found.append(given))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return found


def test_psql_opens_the_embedded_database_with_its_own_client(database: str, tmp_path: Path, started: Started) -> None:
    """Nothing on the PATH is needed, and no password is asked for."""
    processes = [Process("postgres", "postgres", os.getpid(), 0)]
    Registry(os.getpid(), "b:1", database, "", 8, 1, processes).write(tmp_path)
    output("psql", "--data-dir", str(tmp_path), "-At", "-c", "select count(*) from sluice.repo")
    ((path, arguments, environment),) = started
    assert path == arguments[0]
    ended = subprocess.run(
        [*arguments, "--no-password"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


def test_psql_of_the_path_opens_a_database_that_was_given(
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: Started,
) -> None:
    """Its password is in the environment only; without a client: one line, exit 2."""
    monkeypatch.setenv("SLUICE_DATABASE", database)
    ended = CliRunner().invoke(app, ["psql", "--data-dir", str(tmp_path)], prog_name="sluice")
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "there is no `psql` on the PATH; install" in ended.stderr
    client = tmp_path / "psql"
    client.symlink_to(find_binaries() / "psql")
    output("psql", "--data-dir", str(tmp_path), "-d", "other", "-c", "select 1")
    ((path, arguments, environment),) = started
    assert (path, arguments) == (str(client), [str(client), "-d", "other", "-c", "select 1"])
    given = psycopg.conninfo.conninfo_to_dict(database)
    assert {environment[name] for name in ("PGUSER", "PGPASSWORD", "PGPORT", "PGDATABASE")} == {
        str(given[name]) for name in ("user", "password", "port", "dbname")
    }
