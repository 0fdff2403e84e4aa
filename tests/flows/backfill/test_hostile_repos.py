"""The backfill flow on PDSes that blame others or write to the operator's terminal, and on a directory that answers oddly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cli.status_text import rows, table
from protocol.encoding.safe_text import is_printable
from tests.flows.backfill.backfill_here import WorldHere

Here = Callable[..., WorldHere]
UNKNOWN = "did:plc:" + "z" * 24


def test_a_redirect_is_charged_to_the_redirecting_host_only(here: Here) -> None:
    """H4: the host that repos were sent on to was paused for an hour, and its budget lowered."""
    run = here({"repos": 20, "records_per_repo": 2, "inactive_share": 0.0, "pdses": 2}, backfill_max_attempts=2)
    attacker, victim = run.simulation.pdses
    truth = {did: one for did, one in run.simulation.state().items() if one.pds == 0}
    run.simulation.set_faults(repo_redirect={"to": 1, "host": 0})
    run.simulation.limits(limit=1, seconds=3600, pds=1)
    run.list_all(truth)
    run.start()
    query = "select host, paused_until > now(), request_limit from sluice.host order by host = %s"
    paused = run.until(lambda: (found := run.execute(query, victim)) and found[0][1] and found)
    assert run.simulation.fired("repo_redirect") > 0
    assert paused[0][0] == attacker
    assert all(row == (victim, None, None) for row in paused[1:])


def test_what_a_pds_writes_is_printable_in_rows_and_commands(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    """H8: an error text set the terminal's title and forged a line of the log."""
    run = here({"repos": 3, "records_per_repo": 2, "inactive_share": 0.0}, backfill_max_attempts=1)
    run.simulation.set_faults(pds_escapes={"per_did": 0})
    tasks = run.list_all(run.simulation.state())
    run.start()
    run.until(lambda: run.produced() == len(tasks))
    assert run.simulation.fired("pds_escapes") >= 3
    errors = [row["last_error"] for row in run.rows().values()] + [
        row[0] for row in run.execute("select last_error from sluice.host")
    ]
    assert all("forged line" in error and is_printable(error) for error in errors), errors
    shown = table(rows(run.settings, "held_back_hosts", {"limit": 10}))
    assert all(map(is_printable, shown.split("\n")))
    logged = [value for record in caplog.records for value in vars(record).values() if "forged line" in str(value)]
    assert logged
    assert all(is_printable(str(value)) for value in logged)


def test_attempts_at_dids_unknown_to_a_directory_mirror_end(here: Here) -> None:
    """H5: a 404 in plain text, and another DID's document, were retried for ever and never counted."""
    run = here({"repos": 6, "records_per_repo": 2, "inactive_share": 0.0}, backfill_max_attempts=2)
    truth = run.simulation.state()
    unknown, gone, other, *fine = truth
    tasks = run.list_all({did: truth[did] for did in fine})
    run.start()
    run.until(lambda: run.produced() == len(tasks))
    for did, fault in (
        (unknown, {"plc_plain_404": {"did": unknown}}),
        (gone, {"plc_plain_404": {"did": gone, "status": 410}}),
        (other, {"plc_other_did": {"did": other}}),
    ):
        run.simulation.set_faults(clear=True, **fault)
        run.list_all({did: truth[did]})
        run.run_to_end(len(tasks) + 1)
        tasks.append(tasks[0])
        assert run.simulation.fired(next(iter(fault))) > 0
    outcomes = {did: one.outcome for (did, _), one in run.attempts().items()}
    assert outcomes[unknown].reason == "did_not_found"
    assert outcomes[gone].reason == "did_tombstoned"
    found = run.rows()[other]
    assert (found["phase"], found["last_error"].partition(":")[0]) == ("failed", "bad_document")
