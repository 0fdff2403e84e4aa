"""Signatures of labels: what its labeler did not sign is refused, and what waits for a key is deferred beside the stream.

A frame whose source's key is not known waits, and behind it every later frame of its labeler, in order; other labelers pass.
A key may have changed since we learned it: a signature that does not verify makes the source resolve once more, at most once
in `SLUICE_RERESOLVE_SECONDS`, before the label is refused.

A labeler may write any `src` into its labels, and each one that nobody knows is a question to the directory, or to a silent
did:web. So a URL may have a few sources looked for that it has not proven to be its own, and one more a minute; what was found
of one holds meanwhile, and labels of any further one are refused without a look.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from connectors.identity.commit_signatures import RELEASE_BYTES, TRUSTED_BYTES, Arrived
from connectors.identity.key_ring import Key, KeyRing, Lack
from connectors.runtime import metrics
from protocol.enforcement import Enforcement
from protocol.event_stream import Labels
from protocol.labels import LabelReason, LabelRejected, label_signed
from protocol.syntax import is_did
from steps.deferred import Deferred

STRANGER_LOOKS = 4  # at sources that a URL has not proven to be its own
STRANGER_SECONDS = 60.0  # after so long one look more
FOREIGN_SECONDS = 240.0  # that another URL's source stays one without a look
SOURCES_KEPT = 1000  # of a URL: what was found of its strangers, and those it has proven

A = TypeVar("A", bound=Arrived)


class Signer(NamedTuple):
    """What a labeler's DID document says: its #atproto_label key (did:key) and its #atproto_labeler service (origin)."""

    key: str | None
    url: str | None


class Judged(NamedTuple, Generic[A]):
    """A frame, and what is wrong with its labels by their index."""

    item: A
    wrong: dict[int, LabelRejected]


@dataclass(slots=True)
class _Open:
    """What is known about the first deferred frame of a URL. `final`: its doubtful sources have been looked up again."""

    seen: set[str]
    signers: dict[str, Key["Signer"]]
    missing: set[str] = field(default_factory=set)
    final: bool = False


class _Sources:
    """Sources that one URL's labels name: those proven to be its own, and what was wrong with others until when."""

    def __init__(self, url: str, now: float) -> None:
        self._url = url
        self._proven: OrderedDict[str, None] = OrderedDict()
        self._wrong: OrderedDict[str, tuple[LabelRejected, float]] = OrderedDict()
        self._looks, self._at = float(STRANGER_LOOKS), now

    def may_look(self, src: str, now: float) -> bool:
        """Whether this source may be looked for, which for a stranger uses up a look."""
        if src in self._proven:
            return True
        if src in self._wrong and self._wrong[src][1] > now:
            return False
        self._looks = min(STRANGER_LOOKS, self._looks + (now - self._at) / STRANGER_SECONDS)
        self._at = now
        if self._looks < 1:
            return False
        self._looks -= 1
        return True

    def found(self, src: str, wrong: LabelRejected | None, now: float) -> None:
        """What a look at this source showed; None: it is this URL's."""
        for kept in (self._proven, self._wrong):
            kept.pop(src, None)
            while len(kept) >= SOURCES_KEPT:
                kept.popitem(last=False)
        if wrong is None:
            self._proven[src] = None
        else:
            holds = FOREIGN_SECONDS if wrong.reason is LabelReason.BAD_SRC else STRANGER_SECONDS
            self._wrong[src] = wrong, now + holds

    def unseen(self, src: str) -> LabelRejected:
        """Why a label is refused whose source may not be looked for now."""
        if src in self._wrong:
            return self._wrong[src][0]
        return LabelRejected(LabelReason.BAD_SRC, f"{self._url} names too many sources to look for {src}")


class LabelSignatures(Generic[A]):
    """See the module. The `src` of labels must also be a labeler whose document names the URL that sent them."""

    def __init__(
        self,
        flow: str,
        ring: KeyRing[Signer],
        check: Enforcement,
        deferred: Deferred[A],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._flow = flow
        self._ring = ring
        self._check = check
        self._deferred = deferred
        self._clock = clock
        self._sources: dict[str, _Sources] = {}
        self._open: dict[str, _Open] = {}  # of the URLs that are deferred
        self._ready: dict[str, None] = {}  # those whose first frame can be judged

    def check(self, batch: Sequence[A]) -> list[Judged[A]]:
        """What can be judged now: first the deferred frames whose keys have come, then this batch's."""
        out: list[Judged[A]] = []
        self._release(out)
        for one in batch:
            url = one.frame.upstream
            if one.message is None:
                continue
            if url in self._deferred:
                self._defer(url, one, out)
            elif not isinstance(one.message, Labels):
                out.append(Judged(one, {}))
            elif (open_ := self._judge(one, None, out)) is not None:
                self._wait(url, open_)
                self._defer(url, one, out)
        return out

    def _release(self, out: list[Judged[A]]) -> None:
        """The frames whose keys have come, so many at once as a batch may have."""
        for did, key in self._ring.answers().items():
            for url, open_ in self._open.items():
                if did in open_.missing:
                    open_.missing.remove(did)
                    open_.signers[did] = key
                    if not open_.missing:
                        self._ready[url] = None
        ready, self._ready = self._ready, {}
        room = RELEASE_BYTES
        for url in ready:
            room = self._resume(url, out, room)
        self._deferred.more = bool(self._ready)

    def _resume(self, url: str, out: list[Judged[A]], room: int) -> int:
        """The frames of a URL whose first one has its keys, until one waits for another key. What is left of the room."""
        if room <= 0:
            self._ready[url] = None
            return room
        open_ = self._open.pop(url, None)
        entries = self._deferred.take(url)
        for at, entry in enumerate(entries):
            if room > 0:
                room -= len(entry.item.frame.data)
                open_ = self._judge(entry.item, open_, out)
                if open_ is None:
                    continue
                self._wait(url, open_)
            else:
                self._ready[url] = None
            self._deferred.put_back(url, entries[at:])
            break
        return room

    def _wait(self, url: str, open_: _Open) -> None:
        self._open[url] = open_
        self._ring.ask(open_.missing)

    def _defer(self, url: str, one: A, out: list[Judged[A]]) -> None:
        """Behind the others of its URL. Where untrusted hosts have used up their bytes, nothing waits for them."""
        message = one.message
        if not isinstance(message, Labels):  # refused already: it waits for nothing
            out.append(Judged(one, {}))
            return
        size, trusted = len(one.frame.data), self._trusted(url)
        self._deferred.add(url, one, size, upstream=url, seq=message.seq, trusted=trusted)
        while url in self._deferred and self._deferred.full(trusted=False) and not self._trusted(url):
            open_ = self._open[url]
            open_.signers |= dict.fromkeys(open_.missing, Key[Signer](Lack.UNREACHABLE, None))
            open_.missing.clear()
            self._resume(url, out, TRUSTED_BYTES)

    def _trusted(self, url: str) -> bool:
        """Whether a URL's frames wait for nothing but the PLC directory or this process."""
        return url not in self._open or any(did.startswith("did:plc:") for did in self._open[url].missing)

    def _judge(self, one: A, open_: _Open | None, out: list[Judged[A]]) -> _Open | None:
        """Judge a frame into `out`, or what is to be looked up for it first."""
        url, labels, now = one.frame.upstream, one.message.labels, self._clock()
        sources = self._sources.setdefault(url, _Sources(url, now))
        named = dict.fromkeys(src for value in labels if (src := _source(value)) is not None)
        if open_ is None:
            seen = {src for src in named if sources.may_look(src, now)}
            known = self._ring.known(seen)
            open_ = _Open(seen, {src: Key(signer, None) for src, signer in known.items()}, seen.difference(known))
            if open_.missing:
                return open_
        found = [self._wrong(url, value, open_) for value in labels]
        if not open_.final:
            doubtful = {_source(value) for value, why in zip(labels, found, strict=True) if why is not None}
            signers = open_.signers
            open_.missing = {
                src for src in open_.seen & doubtful if not isinstance(signers[src].value, Lack) and self._ring.due(src)
            }
            if open_.missing:
                open_.final = True
                return open_
        for src in open_.seen:
            sources.found(src, _foreign(url, src, open_.signers[src].value), now)
        out.append(Judged(one, self._counted({at: why for at, why in enumerate(found) if why is not None})))
        return None

    def _counted(self, wrong: dict[int, LabelRejected]) -> dict[int, LabelRejected]:
        for why in wrong.values():
            metrics.REJECTED.labels(self._flow, why.reason.value).inc()
            if self._check is Enforcement.REPORT:
                metrics.REPORTED_FAILURES.labels(self._flow, why.reason.value).inc()
        return {} if self._check is Enforcement.REPORT else wrong

    def _wrong(self, url: str, value: Any, open_: _Open) -> LabelRejected | None:
        src = _source(value)
        if src is None:
            return None  # refused for its form
        if src not in open_.seen:
            return self._sources[url].unseen(src)
        signer = open_.signers[src]
        known = signer.value if not isinstance(signer.value, Lack) or signer.old is None else signer.old
        foreign = _foreign(url, src, known)
        if foreign is not None or isinstance(known, Lack):
            return foreign
        if known.key is None:
            return LabelRejected(LabelReason.NO_KEY, f"the document of {src} has no #atproto_label key")
        if label_signed(value, known.key):
            return None
        if isinstance(signer.value, Lack):
            return _foreign(url, src, signer.value)
        return LabelRejected(LabelReason.BAD_SIGNATURE, f"not by {known.key}")


def _foreign(url: str, src: str, signer: Signer | Lack) -> LabelRejected | None:
    """Why this source is not known to be the labeler at this URL."""
    if isinstance(signer, Lack):
        return LabelRejected(LabelReason.NO_KEY, f"the document of {src}: {signer.value}")
    if signer.url is None or not same_origin(signer.url, url):
        return LabelRejected(LabelReason.BAD_SRC, f"{src} is the labeler at {signer.url}, not at {url}")
    return None


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs name one server; ports that their scheme implies, and upper case, make no difference."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return (parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme))


def _source(value: Any) -> str | None:
    src = value.get("src") if type(value) is dict else None
    return src if type(src) is str and is_did(src) else None
