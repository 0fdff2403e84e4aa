"""A second Sluice backfills from the first, which is its relay's listing and every account's PDS; its audit is clean."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from local.embedded.guarded_process import free_port
from tests.support.postgres import fresh_database
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

KINDS = ("control", "index", "backfill", "list-repos")
EQUAL = "select did, collection, rkey, cid, rev, json::text, raw from sluice.record order by 1, 2, 3"
HEADS = "select did, rev, data, commit, commit_block from sluice.repo where phase = 'sync' order by 1"


@contextmanager
def directory_to(pds: str, plc: str) -> Iterator[str]:
    """A PLC directory with the documents of another one, whose accounts are all at this PDS; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(plc + self.path, timeout=30) as answer:
                    document = json.load(answer)
                status = 200
            except urllib.error.HTTPError as err:
                status, document = err.code, json.loads(err.read())
            for service in document.get("service", ()):
                if service["type"] == "AtprotoPersonalDataServer":
                    service["serviceEndpoint"] = pds
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def backfilled(one: Mirror, repos: int) -> None:
    """Run the processes of a backfill until this many repos are in sync."""
    processes = [one.run(kind) for kind in KINDS]
    wait_for(lambda: one.phases().get("sync", 0) >= repos, 240, lambda: f"{one.phases()} {one.last_lines()}")
    for process in processes:
        process.kill()


def test_a_second_mirror_backfills_from_the_first(
    simulator: Any, log: str, database: str, postgres: str, migrated_template: str, mirror: Any
) -> None:
    """V3: records, revs, roots and signed commits are the first one's."""
    simulation = simulator(seed=5, repos=24, records_per_repo=25, pdses=2, hostile=True, inactive_share=0.1)
    active = [truth for truth in simulation.state().values() if truth.active]
    first: Mirror = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix())
    backfilled(first, len(active))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with fresh_database(postgres, migrated_template) as other, directory_to(url, simulation.plc) as plc:
        serve = first.run("serve", serve_listen=f"127.0.0.1:{port}")
        second: Mirror = mirror(simulation, kafka_bootstrap=log, database=other, kafka_topic_prefix=prefix())
        second.settings |= {"relays": [url], "plc": plc}
        whole = complete(first, url)
        assert len(whole) > len(active) / 2
        backfilled(second, len(whole))
        assert second.query("select distinct host from sluice.repo where phase = 'sync'") == [(url,)]
        assert [row for row in first.query(EQUAL) if row[0] in whole] == second.query(EQUAL)
        assert [row for row in first.query(HEADS) if row[0] in whole] == second.query(HEADS)
        said = second.cli("audit", "--all", "--json", seconds=180)
        report = json.loads(said.stdout)
        assert (said.returncode, report["differing"], report["repos"]) == (0, 0, len(whole)), said.stderr
        serve.kill()
        second.close()


def complete(one: Mirror, url: str) -> set[str]:
    """The repos that have a CAR: no record of theirs lacks its block. Each of the others says so."""

    def answer_of(did: str) -> str:
        try:
            with urllib.request.urlopen(f"{url}/xrpc/com.atproto.sync.getRepo?did={did}", timeout=60) as answer:
                return "" if answer.read() else "empty"
        except urllib.error.HTTPError as err:
            return str(json.loads(err.read())["error"])

    def up() -> bool:
        try:
            return answer_of("did:plc:unknown") == "RepoNotFound"
        except OSError:
            return False

    wait_for(up, 60, one.last_lines)
    lacking = {did for (did,) in one.query("select distinct did from sluice.record where json is null and raw is null")}
    answers = {did: answer_of(did) for (did,) in one.query("select did from sluice.repo where phase = 'sync'")}
    assert answers == {did: "RepoIncomplete" if did in lacking else "" for did in answers}
    return set(answers) - lacking
