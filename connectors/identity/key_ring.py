"""Keys of accounts for a flow's step: from memory, from `sluice.identity`, and from the network without waiting for it.

`known(dids)` gives what memory and table know; a database that is away is waited for, with the reason in the health page.
What is missing is to be asked for with `ask`, and `answers` gives what came since: what `extract` takes from the identity,
or a `Lack`. An old identity serves where the network does not answer. Negative answers hold for a while, longer with each
failure in a row, of a DID or of a did:web host with all its DIDs. Used by one thread.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from connectors.identity.key_lookups import Answer, Found, HostBusy, KeyLookups, web_host
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable
from connectors.runtime import metrics
from connectors.runtime.process import Health
from protocol.did_document import Identity
from schemas.settings import Settings
from steps.cooldown import Cooldowns

X = TypeVar("X")

RERESOLVED_ENTRIES = 20_000
OLD_ENTRIES = 20_000
BUSY_SECONDS = 5.0  # a host that could not be asked for lack of permits


class Lack(Enum):
    """Why there is nothing to verify with."""

    NO_IDENTITY = "no_identity"
    UNREACHABLE = "unreachable"


class Key(NamedTuple, Generic[X]):
    """The network's answer, and beside a `Lack` the key that was known before, if one was."""

    value: X | Lack
    old: X | None


class KeyRing(Generic[X]):
    """See the module."""

    def __init__(self, settings: Settings, health: Health, extract: Callable[[Identity], X]) -> None:
        self._settings = settings
        self._health = health
        self._extract = extract
        self._lookups = KeyLookups(settings, health)
        self._kept: OrderedDict[str, tuple[X, float]] = OrderedDict()  # and until when, time.monotonic
        self._old: OrderedDict[str, X] = OrderedDict()  # from the table, too old, of DIDs that are being looked up
        self._lacks: Cooldowns[Lack] = Cooldowns(settings.tuning.identity_negative_seconds)
        self._reresolved: OrderedDict[str, float] = OrderedDict()
        self.close = self._lookups.close
        self.wait = self._lookups.wait

    @property
    def ready(self) -> bool:
        """Whether `answers` has some."""
        return self._lookups.ready

    @property
    def problem(self) -> str:
        """Why the PLC directory's answers do not come, or ''."""
        return self._lookups.problem

    def known(self, dids: Collection[str]) -> dict[str, X | Lack]:
        """What needs no network. Raises Stopping if the process is to stop while the database is away."""
        now, kept, lacks = time.monotonic(), self._kept, self._lacks
        found: dict[str, X | Lack] = {}
        for did in dids:
            entry = kept.get(did)
            if entry is not None and entry[1] > now:
                found[did] = entry[0]
            elif lacks and (why := lacks.why(did, now) or lacks.why(self._peer(did), now)) is not None:
                found[did] = why
        self._count("memory", len(found))
        missing = set(dids).difference(found)
        if missing:
            for did, (identity, age) in self._lookups.stored(missing).items():
                value = self._extract(identity)
                if age <= self._settings.tuning.key_cache_seconds:
                    found[did] = self._keep(did, value)
                else:
                    _remember(self._old, did, value, OLD_ENTRIES)
        return found

    def ask(self, dids: Collection[str]) -> None:
        """Look up at the network, past memory and table; each DID has its answer in a later `answers`."""
        self._lookups.ask(dids)

    def answers(self) -> dict[str, Key[X]]:
        """The answers since the last call."""
        return {found.did: self._settled(found) for found in self._lookups.take()}

    def due(self, did: str) -> bool:
        """Whether a DID whose signature did not verify may be looked up again now, which is then counted as done."""
        now = time.monotonic()
        if self._reresolved.get(did, 0.0) > now:
            return False
        _remember(self._reresolved, did, now + self._settings.tuning.reresolve_seconds, RERESOLVED_ENTRIES)
        return True

    def forget(self, dids: Collection[str]) -> None:
        """#identity events arrived: what memory and table hold of these DIDs is out of date."""
        if not dids:
            return
        for did in dids:
            self._kept.pop(did, None)
            self._old.pop(did, None)
            self._reresolved.pop(did, None)
            self._lacks.ask_again(did)
            self._lacks.ask_again(self._peer(did))
        self._lookups.forget(dids)

    def _settled(self, found: Found) -> Key[X]:
        did, answer = found.did, found.answer
        old = self._old.pop(did, None)
        if isinstance(answer, Identity):
            self._lacks.succeeded(did)
            self._lacks.succeeded(self._peer(did))
            return Key(self._keep(did, self._extract(answer)), None)
        if old is None and did in self._kept:
            old = self._kept[did][0]
        why, until = self._lack(did, answer)
        if why is Lack.UNREACHABLE and old is not None:
            _remember(self._kept, did, (old, until), self._settings.tuning.key_cache_entries)
        else:
            self._kept.pop(did, None)
        self._count(str(why.value), 1)
        return Key(why, old)

    def _lack(self, did: str, answer: Answer) -> tuple[Lack, float]:
        """What an answer without an identity means, and for how long."""
        now = time.monotonic()
        if isinstance(answer, IdentityNotFound):
            return Lack.NO_IDENTITY, self._lacks.failed(did, Lack.NO_IDENTITY, now)
        if isinstance(answer, HostBusy):
            return Lack.UNREACHABLE, self._lacks.busy(did, Lack.UNREACHABLE, now, BUSY_SECONDS)
        wait = answer.retry_after or 0.0 if isinstance(answer, IdentityUnreachable) else 0.0
        return Lack.UNREACHABLE, self._lacks.failed(self._peer(did), Lack.UNREACHABLE, now, wait)

    def _peer(self, did: str) -> str:
        """Who is not asked while it fails: the host of a did:web, otherwise the DID."""
        if not did.startswith("did:web:"):
            return did
        return "host " + web_host(did, ports=self._settings.allow_private_hosts)

    def _keep(self, did: str, value: X) -> X:
        self._count("found", 1)
        _remember(
            self._kept,
            did,
            (value, time.monotonic() + self._settings.tuning.key_cache_seconds),
            self._settings.tuning.key_cache_entries,
        )
        return value

    def _count(self, result: str, count: int) -> None:
        metrics.KEY_LOOKUPS.labels(self._health.flow, result).inc(count)


V = TypeVar("V")


def _remember(memory: OrderedDict[str, V], key: str, value: V, limit: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > limit:
        memory.popitem(last=False)
