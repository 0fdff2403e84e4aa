"""Account keys for a flow's step: from memory, from `sluice.identity`, and from the network without blocking.

`known(dids)` returns keys from memory and the table; while PostgreSQL is unavailable it blocks and reports that on the health
page. `ask` starts network lookups, and `answers` returns their results: the value that `extract` takes from the identity, or a
`KeyUnavailable`. An outdated key is used while the network does not answer. Failures are cached (`steps.cooldown`) per DID or
per did:web host. For one thread.
"""

import time
from collections.abc import Callable, Collection
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from cachetools import FIFOCache, TTLCache

from connectors.identity.key_lookups import Found, HostBusy, KeyLookups, web_host
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, LookupResult
from connectors.runtime import metrics
from connectors.runtime.health import Health
from protocol.did_document import ResolvedIdentity
from schemas.settings import Settings
from steps.cooldown import Cooldowns

X = TypeVar("X")

RERESOLVED_ENTRIES = 20_000
OLD_ENTRIES = 20_000
BUSY_SECONDS = 5.0  # wait before another lookup for which no permit was free


class KeyUnavailable(Enum):
    """Why there is no key to verify with."""

    NO_IDENTITY = "no_identity"
    UNREACHABLE = "unreachable"


class Key(NamedTuple, Generic[X]):
    """The result of a lookup. `old`: with a `KeyUnavailable`, the previously known key, if any."""

    value: X | KeyUnavailable
    old: X | None


class KeyRing(Generic[X]):
    """See the module."""

    def __init__(self, settings: Settings, health: Health, extract: Callable[[ResolvedIdentity], X]) -> None:
        self._settings = settings
        self._health = health
        self._extract = extract
        self._lookups = KeyLookups(settings, health)
        # key and its expiry (time.monotonic). A TTLCache takes 3.4 µs per access, this 0.2 µs.
        self._kept: FIFOCache[str, tuple[X, float]] = FIFOCache(settings.tuning.key_cache_entries)
        self._old: FIFOCache[str, X] = FIFOCache(OLD_ENTRIES)  # outdated keys from the table, during a lookup
        self._failures: Cooldowns[KeyUnavailable] = Cooldowns(settings.tuning.identity_negative_seconds)
        self._reresolved: TTLCache[str, bool] = TTLCache(RERESOLVED_ENTRIES, settings.tuning.reresolve_seconds)
        self.close = self._lookups.close
        self.wait = self._lookups.wait

    @property
    def ready(self) -> bool:
        """Whether `answers` would return any."""
        return self._lookups.ready

    @property
    def problem(self) -> str:
        """Why the PLC directory does not answer, or ''."""
        return self._lookups.problem

    def known(self, dids: Collection[str]) -> dict[str, X | KeyUnavailable]:
        """Keys and failures known without the network. Raises Stopping if the process stops while PostgreSQL is unavailable."""
        now, kept, failures = time.monotonic(), self._kept, self._failures
        found: dict[str, X | KeyUnavailable] = {}
        for did in dids:
            entry = kept.get(did)
            if entry is not None and entry[1] > now:
                found[did] = entry[0]
            elif failures and (why := failures.why(did, now) or failures.why(self._peer(did), now)) is not None:
                found[did] = why
        self._count("memory", len(found))
        missing = set(dids).difference(found)
        if missing:
            for did, (identity, age) in self._lookups.stored(missing).items():
                value = self._extract(identity)
                if age <= self._settings.tuning.key_cache_seconds:
                    found[did] = self._keep(did, value)
                else:
                    self._old[did] = value
        return found

    def ask(self, dids: Collection[str]) -> None:
        """Start network lookups, bypassing memory and table. `answers` later returns one result per DID."""
        self._lookups.ask(dids)

    def answers(self) -> dict[str, Key[X]]:
        """Results since the last call."""
        return {found.did: self._settled(found) for found in self._lookups.take()}

    def due(self, did: str) -> bool:
        """Whether to look up a DID again after an invalid signature. True at most once in `reresolve_seconds`."""
        if did in self._reresolved:
            return False
        self._reresolved[did] = True
        return True

    def forget(self, dids: Collection[str]) -> None:
        """Remove these DIDs from memory and table, after an #identity event."""
        if not dids:
            return
        for did in dids:
            self._kept.pop(did, None)
            self._old.pop(did, None)
            self._reresolved.pop(did, None)
            self._failures.ask_again(did)
            self._failures.ask_again(self._peer(did))
        self._lookups.forget(dids)

    def _settled(self, found: Found) -> Key[X]:
        did, answer = found.did, found.answer
        old = self._old.pop(did, None)
        if isinstance(answer, ResolvedIdentity):
            self._failures.succeeded(did)
            self._failures.succeeded(self._peer(did))
            return Key(self._keep(did, self._extract(answer)), None)
        if old is None and did in self._kept:
            old = self._kept[did][0]
        why, until = self._unavailable(did, answer)
        if why is KeyUnavailable.UNREACHABLE and old is not None:
            self._kept[did] = old, until
        else:
            self._kept.pop(did, None)
        self._count(str(why.value), 1)
        return Key(why, old)

    def _unavailable(self, did: str, answer: LookupResult) -> tuple[KeyUnavailable, float]:
        """Why a result has no key, and until when (monotonic) that is cached."""
        now = time.monotonic()
        if isinstance(answer, IdentityNotFound):
            return KeyUnavailable.NO_IDENTITY, self._failures.failed(did, KeyUnavailable.NO_IDENTITY, now)
        if isinstance(answer, HostBusy):
            return KeyUnavailable.UNREACHABLE, self._failures.busy(did, KeyUnavailable.UNREACHABLE, now, BUSY_SECONDS)
        wait = answer.retry_after or 0.0 if isinstance(answer, IdentityUnreachable) else 0.0
        return KeyUnavailable.UNREACHABLE, self._failures.failed(self._peer(did), KeyUnavailable.UNREACHABLE, now, wait)

    def _peer(self, did: str) -> str:
        """The key of a cooldown: the host of a did:web, otherwise the DID."""
        if not did.startswith("did:web:"):
            return did
        return "host " + web_host(did, ports=self._settings.allow_private_hosts)

    def _keep(self, did: str, value: X) -> X:
        self._count("found", 1)
        self._kept[did] = value, time.monotonic() + self._settings.tuning.key_cache_seconds
        return value

    def _count(self, result: str, count: int) -> None:
        metrics.KEY_LOOKUPS.labels(self._health.flow, result).inc(count)
