"""The gate's words: what it knows of a repo, what it may have done to the rows, and its limits.

`Repo` in, `Step(repo, effects)` out; the rules between them are `steps/gate/transitions.py`.
"""

from dataclasses import dataclass
from enum import StrEnum

from schemas import wire
from steps.gate.filters import EVERYTHING, Filter

Streamed = wire.CommitEvent | wire.SyncEvent
"""Events that carry a rev and go through the rules of `sync`."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of the gate. Seconds are back-offs of a repo that has to be fetched again."""

    max_buffered: int = 10_000
    max_attempts: int = 5
    desync_quiet_seconds: float = 3600.0  # without a desync for this long, the next one is answered at once again
    retry_first_seconds: float = 5.0
    retry_max_seconds: float = 3600.0
    replayed: bool = (
        False  # the events were settled before, so none of them is news: nothing is buffered, seen or fetched
    )
    filter: Filter = EVERYTHING  # which collections have rows, in this transaction
    max_buffered_bytes: int = 64 * 1024 * 1024


class Phase(StrEnum):
    """Phase of a repo."""

    PENDING = "pending"
    BACKFILL = "backfill"
    SYNC = "sync"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


class Reason(StrEnum):
    """Why an event was dropped, or why a repo changed its phase."""

    STALE_REV = "stale_rev"
    SAME_REV_OF_SNAPSHOT = "same_rev_of_snapshot"
    NOT_STARTED = "not_started"
    CLOSED_ATTEMPT = "closed_attempt"
    BELOW_MIN_REV = "below_min_rev"
    OLD_ACCOUNT_EVENT = "old_account_event"
    DISCOVERED = "discovered"
    DESYNC = "desync"
    OVERFLOW = "overflow"
    INCOMPLETE = "incomplete"
    ACCOUNT_CHANGED = "account_changed"
    REACTIVATED = "reactivated"
    DELETION = "deletion"
    DELETED = "deleted"
    SYNCED = "synced"
    SETTLED_BEFORE = "settled_before"
    FILTERED = "filtered"
    FILTER = "filter"


@dataclass(frozen=True, slots=True)
class Repo:
    """What the gate knows of a repo; the columns of `sluice.repo` with the same names."""

    did: str
    phase: str = Phase.PENDING
    reason: str | None = None
    active: bool = True
    status: str | None = None
    attempt: int = 0
    rev: str = ""
    seen_rev: str = ""
    from_snapshot: bool = False
    data: str | None = None
    commit: str | None = None
    commit_block: str | None = None  # base64; None: unchanged in the row
    account_relay: str = (
        ""  # the ratchet, see steps/gate/ratchet.py: the last event applied, and the highest time of any
    )
    account_seq: int = 0
    account_time: str = ""
    account_seen: str = ""  # JSON, where there is more to know
    first_attempt: int | None = None
    buffered: int = 0
    buffered_rev: str = ""  # highest rev among the buffered events
    buffered_bytes: int = 0  # of the buffered events as they stand in the log, while there are any
    desyncs: int = 0
    desync_age: float | None = None  # seconds since the last desync, at the start of the transaction
    retry_count: int = 0
    retry_in: float | None = None  # set by a transition to pending: seconds from now
    handle: str | None = None
    host: str | None = None
    signing_key: str | None = None
    left_out: int = 0  # records of `left_attempt` that the filter left out, under its version `left_filter`
    left_attempt: int | None = None
    left_filter: int | None = None
    known: bool = True  # False: there is no row yet

    @property
    def left(self) -> int:
        """Records of this attempt that have no row because of the filter."""
        return self.left_out if self.left_attempt == self.attempt else 0

    @property
    def min_rev(self) -> str:
        """A snapshot below this is stale."""
        return max(self.rev, self.seen_rev)


@dataclass(frozen=True, slots=True)
class Apply:
    """Write this commit's operations to the rows, in order."""

    event: wire.CommitEvent


@dataclass(frozen=True, slots=True)
class Buffer:
    """Keep this event until the repo's backfill ends."""

    event: Streamed


@dataclass(frozen=True, slots=True)
class DropBuffered:
    """Delete all buffered events of the repo (they are folded into `seen_rev`, or were drained)."""

    released: int = 0


@dataclass(frozen=True, slots=True)
class DropRows:
    """Delete rows of the repo written by attempts before this one; None: all of them."""

    before_attempt: int | None


@dataclass(frozen=True, slots=True)
class ForgetIdentity:
    """The cached DID document may be out of date."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The event is settled without an effect on rows; counted under its reason."""

    reason: Reason


Effect = Apply | Buffer | DropBuffered | DropRows | ForgetIdentity | Drop


@dataclass(frozen=True, slots=True)
class Step:
    """The repo after an event, and what has to be written for it."""

    repo: Repo
    effects: tuple[Effect, ...] = ()
