"""The gate's protocol as a random model (DESIGN §5): seeded schedules of everything that can go wrong, and what must hold.

`run(seed)` plays one schedule on a true network (model_network), a log of lists, and the model's database (model_tables),
which puts every batch through the very functions of `steps.gate` and `steps.settle`. Raises `Violation` with what was
broken and, with `trace=True`, the schedule step by step. Single-threaded, without clock: a seed always plays the same.

Assumed of the network: commits may be lost, doubled and late; account events may be doubled and late, and of those that
hide an account some get lost, but in the end the newest comes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from random import Random
from typing import Any

from model_network import COLLECTION, Account, Commit, Network, data_of
from model_tables import GRACE, Crash, Kernel, ModelTables, PartitionLost

from connectors.repos import Claim, Listed
from schemas import wire
from steps.gate import Phase

REQUEUE_AFTER = 60.0
TASK_TOPICS = ("repo_backfill", "repo_resync")
QUIET_ROUNDS = 120
QUIET_FETCHES = 12  # of one repo, after the last fault


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Job:
    """A worker's claim: what it has fetched and how much of that it has produced."""

    claim: Claim
    worker: str
    min_rev: str
    messages: list[Any] | None = None
    sent: int = 0
    outcome_at: int | None = None


@dataclass(slots=True)
class IndexWorker:
    """Where this index worker believes the tables to stand."""

    positions: dict[str, int]


@dataclass(frozen=True, slots=True)
class Profile:
    """How often each fault and action happens, as weights. Drawn anew for every seed, so that some are absent."""

    weights: dict[str, float]
    loss: float
    stale: float
    unwell: float
    crash: float
    empty: float
    repos: int
    relays: int
    steps: int


FAULTS = {
    "rewrite": 1.0,
    "forge": 0.3,
    "go_back": 0.2,
    "odd_commit": 0.6,
    "account": 2.0,
    "false_news": 0.6,
    "identity": 1.0,
    "sync": 1.5,
    "again": 2.0,
    "burst": 0.7,
    "crash_worker": 1.0,
    "stop_worker": 0.6,
    "zombie_index": 1.0,
    "rebalance": 0.7,
    "rewind_tasks": 0.7,
    "replay": 0.6,
    "truncate": 0.25,
    "leap": 0.5,
}
WORK = {
    "write": 7.0,
    "deliver": 9.0,
    "listing": 2.0,
    "control": 4.0,
    "claim": 4.0,
    "fetch": 4.0,
    "produce": 6.0,
    "index": 9.0,
    "renew": 0.5,
    "pass_time": 4.0,
}


def draw_profile(rng: Random) -> Profile:
    """Each fault is off in half of the schedules: rare combinations then happen within few steps."""
    weights = {name: weight * rng.choice((0.4, 1.0, 1.0, 2.0)) for name, weight in WORK.items()}
    weights |= {name: weight * rng.choice((1.0, 2.5)) for name, weight in FAULTS.items() if rng.random() < 0.45}
    return Profile(
        weights,
        loss=rng.choice((0.0, 0.0, 0.1, 0.3)),
        stale=rng.choice((0.0, 0.0, 0.3, 0.6)),
        unwell=rng.choice((0.0, 0.0, 0.1, 0.3)),
        crash=rng.choice((0.0, 0.05, 0.2)),
        empty=rng.choice((0.0, 0.5)),
        repos=rng.choice((1, 1, 1, 2, 3)),
        relays=rng.choice((1, 1, 2)),
        steps=rng.choice((40, 70, 110)),
    )


@dataclass(slots=True)
class Schedule:
    """One schedule: the network, the log, the database, the processes, and what has been checked."""

    seed: int
    kernel: Kernel
    trace: bool
    tables: Any
    rng: Random
    profile: Profile
    network: Network
    live: list[Any] = field(default_factory=list)
    backfill: list[Any] = field(default_factory=list)
    tasks: dict[str, list[tuple[float, wire.RepoTask]]] = field(default_factory=lambda: {t: [] for t in TASK_TOPICS})
    taken: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TASK_TOPICS, 0))
    pipes: list[list[Any]] = field(default_factory=list)  # one for each relay: events on their way
    seqs: list[int] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    index_workers: list[IndexWorker] = field(default_factory=list)
    heard: dict[str, str] = field(default_factory=lambda: defaultdict(str))  # highest rev that the index has consumed
    attempts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    raised: dict[str, str] = field(default_factory=lambda: defaultdict(str))  # heard_rev at the last check
    stale_since: dict[str, float] = field(default_factory=dict)  # since then: only stale snapshots, nothing newer heard
    fetches: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    log_start: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("firehose_backfill", "firehose_live"), 0))
    calm: bool = False
    said: list[str] = field(default_factory=list)
    disturbed: bool = False  # from now on a chain may not fit
    quiet_rounds: int = 0
    moved: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # offsets at the last check
    fired: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    # --- the schedule

    def play(self) -> None:
        names = list(self.profile.weights)
        sums = list(accumulate(self.profile.weights.values()))
        actions: dict[str, Callable[[], None]] = {name: getattr(self, "do_" + name) for name in names}
        for _ in range(self.profile.steps):
            actions[self.rng.choices(names, cum_weights=sums)[0]]()
            self.check()
        self.settle_down()
        self.check_truth()
        self.check_replays()

    def say(self, *parts: Any) -> None:
        if self.trace:
            self.said.append(f"{self.tables.now:7.0f}  " + " ".join(str(part) for part in parts))

    def fail(self, what: str) -> None:
        raise Violation(f"seed {self.seed}: {what}")

    def account(self) -> Account:
        return self.rng.choice(list(self.network.accounts.values()))

    def send(self, make: Callable[[int], Any], *, may_lose: bool = False) -> None:
        """An event into every relay's pipe; a commit may get lost in each of them."""
        for number, pipe in enumerate(self.pipes):
            self.seqs[number] += self.rng.randint(1, 3)
            event = make(self.seqs[number])
            if may_lose and not self.calm and self.rng.random() < self.profile.loss:
                self.fired["lost event"] += 1
                self.disturbed = True
                self.say("relay", number, "loses", event.did, event.rev)
                continue
            pipe.append(event)

    def crashes(self) -> bool:
        return not self.calm and self.rng.random() < self.profile.crash

    # --- the network

    def do_write(self) -> None:
        account = self.account()
        if not account.active:
            return
        commit = self.network.write(account)
        self.say("write", account.did, commit.rev, commit.ops, "->", commit.data)
        event = self.network.commit_event(account, commit, 0)
        self.send(lambda seq: _with_seq(event, seq), may_lose=True)

    def do_odd_commit(self) -> None:
        """A commit that was too large for the stream, or came without the block of a record."""
        account = self.account()
        if account.state == "active":
            commit = self.network.write(account)
            event: Any = self.network.sync_event(account, commit, 0)
            if self.rng.random() < 0.5:
                event = self.network.commit_event(account, commit, 0, missing=True)
            self.disturbed = True
            self.fired["too large, or a block missing"] += 1
            self.say("odd commit", account.did, _short(event))
            self.send(lambda seq: _with_seq(event, seq), may_lose=True)

    def do_burst(self) -> None:
        for _ in range(6):
            self.do_write()

    def do_rewrite(self) -> None:
        account = self.account()
        twin = self.network.rewrite(account)
        if twin is not None:
            self.fired["rewrite"] += 1
            self.disturbed = True
            self.say("rewrite", account.did, twin.rev, twin.data)
            event = self.network.commit_event(account, twin, 0)
            true = self.network.commit_event(account, account.head, 0)
            self.send(lambda seq: _with_seq(event, seq))
            self.send(
                lambda seq: _with_seq(true, seq)
            )  # a twin whose original nobody ever sends is the audit's to find

    def do_go_back(self) -> None:
        """The PDS loses its newest commit; only a refetch can notice, so something forged has to cause one."""
        account = self.account()
        busy = any(event.did == account.did for pipe in self.pipes for event in pipe)
        if account.state == "active" and len(account.chain) > 1 and not busy:
            self.fired["PDS went back"] += 1
            self.say("go back", account.did)
            self.network.go_back(account)
            self.forge(account)

    def do_forge(self) -> None:
        self.forge(self.account())

    def forge(self, account: Account) -> None:
        self.disturbed = True
        self.fired["forged rev"] += 1
        self.say("forge", account.did)
        event = self.network.forged_event(account, 0)
        self.send(lambda seq: _with_seq(event, seq))

    def do_sync(self) -> None:
        account = self.account()
        if account.state == "active":
            commit = account.head if self.rng.random() < 0.7 else self.rng.choice(account.chain)
            event = self.network.sync_event(account, commit, 0)
            self.say("#sync", account.did, commit.rev)
            self.send(lambda seq: _with_seq(event, seq), may_lose=True)

    def do_account(self) -> None:
        account = self.account()
        inactive = ("deactivated", "takendown", "deleted")
        account.state = self.rng.choice((*inactive, "throttled") if account.state == "active" else ("active",))
        account.untold = not account.active and self.rng.random() < self.profile.loss
        self.say("account", account.did, account.state, "untold" if account.untold else "")
        if account.untold:
            self.fired["lost account event"] += 1
        else:
            self.tell(account)

    def tell(self, account: Account) -> None:
        account.untold = False
        event = self.network.account_event(account, 0, account.state)
        self.send(lambda seq: _with_seq(event, seq))

    def do_false_news(self) -> None:
        """The host that an account has left calls it deleted or deactivated."""
        account = self.account()
        if account.state == "active":
            self.fired["false news"] += 1
            event = self.network.account_event(account, 0, self.rng.choice(("deleted", "deleted", "deactivated")))
            self.say("false news", account.did, event.status)
            self.send(lambda seq: _with_seq(event, seq))

    def do_identity(self) -> None:
        event = self.network.identity_event(self.account(), 0)
        self.say("#identity", event.did, event.time)
        self.send(lambda seq: _with_seq(event, seq))

    def do_deliver(self) -> None:
        number = self.rng.randrange(len(self.pipes))
        pipe = self.pipes[number]
        for event in pipe[: self.rng.randint(1, 4)]:
            pipe.pop(0)
            self.live.append(event)
            self.say("live", len(self.live) - 1, "<-", _short(event))

    def do_again(self) -> None:
        """Something old comes again: a reconnect, a second relay, a producer that was not sure."""
        recent = [event for event in self.live[-8:] if not self.network.accounts[event.did].went_back]
        if recent:
            event = self.rng.choice(recent)
            self.disturbed = True
            self.fired["late or doubled event"] += 1
            self.live.append(event)
            self.say("live", len(self.live) - 1, "<- again", _short(event))

    def do_listing(self) -> None:
        listed = []
        for account in self.network.accounts.values():
            if account.state == "deleted" or (not self.calm and self.rng.random() < 0.2):
                continue
            if self.must_recover_by_events(account):
                continue
            rev = (
                account.head.rev
                if self.calm or self.rng.random() < 0.8
                else self.rng.choice(("", account.chain[0].rev))
            )
            active = account.active
            listed.append(Listed(account.did, rev, active, None if active else account.state))
        tasks = self.tables.discover(listed).tasks
        for entry in listed:
            if self.tables.rows[entry.did].repo.phase in (Phase.PENDING, Phase.UNAVAILABLE, Phase.FAILED):
                self.heard[entry.did] = max(self.heard[entry.did], entry.rev)
        self.say("listing", [(e.did, e.rev, e.active) for e in listed], "queues", [task.did for task in tasks])
        self.queue("repo_backfill", tasks)

    def must_recover_by_events(self, account: Account) -> bool:
        """At first no listing reopens what is unavailable: true account events alone have to do it."""
        row = self.tables.rows.get(account.did)
        unavailable = row is not None and row.repo.phase == Phase.UNAVAILABLE
        return self.calm and self.quiet_rounds <= 20 and unavailable

    # --- control and the task topics

    def queue(self, topic: str, tasks: Iterable[wire.RepoTask]) -> None:
        for task in tasks:
            if self.crashes():
                self.fired["lost task"] += 1
                self.say("the task of", task.did, "is lost")
            else:
                self.tasks[topic].append((self.tables.now, task))

    def do_control(self) -> None:
        reaped = self.tables.reap()
        told = {did: row.listed_rev for did, row in self.tables.rows.items()}
        lost = self.tables.lost_events()
        for did in lost:
            self.heard[did] = max(self.heard[did], told[did])
        self.requeue()
        tasks = self.tables.due()
        self.fired["reaped"] += len(reaped)
        self.fired["lost event found by a listing"] += len(lost)
        self.say("control: reaped", reaped, "lost events", lost, "due", [(t.did, t.attempt) for t in tasks])
        for task in tasks:
            self.queue("repo_resync" if task.attempt else "repo_backfill", [task])

    def requeue(self) -> None:
        """control.scheduler.requeue: rows whose message must have been passed by the workers."""
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
        if not account.active:
            deleted = account.state == "deleted"
            confirmed = deleted and claim.reason == "deletion"
            self.say("fetch of", claim.did, claim.attempt, "finds", account.state, "confirmed" if confirmed else "")
            reason = "not_found" if deleted else account.state
            job.messages = [_outcome(job, "deleted" if confirmed else "unavailable", active=False, reason=reason)]
            return
        commit = account.head
        if not self.calm and rng.random() < self.profile.stale:
            commit = rng.choice(account.chain[-3:])
        if commit.rev < job.min_rev:
            self.fired["stale snapshot"] += 1
            self.refuse_stale(job, commit)
            return
        self.say("fetch of", claim.did, claim.attempt, "brings", commit.rev, commit.data)
        job.messages = _snapshot(job, commit)

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
                self.fail(f"{claim.did}: {before} was given up {self.tables.now - since:.0f} s after it was heard of")
            self.fired["forged rev cleared"] += 1
            self.heard[claim.did] = ""
        job.min_rev = min_rev
        if not self.calm and self.rng.random() < 0.1:
            self.tables.retry(claim.did, claim.attempt, 31.0, counted=False)
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
            self.say("backfill", len(self.backfill), "<-", _short(message))
            self.backfill.append(message)
            job.sent += 1
            if job.sent == len(job.messages):
                job.outcome_at = len(self.backfill) - 1

    def do_renew(self) -> None:
        worker = self.rng.choice("xy")
        mine = [job for job in self.jobs if job.worker == worker]
        if mine:
            ours = self.tables.renew(worker, [job.claim.did for job in mine])
            self.say("worker", worker, "renews", sorted(ours))

    def do_crash_worker(self) -> None:
        worker = self.rng.choice("xy")
        self.fired["worker crashed with claims"] += any(job.worker == worker for job in self.jobs)
        self.say("worker", worker, "crashes")
        self.jobs = [job for job in self.jobs if job.worker != worker]

    def do_stop_worker(self) -> None:
        """SIGTERM; what was on its way to the broker may still arrive."""
        worker = self.rng.choice("xy")
        count = self.tables.give_back(worker)
        self.fired["given back"] += count
        self.say("worker", worker, "gives back", count)
        self.jobs = [job for job in self.jobs if job.worker != worker or self.rng.random() < 0.5]

    # --- the index

    def do_index(self) -> None:
        self.index(self.index_workers[-1])

    def do_zombie_index(self) -> None:
        if len(self.index_workers) > 1:
            self.index(self.rng.choice(self.index_workers[:-1]))

    def do_rebalance(self) -> None:
        self.say("rebalance")
        self.index_workers = [*self.index_workers[-2:], IndexWorker(dict(self.tables.offsets))]

    def index(self, worker: IndexWorker, most: int = 5) -> None:
        """One batch: some messages of each topic, in any interleaving of the two."""
        topics = {"firehose_backfill": self.backfill, "firehose_live": self.live}
        counts = {topic: self.rng.randint(0, most) for topic in topics}
        queues, spans = self.batch(worker.positions, counts)
        if not spans:
            return
        self.commit_batch(worker, queues, spans)

    def batch(self, positions: dict[str, int], counts: dict[str, int]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        topics = {"firehose_backfill": self.backfill, "firehose_live": self.live}
        placed = self.kernel.settle.Placed
        parts = [
            [placed(n, topics[topic][n]) for n in range(at, min(len(topics[topic]), at + counts[topic]))]
            for topic, at in positions.items()
        ]
        spans = {
            topic: (positions[topic], positions[topic] + len(part))
            for topic, part in zip(positions, parts, strict=True)
            if part
        }
        queues: dict[str, list[Any]] = defaultdict(list)
        while parts := [part for part in parts if part]:
            message = self.rng.choice(parts).pop(0)
            queues[message.event.did].append(message)
        return queues, spans

    def commit_batch(self, worker: IndexWorker, queues: dict[str, list[Any]], spans: dict[str, Any]) -> None:
        crash = self.crashes()
        before = {did: self.tables.rows[did].repo for did in queues if did in self.tables.rows}
        zombie = worker is not self.index_workers[-1]
        self.say("index", "(zombie)" if zombie else "", spans, "crashes before commit" if crash else "")
        try:
            self.tables.index(queues, spans, crash=crash)
        except Crash:
            self.fired["index crashed before commit"] += 1
            worker.positions = dict(self.tables.offsets)
            return
        except PartitionLost:
            self.fired["partition lost"] += 1
            self.say("  partition lost")
            if zombie:
                self.index_workers.remove(worker)
            else:
                worker.positions = dict(self.tables.offsets)
            return
        worker.positions = {topic: spans.get(topic, (0, at))[1] for topic, at in worker.positions.items()}
        for did, messages in queues.items():
            self.note_heard(did, messages)
            self.check_transition(before.get(did), did, messages)
            self.say("  ", self.show(did))
        if self.crashes():  # after the commit: the next one begins where the tables stand
            worker.positions = dict(self.tables.offsets)

    def note_heard(self, did: str, messages: Iterable[Any]) -> None:
        for message in messages:
            if isinstance(message.event, wire.CommitEvent | wire.SyncEvent) and message.event.rev > self.heard[did]:
                self.heard[did] = message.event.rev

    def check_transition(self, before: Any, did: str, messages: Iterable[Any]) -> None:
        repo = self.tables.rows[did].repo
        outcomes = sum(isinstance(message.event, wire.RepoOutcome) for message in messages)
        phase = Phase.PENDING if before is None else before.phase
        if phase == Phase.BACKFILL and not outcomes and repo.reason == "desync" and repo.phase == Phase.PENDING:
            self.fail(f"{did}: a live event ended its backfill")
        if repo.desyncs - (0 if before is None else before.desyncs) > outcomes + (phase == Phase.SYNC):
            self.fail(f"{did}: paid for {repo.desyncs} desyncs at once")
        if repo.desyncs and not self.disturbed:
            self.fail(f"{did}: desync of a chain that nothing has disturbed")
        if repo.reason == "incomplete" and not any(self.log_start.values()):
            self.fail(f"{did}: a complete snapshot was refused")

    def do_replay(self) -> None:
        """`sluice replay TOPIC` from some offset up to the index's own position: no row changes (G2)."""
        topic = self.rng.choice(("firehose_backfill", "firehose_live"))
        begin = self.rng.randint(self.log_start[topic], self.tables.offsets[topic])
        self.replay(topic, begin)

    def replay(self, topic: str, begin: int) -> None:
        log = self.backfill if topic == "firehose_backfill" else self.live
        before = {did: (row.repo, dict(row.records), dict(row.held)) for did, row in self.tables.rows.items()}
        queues: dict[str, list[Any]] = defaultdict(list)
        for offset in range(begin, self.tables.offsets[topic]):
            queues[log[offset].did].append(self.kernel.settle.Placed(offset, log[offset]))
        # What a PDS took back may fit again on what it kept: such a replay is the operator's to want.
        queues = {did: messages for did, messages in queues.items() if not self.network.accounts[did].went_back}
        if not queues:
            return
        self.fired["replay"] += 1
        self.say("replay", topic, "from", begin)
        self.tables.index(queues, {}, replayed=True)
        for did, (repo, records, held) in before.items():
            row = self.tables.rows[did]
            if (row.records, row.held) != (records, held) or self.facts(row.repo) != self.facts(repo):
                self.fail(f"a replay of {topic} from {begin} changed {did}: {repo} {records} -> {self.show(did)}")

    def facts(self, repo: Any) -> Any:
        """What a replay must leave as it is, in any phase; first_attempt may learn that an attempt had rows."""
        ours = (repo.phase, repo.reason, repo.attempt, repo.rev, repo.heard_rev, repo.data, repo.held, repo.held_rev)
        return ours, (repo.active, repo.status, repo.handle, repo.account_time, repo.account_seq, repo.desyncs)

    def do_truncate(self) -> None:
        """Retention passes the index: what it has not read is lost (and recorded)."""
        topic = self.rng.choice(("firehose_backfill", "firehose_live"))
        log = self.backfill if topic == "firehose_backfill" else self.live
        at = self.tables.offsets[topic]
        lost = log[at : at + self.rng.randint(1, 3)]
        if not lost or any(isinstance(event, wire.AccountEvent | wire.IdentityEvent) for event in lost):
            return
        self.fired["retention passed the index"] += 1
        self.disturbed = True
        self.log_start[topic] = at + len(lost)
        self.say("retention:", topic, "loses", at, "to", at + len(lost))
        self.tables.lose(topic, at + len(lost))
        self.do_rebalance()

    # --- time

    def do_pass_time(self) -> None:
        self.tables.now += self.rng.choice((1.0, 6.0, 31.0, 61.0))

    def do_leap(self) -> None:
        self.tables.now += self.rng.choice((301.0, 601.0, 3700.0))

    # --- what must hold after every step

    def check(self) -> None:
        for topic, offset in self.tables.offsets.items():
            if offset < self.moved[topic]:
                self.fail(f"the offset of {topic} went back from {self.moved[topic]} to {offset}")
            self.moved[topic] = offset
        for did, row in self.tables.rows.items():
            repo = row.repo
            if repo.attempt < self.attempts[did]:
                self.fail(f"{did}: the attempt fell from {self.attempts[did]} to {repo.attempt}")
            self.attempts[did] = repo.attempt
            if repo.heard_rev > self.raised[did] or repo.phase == Phase.SYNC:
                self.stale_since.pop(did, None)
            self.raised[did] = repo.heard_rev
            match repo.phase:
                case Phase.SYNC:
                    self.check_sync(did, row)
                case Phase.BACKFILL:
                    if row.lease_until is None and row.produced is None:
                        self.fail(f"{did}: in backfill, and nobody will take it back")
                    if repo.held < len(row.held):
                        self.fail(f"{did}: {len(row.held)} held events, counted {repo.held}")
                case Phase.PENDING:
                    if not repo.active and repo.reason != "deletion":
                        self.fail(f"{did}: pending for {repo.reason!r}, but no claim takes it")
            if row.held and repo.phase != Phase.BACKFILL:
                self.fail(f"{did}: held events in phase {repo.phase}")
            self.check_deleted(did, row)
            if max(repo.rev, repo.heard_rev, repo.held_rev) < self.heard[did]:
                self.fail(f"{did}: heard of {self.heard[did]}, and forgot it: {self.show(did)}")

    def check_deleted(self, did: str, row: Any) -> None:
        if row.repo.reason == "deleted" and row.repo.phase == Phase.UNAVAILABLE and row.records:
            self.fail(f"{did}: deleted, with rows {sorted(row.records)}")

    def check_sync(self, did: str, row: Any) -> None:
        repo, account = row.repo, self.network.accounts[did]
        if not repo.active:
            self.fail(f"{did}: in sync and inactive")
        if (repo.rev, repo.data) not in account.signed:
            self.fail(f"{did}: in sync at a commit that was never signed: {repo.rev} {repo.data}")
        if any(record[3] == "missing_block" for record in row.records.values()):
            self.fail(f"{did}: in sync with a row whose record never came: {row.records}")
        rows = data_of({rkey: record[0] for rkey, record in row.records.items()})
        if rows != repo.data:
            self.fail(f"{did}: in sync at {repo.rev} with rows {rows!r}, but its root says {repo.data!r}")

    # --- after the last fault

    def settle_down(self) -> None:
        self.calm = True
        self.say("--- no more faults")
        for account in self.network.accounts.values():
            if account.untold:
                self.tell(account)
        for number in range(len(self.pipes)):
            self.seqs[number] += 1
        worker = IndexWorker(dict(self.tables.offsets))
        self.index_workers = [worker]
        self.fetches.clear()
        for number in range(QUIET_ROUNDS):
            self.quiet_rounds = number
            self.quiet_round(worker)
            if number == 20:
                self.check_reopened()
            if self.settled() and number > 1:
                return
            self.tables.now += 31.0 if number < 30 else 620.0 if number < 60 else 3700.0
            if number in (10, 40, 80):
                self.say("operator retries", self.tables.retry_failed())
        self.fail("does not come to rest: " + "; ".join(self.show(did) for did in self.tables.rows))

    def check_reopened(self) -> None:
        for did, account in self.network.accounts.items():
            row = self.tables.rows.get(did)
            forgotten = row is not None and row.repo.phase == Phase.UNAVAILABLE
            if forgotten and account.active:
                self.fail(f"{did}: active, but left unavailable: {self.show(did)}")

    def quiet_round(self, worker: IndexWorker) -> None:
        for pipe in self.pipes:
            self.live += pipe
            pipe.clear()
        self.drain(worker)
        self.do_listing()
        self.do_control()
        while any(self.taken[topic] < len(self.tasks[topic]) for topic in TASK_TOPICS):
            self.do_claim()
        for job in list(self.jobs):
            if job.messages is None:
                self.fetch(job)
            while job in self.jobs and job.messages is not None:
                self.produce(job, 5)
        self.drain(worker)
        self.check()
        for did, count in self.fetches.items():
            if count > QUIET_FETCHES + 20 * self.network.accounts[did].forged:
                self.fail(f"{did}: fetched {count} times without a fault: {self.show(did)}")

    def drain(self, worker: IndexWorker) -> None:
        while worker.positions["firehose_live"] < len(self.live) or worker.positions["firehose_backfill"] < len(
            self.backfill
        ):
            self.index(worker, most=9)
            self.check()

    def settled(self) -> bool:
        rows = self.tables.rows
        return all(
            self.at_rest(account, rows[did]) if did in rows else account.state == "deleted"
            for did, account in self.network.accounts.items()
        )

    def at_rest(self, account: Account, row: Any) -> bool:
        repo = row.repo
        if account.active:
            return bool(repo.phase == Phase.SYNC and repo.rev == account.head.rev)
        if account.state == "deleted":
            return bool(repo.phase == Phase.UNAVAILABLE and not repo.active)
        return bool(repo.phase == Phase.UNAVAILABLE and not repo.active)

    def check_truth(self) -> None:
        for did, account in self.network.accounts.items():
            row = self.tables.rows.get(did)
            if row is None:
                continue
            rows = {rkey: record[0] for rkey, record in row.records.items()}
            if account.active and rows != account.head.records:
                self.fail(f"{did}: rows {data_of(rows)!r}, truth {account.head.data!r}")
            if row.repo.active != account.active:
                self.fail(f"{did}: active is {row.repo.active}, but the account is {account.state}")
            if row.repo.phase == Phase.SYNC and row.repo.status not in (None, account.state):
                self.fail(f"{did}: {row.repo.status}, but the account is {account.state}")
            if self.told_deleted(account) and rows:
                self.fail(f"{did}: deleted, but rows are left: {data_of(rows)!r}")

    def told_deleted(self, account: Account) -> bool:
        """The last news of the account is its true deletion."""
        news = [event for event in self.live if isinstance(event, wire.AccountEvent) and event.did == account.did]
        return bool(
            account.state == "deleted" and news and max(news, key=lambda e: (e.time, e.seq)).status == "deleted"
        )

    def check_replays(self) -> None:
        """Every topic from 0 into this database, and the whole log into an empty one (G2)."""
        for topic in ("firehose_backfill", "firehose_live"):
            self.replay(topic, self.log_start[topic])
            self.check()
        if not any(self.log_start.values()):
            self.check_replay_all()
            self.check_replay_together()

    def check_replay_all(self) -> None:
        mirror = ModelTables(self.kernel)
        positions = dict.fromkeys(("firehose_backfill", "firehose_live"), 0)
        for topic, log in (("firehose_backfill", self.backfill), ("firehose_live", self.live)):
            while positions[topic] < len(log):
                queues, spans = self.batch({topic: positions[topic]}, {topic: self.rng.randint(1, 30)})
                mirror.index(queues, spans)
                positions[topic] = spans[topic][1]
            if topic == "firehose_backfill":
                self.check_newest_attempts(mirror)
        for did, row in mirror.rows.items():
            self.check_deleted(did, row)
            if row.repo.phase == Phase.SYNC:
                self.check_sync(did, row)
        for did, row in self.tables.rows.items():
            if row.repo.phase == Phase.SYNC and not self.network.accounts[did].forged:
                self.compare(did, row, mirror.rows[did])

    def check_newest_attempts(self, mirror: Any) -> None:
        """After all attempts: what stands in sync at its snapshot stands there in the mirror too, whatever was forged."""
        for did, row in self.tables.rows.items():
            if row.repo.phase == Phase.SYNC and row.repo.from_snapshot:
                self.compare(did, row, mirror.rows[did], status=False)

    def check_replay_together(self) -> None:
        """Both topics at once into an empty database: not all need reach sync, but none that does is wrong."""
        mirror = ModelTables(self.kernel)
        positions = dict.fromkeys(("firehose_backfill", "firehose_live"), 0)
        while positions["firehose_backfill"] < len(self.backfill) or positions["firehose_live"] < len(self.live):
            queues, spans = self.batch(positions, {topic: self.rng.randint(0, 12) for topic in positions})
            mirror.index(queues, spans)
            positions |= {topic: end for topic, (_, end) in spans.items()}
            for did, row in mirror.rows.items():
                if row.repo.phase == Phase.SYNC:
                    self.check_sync(did, row)
                if row.repo.held != len(row.held):
                    self.fail(f"{did}: {len(row.held)} held events, counted {row.repo.held}")

    def compare(self, did: str, row: Any, copy: Any, *, status: bool = True) -> None:
        def facts(one: Any) -> Any:
            repo = one.repo
            records = {rkey: (cid, rev) for rkey, (cid, rev, *_) in one.records.items()}
            return repo.phase, repo.active, repo.status if status else None, repo.rev, repo.data, records

        if facts(row) != facts(copy):
            self.fail(f"{did}: the whole log replayed gives {facts(copy)}, live {facts(row)}")

    def show(self, did: str) -> str:
        row = self.tables.rows.get(did)
        if row is None:
            return f"{did} unknown"
        repo = row.repo
        return (
            f"{did} {repo.phase}({repo.reason}) attempt={repo.attempt} rev={repo.rev!r} heard={repo.heard_rev!r}"
            f" held={sorted(row.held)} active={repo.active}/{repo.status} data={repo.data!r}"
            f" rows={dict(sorted(row.records.items()))}"
        )


def _with_seq(event: Any, seq: int) -> Any:
    return type(event)(**{name: getattr(event, name) for name in event.__struct_fields__} | {"seq": seq})


def _snapshot(job: Job, commit: Commit) -> list[Any]:
    claim = job.claim
    creates = [
        wire.CreateEvent(
            did=claim.did,
            attempt=claim.attempt,
            rev=commit.rev,
            collection=COLLECTION,
            rkey=rkey,
            cid=cid,
            time="t",
            commit=f"commit{commit.rev}",
        )
        for rkey, cid in sorted(commit.records.items())
    ]
    outcome = _outcome(
        job,
        "synced",
        active=True,
        rev=commit.rev,
        commit=f"commit{commit.rev}",
        commit_block="AAAA",
        data=commit.data,
        count=len(creates),
    )
    return [*creates, outcome]


def _outcome(job: Job, status: Any, **fields: Any) -> Any:
    claim = job.claim
    return wire.RepoOutcome(
        did=claim.did,
        attempt=claim.attempt,
        status=status,
        time="t",
        account_time=claim.account_time,
        account_seq=claim.account_seq,
        **fields,
    )


def _short(event: Any) -> str:
    if isinstance(event, wire.CommitEvent):
        ops = [(op.action, op.rkey, op.cid, op.reason or "") for op in event.ops]
        return f"commit {event.did} {event.rev} since={event.since} {event.prev_data!r} -> {event.data!r} {ops}"
    if isinstance(event, wire.SyncEvent):
        return f"#sync {event.did} {event.rev} {event.data!r}"
    if isinstance(event, wire.CreateEvent):
        return f"create {event.did} attempt={event.attempt} {event.rev} {event.rkey}={event.cid}"
    if isinstance(event, wire.RepoOutcome):
        return (
            f"{event.status} {event.did} attempt={event.attempt} {event.rev} count={event.count} {event.account_time}"
        )
    return f"{type(event).__name__} {event.did} {event.time}/{event.seq} {getattr(event, 'status', '')}"


def run(seed: int, *, trace: bool = False, tables: Any = None, focus: Mapping[str, float] | None = None) -> Schedule:
    """Play one schedule; raises Violation. `tables`: another database than the model's. `focus`: weights and rates."""
    rng = Random(seed)
    kernel = Kernel()
    profile = draw_profile(rng)
    if focus:
        rates: dict[str, Any] = {name: value for name, value in focus.items() if name not in FAULTS | WORK}
        chosen = {name: value for name, value in focus.items() if name not in rates}
        profile = replace(profile, weights=profile.weights | chosen, **rates)
    schedule = Schedule(
        seed, kernel, trace, ModelTables(kernel) if tables is None else tables, rng, profile, Network(rng)
    )
    schedule.pipes = [[] for _ in range(profile.relays)]
    schedule.seqs = [1000 * number for number in range(profile.relays)]
    schedule.index_workers = [IndexWorker(dict(schedule.tables.offsets))]
    for number in range(profile.repos):
        schedule.network.add(f"did:{number}", empty=rng.random() < profile.empty)
    try:
        schedule.play()
    except Violation as violation:
        if trace:
            raise Violation(f"{violation}\n" + "\n".join(schedule.said)) from None
        raise
    return schedule
