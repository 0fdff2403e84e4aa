"""The model of the network: the state that a mirror is compared with, and the operations that change it.

Every operation publishes its events to the account's PDS and to the relays. This module serves no HTTP.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from simulator.accounts import Accounts, OperationError, SimulatedAccount, Status
from simulator.config import SimulatorConfig
from simulator.events import Event, account_event, ahead, commit_event, identity_event, sync_event
from simulator.faults.faults import Faults
from simulator.repo.car import cid_text
from simulator.repo.records import PROFILE
from simulator.repo.repository import RecordWrite
from simulator.repo.tid import SimulatedClock, tid
from simulator.repositories import Repositories

EVENT_BYTES = 1_900_000  # a commit with more bytes of blocks is published as #sync

Publish = Callable[[SimulatedAccount, int, Event], None]
"""Receives the account, the index of the PDS that emits, and the event."""


class Network:
    """Accounts, repositories and the operations on them. `web_dids`: DIDs of the last accounts, in place of did:plc."""

    def __init__(self, config: SimulatorConfig, faults: Faults, web_dids: Sequence[str] = ()) -> None:
        self.config = config
        self.faults = faults
        epoch_micros = config.epoch_micros or time.time_ns() // 1000
        self.clock = SimulatedClock(epoch_micros - 3_600_000_000, config.seed)
        self.rng = random.Random(f"{config.seed}/network")
        self.publish: list[Publish] = []
        self.commits = 0
        self.accounts = Accounts(config, self.clock, epoch_micros, web_dids)
        self.repositories = Repositories(config, self.accounts, epoch_micros)

    def emit(self, account: SimulatedAccount, event: Event, pds: int | None = None) -> None:
        """Publish an event from the account's PDS, or from another one."""
        host = account.pds if pds is None else pds
        if event.kind in ("#account", "#identity"):
            clock = self.faults.fire("pds_clock_ahead", host=host, did=account.did)
            event = event if clock is None else ahead(event, clock.get("seconds", 240))
        for publish in self.publish:
            publish(account, host, event)

    def emit_identity(self, account: SimulatedAccount, *, handle: bool = True) -> None:
        """An #identity event. handle=False: without the handle."""
        self.emit(account, identity_event(account.did, account.handle if handle else None))

    def emit_account(self, account: SimulatedAccount) -> None:
        """An #account event with the current status."""
        self.emit(account, account_event(account.did, account.active, account.status))

    def emit_sync(self, account: SimulatedAccount) -> None:
        """A #sync event of the current head. Raises OperationError if the repository is not in memory."""
        if account.repo is None:
            raise OperationError(f"{account.did} has no repository in memory")
        head = account.repo.head
        self.emit(account, sync_event(account.did, head.rev, head.commit, head.commit_block))

    # --- operations

    async def commit(self, account: SimulatedAccount, writes: list[RecordWrite]) -> None:
        """Apply writes as one commit. A commit above EVENT_BYTES is published as #sync.

        Raises OperationError if the account is inactive, a path occurs twice, a created path exists, or an updated or
        deleted path does not exist.
        """
        _require_active(account)
        repo = await self.repositories.live(account)
        seen: set[str] = set()
        for write in writes:
            if write.path in seen or (write.action == "create") == (write.path in repo.records):
                raise OperationError(f"cannot {write.action} {write.path} in {account.did}")
            seen.add(write.path)
        commit = repo.commit(writes, self.clock.next_tid(), self.accounts.key(account))
        self.commits += 1
        if sum(len(block) for _, block in commit.blocks) > EVENT_BYTES:
            self.emit_sync(account)
        else:
            self.emit(account, commit_event(account.did, commit))

    async def new_account(self) -> SimulatedAccount:
        """Create an account with a profile. Emits #identity, #account, #sync and the commit of the profile."""
        account = self.accounts.create()
        self.repositories.create_empty(account, tid(self.clock.tick()))
        self.emit_identity(account)
        self.emit_account(account)
        self.emit_sync(account)
        profile = {"$type": PROFILE, "displayName": f"New {account.index}", "description": "just arrived"}
        await self.commit(account, [RecordWrite("create", f"{PROFILE}/self", profile)])
        return account

    async def change_handle(
        self, account: SimulatedAccount, handle: str | None = None, *, announce: bool = True, domain: bool = True
    ) -> str:
        """Give the account this handle, or a drawn one. Returns the handle.

        announce=False: the #identity event carries no handle. domain=False: the DID document claims the handle, but its
        DNS record does not change. The faults `handle_false` and `handle_contended` act on drawn handles only.
        """
        if handle is None:
            handle, domain = self._draw_handle(account, domain)
        self.accounts.claim_handle(account, handle, domain=domain)
        self.emit_identity(account, handle=announce)
        return handle

    def _draw_handle(self, account: SimulatedAccount, domain: bool) -> tuple[str, bool]:
        handle = f"user{account.index}-{self.clock.tick() % 100_000}.pds{account.pds}.test"
        if self.faults.fire("handle_false", did=account.did):
            return handle, False
        contended = self.faults.fire("handle_contended", did=account.did)
        if contended is not None:
            accounts = self.accounts.all
            other = accounts[(account.index + 1) % len(accounts)]
            return other.handle, self.rng.random() < contended.get("take", 0.5)
        return handle, domain

    async def set_status(self, account: SimulatedAccount, status: Status | None) -> None:
        """Deactivate, take down, suspend or delete the account; None activates it.

        Raises OperationError if the account is deleted or already has this status.
        """
        if account.status == "deleted":
            raise OperationError(f"{account.did} is deleted")
        if account.status == status:
            raise OperationError(f"{account.did} already is {status or 'active'}")
        if status is None:
            await self.repositories.live(account)
        self.accounts.set_status(account, status)
        self.emit_account(account)
        if status is None:
            self.emit_identity(account)
            self.emit_sync(account)

    async def migrate(self, account: SimulatedAccount, pds: int | None = None, *, noisy: bool = False) -> int:
        """Move the account to another PDS, by default the next, with a new signing key. Returns the index of the new PDS.

        noisy: the old PDS then emits an #account event with status `deactivated`. Raises OperationError if the account is
        inactive or the network has one PDS.
        """
        if not account.active or self.config.pdses < 2:
            raise OperationError(f"{account.did} cannot migrate")
        old = account.pds
        repo = await self.repositories.live(account)
        account.pds = (old + 1) % self.config.pdses if pds is None else pds
        self.accounts.replace_key(account)
        self.accounts.arrive(account)
        self.emit_identity(account)
        self.emit_account(account)
        repo.commit([], self.clock.next_tid(), self.accounts.key(account))
        self.emit_sync(account)
        if noisy:
            self.emit(account, account_event(account.did, False, "deactivated"), pds=old)
        return account.pds

    async def rotate_key(self, account: SimulatedAccount) -> None:
        """Replace the signing key. Emits #identity and an empty commit signed with the new key.

        Raises OperationError if the account is inactive.
        """
        _require_active(account)
        self.accounts.replace_key(account)
        self.emit_identity(account)
        await self.commit(account, [])

    async def truth(self, account: SimulatedAccount) -> dict[str, Any]:
        """The expected state of an account in a mirror. `records` maps path to CID text; empty if the account is deleted."""
        repo = await self.repositories.peek(account)
        deleted = account.status == "deleted"
        return {
            "did": account.did,
            "handle": account.handle,
            "handle_verified": self.accounts.owner(account.handle) is account,
            "pds": account.pds,
            "active": account.active,
            "status": account.status,
            "rev": repo.head.rev,
            "commit": cid_text(repo.head.commit),
            "data": cid_text(repo.head.root.cid),
            "records": {} if deleted else {path: cid_text(cid) for path, cid in repo.records.items()},
        }


def _require_active(account: SimulatedAccount) -> None:
    if not account.active:
        raise OperationError(f"{account.did} is {account.status}")
