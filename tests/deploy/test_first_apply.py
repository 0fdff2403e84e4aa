"""The init containers of the manifests as a kubelet runs them at the first apply: before the servers answer, and all pods at once."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from local.embedded.guarded_process import free_port
from tests.deploy.manifest_checks import environment, pods
from tests.deploy.rendering import Document, rendered
from tests.support.broker import LogScope
from tests.support.postgres import FEW_PARTS, fresh_database

AT_ONCE = 4
LONGEST_SECONDS = 60.0  # of an attempt whose server does not answer; the kubelet then waits and runs it again
SLUICE = Path(sys.executable).with_name("sluice")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return rendered("local")


def init_containers(documents: list[Document]) -> list[dict[str, Any]]:
    """In order; those of all our pods are the same."""
    first, *others = [pod.spec["initContainers"] for pod in pods(documents) if pod.ours]
    assert others
    assert all(other == first for other in others)
    return list(first)


def start(container: dict[str, Any], documents: list[Document], **settings: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with the variables of its manifest and these instead of the addresses there."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    given = {"SLUICE_KAFKA_SCHEMA_REGISTRY": "", **settings}
    variables = outside | environment(container, documents) | given
    command = [SLUICE, *container["args"]]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=2 * LONGEST_SECONDS, check=False
    )


def test_before_the_servers_answer_each_ends_soon_with_one_line(documents: list[Document]) -> None:
    """Not 0, so that no process starts too early; the kubelet repeats it, which is how one `kubectl apply -k` converges."""
    nowhere = {
        "SLUICE_DATABASE": f"postgresql://sluice@127.0.0.1:{free_port()}/sluice",
        "SLUICE_KAFKA_BOOTSTRAP": f"127.0.0.1:{free_port()}",
    }
    for container in init_containers(documents):
        began = time.monotonic()
        ended = start(container, documents, **nowhere)
        assert ended.returncode != 0, container["name"]
        assert time.monotonic() - began < LONGEST_SECONDS
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_pods_that_start_at_once_prepare_database_and_topics_together(
    documents: list[Document], postgres: str, log_scope: LogScope, log: str
) -> None:
    """No order among pods is needed, and no Job."""
    migrate, topics = init_containers(documents)
    with fresh_database(postgres) as database, ThreadPoolExecutor(AT_ONCE) as pool:
        servers = {
            "SLUICE_DATABASE": database + FEW_PARTS,
            "SLUICE_KAFKA_BOOTSTRAP": log,
            "SLUICE_KAFKA_TOPIC_PREFIX": log_scope.prefix,
            "SLUICE_KAFKA_PARTITIONS": "2",
        }

        def pod(_: int) -> list[tuple[int, str]]:
            ended = [start(container, documents, **servers) for container in (migrate, topics)]
            return [(done.returncode, done.stderr) for done in ended]

        for codes in pool.map(pod, range(AT_ONCE)):
            assert [code for code, _ in codes] == [0, 0], codes
        unchanged = start({**topics, "args": ["topics", "diff"]}, documents, **servers)
        assert unchanged.returncode == 0, unchanged.stdout
