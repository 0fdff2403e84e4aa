"""Each command × each wrong thing, generated from the command line itself: one line, what and the remedy, exit code 2, at once."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.main import app
from control.process_status import FILE
from control.status import MirrorStatus
from local import preflight
from local.embedded.embedded_database import DatabaseUnavailable, EmbeddedDatabase, find_binaries, first_error
from local.preflight import check_embeddable
from local.up import totals
from schemas.errors import OperatorError
from schemas.settings import Settings

DID = "did:plc:" + "a" * 24
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"
ARGUMENTS: dict[str, list[str]] = {
    "appview check": [],
    "appview rebuild": [],
    "audit": [DID],
    "backup": ["/nowhere/file"],
    "backfill cancel": ["1"],
    "backfill list": [],
    "backfill pause": ["1"],
    "backfill resume": ["1"],
    "backfill retry": ["1"],
    "backfill show": ["1"],
    "backfill start": ["--did", DID],
    "completion": ["bash"],
    "cursors list": [],
    "cursors reset": ["firehose", "https://relay.test"],
    "cursors set": ["firehose", "https://relay.test", "5"],
    "dead-letters dismiss": ["0:1"],
    "dead-letters list": [],
    "dead-letters retry": ["0:1"],
    "dead-letters show": ["0:1"],
    "doctor": [],
    "export": ["--parquet", "export"],
    "filters add": [DID],
    "filters prune": [],
    "filters remove": [DID],
    "filters set": ["--did", DID],
    "filters show": [],
    "help": [],
    "hosts clear": ["pds.test"],
    "hosts list": [],
    "migrate": [],
    "psql": [],
    "record": [f"at://{DID}/app.bsky.feed.post/1"],
    "replay": ["firehose_live"],
    "repo": [DID],
    "restore": ["/nowhere/file"],
    "run": ["index"],
    "settings": [],
    "shards accept-loss": ["0-15"],
    "shards attach": [],
    "shards check": [],
    "simulate": ["--repos", "1"],
    "skipped fill": [],
    "skipped list": [],
    "start": ["index"],
    "status": [],
    "stop": ["index"],
    "storms list": [],
    "storms release": ["lost_event"],
    "topics apply": [],
    "topics diff": [],
    "topics docs": [],
    "up": [],
}
"""The least that each command takes."""

WRONG: dict[str, tuple[dict[str, str], str]] = {
    "another database": ({"SLUICE_DATABASE": "mysql://user:hush@x/y"}, "write it as postgresql://"),
    "a mistyped parameter": ({"SLUICE_DATABASE": "postgresql://x:hush@h/y?foo=1"}, "write it as postgresql://"),
    "words for a database": ({"SLUICE_DATABASE": "the usual one"}, "write it as postgresql://"),
    "a URL for brokers": ({"SLUICE_KAFKA_BOOTSTRAP": "kafka://x:9092"}, "write it as HOST:PORT"),
    "a relay without scheme": ({"SLUICE_RELAYS": "relay.test"}, "write it as https://HOST"),
    "a labeler without scheme": ({"SLUICE_LABELERS": "labeler.test"}, "write it as https://HOST"),
    "a directory without scheme": ({"SLUICE_PLC": "plc.test"}, "write it as https://HOST"),
    "a name for a DNS server": ({"SLUICE_HANDLE_DNS": "dns.test"}, "write it as 192.0.2.53"),
    "a word for a number": ({"SLUICE_STREAM_SILENCE_SECONDS": "often"}, "'often'"),
    "too little": ({"SLUICE_BACKFILL_MAX_ATTEMPTS": "0"}, "greater than"),
    "a word that is none": ({"SLUICE_LOG_FORMAT": "loud"}, "'loud'"),
    "a misspelt variable": ({"SLUICE_RELAY": "https://x"}, "did you mean SLUICE_RELAYS?"),
    "a protocol without user": ({"SLUICE_KAFKA_PROTOCOL": "sasl_ssl"}, "SLUICE_KAFKA_USERNAME"),
}


def walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMAND: Any = typer.main.get_command(app)
COMMANDS = dict(walk(COMMAND))
READERS = sorted(COMMANDS.keys() - {"completion", "help", "simulate"})  # commands that read settings
HAVE = {name: {parameter.name for parameter in command.params} for name, command in COMMANDS.items()}
LOCATED = sorted(
    name for name in COMMANDS if "data_dir" in HAVE[name] and name not in ("up", "restore", "start", "stop")
)  # these have their own


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No other settings than those of the test."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("typer.testing._get_command", lambda _: COMMAND)  # it would be built for each call


def refused(command: str, *more: str, seconds: float = 10.0, **variables: str) -> str:
    """The one line."""
    began = time.monotonic()
    ended = CliRunner().invoke(app, [*command.split(), *ARGUMENTS[command], *more], env=variables, prog_name="sluice")
    assert ended.exit_code == 2, (command, ended.exit_code, ended.output, ended.exception)
    assert ended.stdout == "", command
    assert ended.stderr.count("\n") == 1, (command, ended.stderr)
    for word in ("Traceback", "Value error", "KafkaError{", "hush"):
        assert word not in ended.stderr, command
    assert time.monotonic() - began < seconds, command
    return ended.stderr


def test_every_command_is_tried() -> None:
    assert sorted(ARGUMENTS) == sorted(COMMANDS)


@pytest.mark.parametrize("wrong", WRONG)
def test_each_command_refuses_each_wrong_setting(wrong: str, tmp_path: Path) -> None:
    variables, remedy = WRONG[wrong]
    (name,) = variables
    for command in READERS:
        line = refused(command, **variables)
        assert name in line, (command, line)
        assert remedy in line, (command, line)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", LOCATED)
def test_each_command_reports_that_there_is_no_mirror(command: str, tmp_path: Path) -> None:
    """No mirror in the folder, a folder that is a file, a register that is none of ours."""
    (tmp_path / "file").touch()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / FILE).write_text('{"up": ')
    for folder in ("nothing", "file", "torn"):
        line = refused(command, "--data-dir", str(tmp_path / folder))
        assert "is not set, and no `sluice up` runs in" in line, line
        assert "give --data-dir" in line, line


@pytest.mark.parametrize("command", [name for name in LOCATED if not name.startswith(("topics", "doctor"))])
def test_each_command_reports_a_database_that_does_not_answer(command: str) -> None:
    line = refused(command, SLUICE_DATABASE=NOWHERE, SLUICE_KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert "SLUICE_DATABASE: " in line
    assert "correct the URL" in line


OPTIONS = {
    "--relay": ("relay.test", "SLUICE_RELAYS"),
    "--labeler": ("labeler.test", "SLUICE_LABELERS"),
    "--plc": ("plc.test", "SLUICE_PLC"),
    "--database": ("mysql://user:hush@x/y", "SLUICE_DATABASE"),
    "--bootstrap": ("kafka://x", "SLUICE_KAFKA_BOOTSTRAP"),
    "--data-dir": ("/dev/null/data", "SLUICE_DATA_DIR"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_mistake_in_an_option_names_the_option(option: str) -> None:
    """And not the variable that was never set."""
    value, variable = OPTIONS[option]
    line = refused("up", option, value, *([] if option == "--relay" else ["--relay", "https://relay.test"]))
    assert option in line
    assert variable not in line


def test_a_database_option_that_does_not_answer_names_the_option() -> None:
    line = refused("up", "--relay", "https://relay.test", "--database", NOWHERE)
    assert "--database: " in line
    assert "SLUICE_DATABASE" not in line


def test_missing_java_is_found_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It was found after 21 seconds, when the simulated network had been made."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", "")
    line = refused("up", "--simulate", seconds=5.0)
    assert "install a Java 17+ runtime and Maven" in line
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_found_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "check_present", lambda: None)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3_000_000}))
    with pytest.raises(OperatorError, match=r"SLUICE_DATA_DIR: the disk of .* is full \(3 MB left") as refusal:
        check_embeddable(Settings(data_dir=tmp_path / "a" / "b"))
    assert "make room there, or choose another folder" in str(refusal.value)
    check_embeddable(Settings(data_dir=tmp_path, kafka_bootstrap="x:1", database="postgresql://x"))


FULL = (
    '2026-11-29 16:32:44.144 UTC [20129] FATAL:  could not write to file "base/4/3602_vm": No space left on device\n'
    "2026-11-29 16:32:44.144 UTC [20129] STATEMENT:  CREATE DATABASE template0;\n\t\n"
    'child process exited with exit code 1\ninitdb: removing contents of data directory "pgdata.draft"\n'
)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (FULL, "is full; make room there, or choose another folder with --data-dir"),
        (
            FULL.replace("No space left on device", "Input/output error"),
            'failed (FATAL:  could not write to file "base',
        ),
        ("initdb: error: invalid locale settings; check LANG\n", "failed (error: invalid locale settings; check LANG)"),
    ],
)
def test_the_error_of_initdb_is_reported(words: str, said: str, tmp_path: Path) -> None:
    """As what it is, with its own remedy, and from its beginning."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (tmp_path / "words").write_text(words)
    for name in ("initdb", "postgres"):
        (binaries / name).write_text(f"#!/bin/sh\ncat {tmp_path}/words >&2\nexit 1\n")
        (binaries / name).chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(DatabaseUnavailable) as refusal:
        EmbeddedDatabase(tmp_path / "database", binaries=binaries).start()
    assert said in str(refusal.value)


def test_a_folder_that_cannot_be_made_for_want_of_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DatabaseUnavailable, match="is full; make room there"):
        EmbeddedDatabase(tmp_path / "database", binaries=find_binaries()).start()


def test_an_error_is_shown_from_its_beginning() -> None:
    assert first_error("x\n2026-01-01 UTC [1] FATAL:  " + "y" * 400) == "FATAL:  " + "y" * 292
    assert first_error("") == "it said nothing"


def test_a_check_of_appview_tables_that_are_off_names_the_setting(database: str) -> None:
    """It said "actors 123"."""
    line = refused("appview check", SLUICE_DATABASE=database)
    assert "SLUICE_APPVIEW is not set" in line
    assert "sluice appview rebuild" in line


def test_the_rate_of_a_run_is_never_negative() -> None:
    """Exact counts at the end were compared with an estimate at the beginning."""
    status: Any = type("Seen", (), {"repos": {}, "events": 5, "dead_letters": {}})
    assert isinstance(MirrorStatus, type)
    assert totals(status, (90, 0), status, 100, 10.0)["records_per_second"] == 0
    assert totals(status, (150, 0), status, 100, 10.0)["records_per_second"] == 5.0
