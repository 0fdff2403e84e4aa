"""Every block of docs/consuming.md is run as printed there, against a real broker and two real PostgreSQL servers."""

from __future__ import annotations

import json
import platform
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.migrate import migrate
from connectors.postgres.repo_queue import ListedRepo
from local.embedded.embedded_database import EmbeddedDatabase
from schemas.settings import Settings
from tests.filters.test_filtered_index import ONE, Bed, commit
from tests.filters.test_filtered_index import op as operation
from tests.support import ROOT
from tests.support.flow_process import wait_until
from tests.support.official.servers import install_once, npm_install
from tests.support.postgres import FEW_PARTS, data_folder

HERE = Path(__file__).resolve().parent
PAGE = (ROOT / "docs" / "consuming.md").read_text("utf-8")
BROKER, TOPIC, GROUP, SINCE = "127.0.0.1:9092", "firehose_live", "example", "1767225600000"
READ_SECONDS = 120.0
BUILD_SECONDS = 600.0  # Go compiles its client the first time
MESSAGES = 20
RECIPE, OTHER = "com.example.recipe", "app.bsky.feed.post"

Line = tuple[int, int, str, str]  # partition, offset, type, DID


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def written(settings_of: Callable[..., Settings]) -> tuple[Settings, list[tuple[int, Line]]]:
    """A topic with messages of our own producer, small ones and large: (time, line) of each, as written."""
    settings = settings_of()
    now = int(time.time() * 1000) - 3_600_000
    messages = [
        Out(TOPIC, f"did:plc:{n}", json.dumps({"type": "commit", "did": f"did:plc:{n}", "pad": "x" * (n % 7 * 20_000)}).encode(), now + n * 1000)
        for n in range(MESSAGES)
    ]  # fmt: skip
    LogProducer(settings).send(messages)
    return settings, _all(settings)


def _all(settings: Settings) -> list[tuple[int, Line]]:
    topic = settings.kafka_topic_prefix + TOPIC
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap, "group.id": "none", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(settings.kafka_partitions)])
    found: list[tuple[int, Line]] = []
    deadline = time.monotonic() + 60
    while len(found) < MESSAGES:
        assert time.monotonic() < deadline
        for message in consumer.consume(MESSAGES, 1.0):
            event = json.loads(message.value() or b"")
            line = (int(message.partition() or 0), int(message.offset() or 0), event["type"], event["did"])
            found.append((message.timestamp()[1], line))
    consumer.close()
    return found


def node() -> tuple[Path, str]:
    """The folder of the npm packages, and the Node.js among them."""
    folder = ROOT / ".sluice" / "consumers"
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    modules = install_once(
        folder, HERE / "package.json", machine,
        lambda: npm_install(folder, "--no-package-lock", "--ignore-scripts", environment={}),
    )  # fmt: skip
    return folder, str(modules / f"node-linux-{machine}" / "bin" / "node")


def needed(tool: str) -> str:
    found = shutil.which(tool)
    assert found, f"{tool} is missing: `make tools` installs it"
    return found


def python_command(text: str, folder: Path) -> list[str]:
    (folder / "read.py").write_text(text)
    return [sys.executable, str(folder / "read.py")]


def typescript_command(text: str, folder: Path) -> list[str]:
    packages, binary = node()
    script = packages / f"read-{folder.name}.ts"  # beside its packages
    script.write_text(text)
    return [binary, str(script)]


def go_command(text: str, folder: Path) -> list[str]:
    for name in ("go.mod", "go.sum"):
        shutil.copy(HERE / name, folder)
    (folder / "main.go").write_text(text)
    subprocess.run([needed("go"), "build", "-o", "read", "."], cwd=folder, check=True, timeout=BUILD_SECONDS)
    return [str(folder / "read")]


def shell_command(text: str, folder: Path) -> list[str]:
    needed("kcat")
    return ["sh", "-c", f"exec {text}"]


def source(language: str, how: str) -> str:
    """The block; Go's by time stands in the place of two statements of the one by offset."""
    if (language, how) != ("go", "time"):
        return block(f"{language} {how}")
    whole = block("go offset")
    start, end = whole.index("\tfrom := "), whole.index("\tif err != nil")
    return whole[:start] + block("go time") + whole[end:]


def line_of(text: str) -> Line:
    partition, offset, rest = text.split(" ", 2)
    if rest.startswith("{"):  # kcat prints the message
        event = json.loads(rest)
        return int(partition), int(offset), event["type"], event["did"]
    kind, did = rest.split()
    return int(partition), int(offset), kind, did


def read(command: list[str], count: int) -> list[Line]:
    """The first lines that a program prints; it runs for ever and is ended."""
    lines: list[str] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(islice(process.stdout or (), count)), daemon=True)
        reader.start()
        reader.join(READ_SECONDS)
        ended = process.poll()
    finally:
        process.kill()
        _, errors = process.communicate(timeout=60)
    assert len(lines) == count, (ended, lines, errors[-2000:])
    return sorted(map(line_of, lines))


COMMANDS = {"python": python_command, "typescript": typescript_command, "go": go_command, "sh": shell_command}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("language", COMMANDS)
def test_a_reader_by_offset_and_by_time(
    language: str, written: tuple[Settings, list[tuple[int, Line]]], tmp_path: Path
) -> None:
    settings, messages = written
    since = sorted(at for at, _ in messages)[MESSAGES // 2]
    partitions = {0: 4} if language == "sh" else {0: 4, 1: 0}
    newer = sorted((line for at, line in messages if at >= since), reverse=True)
    starts = {
        "offset": partitions,
        "time": {line[0]: line[1] for line in newer},
    }  # by time: at the first that is not older
    for how, start in starts.items():
        lines = [line for _, line in messages if line[1] >= start.get(line[0], MESSAGES)]
        assert 0 < len(lines) < MESSAGES
        text = source(language, how)
        for printed, ours in {
            BROKER: settings.kafka_bootstrap,
            TOPIC: settings.kafka_topic_prefix + TOPIC,
            SINCE: str(since),
            f"'{GROUP}'": f"'{secrets.token_hex(4)}'",
        }.items():
            text = text.replace(printed, ours)
        folder = tmp_path / how
        folder.mkdir()
        assert read(COMMANDS[language](text, folder), len(lines)) == sorted(lines), how


def changed(database: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return database.execute("select repo, rkey, json::text from sluice.record_row order by 1, 2").fetchall()


@pytest.mark.timeout(600)
def test_a_second_postgresql_follows_one_collection(postgres: str, blank_database: str) -> None:
    """History, live commits, deletions, and what a repeated fetch no longer has; nothing of other collections."""
    logical = {"wal_level": "logical", "max_wal_senders": "4", "shared_buffers": "64MB"}
    with data_folder() as folder, EmbeddedDatabase(folder / "postgres", settings=logical) as server:
        url = server.url
        migrate(url + FEW_PARTS)
        bed = Bed(url)
        bed.store.discover([ListedRepo(ONE)])
        bed.fetch(paths=(RECIPE, OTHER))
        bed.db.execute(block("sql publisher").encode())
        ((repo,),) = bed.db.execute("select id from sluice.repo where did = %s", (ONE,)).fetchall()
        with psycopg.connect(blank_database, autocommit=True) as subscriber:
            statements = block("sql subscriber").replace(
                "host=mirror dbname=sluice user=reader", make_conninfo(**conninfo_to_dict(url))
            )
            for statement in filter(str.strip, statements.split(";\n")):  # no subscription within a transaction
                subscriber.execute(statement.encode())
            try:
                _follow(bed, subscriber, repo)
            finally:
                subscriber.execute("drop subscription recipes")
                bed.close()


def _follow(bed: Bed, subscriber: psycopg.Connection[Any], repo: int) -> None:
    wait_until(lambda: changed(subscriber) == [(repo, "self", None)])  # what there was
    soup = msgspec.Raw(b'{"title":"soup"}')
    more = msgspec.structs.replace(operation("create", RECIPE), rkey="more", record=soup)
    bed.feed(commit(ONE, "3a33333333333", "3a22222222222", more, operation("update", OTHER)))
    wait_until(lambda: changed(subscriber) == [(repo, "more", '{"title":"soup"}'), (repo, "self", None)])
    bed.feed(commit(ONE, "3a44444444444", "3a33333333333", operation("delete", RECIPE)))
    wait_until(lambda: changed(subscriber) == [(repo, "more", '{"title":"soup"}')])
    bed.db.execute("update sluice.repo set phase = 'pending', reason = 'test' where did = %s", (ONE,))
    bed.fetch(rev="3a55555555555", paths=(OTHER,))
    wait_until(lambda: changed(subscriber) == [])
    assert bed.rows() == [OTHER]
