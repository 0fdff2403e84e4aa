"""Signatures of commits and labels, a batch at a time: what their account or labeler did not sign is refused.

A key may have changed since we learned it. An #identity in the batch makes what follows it ask anew; a signature that does
not verify makes the DID resolve once more, at most once in `SLUICE_RERESOLVE_SECONDS`, before the commit is refused.

A labeler may write any `src` into its labels, and each one that nobody knows is a question to the directory, or to a silent
did:web, that all labelers wait for. So a URL may have a few sources looked for that it has not proven to be its own, and one
more a minute; what was found of one holds meanwhile, and labels of any further one are refused without a look.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from connectors import metrics
from connectors.keyring import KeyRing, Lack
from schemas.settings import Check
from steps.frames import Identity
from steps.labels import LabelReason, LabelRejected, label_signed
from steps.syntax import is_did
from steps.verify_commit import Refused, Verified, VerifyReason, signed

STRANGER_LOOKS = 4  # at sources that a URL has not proven to be its own
STRANGER_SECONDS = 60.0  # after so long one look more
FOREIGN_SECONDS = 240.0  # that another URL's source stays one without a look
SOURCES_KEPT = 1000  # of a URL: what was found of its strangers, and those it has proven

M = TypeVar("M")
Key = str | Lack | None


class CommitSignatures:
    """See the module. `ring` gives the account's #atproto key (did:key), None where its document has none."""

    def __init__(self, flow: str, ring: KeyRing[str | None], check: Check) -> None:
        self._flow = flow
        self._ring = ring
        self._check = check

    def check(self, messages: Sequence[M]) -> list[M | Verified | Refused]:
        """The same messages in the same order. Waits for a directory that is away; raises Stopping."""
        old, new, changed = self._dids(messages)
        keys: dict[tuple[str, bool], Key] = {}
        if self._check is not Check.OFF:
            keys = {(did, False): key for did, key in self._ring.find(old).items()}
        self._ring.forget(changed)
        if self._check is Check.OFF:
            return list(messages)
        keys |= {(did, True): key for did, key in self._ring.find(new).items()}
        checked: list[M | Verified | Refused] = []
        wrong: dict[int, tuple[Verified, Key]] = {}
        changed = set()
        for index, message in enumerate(messages):
            if isinstance(message, Identity):
                changed.add(message.did)
            elif isinstance(message, Verified):
                did = message.event.did
                key = keys[did, did in changed]
                if type(key) is not str or not signed(message, key):
                    wrong[index] = (message, key)
            checked.append(message)
        if wrong:
            self._look_again(checked, wrong)
        return checked

    @staticmethod
    def _dids(messages: Sequence[object]) -> tuple[set[str], set[str], set[str]]:
        """DIDs of commits before an #identity of theirs in this batch, of those behind one, and of the #identities."""
        old: set[str] = set()
        new: set[str] = set()
        changed: set[str] = set()
        for message in messages:
            if isinstance(message, Identity):
                changed.add(message.did)
            elif isinstance(message, Verified):
                (new if message.event.did in changed else old).add(message.event.did)
        return old, new, changed

    def _look_again(self, checked: list[M | Verified | Refused], wrong: dict[int, tuple[Verified, Key]]) -> None:
        """Today's keys for what did not verify; what still does not is refused in place."""
        dids = {message.event.did for message, key in wrong.values() if not isinstance(key, Lack)}
        keys = self._ring.find_again(dids)
        for index, (message, old) in wrong.items():
            key = keys.get(message.event.did, old)
            if type(key) is str and signed(message, key):
                continue
            refused = _refusal(key)
            if self._check is Check.COUNT:
                checked[index] = msgspec.structs.replace(message, counted=(*message.counted, refused.reason))
            else:
                checked[index] = msgspec.structs.replace(refused, did=message.event.did)
            metrics.REJECTED.labels(self._flow, refused.reason.value).inc()


def _refusal(key: Key) -> Refused:
    if key is None:
        return Refused(VerifyReason.NO_KEY, "the account's document has no #atproto key")
    if isinstance(key, Lack):
        return Refused(VerifyReason.NO_KEY, f"the account's document: {key.value}")
    return Refused(VerifyReason.BAD_SIGNATURE, f"not by {key}")


class Signer(NamedTuple):
    """What a labeler's DID document says: its #atproto_label key (did:key) and its #atproto_labeler service (origin)."""

    key: str | None
    url: str | None


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


class LabelSignatures:
    """The same for labels; their `src` must also be a labeler whose document names the URL that sent them."""

    def __init__(
        self, flow: str, ring: KeyRing[Signer], check: Check, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._flow = flow
        self._ring = ring
        self._check = check
        self._clock = clock
        self._sources: dict[str, _Sources] = {}

    def check(self, labels: Sequence[tuple[str, Any]]) -> list[LabelRejected | None]:
        """(URL of the labeler, the label as it came) → what is wrong with each. One without a `src` is not looked at."""
        if self._check is Check.OFF:
            return [None] * len(labels)
        found = self._verdicts(labels)
        for why in found:
            if why is not None:
                metrics.REJECTED.labels(self._flow, why.reason.value).inc()
        if self._check is Check.COUNT:
            for why in found:
                if why is not None:
                    metrics.LOOSENED.labels(self._flow, why.reason.value).inc()
            return [None] * len(labels)
        return found

    def _verdicts(self, labels: Sequence[tuple[str, Any]]) -> list[LabelRejected | None]:
        now = self._clock()
        named = [(url, src) for url, value in labels if (src := _source(value)) is not None]
        for url in {url for url, _ in named} - self._sources.keys():
            self._sources[url] = _Sources(url, now)
        seen = {one for one in dict.fromkeys(named) if self._sources[one[0]].may_look(one[1], now)}
        signers = self._ring.find({src for _, src in seen})
        found = [self._wrong(url, value, signers, seen) for url, value in labels]
        doubtful = {(url, _source(value)) for (url, value), why in zip(labels, found, strict=True) if why is not None}
        newer = self._ring.find_again({src for url, src in seen if (url, src) in doubtful})
        signers |= newer
        for at, why in enumerate(found):
            if why is not None and _source(labels[at][1]) in newer:
                found[at] = self._wrong(*labels[at], signers, seen)
        for url, src in seen:
            self._sources[url].found(src, _foreign(url, src, signers[src]), now)
        return found

    def _wrong(
        self, url: str, value: Any, signers: dict[str, Signer | Lack], seen: Collection[tuple[str, str]]
    ) -> LabelRejected | None:
        src = _source(value)
        if src is None:
            return None  # refused for its form
        if (url, src) not in seen:
            return self._sources[url].unseen(src)
        signer = signers[src]
        foreign = _foreign(url, src, signer)
        if foreign is not None or isinstance(signer, Lack):
            return foreign
        if signer.key is None:
            return LabelRejected(LabelReason.NO_KEY, f"the document of {src} has no #atproto_label key")
        if not label_signed(value, signer.key):
            return LabelRejected(LabelReason.BAD_SIGNATURE, f"not by {signer.key}")
        return None


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
