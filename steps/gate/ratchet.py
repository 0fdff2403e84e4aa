"""The ratchet of a repo: whether an #account or #identity event is newer than the last one applied. Pure.

These events have no rev. Within one relay the sequence number decides. Their `time` cannot: relays pass on the time of a PDS,
even if its clock is wrong, and stamp takedowns with their own clock. Between relays, whose sequences cannot be compared, time
decides, for #account and #identity separately: otherwise an #identity would outdate an earlier #account that a slower relay
delivers after it. The firehose limits a time to the time of receipt, so a clock that is ahead gains nothing.

A repo stores relay, seq and time of the last event applied (`Position`). The JSON in `account_seen` adds the highest seq seen of
each other relay, and relay and time of the last event of each kind if they differ from the `Position`. An event at or below a seq
seen was decided before, so a replay changes nothing. Times never decrease. When a relay restarts its sequence, a new `epoch`
begins, which counts as another relay.
"""

import json
from dataclasses import dataclass, field

from msgspec.structs import replace

from schemas import wire
from steps.gate.model import Repo

MAX_RELAYS = 8
"""Sequences stored of other relays and earlier epochs; the oldest entry is dropped."""

Position = tuple[str, int, str]
"""Relay (with its epoch) and seq of the last event applied, and the highest time of any."""


@dataclass(slots=True)
class _Others:
    """What differs from the `Position`: highest seqs of other relays, and kind → (relay, time) of its last event."""

    seqs: dict[str, int] = field(default_factory=dict)
    last: dict[str, tuple[str, str]] = field(default_factory=dict)


def position(repo: Repo) -> Position:
    """The position of the repo's ratchet."""
    return (repo.account_relay, repo.account_seq, repo.account_time)


def advanced(repo: Repo, event: wire.AccountEvent | wire.IdentityEvent) -> tuple[Repo, bool]:
    """The repo after this event, and whether the event is newer than the last one applied."""
    source, seq, time = source_of(event), event.seq, event.time
    here, _, highest = position(repo)
    if not source and not here:  # by an old version of Sluice: compare time, then seq
        if (time, seq) <= (highest, repo.account_seq):
            return repo, False
        return replace(repo, account_seq=seq, account_time=time), True
    more = _read(repo.account_seen)
    if seq <= max(repo.account_seq if source == here else -1, more.seqs.get(source, -1)):
        return repo, False
    kind = "a" if isinstance(event, wire.AccountEvent) else "i"
    other = "i" if kind == "a" else "a"
    relay, newest = more.last.get(kind, (here, highest))
    if source != relay and time <= newest:
        more.seqs[source] = seq
        return replace(repo, account_seen=_text(more)), False
    more.seqs.pop(source, None)
    if here not in ("", source):
        more.seqs[here] = max(repo.account_seq, more.seqs.get(here, -1))
    top = max(time, highest)
    last = {kind: (source, max(time, newest)), other: more.last.get(other, (here, highest))}
    more.last = {name: one for name, one in last.items() if one != (source, top)}
    return replace(repo, account_relay=source, account_seq=seq, account_time=top, account_seen=_text(more)), True


def adopted(repo: Repo, outcome: wire.RepoOutcome) -> Repo:
    """The repo with the ratchet of an outcome, if that is newer: a log replayed into another database."""
    relay, seq, time = of_claim(outcome)
    same_time = time == repo.account_time and relay == repo.account_relay
    newer = time > repo.account_time or (same_time and seq > repo.account_seq)
    if not newer:
        return repo
    seen = outcome.account_seen
    return replace(repo, account_relay=relay, account_seq=seq, account_time=time, account_seen=seen)


def of_claim(outcome: wire.RepoOutcome) -> Position:
    """The position of the ratchet when the attempt of this outcome was claimed."""
    return (outcome.account_relay, outcome.account_seq, outcome.account_time)


def identity_changed(repo: Repo, outcome: wire.RepoOutcome) -> bool:
    """Whether an #identity event was applied after the attempt of this outcome was claimed."""
    return _last_identity(position(repo), repo.account_seen) != _last_identity(of_claim(outcome), outcome.account_seen)


def source_of(event: wire.AccountEvent | wire.IdentityEvent) -> str:
    """The sequence that the seq of the event belongs to: a relay, with its epoch."""
    return f"{event.relay}#{event.epoch}" if event.epoch else event.relay


def _last_identity(at: Position, seen: str) -> tuple[str, str]:
    """Relay and time of the last #identity event."""
    relay, _, highest = at
    return _read(seen).last.get("i", (relay, highest))


def _read(text: str) -> _Others:
    if not text:
        return _Others()
    value = json.loads(text)
    return _Others(value.get("s", {}), {kind: (value[kind][0], value[kind][1]) for kind in ("a", "i") if kind in value})


def _text(more: _Others) -> str:
    """JSON; the relays inserted last are kept."""
    kept = dict(list(more.seqs.items())[-MAX_RELAYS:])
    value: dict[str, object] = {"s": kept} if kept else {}
    value |= {kind: list(one) for kind, one in sorted(more.last.items())}
    return json.dumps(value, separators=(",", ":")) if value else ""
