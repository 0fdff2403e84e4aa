"""Signatures of commits: what the account did not sign is refused, and what waits for a key is deferred beside the stream.

A commit whose key is not known waits, and behind it every later event of its DID, in order; other DIDs pass. A key may have
changed since we learned it. After an #identity the key is asked for anew; a signature that does not verify makes the DID
resolve once more, at most once in `SLUICE_RERESOLVE_SECONDS`, before the commit is refused. A commit whose key nobody could
tell is refused as `no_key`, and forgotten by `unproven`, so that another copy of it is judged again.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from connectors.atproto.stream_sockets import Frame
from connectors.identity.key_ring import Key, KeyRing, Lack
from connectors.runtime import metrics
from protocol.enforcement import Enforcement
from protocol.event_stream import Account, Identity
from protocol.verify_commit import Refused, Verified, VerifyReason, signed
from steps.deferred import Deferred, Entry

TRUSTED_BYTES = 64 * 1024 * 1024
UNTRUSTED_BYTES = 24 * 1024 * 1024
"""Deferred events that wait for the PLC directory: the stream waits beyond. For did:web hosts: refused beyond."""

RELEASE_BYTES = 6 * 1024 * 1024
"""Of frames that waited, given out at once: as many as a batch from the upstreams has."""

_UNKNOWN = Key[str | None](Lack.UNREACHABLE, None)  # of a host that is not waited for


class Arrived(Protocol):
    """A frame and what it says; a message of None only wakes the flow."""

    @property
    def frame(self) -> Frame: ...
    @property
    def message(self) -> Any: ...


A = TypeVar("A", bound=Arrived)


def deferred_events() -> Deferred[Any]:
    """An empty buffer of deferred events with its limits."""
    return Deferred(TRUSTED_BYTES, UNTRUSTED_BYTES)


def seq_of(message: Any) -> int:
    """The seq of an event of a repo."""
    return int(message.event.seq if isinstance(message, Verified) else message.seq)


class CommitSignatures(Generic[A]):
    """See the module. `ring` gives the account's #atproto key (did:key), None where its document has none."""

    def __init__(
        self,
        flow: str,
        ring: KeyRing[str | None],
        check: Enforcement,
        deferred: Deferred[A],
        *,
        identity: Callable[[object], Hashable],
        unproven: Callable[[object], None],
    ) -> None:
        self._flow = flow
        self._ring = ring
        self._check = check
        self._deferred = deferred
        self._identity = identity
        self._unproven = unproven
        self._ready: dict[str, Key[str | None]] = {}  # deferred DIDs whose key has come
        self._asked_for: dict[str, int] = {}  # deferred DID → its events that came before it was asked for

    def check(self, batch: Sequence[A]) -> list[A]:
        """What can be judged now: first the deferred events whose key has come, then this batch's."""
        out: list[A] = []
        self._release(out)
        known, stale = self._known(batch), set[str]()
        for one in batch:
            message = one.message
            if message is None:
                continue
            did = _did(message)
            if did is None:
                out.append(one)
            elif did in self._deferred:
                self._defer(did, one, out)
            elif isinstance(message, Identity):
                stale.add(did)
                out.append(one)
            elif not isinstance(message, Verified):
                out.append(one)
            elif did in stale or did not in known or not self._passes(one, known[did], out):
                self._defer(did, one, out)
        return out

    def _known(self, batch: Sequence[A]) -> dict[str, Key[str | None]]:
        """Keys that need no network. The #identities of the batch make what they are about unknown from then on."""
        dids = {one.message.event.did for one in batch if isinstance(one.message, Verified)}
        found = self._ring.known([did for did in dids if did not in self._deferred])
        known = {did: Key(key, None) for did, key in found.items()}
        changed = {one.message.did for one in batch if isinstance(one.message, Identity)}
        self._ring.forget([did for did in changed if did not in self._deferred])
        return known

    def _passes(self, one: A, key: Key[str | None], out: list[A], *, final: bool = False) -> bool:
        """Judge a commit into `out`. False: its signature does not verify, and the key is to be looked up again first."""
        message = one.message
        if _signed(message, key):
            out.append(one)
        elif final or isinstance(key.value, Lack) or not self._ring.due(message.event.did):
            out.append(self._refused(one, key))
        else:
            return False
        return True

    def _defer(self, did: str, one: A, out: list[A]) -> None:
        """Behind the others of its DID. Where untrusted hosts have used up their bytes, nothing waits for this one's."""
        trusted = did.startswith("did:plc:")
        if not trusted and self._deferred.full(trusted=False):
            self._asked_for.pop(did, None)
            self._ready.pop(did, None)
            self._settle([*(entry.item for entry in self._deferred.take(did)), one], out)
            return
        if did not in self._deferred:
            self._ask(did, 0)
        message = one.message
        self._deferred.add(
            did,
            one,
            len(one.frame.data),
            upstream=one.frame.upstream,
            seq=seq_of(message),
            trusted=trusted,
            mark=self._identity(message),
        )

    def _settle(self, events: Sequence[A], out: list[A]) -> None:
        for one in events:
            if not isinstance(one.message, Verified):
                out.append(one)
                if isinstance(one.message, Identity):
                    self._ring.forget([one.message.did])
            else:
                self._passes(one, _UNKNOWN, out, final=True)

    def _ask(self, did: str, events: int) -> None:
        self._asked_for[did] = events
        self._ring.ask([did])

    def _release(self, out: list[A]) -> None:
        """The events whose keys have come, so many at once as a batch may have."""
        ready, self._ready = self._ready | self._ring.answers(), {}
        room = RELEASE_BYTES
        for did, key in ready.items():
            room = self._resume(did, key, out, room)
        self._deferred.more = bool(self._ready)

    def _resume(self, did: str, key: Key[str | None], out: list[A], room: int) -> int:
        """The events of a DID whose key has come; those behind an #identity that is newer than the question wait once more.

        What is left of the room, in bytes.
        """
        entries: list[Entry[A]] = self._deferred.take(did)
        before, changed = self._asked_for.pop(did, 0), False
        for at, entry in enumerate(entries):
            one = entry.item
            if (changed and isinstance(one.message, Verified)) or room <= 0:
                self._deferred.put_back(did, entries[at:])
                if changed:
                    self._ask(did, len(entries) - at)
                else:
                    self._ready[did], self._asked_for[did] = key, max(0, before - at)
                break
            room -= len(one.frame.data)
            if isinstance(one.message, Identity) and at >= before:
                self._ring.forget([did])
                changed = True
            if isinstance(one.message, Verified):
                self._passes(one, key, out, final=True)
            else:
                out.append(one)
        return room

    def _refused(self, one: A, key: Key[str | None]) -> A:
        refused = _refusal(key.value)
        metrics.REJECTED.labels(self._flow, refused.reason.value).inc()
        message: Verified = one.message
        if self._check is Enforcement.REPORT:
            counted = msgspec.structs.replace(message, counted=(*message.counted, refused.reason))
            return _with(one, counted)
        if isinstance(key.value, Lack):
            self._unproven(message)
        return _with(one, msgspec.structs.replace(refused, did=message.event.did))


def _did(message: object) -> str | None:
    """Whose repo an event is about; None of what is refused already."""
    if isinstance(message, Verified):
        return message.event.did
    return message.did if isinstance(message, Identity | Account) else None


def _with(one: A, message: object) -> A:
    changed: A = msgspec.structs.replace(one, message=message)  # type: ignore[type-var]  # flows give structs
    return changed


def _signed(message: Verified, key: Key[str | None]) -> bool:
    """Whether the key signed it, or the one before where the network did not answer."""
    if type(key.value) is str:
        return signed(message, key.value)
    return key.value is Lack.UNREACHABLE and type(key.old) is str and signed(message, key.old)


def _refusal(key: str | Lack | None) -> Refused:
    if key is None:
        return Refused(VerifyReason.NO_KEY, "the account's document has no #atproto key")
    if isinstance(key, Lack):
        return Refused(VerifyReason.NO_KEY, f"the account's document: {key.value}")
    return Refused(VerifyReason.BAD_SIGNATURE, f"not by {key}")
