"""What the routes do, on a real broker and a real database."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from connectors.kafka.producer import LogProducer, dead_letter
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control import repo_audit
from control.api.guard import BODY_BYTES
from control.dead_letter_index import DeadLetterIndex
from schemas import wire
from schemas.reasons import DeadReason
from tests.support.flow_process import wait_until
from tests.support.served_api import Api

LETTERS = str.maketrans("0123456789", "abcdefghij")  # a DID of the PLC directory has no 0, 1, 8 and 9
DIDS = [f"did:plc:{number:024}".translate(LETTERS) for number in range(7)]


def put(api: Api, *payloads: bytes) -> None:
    """Dead letters in the topic and in its index."""
    letters = [dead_letter("firehose_live", DeadReason.UNDECODABLE, "old", payload) for payload in payloads]
    LogProducer(api.settings).send(letters)
    index = DeadLetterIndex(api.settings)
    count = "select count(*) from sluice.dead_letter"
    wait_until(lambda: index.step(api.db) >= 0 and api.db.execute(count).fetchone() == (len(payloads),))
    index.close()


def test_status_has_the_state_of_the_mirror(api: Api) -> None:
    RepoQueue(api.settings).discover([ListedRepo(did) for did in DIDS])
    _, page = wait_until(lambda: (found := api.get("/api/v1/status"))[0] == 200 and found)  # 503: the broker is slow
    assert page["repos"]["pending"] == len(DIDS)
    assert page["lag"]["index/firehose_live"] == 0
    assert {row["topic"] for row in page["partition_lags"]} >= {"firehose_live", "repo_backfill"}


def test_repos_are_paged_and_failed_ones_retried(api: Api) -> None:
    """T6, C5"""
    RepoQueue(api.settings).discover([ListedRepo(did) for did in DIDS])
    api.db.execute(
        "update sluice.repo set phase = 'failed', last_error = 'no', retry_count = 5 where did <> %s", (DIDS[0],)
    )
    assert [row["did"] for row in api.all_pages("/api/v1/repos?phase=failed", 2)] == DIDS[1:]
    status, repo = api.get(f"/api/v1/repos/{DIDS[1]}")
    assert (status, repo["phase"], repo["last_error"], repo["retry_count"]) == (200, "failed", "no", 5)
    status, repo = api.post(f"/api/v1/repos/{DIDS[1]}/retry")
    assert (status, repo["phase"], repo["retry_count"], repo["last_error"]) == (200, "pending", 0, None)
    assert api.post(f"/api/v1/repos/{DIDS[1]}/retry")[1]["error"]["code"] == "conflict"
    assert api.get("/api/v1/repos/did:plc:nobody")[0] == 404


def test_a_repo_that_was_never_in_sync_has_the_pds_of_its_document(api: Api) -> None:
    RepoQueue(api.settings).discover([ListedRepo(DIDS[0]), ListedRepo(DIDS[1], host="https://listed.test")])
    api.db.execute("update sluice.repo set phase = 'failed'")
    api.db.execute("insert into sluice.identity (did, pds) select did, 'https://document.test' from sluice.repo")
    hosts = ["https://document.test", "https://listed.test"]
    assert [row["host"] for row in api.all_pages("/api/v1/repos?phase=failed", 2)] == hosts
    assert api.get(f"/api/v1/repos/{DIDS[0]}")[1]["host"] == hosts[0]
    for did, host in zip(DIDS, hosts, strict=False):
        assert [row["did"] for row in api.all_pages(f"/api/v1/repos?phase=failed&host={host}", 2)] == [did]


def test_hosts_are_paged(api: Api) -> None:
    add = "insert into sluice.host (host, consecutive_failures) select 'https://h' || n, n %% 2 from generate_series(1, 5) n"
    api.db.execute(add.replace("%%", "%"))
    assert [row["host"] for row in api.all_pages("/api/v1/hosts", 2)] == [f"https://h{n}" for n in range(1, 6)]
    assert [row["host"] for row in api.all_pages("/api/v1/hosts?failing=true", 1)] == [
        f"https://h{n}" for n in (1, 3, 5)
    ]


def test_dead_letters_are_shown_retried_and_dismissed(api: Api) -> None:
    """N4"""
    event = wire.AccountEvent(seq=1, time="2026-01-01T00:00:00.000Z", did=DIDS[0], active=True)
    put(api, wire.encode(event), b"{", b"[")
    items = api.all_pages("/api/v1/dead-letters", 1)
    assert len({item["id"] for item in items}) == 3
    assert [item["noticed_at"] for item in items] == sorted((item["noticed_at"] for item in items), reverse=True)
    states = []
    for item in items:
        status, whole = api.get(f"/api/v1/dead-letters/{item['id']}")
        assert (status, bool(whole["help"]), whole["letter"]["error"]) == (200, True, "old")
        status, settled = api.post(f"/api/v1/dead-letters/{item['id']}/retry")
        states.append((status, settled["state"], bool(settled["why"])))
        if settled["state"] == "open":
            assert api.post(f"/api/v1/dead-letters/{item['id']}/dismiss")[1]["state"] == "dismissed"
        assert api.post(f"/api/v1/dead-letters/{item['id']}/dismiss")[0] == 409
    assert sorted(states) == [(200, "open", True), (200, "open", True), (200, "retried", False)]
    assert api.all_pages("/api/v1/dead-letters", 2) == []
    assert len(api.all_pages("/api/v1/dead-letters?state=all", 2)) == 3


def test_skipped_ranges_are_filled_on_demand(api: Api) -> None:
    """B2, N6"""
    add = "insert into sluice.skipped_range (upstream, from_cursor, to_cursor, reason, next_retry_at) select 'r', n, n + 1, 'x', now() + interval '1 day' from generate_series(1, 3) n"
    api.db.execute(add)
    ids = [row["id"] for row in api.all_pages("/api/v1/skipped?open=true", 2)]
    assert len(ids) == 3
    assert api.post("/api/v1/skipped/fill", {"ids": ids[:1]}) == (200, {"due": ids[:1]})
    assert sorted(api.post("/api/v1/skipped/fill")[1]["due"]) == ids
    assert api.post("/api/v1/skipped/fill", {"ids": [999]})[0] == 409
    assert api.db.execute("select count(*) from sluice.skipped_range where next_retry_at > now()").fetchone() == (0,)


def test_a_job_is_started_watched_and_steered(api: Api) -> None:
    """R2, R5: the same start is the same job."""
    spec = {"source": "dids", "dids": DIDS}
    plan = api.post("/api/v1/jobs", spec | {"dry_run": True})
    assert (plan[0], plan[1]["would"], api.get("/api/v1/jobs")[1]["items"]) == (200, "create", [])
    status, job = api.post("/api/v1/jobs", spec)
    assert (status, job["status"], job["total"]) == (200, "pending", len(DIDS))
    assert api.post("/api/v1/jobs", spec)[1]["id"] == job["id"]
    path = f"/api/v1/jobs/{job['id']}"
    told = [api.post(f"{path}/{what}") for what in ("pause", "resume", "cancel", "resume", "retry", "cancel")]
    assert [status for status, _ in told] == [200, 200, 200, 409, 200, 200]
    assert [answer.get("status") for _, answer in told][:3] == ["paused", "pending", "cancelled"]
    assert api.get(path)[1]["status"] == "cancelled"
    assert [item["id"] for item in api.all_pages("/api/v1/jobs?status=cancelled", 1)] == [job["id"]]
    assert api.get("/api/v1/jobs/999")[0] == 404
    assert api.post("/api/v1/jobs", {"source": "dids"})[1]["error"]["code"] == "invalid"
    assert api.get("/api/v1/repos/foo")[1]["error"]["message"] == "did: write a DID, such as did:plc:… or did:web:HOST"


def test_the_filter_is_shown_and_set(api: Api) -> None:
    """N9"""
    assert api.get("/api/v1/filters")[1]["collections"] == ["*"]
    status, refused = api.put("/api/v1/filters", {"collections": ["*", "app.bsky*"]})
    assert (status, refused["error"]["message"]) == (400, "collections.1: write an NSID, NSID.* or *")
    status, state = api.put("/api/v1/filters", {"collections": ["app.bsky.*"], "boundary": "dids", "dids": DIDS[:2]})
    assert (status, state["version"], state["dids"], state["walking"], state["clean"]) == (200, 2, 2, True, False)
    assert api.put("/api/v1/filters", {"collections": ["app.*.x"]})[0] == 400
    assert api.put("/api/v1/filters", {"boundary": "collection", "signal": "a.b.c", "collections": ["x.y.z"]})[0] == 409
    assert api.post("/api/v1/filters/prune")[1]["pruning"] is True


def test_entries_of_the_filter_are_added_and_removed(api: Api) -> None:
    """N9: the rest of the list stays."""
    refused = api.post("/api/v1/filters/add", {"dids": DIDS[:1]})
    assert (refused[0], refused[1]["error"]["message"].partition(";")[0]) == (
        409,
        "the filter has no list of DIDs: it mirrors all repos",
    )
    assert api.post("/api/v1/filters/add", {})[0] == 400
    assert api.post("/api/v1/filters/remove", {"collections": ["*"]})[0] == 409
    api.put("/api/v1/filters", {"collections": ["app.bsky.*"], "boundary": "dids", "dids": DIDS[:1]})
    added = api.post("/api/v1/filters/add", {"collections": ["com.example.*"], "dids": DIDS[1:2]})[1]
    assert (added["collections"], added["dids"]) == (["app.bsky.*", "com.example.*"], 2)
    removed = api.post("/api/v1/filters/remove", {"collections": ["app.bsky.*"], "dids": DIDS[:1]})[1]
    assert (removed["collections"], removed["dids"]) == (["com.example.*"], 1)


def test_an_unavailable_broker_or_database_is_an_error_answer(api_with) -> None:
    """B8"""
    api = api_with(database="postgresql://nobody@127.0.0.1:1/none")
    status, answer = api.get("/api/v1/hosts")  # within the minute that a request may take
    assert (status, answer["error"]["code"]) == (503, "database_unavailable")
    assert "127.0.0.1" not in answer["error"]["message"]


def test_paths_before_v1_are_aliases_that_the_document_does_not_show(api: Api) -> None:
    """Also for changes: an alias runs the same handler, with the same checks."""
    RepoQueue(api.settings).discover([ListedRepo(DIDS[0])])
    job = api.post("/api/backfill", {"source": "dids", "dids": DIDS})[1]["id"]
    shown = set(api.get("/api/openapi.json")[1]["paths"])
    assert all(path.startswith("/api/v1/") for path in shown)
    assert '"422"' not in json.dumps(api.get("/api/openapi.json")[1]), "invalid requests are answered with 400"
    for path in sorted(shown):
        alias = path.replace("/api/v1/jobs", "/api/backfill").replace("/api/v1/", "/api/")
        paths = [
            one.replace("{did}", DIDS[0]).replace("{id}", "0:1" if "letters" in one else str(job))
            for one in (path, alias)
        ]
        told = [api.get(one) for one in paths]
        assert told[0] == told[1]
        assert told[0][0] in (200, 404, 405)
        assert "no_such_route" not in json.dumps(told)
    changes = ("/api/dead-letters/0:1/retry", "/api/v1/dead-letters/0:1/retry")
    assert [api.post(path)[1]["error"]["code"] for path in changes] == ["not_found"] * 2
    assert api.post(f"/api/backfill/{job}/cancel")[1] == api.get(f"/api/v1/jobs/{job}")[1]
    assert api.get("/api/jobs")[1]["error"]["code"] == "no_such_route"


def test_no_path_and_no_method_are_answers_too(api: Api) -> None:
    assert api.get("/api/v1/nothing")[1]["error"]["code"] == "no_such_route"
    assert api.post("/api/v1/status")[1]["error"]["code"] == "method_not_allowed"
    assert api.request("POST", "/api/v1/jobs", b"{", {})[1]["error"]["code"] == "invalid"
    assert api.request("POST", "/api/v1/jobs", b"[" * 100_000, {})[1]["error"]["code"] == "invalid"
    assert api.get("/api/v1/hosts?limit=501")[0] == 400
    assert api.get("/api/v1/hosts?cursor=W10")[0] == 400
    assert api.get("/api/v1/hosts?unknown=1")[0] == 400
    assert api.get("/api/v1/hosts?limit=1&limit=2")[0] == 400


def test_too_many_calls_are_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.postgres.pooled_calls.WAITING", 0)
    assert api.get("/api/v1/hosts")[1]["error"]["code"] == "busy"
    assert api.get("/healthz")[0] == 200


def test_large_requests_are_answers_too(api: Api) -> None:
    assert api.get(f"/api/v1/hosts?cursor={'x' * 9000}")[1]["error"]["code"] == "invalid"
    assert api.get("/api/v1/hosts", X_Long="x" * 9000)[0] == 400
    status, answer = api.request("PUT", "/api/v1/filters", b" " * (BODY_BYTES + 1), {})
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert api.request("PUT", "/api/v1/filters", b" " * BODY_BYTES, {})[0] == 400


def test_no_other_process_and_no_command_loads_the_framework() -> None:
    """FastAPI takes time and 15 MB to load."""
    loads = "import sys, cli.main, local.run; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True, timeout=120)
    assert "typer" in done.stdout.split()
    assert not {"fastapi", "starlette", "uvicorn", "jinja2"} & set(done.stdout.split())


def test_the_attempts_of_a_repo(api: Api) -> None:
    RepoQueue(api.settings).discover([ListedRepo(DIDS[0])])
    api.db.execute(
        "insert into sluice.backfill_attempt (did, attempt, ended_at, outcome, error)"
        " select %s, n, now(), 'failed', 'HTTP 500' from generate_series(8, 12) n",
        (DIDS[0],),
    )
    api.db.execute("update sluice.repo set phase = 'backfill', attempt = 13")
    status, found = api.get(f"/api/v1/repos/{DIDS[0]}/attempts")
    assert status == 200
    assert [(row["attempt"], row["outcome"]) for row in found["items"]][:2] == [(13, "running"), (12, "failed")]
    assert len(found["items"]) == 6
    assert api.get(f"/api/v1/repos/{DIDS[1]}/attempts")[0] == 404


def test_a_repo_is_audited_and_fetched_again_if_it_differs(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repo of no records whose row names no commit differs; one that is not in sync is not audited."""
    RepoQueue(api.settings).discover([ListedRepo(DIDS[0])])
    status, answer = api.post(f"/api/v1/repos/{DIDS[0]}/audit")
    assert (status, answer["error"]["message"]) == (
        409,
        f"{DIDS[0]} is not in sync; only repos in sync have rows that must match",
    )
    api.db.execute("update sluice.repo set phase = 'sync', rev = '3l22222222222', attempt = 1")
    status, answer = api.post(f"/api/v1/repos/{DIDS[0]}/audit")
    assert (status, answer["records"], answer["queued"]) == (200, 0, True)
    assert [line.partition(":")[0] for line in answer["findings"]] == ["root", "no_commit"]
    assert api.db.execute("select phase, reason from sluice.repo").fetchone() == ("pending", "audit")

    monkeypatch.setattr("control.repo_audit.MAX_RECORDS", -1)
    status, answer = api.post(f"/api/v1/repos/{DIDS[0]}/audit")
    assert status == 409
    assert "use `sluice audit" in answer["error"]["message"]
    monkeypatch.undo()
    with repo_audit._one_at_a_time:
        assert "another repo" in api.post(f"/api/v1/repos/{DIDS[0]}/audit")[1]["error"]["message"]
