"""One batch of the log through the gate: events in, bulk writes out (design §5.4).

`settle(repos, queues)` is a generator without I/O. It yields a `WriteBatch`; the caller performs the writes and sends back
`DatabaseFacts` for the repos in `awaiting`, or for some of them: the others are in the next `awaiting` again. Repos are
independent and advance together, so a batch takes as many rounds as its busiest repo has outcomes. The events of one repo are
decided in log order, each on the repo after the previous one.
"""

from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

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
    Streamed,
    Transition,
)

Event = wire.CommitEvent | wire.SyncEvent | wire.IdentityEvent | wire.AccountEvent | wire.CreateEvent | wire.RepoOutcome
Path = tuple[str, str]  # collection, rkey
Key = tuple[str, str, str]  # DID, collection, rkey


class OffsetEvent(msgspec.Struct, frozen=True, gc=False):
    """An event with its offset and size (bytes) in the log, and the log's time (Unix time in ms; None: unknown)."""

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
"""Collections whose rows have `came`: when our log received the record (see `came_at`). The AppView's gates compare it.

Negative: the record already existed, since an unknown time, when we received it: it came with the first fetch of its repo, or with a
fetch after any change of the filter. None: unknown. Authors cannot choose this time."""

TICKS = 1_000_000
"""Units of `came` in a millisecond."""


def came_at(received: int | None, seq: int = 0) -> int | None:
    """`came` of a record: the log's time (Unix time in ms), and the relay's sequence within one millisecond."""
    return None if received is None else received * TICKS + max(seq, 0) % TICKS


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What an outcome depends on: the number of rows of its attempt, and the repo's buffered events in log order."""

    rows: int = 0
    buffered: Sequence[Streamed] = ()
    received: Mapping[str, int | None] = field(default_factory=dict)  # rev of a buffered event → the log's time


@dataclass(slots=True)
class WriteBatch:
    """Writes, in this order: drop_buffered, buffered, drop_rows, rows. Then read facts for `awaiting` (DID → attempt)."""

    awaiting: dict[str, int] = field(default_factory=dict)
    buffered: list[tuple[str, int, Streamed]] = field(default_factory=list)
    buffered_at: dict[tuple[str, int], int | None] = field(default_factory=dict)  # (DID, offset) → received
    drop_buffered: set[str] = field(default_factory=set)
    drop_rows: list[tuple[str, int | None]] = field(default_factory=list)
    rows: dict[str, dict[Path, Row | None]] = field(default_factory=dict)  # None: delete the row
    deleted: dict[Key, int | None] = field(default_factory=dict)  # by an operation → `came_at` of it
    replaced: dict[Key, list[tuple[Row, int | None]]] = field(default_factory=dict)
    """Rows of this batch that a later operation of it replaced or deleted, each with `came_at` of that operation."""
    fresh: set[str] = field(default_factory=set)  # DIDs that have no rows yet: COPY
    forget: set[str] = field(default_factory=set)  # DIDs whose cached DID document may be out of date
    dropped: Counter[str] = field(default_factory=Counter)
    released: dict[str, tuple[int, int]] = field(default_factory=dict)  # DID → (released, buffered) events


Settling = Generator[WriteBatch, Mapping[str, DatabaseFacts], dict[str, Repo]]


def settle(
    repos: Mapping[str, Repo], queues: Mapping[str, Sequence[OffsetEvent]], rules: Rules = gate.RULES
) -> Settling:
    """Yields write batches; returns the repos after all events. `repos` must have every DID of `queues`."""
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
    """Decide one repo's events until the queue is empty, or an outcome needs facts."""
    while queue:
        first = queue[0]
        event = first.event
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
            transition = _decide(repo, first, rules)
            _take(repo, transition, first.offset, writes, rules, received={_rev(event): first.received})
            repo = transition.repo
        queue.popleft()
    return repo


def _rev(event: Event) -> str:
    return event.rev or "" if isinstance(event, Streamed) else ""


def _decide(repo: Repo, queued: OffsetEvent, rules: Rules) -> Transition:
    event = queued.event
    if isinstance(event, wire.AccountEvent):
        return gate.on_account(repo, event)
    if isinstance(event, wire.IdentityEvent):
        return gate.on_identity(repo, event)
    assert isinstance(event, Streamed)  # noqa: S101  # _advance handles creates and outcomes
    return gate.on_live(repo, event, rules, queued.size)


def _creates(repo: Repo, queue: deque[OffsetEvent], first: wire.CreateEvent, writes: WriteBatch, rules: Rules) -> Repo:
    """Consecutive records of one attempt and rev: one decision for all of them."""
    attempt, rev = first.attempt, first.rev
    transition = gate.on_create(repo, attempt, rev)
    _take(repo, transition, queue[0].offset, writes, rules, count=0)
    refused = next((effect.reason for effect in transition.effects if isinstance(effect, Drop)), None)
    rows = writes.rows.setdefault(repo.did, {}) if refused is None else {}
    if refused is None and transition.repo.first_attempt == attempt:
        writes.fresh.add(repo.did)
    did, run, left_out = repo.did, 0, 0
    # False for a first fetch, and after a change of the filter: a fetch may then have collections left out before
    known = repo.rev and transition.repo.rev and transition.repo.first_attempt != attempt and rules.filter.version == 1
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
        return transition.repo
    if left_out:
        writes.dropped[Reason.FILTERED] += left_out
    return gate.leave_out(transition.repo, left_out, rules)


def _outcome(repo: Repo, event: wire.RepoOutcome, facts: DatabaseFacts, writes: WriteBatch, rules: Rules) -> Repo:
    transition = gate.on_outcome(repo, event, facts.rows, facts.buffered, rules)
    _take(repo, transition, -1, writes, rules, received=facts.received)
    if facts.buffered and transition.repo.phase != repo.phase:
        released = sum(effect.released for effect in transition.effects if isinstance(effect, DropBuffered))
        writes.released[repo.did] = (released, len(facts.buffered))
    return transition.repo


def _take(
    repo: Repo,
    transition: Transition,
    offset: int,
    writes: WriteBatch,
    rules: Rules,
    *,
    count: int = 1,
    received: Mapping[str, int | None] | None = None,
) -> None:
    times = received or {}
    for effect in transition.effects:
        match effect:
            case Apply(event):
                _apply(transition.repo, event, writes, rules, times.get(event.rev))
            case Buffer(event):
                writes.buffered.append((repo.did, offset, event))
                writes.buffered_at[repo.did, offset] = times.get(event.rev)
            case DropBuffered():
                # Also what this batch buffered before; a reopened backfill may buffer more after this.
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
    writes.fresh.discard(repo.did)  # a live operation may replace an existing row
    keeps = None if rules.filter.everything else rules.filter.keeps
    for op in event.ops:
        path = (op.collection, op.rkey)
        if keeps is not None and not keeps(op.collection):
            writes.dropped[Reason.FILTERED] += 1
            if not rules.filter.clean:
                rows[path] = None  # a row written before the filter is out of date now
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
