"""What PDSes say of accounts that they have no more, or say to do harm: the directory's word counts, and no word ends a worker."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from aiohttp import web

from flows.backfill.pipeline import DOUBTED_AFTER
from tests.flows.backfill.backfill_here import WorldHere

Here = Callable[..., WorldHere]


@pytest.mark.parametrize(
    "fault", [None, "plc_500", "plc_429"], ids=["at once", "directory away", "directory limits us"]
)
def test_an_account_that_moved_is_fetched_where_it_lives_now(here: Here, fault: str | None) -> None:
    """G5: what a former PDS reports about an account does not count: the DID is resolved afresh, and the worker waits for the directory."""
    run = here({"repos": 4, "records_per_repo": 10, "inactive_share": 0.0}, rate_limit_pause_seconds=1.0)
    truth = run.simulation.state()
    moved = next(iter(truth))
    identity = {"did": moved, "pds": run.simulation.pdses[truth[moved].pds]}
    run.execute(
        "insert into sluice.identity (did, pds, signing_key) values (%s, %s, 'did:key:zold')", *identity.values()
    )
    run.simulation.op("migrate", did=moved, pds=(truth[moved].pds + 1) % 3)
    if fault:
        run.simulation.set_faults(**{fault: {"times": 2}})
    truth = {moved: run.simulation.state()[moved]}
    run.list_all(truth)
    run.start()
    run.run_to_end(1)
    run.check(truth)
    last = 3 if fault else 1
    assert run.simulation.fired(str(fault)) == last - 1
    assert run.attempts().keys() == {(moved, last)}
    assert run.rows()[moved]["retry_count"] == 0  # what the directory does counts towards nothing
    assert run.attempts()[moved, last].outcome.host == run.simulation.pdses[truth[moved].pds]


def old_pds(run: WorldHere, answer: bytes, status: int = 200) -> str:
    """A PDS of a stranger's making, which gives everybody the same answer; its URL."""

    async def same(_: web.Request) -> web.Response:
        return web.Response(status=status, body=answer)

    app = web.Application()
    app.router.add_get("/{any:.*}", same)
    return run.own.run(run.own.network.serve(app))


def test_an_account_s_former_pds_is_never_believed(here: Here) -> None:
    """G5, G7: the former PDS serves a snapshot below the rev already seen; the directory names another PDS, which is asked first."""
    run = here({"repos": 4, "records_per_repo": 10, "inactive_share": 0.0}, stale_seconds=0.5)
    truth = run.simulation.state()
    moved = next(iter(truth))
    before = run.simulation.get(f"{run.simulation.pdses[truth[moved].pds]}/xrpc/com.atproto.sync.getRepo?did={moved}")
    (method,) = json.loads(run.simulation.get(f"{run.simulation.plc}/{moved}"))["verificationMethod"]
    run.simulation.op("create", did=moved)
    truth = {moved: run.simulation.state()[moved]}
    run.execute(
        "insert into sluice.identity (did, pds, signing_key) values (%s, %s, %s)",
        *(moved, old_pds(run, before), f"did:key:{method['publicKeyMultibase']}"),
    )
    run.list_all(truth)
    process = run.start()
    run.run_to_end(1)
    run.check(truth)
    assert process.metric("sluice_backfill_verification_errors_total", reason="stale") == 1, (
        "the old one was asked, once"
    )
    assert run.attempts().keys() == {(moved, 1)}


def test_no_response_of_a_pds_can_end_a_worker(here: Here) -> None:
    """G7, B8: words that PostgreSQL takes for no text; the repo fails, the others are fetched, the process goes on."""
    run = here({"repos": 20, "records_per_repo": 5, "inactive_share": 0.0}, backfill_max_attempts=2)
    truth = run.simulation.state()
    hostile, *others = list(truth)
    url = old_pds(run, b'{"error": "No\\u0000thing", "message": "a\\u0000b"}', status=500)
    run.execute("insert into sluice.identity (did, pds, signing_key) values (%s, %s, 'did:key:zold')", hostile, url)
    run.list_all(truth)
    process = run.start()
    run.until(lambda: run.schedule() >= 0 and run.rows()[hostile]["phase"] == "failed")
    run.run_to_end(len(truth))
    run.check({did: truth[did] for did in others})
    assert process.running
    assert "No\ufffdthing a\ufffdb" in run.rows()[hostile]["last_error"]


def test_an_account_whose_move_was_missed_is_found(here: Here) -> None:
    """G5: its old PDS is gone for good and the cached document names it: after some failures the directory is asked again."""
    run = here({"repos": 4, "records_per_repo": 10, "inactive_share": 0.0}, retry_first_seconds=0.2)
    truth = run.simulation.state()
    moved = next(iter(truth))
    truth = {moved: truth[moved]}
    gone = "http://127.0.0.1:9"
    run.execute("insert into sluice.identity (did, pds, signing_key) values (%s, %s, 'did:key:zold')", moved, gone)
    run.list_all(truth)
    process = run.start()
    run.run_to_end(1)
    run.check(truth)
    assert process.metric("sluice_backfill_fetch_errors_total", reason="unreachable") == DOUBTED_AFTER
    assert run.attempts().keys() == {(moved, DOUBTED_AFTER + 1)}
