"""Jobs carried out by the list_repos flow, a real process: followed, halted, resumed, throttled, failed, by priority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from control import jobs
from schemas.job_spec import Job, JobSpec, JobStatus
from schemas.settings import Settings
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import wait_until
from tests.support.simulation import Simulation

Start = Callable[..., Simulation]
QUICK: dict[str, Any] = {"list_retry_seconds": 0.02, "list_recheck_seconds": 3600.0, "retry_first_seconds": 0.5}
COLLECTION = "app.bsky.actor.profile"


def begin(bed: FlowBed, **spec: Any) -> Job:
    job = jobs.start(bed.db, JobSpec.model_validate(spec), Settings(**bed.base))
    assert isinstance(job, Job)
    return job


def look(bed: FlowBed, job: Job) -> Job:
    return jobs.get(bed.db, job.id)


def listed_all(bed: FlowBed, job: Job) -> bool:
    return look(bed, job).checkpoint.get("done") is True


def repos_of(bed: FlowBed, job: Job) -> set[str]:
    return {row[0] for row in bed.rows("select did from sluice.repo where job = %s", job.id)}


def tasks(bed: FlowBed) -> Counter[str]:
    return Counter(key for key, _ in bed.messages("repo_backfill"))


def test_operators_pause_resume_and_cancel_while_it_lists(simulator: Start, flow_bed: FlowBed) -> None:
    """R2, R3, R4, T4: within seconds, also over a kill -9; each goes on at its own checkpoint, and nothing is queued twice."""
    network = simulator(repos=900, records_per_repo=1, pdses=2, faults={"list_slow": {"seconds": 0.1}})
    truth = network.state()
    active = [{did for did, repo in truth.items() if repo.active and repo.pds == pds} for pds in (0, 1)]
    (relay,) = network.relays
    paused = begin(flow_bed, source="hosts", hosts=[network.pdses[0]], batch_size=1)
    cancelled = begin(flow_bed, source="hosts", hosts=[network.pdses[1]], batch_size=1)
    both = begin(flow_bed, source="hosts", hosts=network.pdses, batch_size=100)
    waiting = begin(flow_bed, source="relay", relay=relay)
    for job in (both, waiting):
        jobs.pause(flow_bed.db, job.id)
    flow = flow_bed.start("list_repos", relays=[relay], **QUICK)
    wait_until(lambda: look(flow_bed, paused).counts.listed > 5 and look(flow_bed, cancelled).counts.listed > 5)
    jobs.pause(flow_bed.db, paused.id)
    jobs.cancel(flow_bed.db, cancelled.id)

    def unchanged() -> bool:
        before = [look(flow_bed, job).counts.listed for job in (paused, cancelled)]
        flow_bed.db.execute("select pg_sleep(3)")  # longer than an epoch and a look together
        return before == [look(flow_bed, job).counts.listed for job in (paused, cancelled)]

    wait_until(unchanged)
    stood = [look(flow_bed, job) for job in (paused, cancelled)]
    assert [job.status for job in stood] == [JobStatus.PAUSED, JobStatus.CANCELLED]
    assert all(0 < job.counts.listed < 400 and not job.checkpoint["done"] for job in stood)
    assert network.fired("list_slow") > 0
    network.set_faults(clear=True)
    flow.kill()
    flow = flow_bed.start("list_repos", relays=[relay], **QUICK)
    wait_until(lambda: flow.health()["state"] == "idle")
    assert unchanged()
    assert [look(flow_bed, job).checkpoint for job in (paused, cancelled)] == [job.checkpoint for job in stood]
    assert repos_of(flow_bed, both) == repos_of(flow_bed, waiting) == set()
    jobs.resume(flow_bed.db, paused.id)
    wait_until(lambda: listed_all(flow_bed, paused))
    assert repos_of(flow_bed, paused) == active[0]
    assert look(flow_bed, paused).counts.listed >= stood[0].counts.listed
    jobs.resume(flow_bed.db, both.id)
    wait_until(lambda: listed_all(flow_bed, both))
    assert repos_of(flow_bed, both) == active[1] - repos_of(flow_bed, cancelled)
    assert look(flow_bed, both).checkpoint == {"lists": 2, "lists_done": 2, "done": True}
    again = begin(flow_bed, source="hosts", hosts=[network.pdses[1]])
    assert (again.id, again.status) == (cancelled.id, JobStatus.RETRY)
    wait_until(lambda: listed_all(flow_bed, cancelled))
    jobs.resume(flow_bed.db, waiting.id)
    wait_until(lambda: listed_all(flow_bed, waiting))
    assert len(repos_of(flow_bed, waiting)) == sum(not repo.active for repo in truth.values())
    wait_until(lambda: set(tasks(flow_bed)) == active[0] | active[1])
    assert max(tasks(flow_bed).values()) == 1
    assert flow.terminate() == 0


def test_a_signal_collection_a_dead_host_and_a_quota(simulator: Start, flow_bed: FlowBed) -> None:
    """N9, R2, R3, R4, G5: the incident of R: throttled in the middle of a job, killed and started meanwhile; nothing is missing.

    The flow has no relay of its own; a quota does not count as a try; a host that never answers ends its job as failed.
    """
    network = simulator(repos=300, records_per_repo=6)
    (relay,) = network.relays
    with_profile = {
        did
        for did, repo in network.state().items()
        if repo.active and any(path.startswith(f"{COLLECTION}/") for path in repo.records)
    }
    assert with_profile
    network.set_faults(relay_list_429={"from": 100, "times": 1, "retry_after": 20})
    signal = begin(flow_bed, source="collection", collection=COLLECTION, relay=relay, batch_size=50)
    dead = begin(flow_bed, source="hosts", hosts=["http://127.0.0.1:9"])
    flow = flow_bed.start("list_repos", relays=[], backfill_max_attempts=2, skip_after_failures=2, **QUICK)
    limited = wait_until(lambda: (job := look(flow_bed, signal)).status is JobStatus.PAUSED_QUOTA_LIMIT and job)
    assert network.fired("relay_list_429") == 1
    assert limited.resume_at is not None
    flow.kill()  # the incident of R: everything is restarted meanwhile
    flow = flow_bed.start("list_repos", relays=[], backfill_max_attempts=2, skip_after_failures=2, **QUICK)
    assert 0 < limited.counts.listed < len(with_profile) or limited.checkpoint["cursor"]
    wait_until(lambda: listed_all(flow_bed, signal))
    after = look(flow_bed, signal)
    assert (after.status, after.retry_count) == (JobStatus.RUNNING, 0)
    assert flow_bed.rows("select now() >= %s", limited.resume_at) == [(True,)]
    assert repos_of(flow_bed, signal) == with_profile
    failed = wait_until(lambda: (job := look(flow_bed, dead)).status is JobStatus.FAILED and job)
    assert (failed.retry_count, failed.counts.listed) == (2, 0)
    assert "127.0.0.1:9" in (failed.error or "")
    jobs.retry(flow_bed.db, dead.id)
    wait_until(lambda: look(flow_bed, dead).started_at and look(flow_bed, dead).status is JobStatus.FAILED)
    assert set(tasks(flow_bed)) == with_profile
    assert flow.terminate() == 0
