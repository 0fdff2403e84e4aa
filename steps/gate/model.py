"""Types of the gate: a repo, the effects of an event, and the limits.

`Repo` in, `Transition(repo, effects)` out; the rules are in `steps/gate/transitions.py`.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from schemas import wire
from steps.gate.filters import EVERYTHING, Filter

Streamed = wire.CommitEvent | wire.SyncEvent
"""Live events with a rev."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of the gate. The seconds are back-offs before a repo is fetched again."""

    max_buffered: int = 10_000
    max_attempts: int = 5
    desync_quiet_seconds: float = 3600.0  # after so long without a desync, the next one is fetched at once
    retry_first_seconds: float = 5.0
    retry_max_seconds: float = 3600.0
    replayed: bool = False  # a replay: all events were decided before, so none is buffered, seen or fetched for
    filter: Filter = EVERYTHING  # collections that have rows, in this transaction
    max_buffered_bytes: int = 64 * 1024 * 1024


class Phase(StrEnum):
    PENDING = "pending"
    BACKFILL = "backfill"
    SYNC = "sync"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    EXCLUDED = "excluded"  # outside the boundary


class Reason(StrEnum):
    """Why an event was dropped, or a repo changed its phase."""

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
    OUTSIDE = "outside"
    FILTER = "filter"


class Repo(msgspec.Struct, frozen=True, gc=False):
    """The gate's state of a repo; columns of `sluice.repo`.

    A struct, as what follows: every event makes some, and to copy a repo takes 0.3 µs; as a frozen dataclass it took 14.
    """

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
    account_relay: str = ""  # relay and seq of the last account event applied: see steps/gate/ratchet.py
    account_seq: int = 0
    account_time: str = ""  # highest time of any account event
    account_seen: str = ""  # JSON: other relays and kinds
    first_attempt: int | None = None
    buffered: int = 0
    buffered_rev: str = ""  # highest rev among the buffered events
    buffered_bytes: int = 0  # size of the buffered events in the log; meaningless if there are none
    desyncs: int = 0
    desync_age: float | None = None  # seconds since the last desync, at the start of the transaction
    retry_count: int = 0
    retry_in: float | None = None  # set by a transition to pending: seconds from now
    handle: str | None = None
    host: str | None = None
    signing_key: str | None = None
    left_out: int = 0  # records of `left_attempt` that version `left_filter` of the filter left out
    left_attempt: int | None = None
    left_filter: int | None = None
    known: bool = True  # False: there is no row yet

    @property
    def left(self) -> int:
        """Records of the current attempt that the filter left out."""
        return self.left_out if self.left_attempt == self.attempt else 0

    @property
    def min_rev(self) -> str:
        """A snapshot below this rev is stale."""
        return max(self.rev, self.seen_rev)


class Apply(msgspec.Struct, frozen=True, gc=False):
    """Write the operations of this commit, in order."""

    event: wire.CommitEvent


class Buffer(msgspec.Struct, frozen=True, gc=False):
    """Keep this event until the backfill of the repo ends."""

    event: Streamed


class DropBuffered(msgspec.Struct, frozen=True, gc=False):
    """Delete the buffered events of the repo. `released`: how many of them were applied; `seen_rev` has the others."""

    released: int = 0


class DropRows(msgspec.Struct, frozen=True, gc=False):
    """Delete the rows that attempts before this one wrote; None: all rows."""

    before_attempt: int | None


class ForgetIdentity(msgspec.Struct, frozen=True, gc=False):
    """The cached DID document may be out of date."""


class Drop(msgspec.Struct, frozen=True, gc=False):
    """The event changes no row; counted by reason."""

    reason: Reason


Effect = Apply | Buffer | DropBuffered | DropRows | ForgetIdentity | Drop


class Transition(msgspec.Struct, frozen=True, gc=False):
    """The repo after an event, and the writes that follow from it."""

    repo: Repo
    effects: tuple[Effect, ...] = ()
