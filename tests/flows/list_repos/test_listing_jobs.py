"""Jobs carried out by the list_repos flow, a real process: followed, halted, resumed, throttled, failed, by priority."""

from __future__ import annotations

from typing import Any

from control import jobs
from schemas.job_spec import Job, JobSpec, JobStatus
from tests.flows.list_repos.listing_here import Here, ListingHere

QUICK: dict[str, Any] = {"list_retry_seconds": 0.02, "list_recheck_seconds": 3600.0, "retry_first_seconds": 0.5}
COLLECTION = "app.bsky.actor.profile"


def begin(run: ListingHere, **spec: Any) -> Job:
    job = jobs.start(run.db, JobSpec.model_validate(spec), run.settings)
    assert isinstance(job, Job)
    return job


def look(run: ListingHere, job: Job) -> Job:
    return jobs.get(run.db, job.id)


def listed_all(run: ListingHere, job: Job) -> bool:
    return look(run, job).checkpoint.get("done") is True


def repos_of(run: ListingHere, job: Job) -> set[str]:
    return {row[0] for row in run.rows("select did from sluice.repo where job = %s", job.id)}


def test_operators_pause_resume_and_cancel_while_it_lists(here: Here) -> None:
    """R2, R3, R4, T4: within seconds, also over a kill -9; each goes on at its own checkpoint, and nothing is queued twice."""
    run = here({"repos": 300, "records_per_repo": 1, "pdses": 2, "faults": {"list_slow": {"seconds": 0.1}}})
    network = run.simulation
    truth = network.state()
    active = [{did for did, repo in truth.items() if repo.active and repo.pds == pds} for pds in (0, 1)]
    (relay,) = network.relays
    paused = begin(run, source="hosts", hosts=[network.pdses[0]], batch_size=1)
    cancelled = begin(run, source="hosts", hosts=[network.pdses[1]], batch_size=1)
    both = begin(run, source="hosts", hosts=network.pdses, batch_size=100)
    waiting = begin(run, source="relay", relay=relay)
    for job in (both, waiting):
        jobs.pause(run.db, job.id)
    flow = run.start(relays=[relay], **QUICK)
    run.until(lambda: look(run, paused).counts.listed > 5 and look(run, cancelled).counts.listed > 5)
    jobs.pause(run.db, paused.id)
    jobs.cancel(run.db, cancelled.id)

    def unchanged() -> bool:
        before = [look(run, job).counts.listed for job in (paused, cancelled)]
        run.own.pass_time(3.0)  # longer than an epoch and a look together
        return before == [look(run, job).counts.listed for job in (paused, cancelled)]

    run.until(unchanged)
    stood = [look(run, job) for job in (paused, cancelled)]
    assert [job.status for job in stood] == [JobStatus.PAUSED, JobStatus.CANCELLED]
    assert all(0 < job.counts.listed < 130 and not job.checkpoint["done"] for job in stood)
    assert network.fired("list_slow") > 0
    network.set_faults(clear=True)
    flow.kill()
    flow = run.start(relays=[relay], **QUICK)
    run.until(lambda: flow.health()["state"] == "idle")
    assert unchanged()
    assert [look(run, job).checkpoint for job in (paused, cancelled)] == [job.checkpoint for job in stood]
    assert repos_of(run, both) == repos_of(run, waiting) == set()
    jobs.resume(run.db, paused.id)
    run.until(lambda: listed_all(run, paused))
    assert repos_of(run, paused) == active[0]
    assert look(run, paused).counts.listed == len(active[0]), "no page twice"
    jobs.resume(run.db, both.id)
    run.until(lambda: listed_all(run, both))
    assert repos_of(run, both) == active[1] - repos_of(run, cancelled)
    assert look(run, both).checkpoint == {"lists": 2, "lists_done": 2, "done": True}
    again = begin(run, source="hosts", hosts=[network.pdses[1]])
    assert (again.id, again.status) == (cancelled.id, JobStatus.RETRY)
    run.until(lambda: listed_all(run, cancelled))
    jobs.resume(run.db, waiting.id)
    run.until(lambda: listed_all(run, waiting))
    assert len(repos_of(run, waiting)) == sum(not repo.active for repo in truth.values())
    run.until(lambda: set(run.tasks()) == active[0] | active[1])
    assert max(run.tasks().values()) == 1
    assert flow.terminate() == 0


def test_a_signal_collection_a_dead_host_and_a_quota(here: Here) -> None:
    """N9, R2, R3, R4, G5: the incident of R: throttled in the middle of a job, killed and started meanwhile; nothing is missing.

    The flow has no relay of its own; a quota does not count as a try; a host that never answers ends its job as failed.
    """
    run = here({"repos": 300, "records_per_repo": 6})
    network = run.simulation
    (relay,) = network.relays
    with_profile = {
        did
        for did, repo in network.state().items()
        if repo.active and any(path.startswith(f"{COLLECTION}/") for path in repo.records)
    }
    assert with_profile
    network.set_faults(relay_list_429={"from": 100, "times": 1, "retry_after": 20})
    signal = begin(run, source="collection", collection=COLLECTION, relay=relay, batch_size=50)
    dead = begin(run, source="hosts", hosts=["http://127.0.0.1:9"])
    flow = run.start(relays=[], backfill_max_attempts=2, skip_after_failures=2, **QUICK)
    limited = run.until(lambda: (job := look(run, signal)).status is JobStatus.PAUSED_QUOTA_LIMIT and job)
    assert network.fired("relay_list_429") == 1
    assert limited.resume_at is not None
    flow.kill()  # the incident of R: everything is restarted meanwhile
    flow = run.start(relays=[], backfill_max_attempts=2, skip_after_failures=2, **QUICK)
    assert 0 < limited.counts.listed < len(with_profile) or limited.checkpoint["cursor"]
    run.until(lambda: listed_all(run, signal))
    after = look(run, signal)
    assert (after.status, after.retry_count) == (JobStatus.RUNNING, 0)
    assert run.rows("select now() >= %s", limited.resume_at) == [(True,)]
    assert repos_of(run, signal) == with_profile
    failed = run.until(lambda: (job := look(run, dead)).status is JobStatus.FAILED and job)
    assert (failed.retry_count, failed.counts.listed) == (2, 0)
    assert "127.0.0.1:9" in (failed.error or "")
    jobs.retry(run.db, dead.id)
    run.until(lambda: look(run, dead).started_at and look(run, dead).status is JobStatus.FAILED)
    assert set(run.tasks()) == with_profile
    assert flow.terminate() == 0
