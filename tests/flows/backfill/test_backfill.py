"""The backfill flow on the real log and database, against the simulated network and all its faults."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from connectors.kafka.log import cluster_id
from protocol.encoding.record_json import body_cid
from tests.flows.backfill.backfill_world import World
from tests.support.flow_process import wait_until
from tests.support.simulation import Simulation

Make = Callable[..., World]
Simulator = Callable[..., Simulation]


def test_every_record_of_every_repo_reaches_the_log_before_its_outcome(simulator: Simulator, world: Make) -> None:
    """B3, G3, G4: the whole snapshot, verified, each body hashing back to its CID, hostile records included."""
    run = world(simulator(repos=30, records_per_repo=40, hostile=True))
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


def test_two_workers_with_the_same_messages_fetch_each_repo_once(simulator: Simulator, world: Make) -> None:
    """C1, C2, P4: every task is in the log three times, in both topics; one claim each, the others are dropped and counted."""
    run = world(simulator(repos=80, records_per_repo=20, inactive_share=0.0), backfill_concurrency=4)
    truth = run.simulation.state()
    run.simulation.set_faults(pds_trickle={"chunk": 2000, "interval": 1.0, "per_did": 0})
    tasks = run.list_all(truth)
    run.queue(tasks, "repo_backfill")
    run.queue(tasks, "repo_resync")
    workers = [run.start(), run.start()]
    wait_until(lambda: all(one.metric("sluice_claims_total", result="claimed") > 0 for one in workers))
    wait_until(lambda: run.simulation.fired("pds_trickle") > 0)
    run.simulation.set_faults(clear=True)  # the work is shared: there was enough of it for the one that came later
    run.run_to_end(len(tasks))
    wait_until(lambda: sum(one.metric("sluice_claims_total", result="dropped") for one in workers) >= 2 * len(tasks))
    assert sum(one.metric("sluice_claims_total", result="claimed") for one in workers) == len(tasks)
    assert {attempt for _, attempt in run.attempts()} == {1}
    served = sum(host["total"] for host in run.simulation.faults()["hosts"].values())
    assert served == len(tasks)
    run.check(truth)


def test_a_killed_worker_leaves_nothing_stuck(simulator: Simulator, world: Make) -> None:
    """C4, G1: kill -9 in the middle; the reaper takes the expired leases back, another worker ends the work."""
    run = world(simulator(repos=60, records_per_repo=60, inactive_share=0.0), lease_seconds=2.0)
    truth = run.simulation.state()
    tasks = run.list_all(truth)
    # half of them are not done before they are killed, however late that is
    run.simulation.set_faults(pds_trickle={"p": 0.5, "chunk": 500, "interval": 3.0, "per_did": 1})
    first = run.start()
    wait_until(lambda: 3 < run.produced() < len(tasks))
    run.kill(first)
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
    run.kill(first)
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

    wait_until(done, what=lambda: f"{len(tasks)} produced; rows {run.summary()}")
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
            big_repo_records=8_000,
            big_record_bytes=11_000,
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
