"""Exponential back-off after failures in a row, and its use for reconnecting streams. Pure, in seconds."""

FIRST_SECONDS = 0.5
FAILED_MAX_SECONDS = 30.0  # after connections that delivered no event
SHORT_MAX_SECONDS = 5.0  # after connections that delivered events and ended soon
STEADY_SECONDS = 10.0  # a connection that lasted this long is neither


def backoff_seconds(failures: int, first: float, longest: float, growth: float = 2.0) -> float:
    """`first` after the first failure, `growth` times as long after each further one, at most `longest`; 0.0 after none."""
    if failures <= 0:
        return 0.0
    return min(first * growth ** min(failures - 1, 64), longest)


def reconnect_seconds(failures: int, short: int, fraction: float, rest: float = 0.0) -> float:
    """Seconds until a stream is connected again.

    `failures`, `short`: how many connections in a row failed, or were short. `rest`: the wait that the upstream named, which
    is never cut short. `fraction` (0 to 1) is jitter: a relay that restarts disconnects all of its clients at once.
    """
    failed = backoff_seconds(failures, FIRST_SECONDS, FAILED_MAX_SECONDS)
    soon = backoff_seconds(short, FIRST_SECONDS, SHORT_MAX_SECONDS)
    return max(max(failed, soon) * (0.5 + 0.5 * fraction), (rest if failures else 0.0) * (1.0 + 0.25 * fraction))
