"""The backfill flow on the real log and database, against the simulated network and all its faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import cluster_id, watermarks
from connectors.kafka.producer import Out
from connectors.postgres.repo_queue import ListedRepo
from protocol.encoding.record_json import body_cid
from schemas import wire
from tests.flows.backfill.backfill_world import World
from tests.support.flow_process import group_positions, read_topic, wait_until
from tests.support.simulation import Simulation

Make = Callable[..., World]
Simulator = Callable[..., Simulation]


def test_every_record_of_every_repo_reaches_the_log_before_its_outcome(simulator: Simulator, world: Make) -> None:
    """B3, G3, G4: the whole snapshot, verified, each body hashing back to its CID, hostile records included."""
    run = world(simulator(repos=60, records_per_repo=40, hostile=True))
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    run.start()
    run.run_to_end(len(tasks))
    run.check(truth)
    for attempt in run.attempts().values():
        for event in attempt.creates:
            if event.reason is None:
                assert body_cid(bytes(event.record)) == event.cid
    assert all(row["produced_offset"] is not None for row in run.rows().values())


# Only what is to be silent, or slow, has a short time to answer: elsewhere a slow moment would be counted as another fault.
TIMES: dict[str, dict[str, float]] = {"silent": {"fetch_idle_seconds": 2.0}, "timeout": {"fetch_total_seconds": 4.0}}
FAULTS: dict[str, dict[str, Any]] = {
    "rate_limited": {"pds_429": {"retry_after": 1, "per_did": 1}},
    "rate_limited_html": {"pds_429": {"retry_after": None, "html": True, "per_did": 1, "times": 5}},
    "http_status": {"pds_500": {}},
    "truncated": {"pds_truncate": {"mode": "mid"}},
    "missing_block": {"pds_truncate": {"mode": "boundary"}},
    "silent": {"pds_hang": {"seconds": 600, "times": 6}},
    "timeout": {"pds_trickle": {"chunk": 10, "interval": 0.5, "times": 6}},
    "wrong_did": {"pds_wrong_did": {}},
    "bad_car": {"pds_tamper": {}},
    "bad_signature": {"pds_bad_sig": {}},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_pds_fault_is_recorded_and_the_repo_retried(simulator: Simulator, world: Make, reason: str) -> None:
    """C5, R3, G5, G7: every fault ends under its own name; once it stops, the repo is in the log, whole."""
    run = world(
        simulator(repos=12, records_per_repo=30, inactive_share=0.0),
        backfill_concurrency=20,
        pds_concurrency=20,
        **TIMES.get(reason, {}),
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


def test_a_repo_fails_after_its_last_attempt_with_a_reason(simulator: Simulator, world: Make) -> None:
    """C4, C5, G5: five attempts with back-off, then `failed`, with the reason; nothing goes round."""
    run = world(simulator(repos=5, records_per_repo=10, inactive_share=0.0))
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
        ("backfill_max_car_blocks", "too_many_blocks"),
        ("backfill_max_car_bytes", "too_large"),
        ("snapshot_max_bytes", "too_large"),
    ],
)
def test_a_repo_above_a_limit_fails_at_once_and_is_mirrored_after_the_limit_is_raised(
    simulator: Simulator, world: Make, setting: str, reason: str
) -> None:
    """C5, G6: it is not downloaded five times for the same end; the error names the setting that an operator raises."""
    run = world(simulator(repos=3, records_per_repo=30, inactive_share=0.0))
    truth = run.simulation.state()
    run.list_all(truth)
    # small repos that are spooled to disk as a large one is
    process = run.start(**{setting: 10 if setting == "backfill_max_car_blocks" else 1024, "car_memory_bytes": 1000})
    run.run_to_end(3)
    for row in run.rows().values():
        assert (row["phase"], row["retry_count"], row["attempt"]) == ("failed", 1, 1)
        assert row["last_error"].startswith(f"{reason}: ")
        named = setting.replace("snapshot_max", "backfill_max_car")
        assert f"SLUICE_{named.upper()}" in row["last_error"]
    assert process.metric("sluice_backfill_fetch_errors_total", reason=reason) == 3
    process.terminate()
    run.start()
    assert len(run.store.retry_failed(None)) == 3
    assert run.schedule() == 3
    run.run_to_end(3)
    run.check(truth)


def test_one_block_that_many_leaves_name_is_too_large_before_a_message_is_made(
    simulator: Simulator, world: Make
) -> None:
    """H2, H3: a CAR of 100 KB with 20 MB of rows: fetched once, `failed` at once, nothing in the log; others pass."""
    run = world(simulator(repos=4, records_per_repo=10, inactive_share=0.0), snapshot_max_bytes=10_000_000)
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


def test_a_stale_snapshot_is_not_taken(simulator: Simulator, world: Make) -> None:
    """A lagging replica: nothing is produced below the rev already seen; the claim is kept until the PDS catches up."""
    run = world(simulator(repos=6, records_per_repo=20, inactive_share=0.0))
    run.simulation.writer(100)
    wait_until(lambda: all(one["commits"] > 40 for one in [run.simulation.summary()]))
    run.simulation.quiesce()
    truth = run.simulation.state()
    run.simulation.set_faults(pds_stale={"per_did": 2})
    tasks = run.list_all(truth)
    process = run.start(stale_seconds=600.0)
    run.run_to_end(len(tasks), 120)
    assert run.simulation.fired("pds_stale") > 0
    assert process.metric("sluice_backfill_verification_errors_total", reason="stale") == run.simulation.fired(
        "pds_stale"
    )
    assert {row["attempt"] for row in run.rows().values()} == {1}, "the claim was kept"
    run.check(truth)


def test_account_states_are_outcomes(simulator: Simulator, world: Make) -> None:
    """Deactivated, taken down, and gone after a reported deletion: each is one outcome and no error."""
    run = world(simulator(repos=8, records_per_repo=10, inactive_share=0.0))
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


def test_two_workers_with_the_same_messages_fetch_each_repo_once(simulator: Simulator, world: Make) -> None:
    """C1, C2, P4: every task is in the log three times, in both topics; one claim each, the others are dropped and counted."""
    run = world(simulator(repos=80, records_per_repo=20, inactive_share=0.0), backfill_concurrency=4)
    truth = run.simulation.state()
    run.simulation.set_faults(pds_trickle={"chunk": 2000, "interval": 3.0, "per_did": 0})
    tasks = run.list_all(truth)
    run.queue(tasks, "repo_backfill")
    run.queue(tasks, "repo_resync")
    workers = [run.start(), run.start()]
    wait_until(lambda: all(one.metric("sluice_claims_total", result="claimed") > 0 for one in workers))
    assert run.simulation.fired("pds_trickle") > 0
    run.simulation.set_faults(clear=True)  # the work is shared: there was enough of it for the one that came later
    run.run_to_end(len(tasks))
    wait_until(lambda: sum(one.metric("sluice_claims_total", result="dropped") for one in workers) >= 2 * len(tasks))
    assert sum(one.metric("sluice_claims_total", result="claimed") for one in workers) == len(tasks)
    assert {attempt for _, attempt in run.attempts()} == {1}
    served = sum(host["total"] for host in run.simulation.faults()["hosts"].values())
    assert served == len(tasks)
    run.check(truth)


def test_a_resync_does_not_queue_behind_the_backlog(simulator: Simulator, world: Make) -> None:
    """A desynced repo is fetched while slow downloads of the backlog hold all their slots."""
    run = world(
        simulator(repos=40, records_per_repo=20, inactive_share=0.0), backfill_concurrency=4, pds_concurrency=50
    )
    truth = run.simulation.state()
    urgent, *others = list(truth)
    task = run.store.discover([ListedRepo(urgent)]).tasks
    run.simulation.set_faults(pds_hang={"seconds": 600, "per_did": 0})
    run.list_all({did: truth[did] for did in others})
    run.start()
    wait_until(lambda: run.simulation.fired("pds_hang") >= 4)
    run.simulation.set_faults(pds_hang=None)
    run.queue(task, "repo_resync")
    wait_until(lambda: run.rows()[urgent]["produced_offset"] is not None)
    assert run.attempts()[urgent, 1].outcome
    assert run.produced() == 1


def test_a_killed_worker_leaves_nothing_stuck(simulator: Simulator, world: Make) -> None:
    """C4, G1: kill -9 in the middle; the reaper takes the expired leases back, another worker ends the work."""
    run = world(simulator(repos=60, records_per_repo=60, inactive_share=0.0), lease_seconds=2.0)
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    # half of them are not done before they are killed, however late that is
    run.simulation.set_faults(pds_trickle={"p": 0.5, "chunk": 500, "interval": 3.0, "per_did": 1})
    first = run.start()
    wait_until(lambda: 3 < run.produced() < len(tasks))
    first.kill()
    held = run.execute("select count(*) from sluice.repo where phase = 'backfill' and produced_offset is null")[0][0]
    assert held > 0, "it was killed in the middle"
    run.simulation.set_faults(clear=True)
    run.start(lease_seconds=600.0)
    run.run_to_end(len(tasks))
    assert run.execute("select count(*) from sluice.repo where last_error like 'lease expired%%'") == [(held,)]
    run.check(truth)


def test_incident_c_a_killed_worker_s_repos_come_back_when_their_lease_ends(simulator: Simulator, world: Make) -> None:
    """C1, C2, C4, P4, incident C: each message twice, two workers, one killed with repos in its hands. Only those are fetched a
    second time, and not before their lease has really ended.
    """
    run = world(simulator(repos=60, records_per_repo=20, inactive_share=0.0), backfill_concurrency=4)
    truth = run.simulation.state()
    run.simulation.set_faults(pds_trickle={"p": 0.5, "chunk": 500, "interval": 1.0, "per_did": 0})
    tasks = run.list_all(truth)
    run.queue(tasks, "repo_resync")
    # the second one's leases do not end, even if the machine is suspended for a while
    first, second = run.start(lease_seconds=12.0), run.start(lease_seconds=600.0)

    def in_hands_of_the_first() -> dict[str, float]:
        """DID → end of its lease, Unix seconds."""
        of_the_first = f"%/{first.process.pid}/%"
        rows = run.execute(
            "select did, extract(epoch from lease_until)::float from sluice.repo"
            " where phase = 'backfill' and produced_offset is null and worker like %s",
            of_the_first,
        )
        return dict(rows)

    def in_the_middle() -> bool:
        asked = run.simulation.fetches()
        return sum(did in asked for did in in_hands_of_the_first()) >= 2 and run.produced() > 3

    wait_until(in_the_middle)
    first.kill()
    held = in_hands_of_the_first()
    assert held, "it was killed in the middle"
    run.simulation.set_faults(clear=True)
    assert len(held) < len(tasks) - 10
    reaped: dict[str, float] = {}
    cluster = cluster_id(run.settings)

    def done() -> bool:
        taken = run.store.reap(cluster, 0.0)
        ((now,),) = run.execute("select extract(epoch from clock_timestamp())::float")
        reaped.update(dict.fromkeys(taken, now))
        run.schedule()
        return run.produced() >= len(tasks)

    wait_until(done, 90, lambda: f"{len(tasks)} produced; rows {run.summary()}")
    assert second.running
    assert reaped.keys() == held.keys(), "each of them, and no repo of the living worker"
    assert all(reaped[did] >= ends for did, ends in held.items()), "none before its lease had ended"
    fetches = run.simulation.fetches()
    assert {did for did in truth if fetches[did] != 1} <= held.keys(), "everything else was fetched once"
    assert {fetches[did] for did in held} in ({2}, {1, 2}), "1: it was killed before it had asked for that one"
    run.check(truth)


def test_sigterm_releases_unfinished_claims_uncounted(simulator: Simulator, world: Make) -> None:
    """C4: exit 0 within the time to drain; the claims are pending again, and no attempt was counted."""
    run = world(
        simulator(repos=30, records_per_repo=20, inactive_share=0.0),
        drain_seconds=1.0,
        backfill_concurrency=10,
        pds_concurrency=10,
    )
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    run.simulation.set_faults(pds_hang={"seconds": 600, "p": 0.5, "per_did": 0})
    process = run.start()
    wait_until(lambda: run.simulation.fired("pds_hang") >= 8 and run.produced() > 0)
    assert process.terminate(60) == 0
    rows = run.rows().values()
    assert not [row for row in rows if row["phase"] == "backfill" and row["produced_offset"] is None]
    assert any(row["phase"] == "pending" and row["attempt"] == 1 for row in rows), "something was given back"
    assert all(row["retry_count"] == 0 for row in rows)
    run.simulation.set_faults(clear=True)
    run.start()
    run.run_to_end(len(tasks))
    run.check(truth)


def test_nothing_is_written_for_a_lost_claim(simulator: Simulator, world: Make) -> None:
    """The lease ran out and somebody else has the repo: the worker notices, stops, and writes no outcome."""
    run = world(simulator(repos=1, records_per_repo=20, inactive_share=0.0), lease_seconds=1.5)
    truth = run.simulation.state()
    run.list_all(truth)
    run.simulation.set_faults(pds_hang={"seconds": 600, "times": 1})
    process = run.start()
    wait_until(lambda: run.simulation.fired("pds_hang") == 1)
    run.execute("update sluice.repo set attempt = attempt + 1, worker = 'another'")
    wait_until(lambda: process.metric("sluice_claims_total", result="lost") == 1)
    assert run.attempts() == {}
    assert process.running


def test_unreadable_tasks_become_dead_letters(simulator: Simulator, world: Make) -> None:
    """C3, G7, P3: a message without its id is a dead letter, and the one behind it is worked on."""
    run = world(simulator(repos=3, records_per_repo=10, inactive_share=0.0))
    truth = run.simulation.state()
    bad = [
        b"",
        b"not json",
        b"{}",
        b'{"did": "did:plc:x", "reason": "listed"}',
        b'{"did": "nobody", "attempt": 0, "reason": "r"}',
    ]
    run.producer.send([Out("repo_backfill", "did:plc:x", value) for value in bad])
    tasks = run.list_all(truth)
    run.start()
    run.run_to_end(len(tasks))

    def letters() -> list[Any]:
        found = read_topic(run.settings.kafka_bootstrap, run.settings.topic("dead_letter"))
        return [wire.decode_dead_letter(message.value()) for message in found]

    wait_until(lambda: len(letters()) >= len(bad))
    assert {letter.reason for letter in letters()} == {"bad_task"}
    assert len(letters()) == len(bad)
    run.check(truth)


def test_offsets_do_not_wait_for_a_slow_repo(simulator: Simulator, world: Make) -> None:
    """From the claim on the database holds the work: the group's lag is nothing while a download hangs."""
    run = world(
        simulator(repos=20, records_per_repo=10, inactive_share=0.0), backfill_concurrency=30, pds_concurrency=30
    )
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    run.simulation.set_faults(pds_hang={"seconds": 600, "times": 3, "per_did": 0})
    run.start()
    wait_until(lambda: run.produced() == len(tasks) - 3)
    assert run.simulation.fired("pds_hang") == 3
    ends = {part: span for (_, part), span in watermarks(run.settings, ["repo_backfill"]).items()}

    def settled() -> bool:
        topic = run.settings.topic("repo_backfill")
        at = group_positions(run.settings.kafka_bootstrap, run.settings.group("backfill"), topic)
        return all(at.get(part) == high for part, (_, high) in ends.items() if high)

    wait_until(settled)


def test_two_workers_together_keep_a_hosts_budget(simulator: Simulator, world: Make) -> None:
    """B3: as the PDS counts them, in no window more than its limit; nothing is refused, and everything comes through."""
    run = world(
        simulator(repos=150, records_per_repo=5, inactive_share=0.0, pdses=1),
        pds_requests=60,
        host_window_seconds=5.0,
        backfill_concurrency=20,
        pds_concurrency=20,
    )
    # The host's window is a second shorter than ours: the way to it is reckoned with one second at most, and a slow moment of
    # the simulated host is more. Each on its own would send far above the limit here, too.
    run.simulation.limits(limit=60, seconds=4, reset=True)
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    workers = [run.start(), run.start()]
    run.run_to_end(len(tasks))
    counted = next(iter(run.simulation.faults()["hosts"].values()))
    assert counted["total"] == len(tasks)
    assert counted["refused"] == 0
    assert 30 < counted["max_in_window"] <= 60
    assert all(worker.running for worker in workers)
    run.check(truth)


def test_a_large_repo_passes_in_bounded_memory(simulator: Simulator, world: Make) -> None:
    """G6: a CAR of some 90 MB goes through disk and in pieces, while small repos go past it."""
    run = world(
        simulator(
            repos=30,
            records_per_repo=10,
            inactive_share=0.0,
            big_repos=1,
            big_repo_records=40_000,
            big_record_bytes=2000,
        )
    )
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    process = run.start()
    usage = psutil.Process(process.process.pid)
    begin, peak = usage.memory_info().rss, 0

    def done() -> bool:
        nonlocal peak
        peak = max(peak, usage.memory_info().rss)
        return run.produced() >= len(tasks)

    wait_until(done, 120)
    assert process.metric("sluice_fetched_bytes_total") > 80_000_000
    assert peak < 250_000_000, f"{begin} at the start, {peak} at the peak"
    run.check(truth)


def test_no_claims_are_made_while_the_index_is_behind(simulator: Simulator, world: Make) -> None:
    """B7: above the mark the flow is paused with a reason; below it continues, and nothing is missing."""
    run = world(
        simulator(repos=120, records_per_repo=20, inactive_share=0.0),
        kafka_high_water_messages=200,
        backfill_concurrency=1,
    )
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    run.simulation.set_faults(pds_trickle={"chunk": 20_000, "interval": 0.5, "per_did": 0})
    process = run.start()
    wait_until(lambda: process.health()["state"] == "paused")
    assert run.produced() < len(tasks)
    run.simulation.set_faults(clear=True)
    index = GroupConsumer(run.settings, "index", ["firehose_backfill"])
    try:

        def caught_up() -> bool:
            index.poll(1, 0.05)
            index.commit({part: high for part, (_, high) in watermarks(run.settings, ["firehose_backfill"]).items()})
            return run.produced() == len(tasks)

        wait_until(caught_up, 120)
    finally:
        index.close()
    run.check(truth)
