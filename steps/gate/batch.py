"""One batch of the log through the gate: events in, bulk writes out (design §5.4).

`settle(repos, queues)` is a generator that never touches the database. It yields a `WriteBatch` of writes and the DIDs whose
outcome comes next; the caller performs the writes, then sends back `DatabaseFacts` (rows of the attempt, buffered events) for these
DIDs, or for some of them: the others ask again. Repos are independent, so all of them wait for their facts together: a batch takes as many rounds as its busiest repo
has outcomes. Per repo the order of the log holds, and the phase is re-read after every event.
"""

from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from schemas import wire
from steps.gate import transitions as gate
from steps.gate.model import (
    Apply,
    Buffer,
    Drop,
    DropBuffered,
    DropRows,
    ForgetIdentity,
    Reason,
    Repo,
    Rules,
    Step,
    Streamed,
)

Event = wire.CommitEvent | wire.SyncEvent | wire.IdentityEvent | wire.AccountEvent | wire.CreateEvent | wire.RepoOutcome
Path = tuple[str, str]  # (collection, rkey)


@dataclass(frozen=True, slots=True)
class OffsetEvent:
    """An event, its offset in its partition, its bytes there, and when the log took it (ms of the epoch; None: unknown)."""

    offset: int
    event: Event
    size: int = 0
    received: int | None = None


Row = tuple[str, str, str, str, str, int, bytes | None, str | None, str | None, str, int | None]
"""did, collection, rkey, cid, rev, attempt, json, raw (base64), reason, indexed_at, came: the columns of `sluice.record`."""

ORDERED = frozenset(
    {
        "app.bsky.feed.post",
        "app.bsky.feed.postgate",
        "app.bsky.feed.threadgate",
        "app.bsky.graph.follow",
        "app.bsky.graph.listitem",
    }
)
"""Collections whose rows have `came`, by which the AppView's gates decide: when our log took the record, see `came_at`.

Negative: the first fetch of the repo brought it (or any fetch, once the filter has changed), so it was there by then, and since
when is not known. None: unknown. No author writes this time."""

TICKS = 1_000_000
"""Of `came`, in a millisecond."""


def came_at(received: int | None, seq: int = 0) -> int | None:
    """The log's time (ms of the epoch) and, within one millisecond, the order of the relay's sequence."""
    return None if received is None else received * TICKS + max(seq, 0) % TICKS


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What the database knows when an outcome is decided: rows of the attempt, and the buffered events in log order."""

    rows: int = 0
    buffered: Sequence[Streamed] = ()
    received: Mapping[str, int | None] = field(default_factory=dict)  # rev of a buffered event → when the log took it


@dataclass(slots=True)
class WriteBatch:
    """Writes to perform in this order: drop_buffered, buffered, drop_rows, rows. Then facts for `awaiting` (DID → attempt)."""

    awaiting: dict[str, int] = field(default_factory=dict)
    buffered: list[tuple[str, int, Streamed]] = field(default_factory=list)
    buffered_at: dict[tuple[str, int], int | None] = field(
        default_factory=dict
    )  # DID and offset of a buffered event → received
    drop_buffered: set[str] = field(default_factory=set)
    drop_rows: list[tuple[str, int | None]] = field(default_factory=list)
    rows: dict[str, dict[Path, Row | None]] = field(default_factory=dict)  # None: the row goes
    deleted: dict[tuple[str, str, str], int | None] = field(
        default_factory=dict
    )  # by operations → when the log took it
    replaced: dict[tuple[str, str, str], list[tuple[Row, int | None]]] = field(
        default_factory=dict
    )  # rows of this round that a later operation replaced, or deleted at that time
    fresh: set[str] = field(default_factory=set)  # DIDs whose rows of this round are their first ever: COPY
    forget: set[str] = field(default_factory=set)  # DIDs whose cached document may be out of date
    dropped: Counter[str] = field(default_factory=Counter)
    released: dict[str, tuple[int, int]] = field(default_factory=dict)  # DID → (released, of so many buffered)


Settling = Generator[WriteBatch, Mapping[str, DatabaseFacts], dict[str, Repo]]


def settle(
    repos: Mapping[str, Repo], queues: Mapping[str, Sequence[OffsetEvent]], rules: Rules = gate.RULES
) -> Settling:
    """Rounds of writes; returns the repos as they stand afterwards. Every DID of `queues` has its row in `repos`."""
    current = dict(repos)
    waiting = {did: deque(events) for did, events in queues.items()}
    facts: Mapping[str, DatabaseFacts] = {}
    while waiting:
        writes = WriteBatch()
        for did in list(waiting):
            queue = waiting[did]
            current[did] = _advance(current[did], queue, facts.get(did), writes, rules)
            if not queue:
                del waiting[did]
        facts = yield writes
    return current


def _advance(
    repo: Repo, queue: deque[OffsetEvent], facts: DatabaseFacts | None, writes: WriteBatch, rules: Rules
) -> Repo:
    """Run one repo's events until the queue is empty or an outcome needs facts that are not there yet."""
    while queue:
        placed = queue[0]
        event = placed.event
        if isinstance(event, wire.CreateEvent):
            repo = _creates(repo, queue, event, writes, rules)
            continue
        if isinstance(event, wire.RepoOutcome):
            if facts is None and gate.awaits_facts(repo, event):
                writes.awaiting[repo.did] = event.attempt
                return repo
            repo = _outcome(repo, event, facts or DatabaseFacts(), writes, rules)
            facts = None
        else:
            step = _decide(repo, placed, rules)
            _take(repo, step, placed.offset, writes, rules, received={_rev(event): placed.received})
            repo = step.repo
        queue.popleft()
    return repo


def _rev(event: Event) -> str:
    return event.rev or "" if isinstance(event, wire.CommitEvent | wire.SyncEvent) else ""


def _decide(repo: Repo, placed: OffsetEvent, rules: Rules) -> Step:
    event = placed.event
    if isinstance(event, wire.AccountEvent):
        return gate.on_account(repo, event)
    if isinstance(event, wire.IdentityEvent):
        return gate.on_identity(repo, event)
    assert isinstance(event, wire.CommitEvent | wire.SyncEvent)  # noqa: S101  # creates and outcomes went before
    return gate.on_live(repo, event, rules, placed.size)


def _creates(repo: Repo, queue: deque[OffsetEvent], first: wire.CreateEvent, writes: WriteBatch, rules: Rules) -> Repo:
    """A run of records of one attempt and rev: one decision for all of them."""
    attempt, rev = first.attempt, first.rev
    step = gate.on_create(repo, attempt, rev)
    _take(repo, step, queue[0].offset, writes, rules, count=0)
    refused = next((effect.reason for effect in step.effects if isinstance(effect, Drop)), None)
    rows = writes.rows.setdefault(repo.did, {}) if refused is None else {}
    if refused is None and step.repo.first_attempt == attempt:
        writes.fresh.add(repo.did)
    did, run, left_out = repo.did, 0, 0
    # a first fetch, or one that may bring collections which a former filter left out
    known = repo.rev and step.repo.rev and step.repo.first_attempt != attempt and rules.filter.version == 1
    sign = 1 if known else -1
    keeps = None if rules.filter.everything else rules.filter.keeps
    while queue:
        event = queue[0].event
        if not isinstance(event, wire.CreateEvent) or event.attempt != attempt or event.rev != rev:
            break
        received = queue.popleft().received
        run += 1
        if keeps is not None and not keeps(event.collection):
            left_out += 1
        elif refused is None:
            rows[event.collection, event.rkey] = (
                did,
                event.collection,
                event.rkey,
                event.cid,
                rev,
                attempt,
                wire.body(event.record),
                event.raw,
                event.reason,
                event.time,
                None if received is None or event.collection not in ORDERED else sign * received * TICKS,
            )
    if refused is not None:
        writes.dropped[refused] += run
        return step.repo
    if left_out:
        writes.dropped[Reason.FILTERED] += left_out
    return gate.leave_out(step.repo, left_out, rules)


def _outcome(repo: Repo, event: wire.RepoOutcome, facts: DatabaseFacts, writes: WriteBatch, rules: Rules) -> Repo:
    step = gate.on_outcome(repo, event, facts.rows, facts.buffered, rules)
    _take(repo, step, -1, writes, rules, received=facts.received)
    if facts.buffered and step.repo.phase != repo.phase:
        released = sum(effect.released for effect in step.effects if isinstance(effect, DropBuffered))
        writes.released[repo.did] = (released, len(facts.buffered))
    return step.repo


def _take(
    repo: Repo,
    step: Step,
    offset: int,
    writes: WriteBatch,
    rules: Rules,
    *,
    count: int = 1,
    received: Mapping[str, int | None] | None = None,
) -> None:
    times = received or {}
    for effect in step.effects:
        match effect:
            case Apply(event):
                _apply(step.repo, event, writes, rules, times.get(event.rev))
            case Buffer(event):
                writes.buffered.append((repo.did, offset, event))
                writes.buffered_at[repo.did, offset] = times.get(event.rev)
            case DropBuffered():
                # What was buffered earlier in this round goes too; what a reopened backfill holds after this stays.
                writes.buffered = [buffered for buffered in writes.buffered if buffered[0] != repo.did]
                writes.drop_buffered.add(repo.did)
            case DropRows(before):
                rows = writes.rows.get(repo.did, {})
                writes.rows[repo.did] = {
                    path: row for path, row in rows.items() if before is not None and row and row[5] >= before
                }
                writes.drop_rows.append((repo.did, before))
            case ForgetIdentity():
                writes.forget.add(repo.did)
            case Drop(reason):
                writes.dropped[reason] += count


def _apply(repo: Repo, event: wire.CommitEvent, writes: WriteBatch, rules: Rules, received: int | None) -> None:
    rows = writes.rows.setdefault(repo.did, {})
    at = came_at(received, event.seq)
    writes.fresh.discard(repo.did)  # a live operation may meet rows that are there
    keeps = None if rules.filter.everything else rules.filter.keeps
    for op in event.ops:
        path = (op.collection, op.rkey)
        if keeps is not None and not keeps(op.collection):
            writes.dropped[Reason.FILTERED] += 1
            if not rules.filter.clean:
                rows[path] = None  # a row from before the filter is not true any more
            continue
        came = at if op.collection in ORDERED else None
        if (was := rows.get(path)) is not None:
            writes.replaced.setdefault((repo.did, *path), []).append((was, at))
        if op.action == "delete" or op.cid is None:
            rows[path] = None
            writes.deleted[repo.did, *path] = at
            continue
        rows[path] = (
            repo.did,
            op.collection,
            op.rkey,
            op.cid,
            event.rev,
            repo.attempt,
            wire.body(op.record),
            op.raw,
            op.reason,
            event.time,
            came,
        )
