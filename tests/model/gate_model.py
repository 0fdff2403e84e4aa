"""The gate's protocol as a random model (design §5): seeded schedules of everything that can go wrong, and what must hold.

`run(seed)` plays one schedule on a true network (model_network), a log of lists, and the model's database (model_tables),
which puts every batch through `steps.gate.transitions` and `steps.gate.batch` themselves. What can happen is in
model_upstream, model_workers and model_index, how often in model_profile, what must hold in model_checks. Raises `Violation` with what was
broken and, with `trace=True`, the schedule step by step. Single-threaded, without clock: a seed always plays the same.

Assumed of the network: commits may be lost, doubled and late; account events may be doubled and late, and of those that
hide an account some get lost, but in the end the newest comes. Several relays disagree: one lags, loses some, has another
order, takes accounts down by itself, restarts its sequence. Clocks of PDSes are wrong, but not where a relay loses account events or
restarts its sequence: then no rule can order two PDS events, and a listing has to.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate
from random import Random
from typing import Any

from steps.gate.model import Phase
from tests.model.model_index import Index
from tests.model.model_network import Account, Network
from tests.model.model_profile import FAULTS, WORK, draw_profile
from tests.model.model_relays import Relay
from tests.model.model_rows import Kernel
from tests.model.model_state import TASK_TOPICS, IndexWorker, Violation
from tests.model.model_tables import ModelTables

QUIET_ROUNDS = 120
QUIET_FETCHES = 12  # of one repo, after the last fault


class Schedule(Index):
    """One schedule, from the first step to rest."""

    __slots__ = ()

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

    def settle_down(self) -> None:
        self.calm = True
        self.say("--- no more faults")
        for account in self.network.accounts.values():
            for relay in self.relays:
                # with one relay its takedown may hold; if two disagree, the PDS is right
                if account.did in relay.barred and (len(self.relays) > 1 or self.rng.random() < 0.3):
                    self.lift(relay, account)
            if account.untold:
                self.tell(account)
        worker = IndexWorker(dict(self.tables.offsets))
        self.index_workers = [worker]
        self.fetches.clear()
        for number in range(QUIET_ROUNDS):
            self.quiet_rounds = number
            if number == 5:
                self.write_where_not_found()
            self.quiet_round(worker)
            if number == 20:
                self.check_reopened()
            if self.tables.filter.resting and self.settled() and number > 1:
                return
            self.tables.now += 31.0 if number < 30 else 620.0 if number < 60 else 3700.0
            if number in (10, 40, 80):
                self.say("operator retries", self.tables.retry_failed())
        self.fail("does not come to rest: " + "; ".join(self.show(did) for did in self.tables.rows))

    def write_where_not_found(self) -> None:
        """What a directory that lagged did not know commits once more, and need not wait for a listing."""
        for did, account in self.network.accounts.items():
            row = self.tables.rows.get(did)
            if row is not None and row.repo.phase == Phase.UNAVAILABLE and account.active:
                self.fired["not found, and commits"] += 1
                self.send(self.network.commit_event(account, self.network.write(account), 0))

    def check_reopened(self) -> None:
        for did, account in self.network.accounts.items():
            row = self.tables.rows.get(did)
            forgotten = row is not None and row.repo.phase == Phase.UNAVAILABLE
            if forgotten and account.active:
                self.fail(f"{did}: active, but left unavailable: {self.show(did)}")

    def quiet_round(self, worker: IndexWorker) -> None:
        for relay in self.relays:
            while relay.pipe:
                self.receive(relay, relay.pipe.pop(0))
        self.drain(worker)
        self.do_listing()
        self.do_control()
        while not self.tables.filter.resting:
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
    schedule.relays = [Relay(f"relay{number}", 1000 * number) for number in range(profile.relays)]
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
