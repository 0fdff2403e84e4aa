"""The output of `sluice up` while it runs, on standard error: a rich view on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live

from control.attention import attention
from control.status import END_PHASES, PHASES, MirrorStatus, rate_text, rated
from local.view.live_view import LINE_CHARACTERS, LiveView, Part
from protocol.encoding.safe_text import printable

PLAIN_SECONDS = 2.0
EVENTS_KEPT = 200
EVENTS_LEFT = 8  # printed after the view has gone
RATE_SECONDS = 30.0  # rates of the live view are averages over this time
REFRESHES_PER_SECOND = 1  # shows a new size of the window


def plain(status: MirrorStatus, restarts: int) -> str:
    """One line: repos by phase, records, rates, lag by topic, restarts, and problems."""
    phases = " ".join(f"{phase} {status.repos[phase]}" for phase in PHASES if status.repos[phase]) or "none yet"
    lag = " ".join(f"{topic} {lag}" for (_, topic), lag in status.lag.items() if lag) or "none"
    parts = [
        f"repos: {phases}",
        f"records: about {status.records}{rate_text(status.records_per_second)}",
        f"events: {status.events}{rate_text(status.events_per_second)}",
        f"labels: about {status.labels}",
        f"lag: {lag}",
        f"restarts: {restarts}",
    ]
    return " | ".join(parts + problems(status))


def problems(status: MirrorStatus) -> list[str]:
    """What needs attention, one short phrase per problem."""
    return [printable(problem.what, LINE_CHARACTERS) for problem in attention(status, now=time.time())]


def rates(before: MirrorStatus, status: MirrorStatus, seconds: float) -> dict[str, float]:
    """What was added per second since an earlier status; empty without one."""
    if seconds <= 0:
        return {}
    counts = [
        {
            "found": sum(one.repos.values()),
            "done": sum(one.repos[phase] for phase in END_PHASES),
            "records": one.records,
            "events": one.events,
            "labels": one.labels,
        }
        for one in (before, status)
    ]
    return {name: max(0, counts[1][name] - counts[0][name]) / seconds for name in counts[0]}


class ProgressView:
    """Shows statuses and notes. A context manager: it restores the terminal at the end, and leaves the last notes on it."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True, markup=False)
        self._view = LiveView()
        self._live = self._made() if self._console.is_terminal else None
        self._notes: deque[str] = deque(maxlen=EVENTS_KEPT)
        self._seen: deque[tuple[float, MirrorStatus]] = deque()  # of the last `RATE_SECONDS`
        self._clock = clock
        self._shown_at = float("-inf")

    def _made(self) -> Live:
        # a screen of its own: it is drawn whole each time, so nothing old is left after a change of size
        return Live(self._view, console=self._console, screen=True, refresh_per_second=REFRESHES_PER_SECOND)

    def __enter__(self) -> "ProgressView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            for line in list(self._notes)[-EVENTS_LEFT:]:
                self._console.print(line)

    def address(self, name: str, what: str) -> None:
        """Print where something is; on a terminal it stays at the top."""
        if self._live is None:
            self._console.print(printable(f"{name:<8} {what}", LINE_CHARACTERS))
        else:
            self._view.addresses = self._view.addresses | {name: what}
            self._live.refresh()

    def note(self, who: str, what: str) -> None:
        """Print a line; on a terminal, the last ones stay visible."""
        line = printable(f"{time.strftime('%H:%M:%S')} {who}: {what}", LINE_CHARACTERS)
        if self._live is None:
            self._console.print(line)
        else:
            self._notes.append(line)
            self._view.events = tuple(self._notes)
            self._live.refresh()

    def show(self, status: MirrorStatus, parts: Sequence[Part]) -> None:
        """Show a status; plain lines at most every two seconds."""
        now = self._clock()
        self._seen.append((now, status))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        if self._live is not None:
            self._view.status, self._view.parts = status, tuple(parts)
            self._view.rates = rates(first, status, now - began)
            self._view.problems = attention(status, now=time.time())
            self._live.refresh()
        elif now - self._shown_at >= PLAIN_SECONDS:
            line = plain(rated(status, first.records, first.events, now - began), sum(part.restarts for part in parts))
            self._console.print(f"{time.strftime('%H:%M:%S')} {line}")
            self._shown_at = now
