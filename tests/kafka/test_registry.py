"""schemas/json is what schemas/events.py says, and a schema registry is given just that."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from schemas import wire
from schemas.settings import load
from tests.support import zygote
from tests.support.broker import LogScope
from tools import json_schemas as registry

Posted = list[tuple[str, dict[str, str]]]


@pytest.fixture
def schema_registry() -> Iterator[tuple[str, Posted]]:
    """A server that answers like a schema registry; (URL, what was posted)."""
    posted: Posted = []

    class Subjects(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posted.append((self.path, body))
            answer = json.dumps({"id": len(posted)}).encode()
            self.send_response(422 if "refused" in self.path else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Subjects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", posted
    server.shutdown()
    server.server_close()


def test_the_files_are_what_the_models_say() -> None:
    """U2: whoever changes schemas/events.py runs `python -m tools.json_schemas`."""
    written = {path.stem: path.read_text("utf-8") for path in registry.FOLDER.glob("*.json")}
    assert written == {topic: registry.text(schema) for topic, schema in registry.schemas().items()}


def test_union_topics_name_every_kind_of_message() -> None:
    live = registry.schemas()["firehose_live"]
    kinds = {live["$defs"][name]["properties"]["type"]["const"] for name in live["$defs"] if name.endswith("Event")}
    assert kinds == {"commit", "sync", "identity", "account"}


def test_every_field_that_the_codec_writes_is_in_the_schema() -> None:
    task = wire.RepoTask(did="did:plc:a", attempt=1, reason="desync", rev="3", host="https://pds", job=1)
    assert set(json.loads(wire.encode(task))) <= set(registry.schemas()["repo_backfill"]["properties"])


def test_registers_every_topic_under_its_full_name(schema_registry: tuple[str, Posted]) -> None:
    url, posted = schema_registry
    settings = load(kafka_schema_registry=url + "/", kafka_topic_prefix="mine-")
    ids = registry.register(settings)
    assert ids["mine-label_live-value"] > 0
    assert [path for path, _ in posted] == [f"/subjects/mine-{topic}-value/versions" for topic in registry.schemas()]
    assert json.loads(posted[0][1]["schema"]) == registry.schemas()["repo_backfill"]
    assert {body["schemaType"] for _, body in posted} == {"JSON"}


def test_a_refusal_names_the_subject(schema_registry: tuple[str, Posted]) -> None:
    url, _ = schema_registry
    with pytest.raises(registry.RegistryUnavailable, match="refused-repo_backfill-value was rejected: 422"):
        registry.register(load(kafka_schema_registry=url, kafka_topic_prefix="refused-"))


def test_no_registry_is_one_line() -> None:
    with pytest.raises(registry.RegistryUnavailable, match="does not answer as a schema registry"):
        registry.register(load(kafka_schema_registry="http://127.0.0.1:1"))


def test_topics_apply_registers_them(schema_registry: tuple[str, Posted], log_scope: LogScope) -> None:
    """U2: the command that the pods and redpanda.yml run; a registry that does not answer is one line, and topics are made."""
    url, posted = schema_registry
    given = {"BOOTSTRAP": log_scope.bootstrap, "TOPIC_PREFIX": log_scope.prefix, "PARTITIONS": "1", "REPLICATION": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    environment |= {f"SLUICE_KAFKA_{name}": value for name, value in given.items()}

    def applied(registry_url: str) -> subprocess.CompletedProcess[str]:
        named = environment | {"SLUICE_KAFKA_SCHEMA_REGISTRY": registry_url}
        return zygote.run(["sluice", "topics", "apply"], env=named, timeout=120)

    log_scope.created += [f"{log_scope.prefix}{topic}" for topic in registry.schemas()]
    unanswered = applied("http://127.0.0.1:1")
    assert unanswered.returncode == 2
    assert unanswered.stderr.startswith("sluice: SLUICE_KAFKA_SCHEMA_REGISTRY: ")
    assert unanswered.stderr.count("\n") == 1
    again = applied(url)
    assert again.returncode == 0, again.stderr
    assert "nothing to change" in again.stdout
    assert [path.split("/")[2] for path, _ in posted] == [f"{name}-value" for name in log_scope.created]
    assert f"registered {log_scope.created[0]}-value as 1" in again.stdout
