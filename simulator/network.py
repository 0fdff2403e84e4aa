"""The model of the network: accounts, their repositories, and the operations that change them.

This is the truth that a mirror is compared with. Initial repositories are generated when they are first asked for and kept as
CARs in a spool file; an account that a live operation touches moves into memory. Every operation is published as events: to the
account's PDS, and to the relays. Nothing here speaks HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from base64 import b32encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from simulator.config import SimulatorConfig
from simulator.events import Event, account_event, ahead, commit_event, identity_event, sync_event
from simulator.faults.faults import Faults
from simulator.repo import mst
from simulator.repo.car import cid_text
from simulator.repo.car_spool import Car, CarSpool
from simulator.repo.keys import SigningKey, derive_key
from simulator.repo.records import PROFILE, make_subjects
from simulator.repo.repository import Recipe, RecordWrite, RepoHead, SimulatedRepo, generate, sign_commit
from simulator.repo.tid import SimulatedClock, tid

Status = Literal["takendown", "suspended", "deactivated", "deleted"]

EVENT_BYTES = 1_900_000  # of blocks: a larger commit is announced as a #sync
_THREAD_RECORDS = 3000  # repositories above this are generated beside the event loop


class OperationError(ValueError):
    """An operation that the network refuses: unknown account, wrong status, missing record."""


@dataclass(frozen=True, slots=True)
class Image:
    """An initial repository, spooled."""

    head: bytes
    rev: str
    data: bytes
    car: Car
    count: int


@dataclass(slots=True)
class SimulatedAccount:
    """One account. `image` is None until asked for; `repo` is set from the first live operation on."""

    index: int
    did: str
    handle: str
    pds: int
    created_millis: int
    records: int
    active: bool = True
    status: Status | None = None
    key_version: int = 0
    image: Image | None = None
    repo: SimulatedRepo | None = None
    key: SigningKey | None = field(default=None, repr=False)
    car: tuple[bytes, bytes] | None = field(default=None, repr=False)  # head and its CAR


Publish = Callable[[SimulatedAccount, int, Event], None]
"""Takes the account, the index of the PDS that emits, and the event."""


class Network:
    """All accounts, by index and DID. `web_dids`: of the last accounts, in place of did:plc."""

    def __init__(self, config: SimulatorConfig, faults: Faults, web_dids: Sequence[str] = ()) -> None:
        self.config = config
        self._web_dids = {config.repos - len(web_dids) + at: did for at, did in enumerate(web_dids)}
        self.faults = faults
        epoch = config.epoch_micros or time.time_ns() // 1000
        self.epoch_micros = epoch
        self.clock = SimulatedClock(epoch - 3_600_000_000, config.seed)
        self.rng = random.Random(f"{config.seed}/network")
        self.accounts: list[SimulatedAccount] = []
        self.by_did: dict[str, SimulatedAccount] = {}
        self.by_handle: dict[str, SimulatedAccount] = {}  # whom a domain names, whoever claims it
        self.publish: list[Publish] = []
        self.commits = 0
        self._hosted: dict[int, list[SimulatedAccount]] = {}
        self._spool = CarSpool()
        self._generating = asyncio.Lock()
        for _ in range(config.repos):
            self._add_account()
        self.subjects = make_subjects([account.did for account in self.accounts] or ["did:plc:nobody"], config.seed)

    # --- accounts

    def _add_account(self, records: int | None = None) -> SimulatedAccount:
        config = self.config
        index = len(self.accounts)
        digest = hashlib.sha256(f"{config.seed}/did/{index}".encode()).digest()
        did = self._web_dids.get(index) or "did:plc:" + b32encode(digest[:15]).decode().lower()
        rng = random.Random(f"{config.seed}/account/{index}")
        pds = int(rng.random() * config.pdses)
        if records is None:
            if index < config.big_repos:
                records = config.big_repo_records
            else:
                mean = config.records_per_repo
                records = int(min(rng.lognormvariate(math.log(max(mean, 1)) - 0.5, 1.0), mean * 50)) if mean else 0
        account = SimulatedAccount(
            index=index,
            did=did,
            handle=f"user{index}.pds{pds}.test",
            pds=pds,
            created_millis=self.epoch_micros // 1000 - 90 * 86_400_000 + index * 7,
            records=records,
        )
        draw = rng.random()
        if index >= config.big_repos and draw < config.inactive_share:
            account.active = False
            account.status = "deactivated" if draw < config.inactive_share * 0.6 else "takendown"
        self.accounts.append(account)
        self._hosted.clear()
        self.by_did[did] = account
        self.by_handle[account.handle] = account
        return account

    def key(self, account: SimulatedAccount) -> SigningKey:
        """The account's signing key: P-256 for one in sixteen."""
        if account.key is None:
            curve: Literal["p256", "secp256k1"] = "p256" if account.index % 16 == 7 else "secp256k1"
            account.key = derive_key(curve, self.config.seed, account.index, account.key_version)
        return account.key

    def find(self, did: str) -> SimulatedAccount:
        """The account of a DID; OperationError where there is none."""
        account = self.by_did.get(did)
        if account is None:
            raise OperationError(f"no account {did}")
        return account

    # --- repositories

    def _generate(self, account: SimulatedAccount) -> SimulatedRepo:
        config = self.config
        # an hour before the live clock starts, each a little apart
        newest = self.epoch_micros - 7_200_000_000 + account.index * 37 % 3_600_000_000
        recipe = Recipe(
            config.seed,
            account.index,
            account.did,
            account.records,
            newest,
            config.hostile,
            config.big_record_bytes if account.index < config.big_repos else 0,
        )
        return generate(recipe, self.key(account), self.subjects)

    async def image(self, account: SimulatedAccount) -> Image:
        """The spooled initial repository of an account that nothing has touched yet."""
        if account.image is not None:
            return account.image
        if account.records > _THREAD_RECORDS:
            async with self._generating:
                if account.image is None:
                    account.image = await asyncio.to_thread(self._spool_initial, account)
                return account.image
        account.image = self._spool_initial(account)
        return account.image

    def _spool_initial(self, account: SimulatedAccount) -> Image:
        repo = self._generate(account)
        head = repo.head
        return Image(
            head.commit, head.rev, head.root.cid, self._spool.write(head.commit, repo.walk(head)), len(repo.records)
        )

    async def repo(self, account: SimulatedAccount) -> SimulatedRepo:
        """The account's repository in memory, for live operations."""
        if account.repo is None:
            if account.records > _THREAD_RECORDS:
                async with self._generating:
                    if account.repo is None:
                        account.repo = await asyncio.to_thread(self._generate, account)
            else:
                account.repo = self._generate(account)
        return account.repo

    async def head(self, account: SimulatedAccount) -> tuple[bytes, str]:
        """(commit CID, rev) of the current head."""
        if account.repo is not None:
            return account.repo.head.commit, account.repo.head.rev
        image = await self.image(account)
        return image.head, image.rev

    async def car(self, account: SimulatedAccount) -> Car:
        """The CAR of the current head."""
        if account.repo is not None:
            head = account.repo.head.commit
            if account.car is None or account.car[0] != head:
                account.car = (head, account.repo.car())
            return Car(account.car[1])
        return (await self.image(account)).car

    # --- operations

    def emit(self, account: SimulatedAccount, event: Event, pds: int | None = None) -> None:
        """Publish an event from the account's PDS (or another one)."""
        host = account.pds if pds is None else pds
        if event.kind in ("#account", "#identity"):
            clock = self.faults.fire("pds_clock_ahead", host=host, did=account.did)
            event = event if clock is None else ahead(event, clock.get("seconds", 240))
        for publish in self.publish:
            publish(account, host, event)

    async def commit(self, account: SimulatedAccount, ops: list[RecordWrite]) -> None:
        """Commit ops to an active repository. OperationError where a path is (not) there or the account is inactive."""
        if not account.active:
            raise OperationError(f"{account.did} is {account.status}")
        repo = await self.repo(account)
        paths = repo.records
        seen: set[str] = set()
        for op in ops:
            if op.path in seen or (op.action == "create") == (op.path in paths):
                raise OperationError(f"cannot {op.action} {op.path} in {account.did}")
            seen.add(op.path)
        commit = repo.commit(ops, self.clock.next_tid(), self.key(account))
        self.commits += 1
        head = commit.head
        if sum(len(block) for _, block in commit.blocks) > EVENT_BYTES:
            self.emit(account, sync_event(account.did, head.rev, head.commit, head.commit_block))
        else:
            self.emit(account, commit_event(account.did, commit))

    async def new_account(self) -> SimulatedAccount:
        """A new account with a profile: #identity, #account, and the first commits."""
        account = self._add_account(records=0)
        account.active, account.status = True, None
        self._arrive(account)
        micros = self.clock.tick()
        repo = SimulatedRepo(account.did)
        repo.head = self._empty_head(account, tid(micros))
        account.repo = repo
        self.emit(account, identity_event(account.did, account.handle))
        self.emit(account, account_event(account.did, True, None))
        self.emit_sync(account)
        profile = {"$type": PROFILE, "displayName": f"New {account.index}", "description": "just arrived"}
        await self.commit(account, [RecordWrite("create", f"{PROFILE}/self", profile)])
        return account

    def _arrive(self, account: SimulatedAccount) -> None:
        """A host lists a newcomer at its end: no two arrivals share a millisecond."""
        self.clock.now_micros += 1000
        account.created_millis = self.clock.tick() // 1000
        self._hosted.clear()

    def _empty_head(self, account: SimulatedAccount, rev: str) -> RepoHead:
        root = mst.empty_tree()
        mst.seal(root)
        commit, block = sign_commit(account.did, rev, root.cid, self.key(account))
        return RepoHead(rev, commit, block, root)

    def emit_sync(self, account: SimulatedAccount) -> None:
        """A #sync of the current head, of an account in memory."""
        if account.repo is None:
            raise OperationError(f"{account.did} has no repository in memory")
        head = account.repo.head
        self.emit(account, sync_event(account.did, head.rev, head.commit, head.commit_block))

    async def change_handle(
        self, account: SimulatedAccount, handle: str | None = None, *, announce: bool = True, domain: bool = True
    ) -> str:
        """Give the account another handle; announce=False leaves the handle out of the #identity event.

        domain=False: only the document claims it, and its domain goes on naming whom it named. The faults `handle_false`
        and `handle_contended` do so, too, or take the handle of another account; they spare handles that were chosen.
        """
        if handle is None:
            handle, domain = self._draw_handle(account, domain)
        self._free(account)
        account.handle = handle
        if domain:
            self.by_handle[handle] = account
        self.emit(account, identity_event(account.did, handle if announce else None))
        return handle

    def _draw_handle(self, account: SimulatedAccount, domain: bool) -> tuple[str, bool]:
        handle = f"user{account.index}-{self.clock.tick() % 100_000}.pds{account.pds}.test"
        if self.faults.fire("handle_false", did=account.did):
            return handle, False
        contended = self.faults.fire("handle_contended", did=account.did)
        if contended is not None:
            other = self.accounts[(account.index + 1) % len(self.accounts)]
            return other.handle, self.rng.random() < contended.get("take", 0.5)
        return handle, domain

    def _free(self, account: SimulatedAccount) -> None:
        """The domain of the account's handle names nobody any more, if it named this account."""
        if self.by_handle.get(account.handle) is account:
            del self.by_handle[account.handle]

    def owner(self, handle: str) -> SimulatedAccount | None:
        """Whom a domain names; None for nobody."""
        account = self.by_handle.get(handle)
        return None if account is None or account.status == "deleted" else account

    async def set_status(self, account: SimulatedAccount, status: Status | None) -> None:
        """Deactivate, take down, suspend, delete (for good) or, with None, activate again."""
        if account.status == "deleted":
            raise OperationError(f"{account.did} is deleted")
        if account.status == status:
            raise OperationError(f"{account.did} already is {status or 'active'}")
        if status is None:
            await self.repo(account)
        account.active, account.status = status is None, status
        self._hosted.clear()
        self.emit(account, account_event(account.did, account.active, status))
        if status is None:
            self.emit(account, identity_event(account.did, account.handle))
            self.emit_sync(account)

    async def migrate(self, account: SimulatedAccount, pds: int | None = None, *, noisy: bool = False) -> int:
        """Move an account to another PDS, with a new signing key. noisy: the old PDS announces `deactivated` afterwards."""
        if not account.active or self.config.pdses < 2:
            raise OperationError(f"{account.did} cannot migrate")
        old = account.pds
        repo = await self.repo(account)
        account.pds = (old + 1) % self.config.pdses if pds is None else pds
        account.key, account.key_version = None, account.key_version + 1
        self._arrive(account)
        self.emit(account, identity_event(account.did, account.handle))
        self.emit(account, account_event(account.did, True, None))
        commit = repo.commit([], self.clock.next_tid(), self.key(account))
        head = commit.head
        self.emit(account, sync_event(account.did, head.rev, head.commit, head.commit_block))
        if noisy:
            self.emit(account, account_event(account.did, False, "deactivated"), pds=old)
        return account.pds

    async def rotate_key(self, account: SimulatedAccount) -> None:
        """Give an active account a new signing key: the document names it, #identity says so, the next commit is signed with it."""
        if not account.active:
            raise OperationError(f"{account.did} is {account.status}")
        account.key, account.key_version = None, account.key_version + 1
        self.emit(account, identity_event(account.did, account.handle))
        await self.commit(account, [])

    # --- the truth

    async def truth(self, account: SimulatedAccount) -> dict[str, Any]:
        """What the account is and holds now; records of a deleted account are gone."""
        deleted = account.status == "deleted"
        repo = account.repo
        if repo is None:
            big = account.records > _THREAD_RECORDS
            repo = await asyncio.to_thread(self._generate, account) if big else self._generate(account)
        return {
            "did": account.did,
            "handle": account.handle,
            "handle_verified": self.owner(account.handle) is account,
            "pds": account.pds,
            "active": account.active,
            "status": account.status,
            "rev": repo.head.rev,
            "commit": cid_text(repo.head.commit),
            "data": cid_text(repo.head.root.cid),
            "records": {} if deleted else {path: cid_text(cid) for path, cid in repo.records.items()},
        }

    def hosted(self, pds: int) -> list[SimulatedAccount]:
        """The accounts on one PDS, deleted ones left out, in the order of its listing."""
        found = self._hosted.get(pds)
        if found is None:
            mine = [account for account in self.accounts if account.pds == pds and account.status != "deleted"]
            found = self._hosted[pds] = sorted(mine, key=lambda account: (account.created_millis, account.did))
        return found
