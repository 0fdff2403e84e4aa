"""The sources (`src`) in the labels of one URL: which are proven to be the labeler at this URL, and which may be looked up.

A labeler can write any `src` into its labels, and an unknown one costs a lookup at the PLC directory or at a did:web host. So
each URL has a token bucket for lookups of unproven sources: UNPROVEN_LOOKUPS, plus one every UNPROVEN_SECONDS. Results are
cached; labels of further sources are refused without a lookup.
"""

from typing import NamedTuple
from urllib.parse import urlsplit

from cachetools import LRUCache

from connectors.identity.key_ring import KeyUnavailable
from protocol.labels import LabelReason, LabelRejected

UNPROVEN_LOOKUPS = 4  # of sources not proven to belong to the URL
UNPROVEN_SECONDS = 60.0  # per further lookup
FOREIGN_SECONDS = 240.0  # in which a source of another URL is refused without a lookup
SOURCES_KEPT = 1000  # proven, and as many refused, per URL


class Signer(NamedTuple):
    """From a labeler's DID document: its #atproto_label key (did:key), and the origin of its #atproto_labeler service."""

    key: str | None
    url: str | None


class LabelSources:
    """The sources of one URL. `now`: monotonic seconds."""

    def __init__(self, url: str, now: float) -> None:
        self._url = url
        self._proven: LRUCache[str, bool] = LRUCache(SOURCES_KEPT)
        self._refused: LRUCache[str, tuple[LabelRejected, float]] = LRUCache(SOURCES_KEPT)  # and until when
        self._lookups, self._at = float(UNPROVEN_LOOKUPS), now

    def may_look_up(self, src: str, now: float) -> bool:
        """Whether to look this source up now. An unproven source uses up one lookup."""
        if src in self._proven:
            return True
        if src in self._refused and self._refused[src][1] > now:
            return False
        self._lookups = min(UNPROVEN_LOOKUPS, self._lookups + (now - self._at) / UNPROVEN_SECONDS)
        self._at = now
        if self._lookups < 1:
            return False
        self._lookups -= 1
        return True

    def found(self, src: str, wrong: LabelRejected | None, now: float) -> None:
        """Record the result of a lookup. `wrong`: why the source is not the labeler at this URL, None if it is."""
        self._proven.pop(src, None)
        self._refused.pop(src, None)
        if wrong is None:
            self._proven[src] = True
        else:
            seconds = FOREIGN_SECONDS if wrong.reason is LabelReason.BAD_SRC else UNPROVEN_SECONDS
            self._refused[src] = wrong, now + seconds

    def refusal(self, src: str) -> LabelRejected:
        """Why labels are refused if their source may not be looked up now."""
        if src in self._refused:
            return self._refused[src][0]
        return LabelRejected(LabelReason.BAD_SRC, f"{self._url} names too many sources to look up {src}")


def foreign(url: str, src: str, signer: Signer | KeyUnavailable) -> LabelRejected | None:
    """Why this source is not known to be the labeler at this URL; None if it is."""
    if isinstance(signer, KeyUnavailable):
        return LabelRejected(LabelReason.NO_KEY, f"the document of {src}: {signer.value}")
    if signer.url is None or not same_origin(signer.url, url):
        return LabelRejected(LabelReason.BAD_SRC, f"{src} is the labeler at {signer.url}, not at {url}")
    return None


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port, ignoring case and default ports."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return (parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme))
