"""The output of `sluice up` while it runs, on standard error: a rich view on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control.attention import attention
from control.status import PHASES, MirrorStatus, buffered_count
from protocol.encoding.safe_text import printable

LINE_CHARACTERS = 1000
PLAIN_SECONDS = 2.0
NOTES_SHOWN = 8


def rated(before: MirrorStatus | None, status: MirrorStatus, seconds: float) -> MirrorStatus:
    """The status with the rates since an earlier one."""
    if before is None or seconds <= 0:
        return status
    return replace(
        status,
        records_per_second=max(0.0, (status.records - before.records) / seconds),
        events_per_second=max(0.0, (status.events - before.events) / seconds),
    )


def plain(status: MirrorStatus, restarts: int) -> str:
    """One line: repos by phase, records, rates, lag by topic, restarts, and problems."""
    phases = " ".join(f"{phase} {status.repos[phase]}" for phase in PHASES if status.repos[phase]) or "none yet"
    lag = " ".join(f"{topic} {lag}" for (_, topic), lag in status.lag.items() if lag) or "none"
    parts = [
        f"repos: {phases}",
        f"records: about {status.records}{_rate(status.records_per_second)}",
        f"events: {status.events}{_rate(status.events_per_second)}",
        f"labels: about {status.labels}",
        f"lag: {lag}",
        f"restarts: {restarts}",
    ]
    return " | ".join(parts + problems(status))


def problems(status: MirrorStatus) -> list[str]:
    """What needs attention, one short phrase per problem."""
    return [printable(problem.what, LINE_CHARACTERS) for problem in attention(status, now=time.time())]


def _rate(rate: float | None) -> str:
    return "" if rate is None else f" ({rate:.0f}/s)"


def view(status: MirrorStatus, restarts: int, notes: list[str]) -> RenderableType:
    """The same figures as tables."""
    repos = Table(title="repos", title_justify="left")
    for phase in PHASES:
        repos.add_column(phase, justify="right")
    repos.add_row(*(f"{status.repos[phase]:,}" for phase in PHASES))
    lag = Table(title="lag", title_justify="left")
    for _, topic in status.lag:
        lag.add_column(topic, justify="right")
    lag.add_row(*(f"{lag_:,}" for lag_ in status.lag.values()))
    counts = Text(
        f"records about {status.records:,}{_rate(status.records_per_second)}   events {status.events:,}"
        f"{_rate(status.events_per_second)}   labels about {status.labels:,}   buffered {buffered_count(status)}   restarts {restarts}"
    )
    processes = Text("   ".join(f"{seen.name}: {seen.state}" for seen in status.processes), style="dim")
    below = [Text(line, style="yellow") for line in problems(status)] + [Text(line, style="dim") for line in notes]
    return Group(repos, counts, lag, processes, *below)


class ProgressView:
    """Shows statuses and notes. A context manager: it restores the terminal at the end."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True, markup=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._notes: list[str] = []
        self._last: tuple[MirrorStatus, int] | None = None
        self._clock = clock
        self._shown_at = float("-inf")

    def __enter__(self) -> "ProgressView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, who: str, what: str) -> None:
        """Print a line; on a terminal, the last `NOTES_SHOWN` stay visible."""
        line = printable(f"{time.strftime('%H:%M:%S')} {who}: {what}", LINE_CHARACTERS)
        if self._live is None:
            self._console.print(line)
        else:
            self._notes = [*self._notes, line][-NOTES_SHOWN:]
            self._live.update(view(*self._last, self._notes) if self._last else Text(line), refresh=True)

    def show(self, status: MirrorStatus, restarts: int) -> None:
        """Show a status; plain lines at most every two seconds."""
        self._last = (status, restarts)
        if self._live is not None:
            self._live.update(view(status, restarts, self._notes), refresh=True)
        elif self._clock() - self._shown_at >= PLAIN_SECONDS:
            self._console.print(f"{time.strftime('%H:%M:%S')} {plain(status, restarts)}")
            self._shown_at = self._clock()
