"""Two workers of a kind side by side: the same state, shared work, one budget per host, and one takes over from the other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.whole_mirror import Mirror, SingleProcess, prefix, wait_for

pytestmark = pytest.mark.acceptance

KINDS = ("control", "list-repos", "firehose", "labels")


def test_two_workers_share_the_work_and_keep_to_one_budget(
    simulator: Any, log: str, database: str, mirror: Any
) -> None:
    """`--workers 2`: every worker has settled messages and produced snapshots, and the tables equal the network.

    The PDS counts: in no window of 4 s more requests than the limit, which two workers share and use up."""
    limit, window = 40, 4.0
    simulation = simulator(
        seed=31, repos=300, records_per_repo=12, churn=0.03, pdses=2, inactive_share=0.0, writer_rate=40,
        faults={"pds_500": 0.03, "drop": 0.003}, pds_limit_seconds=window,
    )  # fmt: skip
    one: Mirror = mirror(
        simulation,
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=prefix(),
        pds_requests=limit,
        host_window_seconds=window,
        skip_after_failures=1000,
    )
    simulation.set_faults(relay_list_500=1.0)  # nothing to fetch until both can
    one.up("--workers", "2")
    one.started()
    both = {"backfill-1", "backfill-2", "index-1", "index-2"}
    wait_for(lambda: {name for name, seen in one.sightings(with_metrics=False).items() if seen.ready} >= both, 120)
    wait_for(lambda: simulation.fired("relay_list_500"), 120, "nothing was listed")
    simulation.set_faults(relay_list_500=None)
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 250, 120, one.last_lines)
    settled = [one.count(f"index-{n}", "sluice_indexed_events_total") for n in (1, 2)]
    fetched = [one.count(f"backfill-{n}", "sluice_backfill_repos_processed_total") for n in (1, 2)]
    hosts = simulation.faults()["hosts"]
    print(f"settled {settled}, fetched {fetched}; hosts {hosts}")
    assert min(settled) > 0.15 * sum(settled) > 0
    assert min(fetched) > 0.1 * sum(fetched) > 0
    assert simulation.fired("pds_500")
    assert sum(host["total"] for host in hosts.values()) >= 250
    for host in hosts.values():
        assert host["max_in_window"] <= limit
        assert host["max_in_window"] > 0.6 * limit, "the limit never bound"
    one.quiesce()
    one.await_truth(120)
    assert one.interrupt() == 0


def test_the_other_worker_takes_over(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """One index and one backfill worker are killed for good in the middle of their work; the others finish all of it."""
    simulation = simulator(
        seed=32,
        repos=300,
        records_per_repo=20,
        churn=0.03,
        faults={"pds_slow": {"seconds": 1}},  # 4 repos a second at most, until the kill
        writer_rate=30,
    )
    one: Mirror = mirror(
        simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix(), backfill_concurrency=2
    )
    one.run("control")
    wait_for(lambda: one.single[0].look().ready, 120, one.last_lines)
    workers = {kind: [one.run(kind), one.run(kind)] for kind in ("index", "backfill")}
    for kind in KINDS[1:]:
        one.run(kind)
    done = {"index": "sluice_indexed_events_total", "backfill": "sluice_backfill_repos_processed_total"}

    def both_work() -> bool:
        assert all(process.running for process in one.single), one.last_lines()
        return all(worker.metric(done[kind]) > 5 for kind, pair in workers.items() for worker in pair)

    wait_for(both_work, 120, lambda: f"{one.phases()} {one.last_lines(5)}")
    assert one.phases().get("sync", 0) < 200, "all was done before anybody was killed"
    held = one.query("select worker, count(*) from sluice.repo where phase = 'backfill' group by worker")
    before: dict[str, float] = {}
    for kind, (victim, survivor) in workers.items():
        before[kind] = survivor.count(done[kind])
        victim.kill()
        assert victim.process.returncode == -9
    killed_at = one.phases()
    print(f"killed at {killed_at}; claims {held}; survivors had done {before}")
    simulation.set_faults(clear=True)

    def nearly_done() -> bool:
        for _, survivor in workers.values():
            assert survivor.running, survivor.log_file.read_text()[-4000:]
        return one.phases().get("sync", 0) > 250

    wait_for(nearly_done, 120, lambda: f"{one.last_lines(20)} {one.phases()} killed {killed_at}")
    one.quiesce()
    one.await_truth(120)
    for kind, (victim, survivor) in workers.items():
        assert not victim.running
        assert survivor.running
        assert survivor.count(done[kind]) > before[kind]
    stop(one)


def stop(one: Mirror) -> None:
    """SIGTERM to what still runs, sources first; everything ends with 0."""
    for kind in ("list-repos", "firehose", "labels", "backfill", "index", "control"):
        for process in one.single:
            if process.kind == kind and process.running:
                assert code_of(process) == 0, f"{kind}: {process.log_file.read_text()[-2000:]}"


def code_of(process: SingleProcess) -> int:
    """Exit code after SIGTERM."""
    return process.terminate()
