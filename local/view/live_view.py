"""The live view of `sluice up` on a terminal: `LiveView`, a rich renderable that fits every window of 60×15 and more.

From top to bottom: addresses, progress of all repos, repos by phase, counts, a table of the flows, what needs attention, jobs, lag by
topic, and the last events, which take what is left. In a wide window attention and events have a column of their own. In a low window
events, jobs and addresses give way first; a line of text is folded, not cut.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from control.attention import Problem
from control.process_status import ProcessStatus
from control.status import END_PHASES, PHASES, MirrorStatus, Row, buffered_count
from protocol.encoding.safe_text import printable

WIDE = 120  # from this width on there are two columns
LEFT = 66
LOW = 24  # below this height large numbers are rounded; servers, remedies and the less important counts are left out
EVENTS_LEAST = 4  # lines of events that jobs, lag and long addresses leave
BAR_LEAST = 16
JOBS_SHOWN = 8
LINE_CHARACTERS = 1000
STYLES = {
    **dict.fromkeys(("failing", "hung", "down", "restarting", "stalled"), "red"),
    **dict.fromkeys(("paused", "starting", "stopped"), "yellow"),
    **dict.fromkeys(("working", "idle", "running"), "green"),
}  # of states, the worst first
WORST_FIRST = tuple(STYLES)
SERVERS = ("kafka", "postgres", "simulator")
FLOWS = {
    "list-repos": ("found", "repos"),
    "firehose": ("events", "events"),
    "labels": ("labels", "labels"),
    "backfill": ("done", "repos"),
    "index": ("records", "records"),
}  # kind of process → its rate, and what that counts
ORDER = (*FLOWS, "control", "serve", *SERVERS)

Lines = list[list[Segment]]


@dataclass(frozen=True, slots=True)
class Part:
    """A child process or embedded server: its kind, whether it runs, how often it was restarted, and if an operator stopped it."""

    kind: str
    running: bool
    restarts: int
    stopped: bool = False


@dataclass(slots=True)
class LiveView:
    """What the view shows. `rates`: of `FLOWS`, per second. `events`: lines, the newest last."""

    addresses: dict[str, str] = field(default_factory=dict)
    status: MirrorStatus | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    problems: Sequence[Problem] = ()
    events: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or options.max_height
        page = _Page(console, options, width)
        lines = self._narrow(page, height) if width < WIDE else self._wide(page, height)
        for line in lines[:height]:
            yield from line
            yield Segment.line()

    def _narrow(self, page: "_Page", height: int) -> Lines:
        low = height < LOW
        head = [line for one in self._head(page.width, low=low) for line in page.lines(one)]
        flows = page.lines(self._flows(low=low)) if self.parts else []
        room = height - len(head) - len(flows)
        below = self._attention(page, max(2, room // 2), remedies=not low)
        room -= len(below)
        top = self._addresses(page, room - (1 if low else EVENTS_LEAST))
        room -= len(top)
        extra = self._extra(page, room - EVENTS_LEAST)
        events = self._events(page, room - len(extra))
        gap = [page.blank()] if room > len(extra) + len(events) else []
        return [*top, *head, *gap, *flows, *extra, *below, *events]

    def _wide(self, page: "_Page", height: int) -> Lines:
        head = self._addresses(page, height // 4)
        head += [line for one in self._head(page.width) for line in page.lines(one)] + [page.blank()]
        room = height - len(head)
        tables = (self._flows(), *self._tables())
        left = page.narrowed(min(LEFT, max(page.console.measure(table).maximum for table in tables)))
        right = page.narrowed(page.width - left.width - 3)
        one = left.lines(self._flows()) if self.parts else []
        one += self._extra(left, room - len(one))
        other = self._attention(right, room // 2)
        if other:
            other.append(right.blank())
        other += self._events(right, room - len(other))
        between = Segment(" │ ", page.console.get_style("dim"))
        one += [left.blank()] * (room - len(one))
        other += [right.blank()] * (room - len(other))
        return head + [[*a, between, *b] for a, b in zip(one, other, strict=False)]

    def _addresses(self, page: "_Page", room: int) -> Lines:
        found: Lines = []
        for name, address in self.addresses.items():
            grid = _grid(Text(f"{name:<9}", "dim"), Text(printable(address, LINE_CHARACTERS), overflow="fold"))
            lines = page.lines(grid)
            if len(found) + len(lines) <= room:
                found += lines
        return found

    def _head(self, width: int, *, low: bool = False) -> list[RenderableType]:
        """Progress, phases and counts."""
        status, number = self.status, _rounded if low else _exact
        if status is None:
            return [Text("starting: log and database first, then migrations, topics and processes", "yellow")]
        phases = [f"{phase} {number(status.repos[phase])}" for phase in PHASES if status.repos[phase]] or ["none yet"]
        counts = [
            f"records about {number(status.records)} ({self.rates.get('records', 0):,.0f}/s)",
            f"events {number(status.events)} ({self.rates.get('events', 0):,.0f}/s)",
        ]
        if not low:
            counts += [f"labels about {status.labels:,}", f"buffered {buffered_count(status)}"]
        if status.handles and not low:
            counts.append(f"handles verified {status.handles['verified']:,}")
        rows = [
            _grid(Text(f"{name:<9}"), items(texts, width - 9))
            for name, texts in (("repos", phases), ("counts", counts))
        ]
        return [self._progress(status, width, number), *rows]

    def _progress(self, status: MirrorStatus, width: int, number: Callable[[int], str]) -> RenderableType:
        done, total = _done(status), sum(status.repos.values())
        percent = 100 * done // total if total else 0
        text = f"{number(done)} of {number(total)} repos  {percent} %  {self._left(status, total - done)}"
        bar = ProgressBar(max(total, 1), done)
        if width - 9 - len(text) < BAR_LEAST:
            return _grid(Text("progress "), Text(text, overflow="fold"))
        return _grid(Text("progress "), bar, Text(f" {text}"), stretched=1)

    def _left(self, status: MirrorStatus, moving: int) -> str:
        rate = self.rates.get("done", 0.0)
        if not _listed(status):
            left = "still listing"
        elif not moving:
            return "complete, live"
        else:
            left = f"{duration(moving / rate)} left" if rate else "time left unknown"
        return f"{_per_second(rate)}/s  {left}"

    def _flows(self, *, low: bool = False) -> Table:
        table = _columns("flow", "state", "per second", "lag", "restarts", texts=2)
        seen = self.status.processes if self.status else []
        for kind in sorted({part.kind for part in self.parts}, key=ORDER.index):
            parts = [part for part in self.parts if part.kind == kind]
            if low and kind in SERVERS and all(part.running for part in parts):
                continue
            name = kind if len(parts) == 1 else f"{kind} ×{len(parts)}"
            state, style = group_state(parts, [one for one in seen if one.kind == kind])
            restarts = sum(part.restarts for part in parts)
            cells = [
                Text(name),
                Text(state, style),
                Text(self._rate(kind)),
                Text(self._lag(kind, _rounded if low else _exact)),
            ]
            table.add_row(*cells, Text(f"{restarts:,}", "yellow" if restarts else ""))
        return table

    def _rate(self, kind: str) -> str:
        name, unit = FLOWS.get(kind, ("", ""))
        return f"{_per_second(self.rates[name])} {unit}" if name in self.rates else ""

    def _lag(self, kind: str, number: Callable[[int], str]) -> str:
        if self.status is None:
            return ""
        if kind in ("backfill", "index"):
            return number(sum(lag for (group, _), lag in self.status.lag.items() if group == kind))
        frames = [seen.total("sluice_stream_queue_frames") for seen in self.status.processes if seen.kind == kind]
        return number(int(sum(filter(None, frames)))) if any(one is not None for one in frames) else ""

    def _attention(self, page: "_Page", room: int, *, remedies: bool = True) -> Lines:
        """The worst problems; the last line counts those without room."""
        found: Lines = []
        for number, problem in enumerate(self.problems):
            more = len(self.problems) - number
            text = printable(
                f"! {problem.what} → {problem.remedy}" if remedies else f"! {problem.what}", LINE_CHARACTERS
            )
            style = "red" if problem.bad else "yellow"
            lines = page.folded(text, style, room - (more > 1) if not found else room)
            if len(found) + len(lines) > room - (more > 1):
                return [*found, *page.folded(f"! {more} more: `sluice status`", style, 1)]
            found += lines
        return found

    def _extra(self, page: "_Page", room: int) -> Lines:
        found: Lines = []
        for table in self._tables():
            lines = page.lines(table)
            if len(found) + len(lines) + 1 <= room:
                found += [page.blank(), *lines]
        return found

    def _tables(self) -> list[Table]:
        """Jobs, and lag by topic, if there are any."""
        tables = [_jobs(self.status.jobs), _topics(self.status)] if self.status else []
        return [table for table in tables if table.row_count]

    def _events(self, page: "_Page", room: int) -> Lines:
        found: Lines = []
        for event in reversed(self.events):
            lines = page.folded(event, "dim", room if not found else max(3, room // 3))
            if len(found) + len(lines) > room:
                break
            found = lines + found
        return found


@dataclass(frozen=True, slots=True)
class _Page:
    """Renders to lines of one width."""

    console: Console
    options: ConsoleOptions
    width: int

    def narrowed(self, width: int) -> "_Page":
        return _Page(self.console, self.options, width)

    def lines(self, renderable: RenderableType) -> Lines:
        """The lines of a renderable, filled up to the width."""
        return self.console.render_lines(renderable, self.options.update(width=self.width, height=None))

    def folded(self, line: str, style: str, most: int) -> Lines:
        """A line of text, folded to at most so many lines; what does not fit is replaced by `…`."""
        most = max(most, 0)
        lines = Text(line, style).wrap(self.console, self.width, overflow="fold")
        if 0 < most < len(lines):
            last = lines[most - 1]
            last.truncate(self.width - 1)
            last.append("…")
        return [line for text in lines[:most] for line in self.lines(text)]

    def blank(self) -> list[Segment]:
        return [Segment(" " * self.width)]


def group_state(parts: Sequence[Part], seen: Sequence[ProcessStatus]) -> tuple[str, str]:
    """The worst state of a kind's processes, how many have it if not all, and its style."""
    states = ["stalled" if one.state == "working" and not one.ready else one.state for one in seen if one.pid]
    ended = ["stopped" if part.stopped else "restarting" for part in parts if not part.running]
    states = states[: len(parts) - len(ended)] + ended
    states += [("starting" if seen or parts[0].kind not in SERVERS else "running")] * (len(parts) - len(states))
    worst = min(states, key=lambda state: WORST_FIRST.index(state) if state in WORST_FIRST else 0)
    count = states.count(worst)
    text = worst if count == len(states) else f"{worst} ({count} of {len(states)})"
    return text, STYLES.get(worst, "red")


def items(texts: Iterable[str], width: int) -> Text:
    """Short texts on as many lines as they need: no line breaks inside of a text unless it is longer than a line."""
    lines = [""]
    for text in texts:
        joined = f"{lines[-1]}  {text}" if lines[-1] else text
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(text)
    return Text("\n".join(lines), overflow="fold")


def duration(seconds: float) -> str:
    """About how long, in one unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _exact(number: int) -> str:
    return f"{number:,}"


def _rounded(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _done(status: MirrorStatus) -> int:
    return sum(status.repos[phase] for phase in END_PHASES)


def _listed(status: MirrorStatus) -> bool:
    return not any(job["status"] in ("pending", "running", "retry") and not _at_end(job) for job in status.jobs)


def _at_end(job: Row) -> bool:
    return bool((job.get("checkpoint") or {}).get("done"))


def _grid(*cells: RenderableType, stretched: int | None = None) -> Table:
    grid = Table.grid(expand=stretched is not None)
    for number, _ in enumerate(cells):
        grid.add_column(ratio=1 if number == stretched else None, overflow="fold")
    grid.add_row(*cells)
    return grid


def _columns(*names: str, texts: int) -> Table:
    """A table; the first columns are text, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < texts else "right", overflow="fold")
    return table


def _jobs(jobs: Sequence[Row]) -> Table:
    table = _columns("job", "status", "listed", "in sync", "failed", texts=2)
    for job in jobs[:JOBS_SHOWN]:
        numbers = (f"{job[name] or 0:,}" for name in ("listed", "synced", "failed"))
        cells = (job["name"], job["status"], *numbers)
        table.add_row(*(Text(printable(cell, LINE_CHARACTERS)) for cell in cells))
    return table


def _topics(status: MirrorStatus) -> Table:
    table = _columns("read by", "topic", "lag", texts=2)
    for (group, topic), lag in status.lag.items():
        table.add_row(Text(group), Text(topic), Text(f"{lag:,}"))
    return table
