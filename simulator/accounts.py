"""The accounts of the simulated network: identities, hosts, signing keys, and the domains of their handles."""

import hashlib
import math
import random
from base64 import b32encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simulator.config import SimulatorConfig
from simulator.repo.car_spool import Car
from simulator.repo.keys import SigningKey, derive_key
from simulator.repo.repository import SimulatedRepo
from simulator.repo.tid import SimulatedClock

Status = Literal["takendown", "suspended", "deactivated", "deleted"]


class OperationError(ValueError):
    """The network rejects an operation: unknown account, wrong status, missing or existing record."""


@dataclass(frozen=True, slots=True)
class InitialRepo:
    """An initial repository in the spool file. `head` and `data` are CIDs of 36 bytes; `count` is the number of records."""

    head: bytes
    rev: str
    data: bytes
    car: Car
    count: int


@dataclass(slots=True)
class SimulatedAccount:
    """One account. `initial` is None until first requested; `repo` is set by the first live operation."""

    index: int
    did: str
    handle: str
    pds: int
    created_millis: int
    records: int  # in the initial repository
    active: bool = True
    status: Status | None = None
    key_version: int = 0
    initial: InitialRepo | None = None
    repo: SimulatedRepo | None = None
    key: SigningKey | None = field(default=None, repr=False)
    car: tuple[bytes, bytes] | None = field(default=None, repr=False)  # cached: head and its CAR


class Accounts:
    """All accounts, deleted ones included, in order of creation and by DID.

    `by_handle` maps a domain to the account that its DNS record names, which need not claim it. The last accounts get
    `web_dids` in place of a did:plc.
    """

    def __init__(
        self, config: SimulatorConfig, clock: SimulatedClock, epoch_micros: int, web_dids: Sequence[str]
    ) -> None:
        self.all: list[SimulatedAccount] = []
        self.by_did: dict[str, SimulatedAccount] = {}
        self.by_handle: dict[str, SimulatedAccount] = {}
        self._config = config
        self._clock = clock
        self._epoch_micros = epoch_micros
        self._web_dids = {config.repos - len(web_dids) + at: did for at, did in enumerate(web_dids)}
        self._hosted: dict[int, list[SimulatedAccount]] = {}
        for index in range(config.repos):
            self._add(self._draw(index))

    def _draw(self, index: int) -> SimulatedAccount:
        """The account that the seed gives for this index."""
        config = self._config
        digest = hashlib.sha256(f"{config.seed}/did/{index}".encode()).digest()
        rng = random.Random(f"{config.seed}/account/{index}")
        pds = int(rng.random() * config.pdses)
        records = self._draw_record_count(index, rng)
        account = SimulatedAccount(
            index=index,
            did=self._web_dids.get(index) or "did:plc:" + b32encode(digest[:15]).decode().lower(),
            handle=f"user{index}.pds{pds}.test",
            pds=pds,
            created_millis=self._epoch_micros // 1000 - 90 * 86_400_000 + index * 7,
            records=records,
        )
        draw = rng.random()
        if index >= config.big_repos and draw < config.inactive_share:
            account.active = False
            account.status = "deactivated" if draw < config.inactive_share * 0.6 else "takendown"
        return account

    def _draw_record_count(self, index: int, rng: random.Random) -> int:
        mean = self._config.records_per_repo
        if index < self._config.big_repos:
            return self._config.big_repo_records
        return int(min(rng.lognormvariate(math.log(max(mean, 1)) - 0.5, 1.0), mean * 50)) if mean else 0

    def _add(self, account: SimulatedAccount) -> SimulatedAccount:
        self.all.append(account)
        self._hosted.clear()
        self.by_did[account.did] = account
        self.by_handle[account.handle] = account
        return account

    def create(self) -> SimulatedAccount:
        """Add an active account without records, at the end of its host's list."""
        account = self._draw(len(self.all))
        account.records, account.active, account.status = 0, True, None
        self._add(account)
        self.arrive(account)
        return account

    def arrive(self, account: SimulatedAccount) -> None:
        """Move the account to the end of its host's list. No two arrivals share a millisecond."""
        self._clock.now_micros += 1000
        account.created_millis = self._clock.tick() // 1000
        self._hosted.clear()

    def find(self, did: str) -> SimulatedAccount:
        """The account of a DID. Raises OperationError if the DID is unknown."""
        account = self.by_did.get(did)
        if account is None:
            raise OperationError(f"no account {did}")
        return account

    def hosted(self, pds: int) -> list[SimulatedAccount]:
        """The accounts of one PDS in listing order, without deleted ones."""
        found = self._hosted.get(pds)
        if found is None:
            mine = [account for account in self.all if account.pds == pds and account.status != "deleted"]
            found = self._hosted[pds] = sorted(mine, key=lambda account: (account.created_millis, account.did))
        return found

    def set_status(self, account: SimulatedAccount, status: Status | None) -> None:
        """Set the status; None means active."""
        account.active, account.status = status is None, status
        self._hosted.clear()

    # --- signing keys

    def key(self, account: SimulatedAccount) -> SigningKey:
        """The current signing key: P-256 for one account in sixteen, else secp256k1."""
        if account.key is None:
            curve: Literal["p256", "secp256k1"] = "p256" if account.index % 16 == 7 else "secp256k1"
            account.key = derive_key(curve, self._config.seed, account.index, account.key_version)
        return account.key

    @staticmethod
    def replace_key(account: SimulatedAccount) -> None:
        """Give the account a new signing key."""
        account.key, account.key_version = None, account.key_version + 1

    # --- handles

    def claim_handle(self, account: SimulatedAccount, handle: str, *, domain: bool) -> None:
        """Replace the account's handle. domain=False: the DNS record of the new handle does not change."""
        if self.by_handle.get(account.handle) is account:
            del self.by_handle[account.handle]
        account.handle = handle
        if domain:
            self.by_handle[handle] = account

    def owner(self, handle: str) -> SimulatedAccount | None:
        """The account that the handle's DNS record names; None without a record or if that account is deleted."""
        account = self.by_handle.get(handle)
        return None if account is None or account.status == "deleted" else account
