"""The topics' pages: up to date in docs/topics, and to be had with git, as Redpanda Console has them (U2)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.embedded.guarded_process import free_port
from ops import git_pages
from ops.git_pages import Repository, server
from tools import topic_docs
from tools.json_schemas import schemas

ALONE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_TERMINAL_PROMPT": "0", "no_proxy": "*"}


def git(*arguments: str, folder: Path | None = None) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=os.environ | ALONE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cloned(url: str, folder: Path) -> dict[str, str]:
    git("clone", "--quiet", "--branch", "main", url, str(folder))
    return {path.name: path.read_text("utf-8") for path in folder.iterdir() if path.name != ".git"}


@pytest.fixture
def serving() -> Iterator[tuple[str, dict[str, str]]]:
    """(URL, files) of a repository: small, empty and larger than a length of one byte can say."""
    files = {"b.md": "# b\n", "a.md": "", "long.md": "".join(f"{n}: ünïcode\n" for n in range(40_000))}
    with server(files, "127.0.0.1", 0) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/pages.git", files
        listening.shutdown()


def test_pages_are_what_the_models_say() -> None:
    """U2: whoever changes schemas/events.py or topics.yml runs `python -m tools.topic_docs`."""
    assert {path.name: path.read_text("utf-8") for path in topic_docs.FOLDER.glob("*.md")} == topic_docs.pages()


def test_every_field_of_every_message_is_on_its_topics_page() -> None:
    pages = topic_docs.pages("mine-")
    for topic, schema in schemas().items():
        text = pages[f"mine-{topic}.md"]
        assert text.startswith(f"# mine-{topic}\n")
        for kind in [schema, *schema.get("$defs", {}).values()]:
            for field in kind.get("properties", {}):
                assert f"| `{field}` |" in text


def test_git_clones_it_and_finds_no_fault(serving: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, files = serving
    assert cloned(url, tmp_path / "clone") == files
    git("fsck", "--strict", folder=tmp_path / "clone")
    git("pull", "--quiet", folder=tmp_path / "clone")  # what Console does every minute


def test_a_client_that_has_another_commit_gets_this_one(serving: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """After an upgrade: the client says what it has, and is given the rest."""
    url, files = serving
    git("init", "--quiet", "--initial-branch=main", str(tmp_path))
    git("-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "--allow-empty", "-m", "own", folder=tmp_path)
    git("fetch", "--quiet", url, "main", folder=tmp_path)
    assert git("show", "FETCH_HEAD:b.md", folder=tmp_path) == files["b.md"]


def test_the_same_files_are_the_same_commit() -> None:
    assert Repository({"a": "1", "b": "2"}).head == Repository({"b": "2", "a": "1"}).head
    assert Repository({"a": "1"}).head != Repository({"a": "2"}).head


def test_what_is_not_git_is_refused(serving: tuple[str, dict[str, str]]) -> None:
    """G7: a stray request is answered, and the next clone served."""
    url, _ = serving
    for request in (
        urllib.request.Request(url),
        urllib.request.Request(url + "/git-receive-pack", b"0000"),
        urllib.request.Request(url + "/git-upload-pack", b"x" * 100_000),
    ):
        with pytest.raises(urllib.error.HTTPError, match=r"40[04]"):
            urllib.request.urlopen(request, timeout=60)
    with urllib.request.urlopen(url.rpartition("/")[0] + "/healthz", timeout=60) as answer:
        assert answer.read() == b"ok\n"


def test_the_command_serves_the_pages_of_the_settings(tmp_path: Path) -> None:
    """U2: what the service `topic-docs` of redpanda.yml runs; SIGTERM ends it with 0."""
    port = free_port()
    command = [sys.executable, "-m", "cli", "topics", "docs", "--serve", f"127.0.0.1:{port}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    with subprocess.Popen(
        command, env=environment | {"SLUICE_KAFKA_TOPIC_PREFIX": "mine-"}, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert f"127.0.0.1:{port}" in child.stdout.readline()
            assert cloned(f"http://127.0.0.1:{port}/topics.git", tmp_path / "clone") == topic_docs.pages("mine-")
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
        finally:
            child.kill()


def test_the_command_prints_a_page_or_says_what_there_is() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", "topics", "docs", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert run("label_live").stdout == topic_docs.pages()["label_live.md"]
    assert run().stdout.split() == list(schemas())
    unknown = run("labels")
    assert unknown.returncode == 2
    assert "label_live" in unknown.stderr
    nowhere = run("--serve", "here")
    assert nowhere.returncode == 2
    assert "HOST:PORT" in nowhere.stderr
    assert json.dumps(unknown.stderr).count("\\n") == 1


def test_half_requests_take_a_bounded_number_of_threads(
    serving: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1, G6: the kind of the health port: what is beyond the limit is closed, and silence ends."""
    monkeypatch.setattr(git_pages._Pages, "timeout", 0.5)
    url, _ = serving
    port, before = int(url.split(":")[2].split("/")[0]), threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3 * git_pages.MOST_THREADS)]
    try:
        assert threading.active_count() <= before + git_pages.MOST_THREADS
        for one in slow:
            one.settimeout(30)
            assert one.recv(1) == b""  # the server's end
    finally:
        for one in slow:
            one.close()
