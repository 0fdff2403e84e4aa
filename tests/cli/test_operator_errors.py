"""What an operator can put right, through the real command: one line that names the setting and the remedy, exit 2."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from cli.main import app
from connectors.kafka import topics
from connectors.postgres.migrate import migrate
from ops.replay import Replayed, as_text
from ops.replay_arguments import spans_asked
from schemas.errors import OperatorError
from schemas.settings import Settings, load
from tests.support import zygote
from tests.support.broker import LogScope

SLUICE = Path(sys.executable).with_name("sluice")
NOWHERE = "127.0.0.1:1"


def sluice(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with no other SLUICE_ variable than these."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    return zygote.run(["sluice", *arguments], env=env | variables, timeout=120)


def refused(*arguments: str, **variables: str) -> str:
    """The one line of a command that was refused."""
    ended = sluice(*arguments, **variables)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    return lines[0]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_bad_setting() -> None:
    line = refused("run", "control", SLUICE_STREAM_SILENCE_SECONDS="often")
    assert "SLUICE_STREAM_SILENCE_SECONDS" in line
    assert "'often'" in line


def test_a_misspelt_variable() -> None:
    assert "SLUICE_RELAY is not a setting; did you mean SLUICE_RELAYS?" in refused("settings", SLUICE_RELAY="https://x")


def test_a_relay_that_is_no_url_is_refused(tmp_path: Path) -> None:
    line = refused("up", "--relay", "bsky.network", "--data-dir", str(tmp_path))
    assert "--relay" in line
    assert "write it as https://HOST" in line


def test_no_relay(tmp_path: Path) -> None:
    line = refused("up", "--data-dir", str(tmp_path))
    assert "--relay https://" in line
    assert "--simulate" in line
    assert not any(tmp_path.iterdir())


def test_a_private_relay_that_is_not_allowed(tmp_path: Path) -> None:
    """G9: and the operator reads which setting allows it."""
    line = refused("up", "--relay", "http://127.0.0.1:2470", "--data-dir", str(tmp_path))
    assert "SLUICE_ALLOW_PRIVATE_HOSTS=true" in line


def test_a_process_without_its_settings() -> None:
    assert "SLUICE_KAFKA_BOOTSTRAP is not set" in refused("run", "index")
    places = {"SLUICE_KAFKA_BOOTSTRAP": NOWHERE, "SLUICE_DATABASE": "postgresql://x"}
    assert "SLUICE_RELAYS is not set" in refused("run", "firehose", **places)
    assert "SLUICE_LABELERS is not set" in refused("run", "labels", **places)
    assert "choose one of list-repos, firehose" in refused("run", "everything")
    for spelling in ("list-repos", "list_repos"):
        assert "set it to https://RELAY for `sluice run list-repos`" in refused("run", spelling, **places)
    assert "--share is for firehose; leave it out for index" in refused("run", "index", "--share", "1", **places)
    relay = places | {"SLUICE_RELAYS": "https://relay.test"}
    assert "--share is 1, but SLUICE_FIREHOSE_SHARES is 1" in refused("run", "firehose", "--share", "1", **relay)


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "not a url at all", "mysql://x"])
def test_a_wrong_database(url: str, tmp_path: Path) -> None:
    line = refused("replay", "--all", "--into", url, SLUICE_KAFKA_BOOTSTRAP=NOWHERE)
    assert "--into: " in line
    assert "correct the URL" in line
    for command in (["migrate"], ["up", "--simulate", "--data-dir", str(tmp_path), "--database", url]):
        line = refused(*command, **({} if "up" in command else {"SLUICE_DATABASE": url}))
        assert ("--database" if "up" in command else "SLUICE_DATABASE") in line
        assert "correct the URL" in line
        assert ("not a PostgreSQL URL" in line) == (not url.startswith("postgresql:"))


def test_a_broker_that_does_not_answer(database: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:  # each waits for the broker as long as an operator would
        up = pool.submit(refused, "up", "--simulate", "--data-dir", str(tmp_path), "--bootstrap", NOWHERE)
        run = pool.submit(refused, "run", "control", SLUICE_KAFKA_BOOTSTRAP=NOWHERE, SLUICE_DATABASE=database)
        diff = pool.submit(refused, "topics", "diff", SLUICE_KAFKA_BOOTSTRAP=NOWHERE)
    assert "correct --bootstrap" in up.result()
    assert "KafkaError{" not in up.result()
    assert NOWHERE in run.result()
    assert "SLUICE_KAFKA_BOOTSTRAP" in run.result()
    assert "SLUICE_KAFKA_BOOTSTRAP" in diff.result()


def test_an_occupied_port(log: str, database: str, taken_port: int, tmp_path: Path) -> None:
    port = str(taken_port)
    line = refused("run", "control", SLUICE_KAFKA_BOOTSTRAP=log, SLUICE_DATABASE=database, SLUICE_HTTP_PORT=port)
    assert "SLUICE_HTTP_PORT" in line
    assert port in line
    assert "choose another" in line
    line = refused("up", "--simulate", "--data-dir", str(tmp_path), SLUICE_HTTP_PORT=port)
    assert "SLUICE_HTTP_PORT" in line


def test_no_java(tmp_path: Path) -> None:
    line = refused("up", "--simulate", "--data-dir", str(tmp_path), PATH=str(tmp_path), JAVA_HOME="")
    assert "install a Java 17+ runtime and Maven" in line
    assert "--bootstrap HOST:PORT" in line


def test_no_maven(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("java", "/usr/bin/java"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=False).stdout.strip()
        if found and not (tmp_path / "bin" / "java").exists():
            (tmp_path / "bin" / "java").symlink_to(Path(found).resolve())
    variables = {"PATH": str(tmp_path / "bin"), "JAVA_HOME": "", "SLUICE_CACHE_DIR": str(tmp_path / "cache")}
    line = refused("up", "--simulate", "--data-dir", str(tmp_path / "data"), **variables)
    assert "there is no `mvn` on the PATH" in line


def test_a_migration_that_was_changed(blank_database: str) -> None:
    migrate(blank_database)
    with psycopg.connect(blank_database, autocommit=True) as db:
        db.execute("update sluice.migration set checksum = 'other' where name = '0001_stored_forms.sql'")
    line = refused("migrate", SLUICE_DATABASE=blank_database)
    assert "0001_stored_forms.sql was changed" in line


def test_a_partition_count_that_differs(log_scope: LogScope, database: str, tmp_path: Path) -> None:
    settings = load(
        kafka_bootstrap=log_scope.bootstrap,
        kafka_topic_prefix=log_scope.prefix,
        kafka_partitions=2,
        kafka_replication=1,
    )
    topics.apply(settings)
    log_scope.created += [topic.name for topic in topics.declared(settings)]
    places = {"SLUICE_KAFKA_BOOTSTRAP": log_scope.bootstrap, "SLUICE_KAFKA_TOPIC_PREFIX": log_scope.prefix}
    line = refused("topics", "apply", SLUICE_KAFKA_PARTITIONS="4", SLUICE_KAFKA_REPLICATION="1", **places)
    assert "set SLUICE_KAFKA_PARTITIONS=2" in line
    line = refused("run", "control", SLUICE_DATABASE=database, **places)
    assert "SLUICE_KAFKA_PARTITIONS is 32" in line
    given = ["--bootstrap", log_scope.bootstrap, "--database", database, "--data-dir", str(tmp_path)]
    line = refused("up", "--simulate", *given, SLUICE_KAFKA_TOPIC_PREFIX=log_scope.prefix)
    assert "SLUICE_KAFKA_PARTITIONS is 8" in line


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused("up", "--simulate", "--data-dir", str(tmp_path / "file"))
    assert "--data-dir" in line


def test_a_command_without_a_mirror(tmp_path: Path) -> None:
    line = refused("status", "--data-dir", str(tmp_path))
    assert "SLUICE_KAFKA_BOOTSTRAP is not set, and no `sluice up` runs in" in line
    assert "SLUICE_DATABASE is not set" in refused("cursors", "list", "--data-dir", str(tmp_path))


def test_a_database_behind_this_release(blank_database: str, tmp_path: Path) -> None:
    """As `sluice doctor` reports it, from every command."""
    places = {"SLUICE_DATABASE": blank_database, "SLUICE_DATA_DIR": str(tmp_path)}
    for command in (
        ["appview", "check"],
        ["filters", "show"],
        ["skipped", "list"],
        ["audit", "--all"],
        ["backfill", "list"],
    ):
        line = refused(*command, **places)
        assert "SLUICE_DATABASE" in line, command
        assert "run `sluice migrate`" in line, command
    migrate(blank_database)
    with psycopg.connect(blank_database, autocommit=True) as db:
        db.execute("update sluice.appview set active = true")
        db.execute("drop table sluice.appview_refused")
    assert "appview_refused" in refused("appview", "check", **places)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["backfill", "sho"], "Did you mean 'show'? See `sluice backfill --help`"),
        (["backfill", "show"], "Missing argument 'job'. See `sluice backfill show --help`"),
        (["up", "--nope"], "No such option: --nope. See `sluice up --help`"),
        (["up", "--simulate", "--relay", "https://x.test"], "leave out --relay, or --simulate"),
        (["up", "--simulate", "--labeler", "https://x.test"], "leave out --labeler, or --simulate"),
        (["simulate", "--faults", "nosuchfault=1"], "nosuchfault"),
        (["simulate", "--port", "99999999"], "--port 99999999: the network needs 8 consecutive ports from there; give 65528 or less"),
        (["simulate", "--repos", "-5"], "--repos -5: give 0 or more"),
        (["simulate", "--pdses", "0"], "--pdses 0: give 1 or more"),
        (["simulate", "--churn", "nan"], "--churn nan: give a share from 0 to 1"),
        (["simulate", "--repos", "x"], "argument --repos: invalid int value: 'x'; see --help"),
        (["backfill", "start", "--dids-file", "/nope"], "/nope: No such file or directory; give a text file"),
        (["filters", "set", "--collection", "app.bsky*"], "--collection 'app.bsky*': write an NSID, NSID.* or *"),
        (["filters", "set", "--did", "foo"], "--did 'foo': write a DID, such as did:plc:"),
        (["filters", "set", "--signal", "x"], "--signal 'x': write an NSID, such as app"),
        (["replay", "firehose_live", "--into", "postgresql://x"], "--into goes with --all"),
        (["replay"], "name the topic to replay, or give --all --into URL"),
        (["audit", "foo"], "'foo' is not a DID; write it as did:plc:"),
        (["audit", "--all", "--sample", "3"], "give only one of --all and --sample"),
        (["backfill", "retry", "xyz"], "'xyz' is not a DID and not the number of a job; write it as did:plc:"),
        (["backfill", "retry", "1", "--all"], "give only one of DIDs and --all"),
        (["cursors", "set", "firehose", "https://r.test", "abc"], "'abc' is not a sequence number"),
        (["filters", "set", "--did-file", "/nope"], "--did-file /nope: No such file or directory; give a text file"),
    ],
)  # fmt: skip
def test_what_the_command_line_cannot_mean(command: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """README: a mistake is one line, also one that the parser of the command line finds; nothing has to be running."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    ended = CliRunner().invoke(app, command, prog_name="sluice")
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.output
    assert ended.stderr.startswith("sluice")
    assert said in ended.stderr


def test_a_replay_reports_its_arguments_and_its_result() -> None:
    with pytest.raises(OperatorError, match="--to abc: write PARTITION:OFFSET, or a time as 2026"):
        spans_asked(Settings(), "firehose_live", [], "", ["abc"])
    assert as_text(Replayed(4058, 0)) == "4058 messages replayed, none refused"
    assert as_text(Replayed(9, 2)) == "9 messages replayed, 2 of them cannot be decoded or were refused"


def test_a_group_without_a_command_shows_its_help() -> None:
    ended = sluice("backfill")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Commands:" in ended.stderr


def test_retry_needs_to_know_what(database: str) -> None:
    assert "--all" in refused("backfill", "retry", SLUICE_DATABASE=database)
