"""What follows a failed attempt: (failure, failures so far) → RetryIn | GiveUp | Unavailable | PauseHost. No clock, no chance.

A failure says what happened and nothing more. `decide` knows which are the account's state (an outcome, not a failure),
which are a quota (the host pauses, nobody is blamed), which are our own trouble (wait, uncounted), and which count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from protocol.encoding.safe_text import printable
from protocol.snapshot import SnapshotReason
from steps.backoff import backoff_seconds

SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 3600.0
_GROWTH = 8.0  # 5 s, 40 s, 5 min, 43 min: five attempts outlast a host that is down for most of an hour


class Reason(StrEnum):
    """Why an attempt ended without a snapshot. The verdicts on a CAR are protocol.snapshot.SnapshotReason; both are counted alike."""

    # the account's state, as its own PDS or the directory tells it
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


ACCOUNT_ERRORS: Mapping[str, Reason] = {
    "RepoNotFound": Reason.NOT_FOUND,
    "RepoTakendown": Reason.TAKENDOWN,
    "RepoSuspended": Reason.SUSPENDED,
    "RepoDeactivated": Reason.DEACTIVATED,
}
"""Error names of com.atproto.sync.getRepo that tell of the account, not of the request."""

_GONE = frozenset({Reason.NOT_FOUND, Reason.DID_TOMBSTONED, Reason.NO_PDS})
_ACCOUNT = _GONE | {*ACCOUNT_ERRORS.values(), Reason.DID_NOT_FOUND}
NOT_ASKED = frozenset({Reason.HOST_PAUSED, Reason.HOST_BUSY})
"""What was put off before its host was asked: no request has failed."""

_OURS = frozenset({Reason.DIRECTORY_UNREACHABLE, Reason.SPOOL_FULL})
_DEFERRED = NOT_ASKED | _OURS | {Reason.HOST_SLOW}
"""Uncounted. A transfer is ended as `host_slow` once: then its host is slow, and the next one counts as `too_slow`."""

_DAY = 86_400.0
_PATIENCE: Mapping[StrEnum, float] = {
    Reason.DIRECTORY_UNREACHABLE: _DAY,
    Reason.SPOOL_FULL: _DAY,
    Reason.RATE_LIMITED: 7 * _DAY,
    Reason.HOST_PAUSED: 7 * _DAY,
    Reason.HOST_BUSY: 30 * _DAY,  # our own queue: millions of repos at one host take weeks
}


def patience(reason: StrEnum) -> float:
    """Seconds for which attempts that end for this reason are not counted, if none is counted meanwhile."""
    return _PATIENCE.get(reason, _DAY)


_BEYOND_US = frozenset({Reason.TOO_LARGE, SnapshotReason.TOO_LARGE, SnapshotReason.TOO_MANY_BLOCKS})
"""Above a limit of ours: the next download of gigabytes would end there as well, until an operator raises it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """`reason`: a Reason or a SnapshotReason; `wait_seconds`: how long the other side asked us to wait, if it did."""

    reason: StrEnum
    detail: str
    wait_seconds: float | None = None

    def __str__(self) -> str:
        return printable(f"{self.reason}: {self.detail}", 500)


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Try again after `seconds`; `counted` towards the last attempt or not."""

    seconds: float
    counted: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """This was the last attempt, or the next ones could not end otherwise."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The account cannot be fetched and says why; `deleted`: we had been told of a deletion, and this confirms it."""

    status: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class PauseHost:
    """The host wants no request for `seconds`; the repo waits `retry_seconds`, uncounted."""

    seconds: float
    retry_seconds: float


Decision = RetryIn | GiveUp | Unavailable | PauseHost


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts in all, and the bounds of the back-off and of a pause that nobody named a length for, in seconds."""

    max_attempts: int
    first_seconds: float
    longest_seconds: float
    pause_seconds: float


def decide(failure: Failure, retry_count: int, policy: RetryPolicy, *, key: str, deletion: bool = False) -> Decision:
    """`retry_count`: counted failures before this one; `key` (the DID) spreads the retries; `deletion`: the claim's reason."""
    if failure.reason in _ACCOUNT:
        return Unavailable(str(failure.reason), deletion and failure.reason in _GONE)
    wait = policy.pause_seconds if failure.wait_seconds is None else failure.wait_seconds
    if failure.reason is Reason.RATE_LIMITED:
        seconds = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, wait))
        return PauseHost(seconds, _after(seconds, key))
    if failure.reason in _DEFERRED:
        return RetryIn(_after(min(LONGEST_PAUSE, wait), key), counted=False)
    if failure.reason in _BEYOND_US or retry_count + 1 >= policy.max_attempts:
        return GiveUp()
    seconds = backoff(retry_count + 1, key, policy.first_seconds, policy.longest_seconds)
    return RetryIn(max(seconds, min(LONGEST_PAUSE, failure.wait_seconds or 0.0)), counted=True)


def backoff(n: int, key: str, first: float, longest: float) -> float:
    """Seconds before the retry after failure `n` (from 1): growing from `first` to `longest`, less up to half by jitter.

    The jitter comes from a hash of key and n: the same every time, and different for repos that failed together.
    """
    full = backoff_seconds(n, first, longest, _GROWTH)
    return full * (1.0 - 0.5 * _fraction(f"{key}/{n}"))


def _after(seconds: float, key: str) -> float:
    """A little after the pause, spread over half its length: what waited must not come back at once."""
    return seconds * (1.0 + 0.5 * _fraction(key))


def _fraction(key: str) -> float:
    return int.from_bytes(sha256(key.encode()).digest()[:8]) / 2**64
