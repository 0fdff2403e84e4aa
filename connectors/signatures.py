"""Signatures of commits and labels, a batch at a time: what their account or labeler did not sign is refused.

A key may have changed since we learned it. An #identity in the batch makes what follows it ask anew; a signature that does
not verify makes the DID resolve once more, at most once in `SLUICE_RERESOLVE_SECONDS`, before the commit is refused.
"""

from collections.abc import Sequence
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


class LabelSignatures:
    """The same for labels; their `src` must also be a labeler whose document names the URL that sent them."""

    def __init__(self, flow: str, ring: KeyRing[Signer], check: Check) -> None:
        self._flow = flow
        self._ring = ring
        self._check = check

    def check(self, labels: Sequence[tuple[str, Any]]) -> list[LabelRejected | None]:
        """(URL of the labeler, the label as it came) → what is wrong with each. One without a `src` is not looked at."""
        if self._check is Check.OFF:
            return [None] * len(labels)
        signers = self._ring.find({src for _, value in labels if (src := _source(value)) is not None})
        found = [self._wrong(url, value, signers) for url, value in labels]
        again = {_source(labels[at][1]) or "" for at, why in enumerate(found) if why is not None}
        if again:
            signers = self._ring.find_again(again)
            for at, why in enumerate(found):
                if why is not None and _source(labels[at][1]) in signers:
                    found[at] = self._wrong(*labels[at], signers)
        for why in found:
            if why is not None:
                metrics.REJECTED.labels(self._flow, why.reason.value).inc()
        if self._check is Check.COUNT:
            for why in found:
                if why is not None:
                    metrics.LOOSENED.labels(self._flow, why.reason.value).inc()
            return [None] * len(labels)
        return found

    @staticmethod
    def _wrong(url: str, value: Any, signers: dict[str, Signer | Lack]) -> LabelRejected | None:
        src = _source(value)
        if src is None:
            return None  # refused for its form
        signer = signers[src]
        if isinstance(signer, Lack):
            return LabelRejected(LabelReason.NO_KEY, f"the document of {src}: {signer.value}")
        if signer.url is None or not same_origin(signer.url, url):
            return LabelRejected(LabelReason.BAD_SRC, f"{src} is the labeler at {signer.url}, not at {url}")
        if signer.key is None:
            return LabelRejected(LabelReason.NO_KEY, f"the document of {src} has no #atproto_label key")
        if not label_signed(value, signer.key):
            return LabelRejected(LabelReason.BAD_SIGNATURE, f"not by {signer.key}")
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
