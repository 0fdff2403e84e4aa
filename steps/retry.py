"""What follows a failed attempt: (failure, failures so far) → RetryIn | GiveUp | Unavailable | PauseHost. No clock, no randomness.

`decide` sorts failures into states of the account (an outcome), quotas (pause the host, uncounted), failures not caused by the
repo or its host (retry, uncounted), and counted ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from protocol.encoding.safe_text import printable
from protocol.snapshot import SnapshotReason
from steps.backoff import fraction_of, retry_seconds

SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 3600.0


class FailureReason(StrEnum):
    """Why an attempt ended without a CAR. Why a CAR is rejected: protocol.snapshot.SnapshotReason, in the same counters."""

    # the account's state, reported by its PDS or the directory
    NOT_FOUND = "not_found"
    TAKENDOWN = "takendown"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"
    DID_NOT_FOUND = "did_not_found"
    DID_TOMBSTONED = "did_tombstoned"
    NO_PDS = "no_pds"
    # a quota
    RATE_LIMITED = "rate_limited"
    HOST_PAUSED = "host_paused"
    HOST_BUSY = "host_busy"
    HOST_SLOW = "host_slow"
    # not the repo's fault, nor its host's
    DIRECTORY_UNREACHABLE = "directory_unreachable"
    SPOOL_FULL = "spool_full"
    # the host's failures
    BAD_DOCUMENT = "bad_document"
    WEB_UNREACHABLE = "did_web_unreachable"
    HTTP_STATUS = "http_status"
    UNREACHABLE = "unreachable"
    CUT_OFF = "cut_off"
    TIMEOUT = "timeout"
    SILENT = "silent"
    TOO_SLOW = "too_slow"
    NOT_A_CAR = "not_a_car"
    TOO_LARGE = "too_large"
    FORBIDDEN_HOST = "forbidden_host"
    TOO_MANY_REDIRECTS = "too_many_redirects"


ACCOUNT_ERRORS: Mapping[str, FailureReason] = {
    "RepoNotFound": FailureReason.NOT_FOUND,
    "RepoTakendown": FailureReason.TAKENDOWN,
    "RepoSuspended": FailureReason.SUSPENDED,
    "RepoDeactivated": FailureReason.DEACTIVATED,
}
"""Error names of com.atproto.sync.getRepo that describe the account, not the request."""

_GONE = frozenset({FailureReason.NOT_FOUND, FailureReason.DID_TOMBSTONED, FailureReason.NO_PDS})
_ACCOUNT = _GONE | {*ACCOUNT_ERRORS.values(), FailureReason.DID_NOT_FOUND}
NOT_ASKED = frozenset({FailureReason.HOST_PAUSED, FailureReason.HOST_BUSY})
"""Deferred before a request was sent: no request has failed."""

_OURS = frozenset({FailureReason.DIRECTORY_UNREACHABLE, FailureReason.SPOOL_FULL})
_DEFERRED = NOT_ASKED | _OURS | {FailureReason.HOST_SLOW}
"""Uncounted. A transfer that ends with `host_slow` marks its host slow; transfers of a slow host end with `too_slow`, counted."""

_DAY = 86_400.0
_UNCOUNTED_SECONDS: Mapping[StrEnum, float] = {
    FailureReason.DIRECTORY_UNREACHABLE: _DAY,
    FailureReason.SPOOL_FULL: _DAY,
    FailureReason.RATE_LIMITED: 7 * _DAY,
    FailureReason.HOST_PAUSED: 7 * _DAY,
    FailureReason.HOST_BUSY: 30 * _DAY,  # our own queue: millions of repos at one host take weeks
}


def uncounted_seconds(reason: StrEnum) -> float:
    """Seconds for which attempts with this reason stay uncounted, without a counted one in between."""
    return _UNCOUNTED_SECONDS.get(reason, _DAY)


_BEYOND_US = frozenset({FailureReason.TOO_LARGE, SnapshotReason.TOO_LARGE, SnapshotReason.TOO_MANY_BLOCKS})
"""Above one of our limits: every further download would end there too, until an operator raises the limit."""


@dataclass(frozen=True, slots=True)
class Failure:
    """`reason`: a FailureReason or a SnapshotReason; `wait_seconds`: requested by the server, if any."""

    reason: StrEnum
    detail: str
    wait_seconds: float | None = None

    def __str__(self) -> str:
        return printable(f"{self.reason}: {self.detail}", 500)


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Retry after `seconds`. `counted`: the attempt counts towards `max_attempts`.

    `growing`: after at least half of the time since the first uncounted attempt, up to an hour.
    """

    seconds: float
    counted: bool
    growing: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt: this was the last one, or the next would fail the same way."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A state of the account in which it cannot be fetched. `deleted`: it confirms a reported deletion."""

    status: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class PauseHost:
    """No request to the host for `seconds`; the repo waits `retry_seconds`, uncounted."""

    seconds: float
    retry_seconds: float


Decision = RetryIn | GiveUp | Unavailable | PauseHost


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts at most, bounds of the back-off, and the pause after a 429 without Retry-After. Seconds."""

    max_attempts: int
    first_seconds: float
    longest_seconds: float
    pause_seconds: float


def decide(failure: Failure, retry_count: int, policy: RetryPolicy, *, key: str, deletion: bool = False) -> Decision:
    """`retry_count`: counted failures before this one; `key` (the DID) spreads the retries; `deletion`: the claim's reason."""
    if failure.reason in _ACCOUNT:
        return Unavailable(str(failure.reason), deletion and failure.reason in _GONE)
    wait = policy.pause_seconds if failure.wait_seconds is None else failure.wait_seconds
    if failure.reason is FailureReason.RATE_LIMITED:
        seconds = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, wait))
        return PauseHost(seconds, _after(seconds, key))
    if failure.reason in _DEFERRED:
        growing = failure.reason is FailureReason.DIRECTORY_UNREACHABLE
        return RetryIn(_after(min(LONGEST_PAUSE, wait), key), counted=False, growing=growing)
    if failure.reason in _BEYOND_US or retry_count + 1 >= policy.max_attempts:
        return GiveUp()
    seconds = retry_seconds(retry_count + 1, key, policy.first_seconds, policy.longest_seconds)
    return RetryIn(max(seconds, min(LONGEST_PAUSE, failure.wait_seconds or 0.0)), counted=True)


def _after(seconds: float, key: str) -> float:
    """A moment after the pause, spread over half its length, so that repos do not all return at once."""
    return seconds * (1.0 + 0.5 * fraction_of(key))
