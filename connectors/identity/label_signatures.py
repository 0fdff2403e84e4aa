"""Verifies signatures of labels, and defers frames while a source's key is unknown.

The `src` of a label must be a labeler whose DID document names the URL that sent the label, and whose key signed it. A frame
with a source whose key is unknown is deferred, and so is every later frame of its URL, in order. Other URLs are not affected.

A stored key may be outdated: before a label is refused, its source is resolved once more, at most once in `reresolve_seconds`
(schemas/tuning.py). `label_sources` limits the lookups that a URL can cause.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from connectors.atproto.deferred_events import RELEASE_BYTES, TRUSTED_BYTES, HasFrame
from connectors.identity.key_ring import Key, KeyRing, KeyUnavailable
from connectors.identity.label_sources import LabelSources, Signer, foreign
from connectors.runtime import metrics
from protocol.enforcement import Enforcement
from protocol.event_stream import Labels
from protocol.labels import LabelReason, LabelRejected, label_signed
from protocol.syntax import is_did
from steps.deferred import Deferred

A = TypeVar("A", bound=HasFrame)


class CheckedFrame(NamedTuple, Generic[A]):
    """A frame. `wrong`: index of a refused label → reason."""

    item: A
    wrong: dict[int, LabelRejected]


@dataclass(slots=True)
class _Lookup:
    """The sources of the first deferred frame of a URL.

    `allowed`: sources that may be looked up. `missing`: those without a result. `final`: failed sources were resolved again.
    """

    allowed: set[str]
    signers: dict[str, Key["Signer"]]
    missing: set[str] = field(default_factory=set)
    final: bool = False


class LabelSignatures(Generic[A]):
    """The check for one flow. `ring`: each source's key and URL."""

    def __init__(
        self,
        flow: str,
        ring: KeyRing[Signer],
        enforcement: Enforcement,
        deferred: Deferred[A],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._flow = flow
        self._ring = ring
        self._enforcement = enforcement
        self._deferred = deferred
        self._clock = clock
        self._sources: dict[str, LabelSources] = {}
        self._lookups: dict[str, _Lookup] = {}  # of deferred URLs
        self._ready: dict[str, None] = {}  # deferred URLs whose first frame can be checked

    def check(self, batch: Sequence[A]) -> list[CheckedFrame[A]]:
        """Frames that are decided now: first the deferred frames whose keys have arrived, then this batch's."""
        out: list[CheckedFrame[A]] = []
        self._release(out)
        for one in batch:
            url = one.frame.upstream
            if one.message is None:
                continue
            if url in self._deferred:
                self._defer(url, one, out)
            elif not isinstance(one.message, Labels):
                out.append(CheckedFrame(one, {}))
            elif (lookup := self._judge(one, None, out)) is not None:
                self._look_up(url, lookup)
                self._defer(url, one, out)
        return out

    def _release(self, out: list[CheckedFrame[A]]) -> None:
        """Check the deferred frames whose keys have arrived, up to RELEASE_BYTES."""
        for did, key in self._ring.answers().items():
            for url, lookup in self._lookups.items():
                if did in lookup.missing:
                    lookup.missing.remove(did)
                    lookup.signers[did] = key
                    if not lookup.missing:
                        self._ready[url] = None
        ready, self._ready = self._ready, {}
        room = RELEASE_BYTES
        for url in ready:
            room = self._resume(url, out, room)
        self._deferred.more = bool(self._ready)

    def _resume(self, url: str, out: list[CheckedFrame[A]], room: int) -> int:
        """Check the deferred frames of a URL until one needs another key; returns the remaining room in bytes."""
        waits = False

        def accept(one: A) -> bool:
            nonlocal waits
            lookup = self._judge(one, self._lookups.pop(url, None), out)
            if lookup is not None:
                self._look_up(url, lookup)
                waits = True
            return not waits

        room = self._deferred.release(url, room, accept)
        if url in self._deferred and not waits:
            self._ready[url] = None
        return room

    def _look_up(self, url: str, lookup: _Lookup) -> None:
        self._lookups[url] = lookup
        self._ring.ask(lookup.missing)

    def _defer(self, url: str, one: A, out: list[CheckedFrame[A]]) -> None:
        """Defer a frame after the others of its URL. Above the limit of untrusted hosts, check them without the missing keys."""
        message = one.message
        if not isinstance(message, Labels):  # a rejected frame needs no key
            out.append(CheckedFrame(one, {}))
            return
        size, trusted = len(one.frame.data), self._trusted(url)
        self._deferred.add(url, one, size, upstream=url, seq=message.seq, trusted=trusted)
        while url in self._deferred and self._deferred.full(trusted=False) and not self._trusted(url):
            lookup = self._lookups[url]
            lookup.signers |= dict.fromkeys(lookup.missing, Key[Signer](KeyUnavailable.UNREACHABLE, None))
            lookup.missing.clear()
            self._resume(url, out, TRUSTED_BYTES)

    def _trusted(self, url: str) -> bool:
        """Whether the first frame of a URL waits for the PLC directory, or for no lookup."""
        return url not in self._lookups or any(did.startswith("did:plc:") for did in self._lookups[url].missing)

    def _judge(self, one: A, lookup: _Lookup | None, out: list[CheckedFrame[A]]) -> _Lookup | None:
        """Append a frame with its refused labels to `out`, or return the lookup that it needs first."""
        url, labels, now = one.frame.upstream, one.message.labels, self._clock()
        sources = self._sources.setdefault(url, LabelSources(url, now))
        if lookup is None:
            lookup = self._begin(labels, sources, now)
            if lookup.missing:
                return lookup
        found = [self._wrong(url, value, lookup) for value in labels]
        if not lookup.final:
            failed = {_source(value) for value, why in zip(labels, found, strict=True) if why is not None}
            signers = lookup.signers
            lookup.missing = {
                src
                for src in lookup.allowed & failed
                if not isinstance(signers[src].value, KeyUnavailable) and self._ring.due(src)
            }
            if lookup.missing:
                lookup.final = True
                return lookup
        for src in lookup.allowed:
            sources.found(src, foreign(url, src, lookup.signers[src].value), now)
        out.append(CheckedFrame(one, self._counted({at: why for at, why in enumerate(found) if why is not None})))
        return None

    def _begin(self, labels: list[Any], sources: LabelSources, now: float) -> _Lookup:
        """The sources of a frame: those known without the network, and the missing ones."""
        named = dict.fromkeys(src for value in labels if (src := _source(value)) is not None)
        allowed = {src for src in named if sources.may_look_up(src, now)}
        known = self._ring.known(allowed)
        return _Lookup(allowed, {src: Key(signer, None) for src, signer in known.items()}, allowed.difference(known))

    def _counted(self, wrong: dict[int, LabelRejected]) -> dict[int, LabelRejected]:
        for why in wrong.values():
            metrics.REJECTED.labels(self._flow, why.reason.value).inc()
            if self._enforcement is Enforcement.REPORT:
                metrics.REPORTED_FAILURES.labels(self._flow, why.reason.value).inc()
        return {} if self._enforcement is Enforcement.REPORT else wrong

    def _wrong(self, url: str, value: Any, lookup: _Lookup) -> LabelRejected | None:
        """Why a label is refused, or None. If the network did not answer, the previous key is used."""
        src = _source(value)
        if src is None:
            return None  # `parse_label` rejects it
        if src not in lookup.allowed:
            return self._sources[url].refusal(src)
        signer = lookup.signers[src]
        known = signer.value if not isinstance(signer.value, KeyUnavailable) or signer.old is None else signer.old
        other = foreign(url, src, known)
        if other is not None or isinstance(known, KeyUnavailable):
            return other
        if known.key is None:
            return LabelRejected(LabelReason.NO_KEY, f"the document of {src} has no #atproto_label key")
        if label_signed(value, known.key):
            return None
        if isinstance(signer.value, KeyUnavailable):
            return foreign(url, src, signer.value)
        return LabelRejected(LabelReason.BAD_SIGNATURE, f"not by {known.key}")


def _source(value: Any) -> str | None:
    src = value.get("src") if type(value) is dict else None
    return src if type(src) is str and is_did(src) else None
