"""The rows of the model's database, its limits, and the code that it runs."""

from dataclasses import dataclass, field
from typing import Any

from steps.gate import batch as real_settle
from steps.gate import transitions as real_gate

LEASE = 60.0
GRACE = 600.0
REOPEN = 3600.0
REAP_DELAY = 5.0
HOURLY = 10  # attempts of one repo in an hour at most
HOUR = 3600.0 - 1e-5  # PostgreSQL rounds to microseconds: what is an hour ago there is so here, too
PDS = "pds"  # in the DID document of every account
TOPICS = ("firehose_backfill", "firehose_live")


class Crash(Exception):
    """The process died in the middle of a transaction."""


class PartitionLost(Exception):
    """Another worker has moved the offsets."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The code under test: modules like steps.gate.transitions and steps.gate.batch (mutants bring their own), and the gate's limits."""

    gate: Any = real_gate
    settle: Any = real_settle
    rules: real_gate.Rules = field(
        default=real_gate.Rules(
            max_buffered=4, max_buffered_bytes=10, max_attempts=5, retry_first_seconds=5.0, retry_max_seconds=60.0
        )
    )


@dataclass(slots=True)
class Row:
    """A row of `sluice.repo` with its records (rkey → cid, rev, attempt, reason) and buffered events (offset → event)."""

    repo: Any
    host: str | None = None
    worker: str | None = None
    lease_until: float | None = None
    produced: int | None = None
    queued_at: float | None = None
    next_retry_at: float = 0.0
    stale_since: float | None = None
    listed_rev: str | None = None
    listed_since: float | None = None
    phase_since: float = 0.0
    completed_at: float | None = None
    desynced_at: float | None = None
    fetched: tuple[float, ...] = ()  # the newest attempts, as the table remembers them
    counted: tuple[float, ...] = ()  # all of them
    records: dict[str, tuple[str, str, int, str | None]] = field(default_factory=dict)
    buffered: dict[int, Any] = field(default_factory=dict)

    @property
    def min_rev(self) -> str:
        return self.repo.min_rev  # type: ignore[no-any-return]
