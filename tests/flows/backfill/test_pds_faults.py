"""What a PDS may answer to a fetch, fault by fault: its name, whether it counts, and what becomes of the repo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flows.backfill.pipeline import STALE_FIRST_SECONDS
from tests.flows.backfill.backfill_here import WorldHere

Here = Callable[..., WorldHere]

FAULTS: dict[str, dict[str, Any]] = {
    "rate_limited": {"pds_429": {"retry_after": 1, "per_did": 1}},
    "rate_limited_html": {"pds_429": {"retry_after": None, "html": True, "per_did": 1, "times": 5}},
    "http_status": {"pds_500": {}},
    "truncated": {"pds_truncate": {"mode": "mid"}},
    "missing_block": {"pds_truncate": {"mode": "boundary"}},
    "silent": {"pds_hang": {"seconds": 600, "times": 6}},
    "timeout": {"pds_trickle": {"chunk": 10, "interval": 5.0, "times": 6}},
    "wrong_did": {"pds_wrong_did": {}},
    "bad_car": {"pds_tamper": {}},
    "bad_signature": {"pds_bad_sig": {}},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_pds_fault_is_recorded_and_the_repo_retried(here: Here, reason: str) -> None:
    """C5, R3, G5, G7: every fault ends under its own name; once it stops, the repo is in the log, whole."""
    run = here(
        {"repos": 12, "records_per_repo": 30, "inactive_share": 0.0},
        backfill_concurrency=20,
        pds_concurrency=20,
        fetch_idle_seconds=30.0,
        fetch_total_seconds=60.0,
    )
    truth = run.simulation.state()
    run.simulation.set_faults(**FAULTS[reason])
    fault = next(iter(FAULTS[reason]))
    tasks = run.list_all(truth)
    process = run.start()
    named = reason.removesuffix("_html")
    run.run_to_end(len(tasks))
    assert run.simulation.fired(fault) > 0
    errors = [row["last_error"] for row in run.rows().values() if row["last_error"]]
    assert any(error.startswith(named) for error in errors), errors
    counted = sum(row["retry_count"] for row in run.rows().values())
    if named == "rate_limited":
        assert counted == 0, "a pause is no attempt"
        pauses = run.execute("select pause_reason from sluice.host where paused_until is not null")
        assert pauses, "the pause is in the host's row, for all workers"
    else:
        assert counted > 0
        assert process.metric("sluice_backfill_attempts_failed_total", reason=named) == counted
    assert not any(row["phase"] == "failed" for row in run.rows().values())
    run.check(truth)


def test_a_repo_fails_after_its_last_attempt_with_a_reason(here: Here) -> None:
    """C4, C5, G5: five attempts with back-off, then `failed`, with the reason; nothing goes round."""
    run = here({"repos": 5, "records_per_repo": 10, "inactive_share": 0.0})
    truth = run.simulation.state()
    run.simulation.set_faults(pds_500={"per_did": 0})
    run.list_all(truth)
    run.start()
    run.run_to_end(5)
    for row in run.rows().values():
        assert (row["phase"], row["retry_count"], row["attempt"]) == ("failed", 5, 5)
        assert row["last_error"].startswith("http_status")
    assert run.simulation.fired("pds_500") == 25
    assert run.schedule() == 0


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("car_block_bytes", "too_many_blocks"),
        ("backfill_max_car_bytes", "too_large"),
        ("snapshot_max_bytes", "too_large"),
    ],
)
def test_a_repo_above_a_limit_fails_at_once_and_is_mirrored_after_the_limit_is_raised(
    here: Here, setting: str, reason: str
) -> None:
    """C5, G6: it is not downloaded five times for the same end; the error names the setting that an operator raises."""
    run = here({"repos": 3, "records_per_repo": 30, "inactive_share": 0.0})
    truth = run.simulation.state()
    run.list_all(truth)
    # small repos that are spooled to disk as a large one is
    process = run.start(
        **{setting: 2 * 1024**3 // 10 if setting == "car_block_bytes" else 1024, "car_memory_bytes": 1000}
    )
    run.run_to_end(3)
    for row in run.rows().values():
        assert (row["phase"], row["retry_count"], row["attempt"]) == ("failed", 1, 1)
        assert row["last_error"].startswith(f"{reason}: ")
        assert "SLUICE_BACKFILL_MAX_CAR_BYTES" in row["last_error"]
    assert process.metric("sluice_backfill_fetch_errors_total", reason=reason) == 3
    process.kill()
    run.start()
    assert len(run.store.retry_failed(None)) == 3
    assert run.schedule() == 3
    run.run_to_end(3)
    run.check(truth)


def test_one_block_that_many_leaves_name_is_too_large_before_a_message_is_made(here: Here) -> None:
    """H2, H3: a CAR of 100 KB with 20 MB of rows: fetched once, `failed` at once, nothing in the log; others pass."""
    run = here({"repos": 4, "records_per_repo": 10, "inactive_share": 0.0}, snapshot_max_bytes=10_000_000)
    did = next(iter(run.simulation.state()))
    run.simulation.op("odd_leaf", did=did, kind="leaf_repeated", bytes=100_000, count=200)
    truth = run.simulation.state()
    run.list_all(truth)
    process = run.start()
    run.run_to_end(4)
    row = run.rows()[did]
    assert (row["phase"], row["retry_count"]) == ("failed", 1)
    assert "SLUICE_BACKFILL_MAX_CAR_BYTES" in row["last_error"]
    assert run.simulation.fetches()[did] == 1
    assert process.metric("sluice_fetched_bytes_total") < 1_000_000
    assert did not in {key for key, _ in run.attempts()}
    run.check({other: one for other, one in truth.items() if other != did})


def test_a_stale_snapshot_is_not_taken(here: Here) -> None:
    """A lagging replica: nothing is produced below the rev already seen; the claim is kept until the PDS catches up."""
    run = here({"repos": 6, "records_per_repo": 20, "inactive_share": 0.0})
    run.simulation.writer(100)
    run.until(lambda: all(one["commits"] > 40 for one in [run.simulation.summary()]))
    run.simulation.quiesce()
    truth = run.simulation.state()
    run.simulation.set_faults(pds_stale={"per_did": 2})
    tasks = run.list_all(truth)
    process, began = run.start(stale_seconds=600.0), run.own.loop.now
    run.run_to_end(len(tasks))
    assert run.simulation.fired("pds_stale") > 0
    assert process.metric("sluice_backfill_verification_errors_total", reason="stale") == run.simulation.fired(
        "pds_stale"
    )
    assert {row["attempt"] for row in run.rows().values()} == {1}, "the claim was kept"
    assert run.own.loop.now - began >= 2 * STALE_FIRST_SECONDS, "it waits before it asks again"
    run.check(truth)


def test_account_states_are_outcomes(here: Here) -> None:
    """Deactivated, taken down, and gone after a reported deletion: each is one outcome and no error."""
    run = here({"repos": 8, "records_per_repo": 10, "inactive_share": 0.0})
    truth = run.simulation.state()
    off, down, gone, deleted, back, hidden = list(truth)[:6]
    run.simulation.op("deactivate", did=off)
    run.simulation.op("takedown", did=down)
    run.simulation.op("delete_account", did=gone)
    run.simulation.op("delete_account", did=deleted)
    run.simulation.op("delete_account", did=hidden)
    run.list_all({did: truth[did] for did in (off, down, gone, deleted, back, hidden)})
    run.execute(
        "update sluice.repo set reason = 'deletion', active = false, status = 'deleted' where did = any(%s)",
        [deleted, back],
    )
    run.execute(
        "update sluice.repo set reason = 'deletion', active = false, status = 'deactivated' where did = %s", hidden
    )
    run.start()
    run.run_to_end(6)
    outcomes = {did: attempt.outcome for (did, _), attempt in run.attempts().items()}
    assert (outcomes[off].status, outcomes[off].reason) == ("unavailable", "deactivated")
    assert (outcomes[down].status, outcomes[down].reason) == ("unavailable", "takendown")
    assert outcomes[gone].status == "unavailable"
    assert outcomes[gone].reason in ("not_found", "did_not_found")
    assert (outcomes[deleted].status, outcomes[deleted].active) == ("deleted", False)
    assert outcomes[hidden].status == "unavailable", "a deactivation was reported: its rows are hidden, not removed"
    assert (outcomes[back].status, outcomes[back].active) == ("synced", True)
