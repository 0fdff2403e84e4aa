"""Exponential back-off after failures in a row, and its use for retries and for reconnecting streams. Pure, in seconds."""

from hashlib import sha256

FIRST_SECONDS = 0.5
FAILED_MAX_SECONDS = 30.0  # after connections that delivered no event
SHORT_MAX_SECONDS = 5.0  # after connections that delivered events and ended soon
STEADY_SECONDS = 10.0  # a connection that lasted this long is neither
RETRY_GROWTH = 8.0  # 5 s, 40 s, 5 min, 43 min: five attempts outlast a host that is down for most of an hour


def backoff_seconds(failures: int, first: float, longest: float, growth: float = 2.0) -> float:
    """`first` after the first failure, `growth` times as long after each further one, at most `longest`; 0.0 after none."""
    if failures <= 0:
        return 0.0
    return min(first * growth ** min(failures - 1, 64), longest)


def retry_seconds(failures: int, key: str, first: float, longest: float) -> float:
    """Seconds until the retry after so many failures (at least 1): from `first` to `longest`, less up to half by jitter.

    The jitter comes from a hash of key and failures: the same every time, and different for repos that failed together.
    """
    full = backoff_seconds(failures, first, longest, RETRY_GROWTH)
    return full * (1.0 - 0.5 * fraction_of(f"{key}/{failures}"))


def reconnect_seconds(failures: int, short: int, fraction: float, rest: float = 0.0) -> float:
    """Seconds until a stream is connected again.

    `failures`, `short`: how many connections in a row failed, or were short. `rest`: the wait that the upstream named, which
    is never cut short. `fraction` (0 to 1) is jitter: a relay that restarts disconnects all of its clients at once.
    """
    failed = backoff_seconds(failures, FIRST_SECONDS, FAILED_MAX_SECONDS)
    soon = backoff_seconds(short, FIRST_SECONDS, SHORT_MAX_SECONDS)
    return max(max(failed, soon) * (0.5 + 0.5 * fraction), (rest if failures else 0.0) * (1.0 + 0.25 * fraction))


def fraction_of(key: str) -> float:
    """0 to 1, from a hash: the same every time."""
    return int.from_bytes(sha256(key.encode()).digest()[:8]) / 2**64
