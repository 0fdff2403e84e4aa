"""How long to wait before a stream is connected again. Pure."""

FIRST_SECONDS = 0.25
FAILED_MAX_SECONDS = 30.0  # after connections over which no event came
SHORT_MAX_SECONDS = 5.0  # after connections that ended soon, though events came over them
STEADY_SECONDS = 10.0  # a connection that lasted so long was none of these


def reconnect_seconds(failures: int, short: int, fraction: float, rest: float = 0.0) -> float:
    """`failures`, `short`: connections of each kind in a row; `rest`: seconds that the upstream asked for, never cut short.

    `fraction` (0 to 1) spreads the clients of a relay that restarts, and has dropped all of them at once.
    """
    failed = min(FIRST_SECONDS * 2.0 ** min(failures, 20), FAILED_MAX_SECONDS) if failures else 0.0
    soon = min(FIRST_SECONDS * 2.0 ** min(short, 20), SHORT_MAX_SECONDS) if short else 0.0
    return max(max(failed, soon) * (0.5 + 0.5 * fraction), (rest if failures else 0.0) * (1.0 + 0.25 * fraction))
