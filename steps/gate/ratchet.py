"""The ratchet of a repo's #account and #identity events: which of them is newer than what was applied. Pure.

Such events have no rev. Within one relay the sequence number decides: relays pass a PDS's `time` through, whatever its clock
says, and stamp their own takedowns with their own clock. Between relays, whose sequences cannot be compared, time decides,
among events of one kind: an #identity does not make an #account of a relay that lags an older one. The firehose writes a time
ahead of its receipt as its receipt, so that a clock ahead gains nothing.

A repo remembers relay, seq and time of the last event applied (its `Stand`), and as JSON what differs from that: the highest
seq seen of other relays, and relay and time of the last event of each kind. An event at or below a seq that was seen was
settled before, so a replay changes nothing. Times never fall. A relay that counts anew begins a new `epoch`, which is compared
with the old one like another relay.
"""

import json
from dataclasses import dataclass, field, replace

from schemas import wire
from steps.gate.model import Repo

MAX_RELAYS = 8
"""Sequences remembered of other relays (and earlier epochs); the one that was noted first goes."""

Stand = tuple[str, int, str]
"""Relay (with its epoch), seq and time of the last event applied. The time is the highest of any."""


@dataclass(slots=True)
class _More:
    """What a `Stand` does not tell: highest seqs seen, and kind → (relay, time) of its last event where it is another."""

    seqs: dict[str, int] = field(default_factory=dict)
    last: dict[str, tuple[str, str]] = field(default_factory=dict)


def stand(repo: Repo) -> Stand:
    """Where the repo's ratchet stands."""
    return (repo.account_relay, repo.account_seq, repo.account_time)


def advanced(repo: Repo, event: wire.AccountEvent | wire.IdentityEvent) -> tuple[Repo, bool]:
    """The repo after this event has been seen, and whether the event is newer than what was applied."""
    source, seq, time = source_of(event), event.seq, event.time
    here, _, highest = stand(repo)
    if not source and not here:  # of a release that named no relay: by time, then by seq
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
    """The repo with the ratchet that an outcome carries, where that is newer: in a log replayed into another database."""
    relay, seq, time = of_claim(outcome)
    same_time = time == repo.account_time and relay == repo.account_relay
    newer = time > repo.account_time or (same_time and seq > repo.account_seq)
    if not newer:
        return repo
    seen = outcome.account_seen
    return replace(repo, account_relay=relay, account_seq=seq, account_time=time, account_seen=seen)


def of_claim(outcome: wire.RepoOutcome) -> Stand:
    """Where the ratchet stood when the outcome's attempt was claimed."""
    return (outcome.account_relay, outcome.account_seq, outcome.account_time)


def source_of(event: wire.AccountEvent | wire.IdentityEvent) -> str:
    """The sequence that the event's seq belongs to."""
    return f"{event.relay}#{event.epoch}" if event.epoch else event.relay


def _read(text: str) -> _More:
    if not text:
        return _More()
    value = json.loads(text)
    return _More(value.get("s", {}), {kind: (value[kind][0], value[kind][1]) for kind in ("a", "i") if kind in value})


def _text(more: _More) -> str:
    """Insertion order says which relay goes."""
    kept = dict(list(more.seqs.items())[-MAX_RELAYS:])
    value: dict[str, object] = {"s": kept} if kept else {}
    value |= {kind: list(one) for kind, one in sorted(more.last.items())}
    return json.dumps(value, separators=(",", ":")) if value else ""
