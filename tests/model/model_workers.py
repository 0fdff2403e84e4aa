"""Control and the backfill workers: they queue, claim, fetch, produce, release, and die in between."""

from tests.model.model_messages import Job, outcome, short, snapshot
from tests.model.model_network import Commit
from tests.model.model_rows import GRACE
from tests.model.model_state import TASK_TOPICS
from tests.model.model_upstream import Upstream

REQUEUE_AFTER = 60.0


class Workers(Upstream):
    """control.tasks.scheduler and flows.backfill.source, reduced to their transactions."""

    __slots__ = ()

    def do_control(self) -> None:
        reaped = self.tables.reap()
        listed = {did: row.listed_rev for did, row in self.tables.rows.items()}
        lost = self.tables.lost_events()
        for did in lost:
            self.seen[did] = max(self.seen[did], listed[did])
        self.requeue()
        if not self.tables.filter.resting:
            self.tables.carry_out()
            self.say("control: the filter is carried out up to", self.tables.filter)
        tasks = self.tables.due()
        self.fired["reaped"] += len(reaped)
        self.fired["lost event found by a listing"] += len(lost)
        self.say("control: reaped", reaped, "lost events", lost, "due", [(t.did, t.attempt) for t in tasks])
        for task in tasks:
            self.queue("repo_resync" if task.attempt else "repo_backfill", [task])

    def requeue(self) -> None:
        """control.tasks.scheduler.requeue: rows whose message must have been passed by the workers."""
        queued = self.tables.queued_long(self.tables.now - REQUEUE_AFTER)
        if not queued:
            return
        youngest = max(at for _, _, at in queued) + REQUEUE_AFTER
        passed = {}
        for topic, tasks in self.tasks.items():
            younger = next((n for n, (at, _) in enumerate(tasks) if at > youngest), len(tasks))
            passed[topic] = self.taken[topic] >= younger
        gone = [did for did, attempt, _ in queued if passed["repo_resync" if attempt else "repo_backfill"]]
        self.fired["requeued"] += len(gone)
        self.say("control: queue again", gone)
        self.tables.unqueue(gone)

    def do_rewind_tasks(self) -> None:
        topic = self.rng.choice(TASK_TOPICS)
        self.taken[topic] = max(0, self.taken[topic] - self.rng.randint(1, 3))

    # --- backfill workers

    def do_claim(self) -> None:
        for topic in reversed(TASK_TOPICS):
            begin = self.taken[topic]
            tasks = [task for _, task in self.tasks[topic][begin : begin + self.rng.randint(1, 3)]]
            if not tasks:
                continue
            worker = self.rng.choice("xy")
            claims = self.tables.claim(tasks, worker)
            self.say(
                "worker", worker, "claims", [(c.did, c.attempt, c.min_rev, c.reason) for c in claims], "of", len(tasks)
            )
            if not self.crashes():
                self.taken[topic] = begin + len(tasks)
            if not self.crashes():
                self.jobs += [Job(claim, worker, claim.min_rev) for claim in claims]
            return

    def do_fetch(self) -> None:
        waiting = [job for job in self.jobs if job.messages is None]
        if waiting:
            self.fetch(self.rng.choice(waiting))

    def fetch(self, job: Job) -> None:
        claim, account, rng = job.claim, self.network.accounts[job.claim.did], self.rng
        self.fetches[claim.did] += 1
        if not self.calm and rng.random() < self.profile.unwell:
            self.fired["failed fetch"] += 1
            delay, counted = rng.choice((0.0, 7.0, 31.0)), rng.random() < 0.5
            phase = self.tables.retry(claim.did, claim.attempt, delay, counted=counted)
            if phase is not None and self.tables.rows[claim.did].repo.attempt != claim.attempt:
                self.fail(f"{claim.did}: the worker of attempt {claim.attempt} ended another's claim")
            self.say("fetch of", claim.did, claim.attempt, "fails:", phase)
            self.jobs.remove(job)
            return
        if not self.calm and rng.random() < self.profile.unwell / 2:
            self.fired["a directory that lags"] += 1
            self.say("fetch of", claim.did, claim.attempt, "finds no such DID")
            job.messages = [outcome(job, "unavailable", active=False, reason="did_not_found")]
            return
        if not account.served:
            deleted = account.state == "deleted"
            confirmed = deleted and claim.reason == "deletion"
            self.say("fetch of", claim.did, claim.attempt, "finds", account.state, "confirmed" if confirmed else "")
            reason = "not_found" if deleted else account.state
            job.messages = [outcome(job, "deleted" if confirmed else "unavailable", active=False, reason=reason)]
            return
        commit = account.head
        if not self.calm and rng.random() < self.profile.stale:
            commit = rng.choice(account.chain[-3:])
        if commit.rev < job.min_rev:
            self.fired["stale snapshot"] += 1
            self.refuse_stale(job, commit)
            return
        self.say("fetch of", claim.did, claim.attempt, "brings", commit.rev, commit.data)
        job.messages = snapshot(job, commit)

    def refuse_stale(self, job: Job, commit: Commit) -> None:
        claim = job.claim
        before = job.min_rev
        min_rev = self.tables.stale(claim.did, claim.attempt)
        self.say("fetch of", claim.did, claim.attempt, "is stale:", commit.rev, "<", before, "; now", min_rev)
        if min_rev is None:
            self.jobs.remove(job)
            return
        since = self.stale_since.setdefault(claim.did, self.tables.now)
        if min_rev < before:
            if self.tables.now - since <= GRACE:
                self.fail(f"{claim.did}: {before} was given up {self.tables.now - since:.0f} s after it was seen of")
            self.fired["forged rev cleared"] += 1
            self.seen[claim.did] = self.listed[claim.did] = ""
        job.min_rev = min_rev
        if not self.calm and self.rng.random() < 0.1:
            self.tables.retry(claim.did, claim.attempt, 31.0, counted=False)
            self.jobs.remove(job)
        elif not self.tables.refetch(claim.did, claim.attempt):
            self.fired["attempts of the hour used up"] += 1
            self.tables.retry(claim.did, claim.attempt, 31.0, counted=True)
            self.jobs.remove(job)

    def do_produce(self) -> None:
        ready = [job for job in self.jobs if job.messages is not None]
        if ready:
            self.produce(self.rng.choice(ready), self.rng.randint(1, 3))

    def produce(self, job: Job, count: int) -> None:
        assert job.messages is not None
        claim = job.claim
        if job.outcome_at is not None:
            self.tables.produced(claim.did, claim.attempt, job.outcome_at)
            row = self.tables.rows[claim.did]
            if row.produced == job.outcome_at and row.repo.attempt != claim.attempt:
                self.fail(f"{claim.did}: the outcome of attempt {claim.attempt} counts for attempt {row.repo.attempt}")
            self.say("produced", claim.did, claim.attempt, "outcome at", job.outcome_at)
            self.jobs.remove(job)
            return
        for message in job.messages[job.sent : job.sent + count]:
            self.say("backfill", len(self.backfill), "<-", short(message))
            self.backfill.append(message)
            job.sent += 1
            if job.sent == len(job.messages):
                job.outcome_at = len(self.backfill) - 1

    def do_renew(self) -> None:
        worker = self.rng.choice("xy")
        mine = [job for job in self.jobs if job.worker == worker]
        if mine:
            ours = self.tables.renew(worker, [(job.claim.did, job.claim.attempt) for job in mine])
            self.say("worker", worker, "renews", sorted(ours))

    def do_crash_worker(self) -> None:
        worker = self.rng.choice("xy")
        self.fired["worker crashed with claims"] += any(job.worker == worker for job in self.jobs)
        self.say("worker", worker, "crashes")
        self.jobs = [job for job in self.jobs if job.worker != worker]

    def do_stop_worker(self) -> None:
        """SIGTERM; what was on its way to the broker may still arrive."""
        worker = self.rng.choice("xy")
        count = self.tables.release_all(worker)
        self.fired["given back"] += count
        self.say("worker", worker, "releases", count)
        self.jobs = [job for job in self.jobs if job.worker != worker or self.rng.random() < 0.5]
