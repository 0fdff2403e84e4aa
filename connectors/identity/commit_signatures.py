"""Verifies signatures of commits, and defers events while the account's key is unknown.

A commit whose key is unknown is deferred, and so is every later event of its DID, in order. Other DIDs are not affected.

A stored key may be outdated. After an #identity event the key is looked up again. After a signature that does not verify, the
DID is resolved once more, at most once in `reresolve_seconds` (schemas/tuning.py), before the commit is refused.

A commit whose key cannot be found is refused as `no_key`, and `unproven` removes it from the dedup cache, so that a later copy
of it is checked again.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import msgspec

from connectors.atproto.deferred_events import RELEASE_BYTES, HasFrame, seq_of
from connectors.identity.key_ring import Key, KeyRing, KeyUnavailable
from connectors.runtime import metrics
from protocol.enforcement import Enforcement
from protocol.event_stream import Account, Identity
from protocol.verify_commit import Refused, Verified, VerifyReason, signed
from steps.deferred import Deferred

_NO_ANSWER = Key[str | None](KeyUnavailable.UNREACHABLE, None)  # for events of untrusted hosts above the limit

A = TypeVar("A", bound=HasFrame)


class CommitSignatures(Generic[A]):
    """The check for one flow. `ring`: each account's #atproto key (did:key), None if its document has none.

    `identity`: message → key of the dedup cache. `unproven`: called with a commit refused without a key.
    """

    def __init__(
        self,
        flow: str,
        ring: KeyRing[str | None],
        enforcement: Enforcement,
        deferred: Deferred[A],
        *,
        identity: Callable[[object], Hashable],
        unproven: Callable[[object], None],
    ) -> None:
        self._flow = flow
        self._ring = ring
        self._enforcement = enforcement
        self._deferred = deferred
        self._identity = identity
        self._unproven = unproven
        self._ready: dict[str, Key[str | None]] = {}  # deferred DIDs whose key has arrived
        self._asked_behind: dict[str, int] = {}  # deferred DID → number of its events older than the lookup

    def check(self, batch: Sequence[A]) -> list[A]:
        """Events that are decided now: first the deferred events whose key has arrived, then this batch's."""
        out: list[A] = []
        self._release(out)
        known, outdated = self._known(batch), set[str]()
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
                outdated.add(did)
                out.append(one)
            elif not isinstance(message, Verified):
                out.append(one)
            elif did in outdated or did not in known or not self._judge(one, known[did], out):
                self._defer(did, one, out)
        return out

    def _known(self, batch: Sequence[A]) -> dict[str, Key[str | None]]:
        """Keys that need no network. Removes the keys of accounts with an #identity in this batch from the ring."""
        dids = {one.message.event.did for one in batch if isinstance(one.message, Verified)}
        found = self._ring.known([did for did in dids if did not in self._deferred])
        known = {did: Key(key, None) for did, key in found.items()}
        changed = {one.message.did for one in batch if isinstance(one.message, Identity)}
        self._ring.forget([did for did in changed if did not in self._deferred])
        return known

    def _judge(self, one: A, key: Key[str | None], out: list[A], *, final: bool = False) -> bool:
        """Append a commit, or its refusal, to `out`. False: the signature is invalid and the key must be resolved again."""
        message = one.message
        if _signed(message, key):
            out.append(one)
        elif final or isinstance(key.value, KeyUnavailable) or not self._ring.due(message.event.did):
            out.append(self._refused(one, key))
        else:
            return False
        return True

    def _defer(self, did: str, one: A, out: list[A]) -> None:
        """Defer an event after the others of its DID. Above the limit of untrusted hosts, refuse all of them instead."""
        trusted = did.startswith("did:plc:")
        if not trusted and self._deferred.full(trusted=False):
            self._asked_behind.pop(did, None)
            self._ready.pop(did, None)
            self._give_up([*self._deferred.take(did), one], out)
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

    def _give_up(self, events: Sequence[A], out: list[A]) -> None:
        for one in events:
            if isinstance(one.message, Verified):
                self._judge(one, _NO_ANSWER, out, final=True)
                continue
            out.append(one)
            if isinstance(one.message, Identity):
                self._ring.forget([one.message.did])

    def _ask(self, did: str, older_events: int) -> None:
        self._asked_behind[did] = older_events
        self._ring.ask([did])

    def _release(self, out: list[A]) -> None:
        """Check the deferred events whose key has arrived, up to RELEASE_BYTES of frames."""
        ready, self._ready = self._ready | self._ring.answers(), {}
        room = RELEASE_BYTES
        for did, key in ready.items():
            room = self._resume(did, key, out, room)
        self._deferred.more = bool(self._ready)

    def _resume(self, did: str, key: Key[str | None], out: list[A], room: int) -> int:
        """Check the deferred events of a DID; returns the remaining room in bytes.

        Commits after an #identity that is newer than the lookup stay deferred, and the key is looked up again.
        """
        older, taken, changed = self._asked_behind.pop(did, 0), 0, False

        def accept(one: A) -> bool:
            nonlocal taken, changed
            is_commit = isinstance(one.message, Verified)
            if changed and is_commit:
                return False
            if isinstance(one.message, Identity) and taken >= older:
                self._ring.forget([did])
                changed = True
            if is_commit:
                self._judge(one, key, out, final=True)
            else:
                out.append(one)
            taken += 1
            return True

        room = self._deferred.release(did, room, accept)
        if did in self._deferred and changed:
            self._ask(did, self._deferred.count(did))
        elif did in self._deferred:
            self._ready[did], self._asked_behind[did] = key, max(0, older - taken)
        return room

    def _refused(self, one: A, key: Key[str | None]) -> A:
        refused = _refusal(key.value)
        metrics.REJECTED.labels(self._flow, refused.reason.value).inc()
        message: Verified = one.message
        if self._enforcement is Enforcement.REPORT:
            counted = msgspec.structs.replace(message, counted=(*message.counted, refused.reason))
            return _with(one, counted)
        if isinstance(key.value, KeyUnavailable):
            self._unproven(message)
        return _with(one, msgspec.structs.replace(refused, did=message.event.did))


def _did(message: object) -> str | None:
    """The repo of an event; None for a refused frame."""
    if isinstance(message, Verified):
        return message.event.did
    return message.did if isinstance(message, Identity | Account) else None


def _with(one: A, message: object) -> A:
    changed: A = msgspec.structs.replace(one, message=message)  # type: ignore[type-var]  # flows pass structs
    return changed


def _signed(message: Verified, key: Key[str | None]) -> bool:
    """Whether the signature is valid under the key, or under the previous key if the network did not answer."""
    if type(key.value) is str:
        return signed(message, key.value)
    return key.value is KeyUnavailable.UNREACHABLE and type(key.old) is str and signed(message, key.old)


def _refusal(key: str | KeyUnavailable | None) -> Refused:
    if key is None:
        return Refused(VerifyReason.NO_KEY, "the account's document has no #atproto key")
    if isinstance(key, KeyUnavailable):
        return Refused(VerifyReason.NO_KEY, f"the account's document: {key.value}")
    return Refused(VerifyReason.BAD_SIGNATURE, f"not by {key}")
