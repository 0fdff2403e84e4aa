"""The state of one schedule: the true network, the log as lists, the processes, and what has been seen of them."""

from collections import defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Any

from schemas import wire
from tests.model.model_messages import Job, short
from tests.model.model_network import Account, Network, stamped
from tests.model.model_profile import Profile
from tests.model.model_relays import Relay, content
from tests.model.model_rows import Kernel

TASK_TOPICS = ("repo_backfill", "repo_resync")


class Violation(AssertionError):
    """An invariant does not hold."""


def size_of(event: Any) -> int:
    """Bytes of an event, as the limit of what is buffered counts them."""
    return 1 + 2 * len(event.ops) if isinstance(event, wire.CommitEvent) else 1


@dataclass(slots=True)
class IndexWorker:
    """The positions that this index worker believes to be stored."""

    positions: dict[str, int]


@dataclass(slots=True)
class State:
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
    relays: list[Relay] = field(default_factory=list)
    brought: dict[Any, str] = field(
        default_factory=dict
    )  # content of an identity event → the relay that brought it first
    jobs: list[Job] = field(default_factory=list)
    index_workers: list[IndexWorker] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=lambda: defaultdict(str))  # highest rev that the index has consumed
    listed: dict[str, str] = field(default_factory=lambda: defaultdict(str))  # highest rev remembered from a listing
    attempts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    raised: dict[str, str] = field(default_factory=lambda: defaultdict(str))  # seen_rev at the last check
    stale_since: dict[str, float] = field(default_factory=dict)  # since then: only stale snapshots, nothing newer seen
    fetches: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    log_start: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("firehose_backfill", "firehose_live"), 0))
    calm: bool = False
    said: list[str] = field(default_factory=list)
    disturbed: bool = False  # from now on a chain may not fit
    quiet_rounds: int = 0
    moved: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # offsets at the last check
    fired: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def say(self, *parts: Any) -> None:
        if self.trace:
            self.said.append(f"{self.tables.now:7.0f}  " + " ".join(str(part) for part in parts))

    def fail(self, what: str) -> None:
        raise Violation(f"seed {self.seed}: {what}")

    def account(self) -> Account:
        return self.rng.choice(list(self.network.accounts.values()))

    def send(self, event: Any, *, may_lose: bool = False) -> None:
        """An event into every relay's pipe; a commit may get lost in each of them."""
        for relay in self.relays:
            if event.did in relay.barred:
                continue
            if may_lose and not self.calm and self.rng.random() < self.profile.loss:
                self.fired["lost event"] += 1
                self.disturbed = True
                relay.seq += 1
                self.say("relay", relay.name, "loses", event.did, event.rev)
                continue
            relay.say(event, self.rng.randint(1, 3))

    def receive(self, relay: Relay, event: Any) -> None:
        """An event of a relay arrives: the firehose's dedup, and its limit of times ahead of their receipt."""
        relay.sent.append(event)
        same = content(event)
        if same is not None and self.brought.setdefault(same, relay.name) != relay.name:
            self.fired["copy of another relay dropped"] += 1
            return
        if isinstance(event, wire.AccountEvent | wire.IdentityEvent):
            now = self.network.tid()
            self.fired["a clock ahead"] += event.time > now
            event = stamped(event, time=min(event.time, now))
        self.live.append(event)
        self.say("live", len(self.live) - 1, "<-", relay.name, short(event))

    def crashes(self) -> bool:
        return not self.calm and self.rng.random() < self.profile.crash

    def batch(self, positions: dict[str, int], counts: dict[str, int]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        topics = {"firehose_backfill": self.backfill, "firehose_live": self.live}
        placed = self.kernel.settle.OffsetEvent
        parts = [
            [
                placed(n, topics[topic][n], size_of(topics[topic][n]))
                for n in range(at, min(len(topics[topic]), at + counts[topic]))
            ]
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

    def show(self, did: str) -> str:
        row = self.tables.rows.get(did)
        if row is None:
            return f"{did} unknown"
        repo = row.repo
        return (
            f"{did} {repo.phase}({repo.reason}) attempt={repo.attempt} rev={repo.rev!r} seen={repo.seen_rev!r}"
            f" buffered={sorted(row.buffered)} active={repo.active}/{repo.status} data={repo.data!r}"
            f" rows={dict(sorted(row.records.items()))}"
        )
