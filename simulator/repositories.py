"""The repositories of the accounts: generated from the seed on first use, in a spool file until a live operation needs them."""

import asyncio

from simulator.accounts import Accounts, InitialRepo, SimulatedAccount
from simulator.config import SimulatorConfig
from simulator.repo import mst
from simulator.repo.car_spool import Car, CarSpool
from simulator.repo.records import make_subjects
from simulator.repo.repository import Recipe, RepoHead, SimulatedRepo, generate, sign_commit

_THREAD_RECORDS = 3000  # larger repositories are generated outside the event loop


class Repositories:
    """The repository, head and CAR of each account."""

    def __init__(self, config: SimulatorConfig, accounts: Accounts, epoch_micros: int) -> None:
        self.subjects = make_subjects([account.did for account in accounts.all] or ["did:plc:nobody"], config.seed)
        self._config = config
        self._accounts = accounts
        self._epoch_micros = epoch_micros
        self._spool = CarSpool()
        self._generating = asyncio.Lock()  # one large repository at a time

    async def initial(self, account: SimulatedAccount) -> InitialRepo:
        """The spooled initial repository; generated on first use."""
        if account.initial is not None:
            return account.initial
        if account.records > _THREAD_RECORDS:
            async with self._generating:
                if account.initial is None:
                    account.initial = await asyncio.to_thread(self._spool_initial, account)
                return account.initial
        account.initial = self._spool_initial(account)
        return account.initial

    async def live(self, account: SimulatedAccount) -> SimulatedRepo:
        """The repository in memory, for live operations; it stays there."""
        if account.repo is None:
            if account.records > _THREAD_RECORDS:
                async with self._generating:
                    if account.repo is None:
                        account.repo = await asyncio.to_thread(self._generate, account)
            else:
                account.repo = self._generate(account)
        return account.repo

    async def peek(self, account: SimulatedAccount) -> SimulatedRepo:
        """The current repository, without keeping it in memory."""
        if account.repo is not None:
            return account.repo
        if account.records > _THREAD_RECORDS:
            return await asyncio.to_thread(self._generate, account)
        return self._generate(account)

    async def head(self, account: SimulatedAccount) -> tuple[bytes, str]:
        """(commit CID, rev) of the current head."""
        if account.repo is not None:
            return account.repo.head.commit, account.repo.head.rev
        initial = await self.initial(account)
        return initial.head, initial.rev

    async def record_count(self, account: SimulatedAccount) -> int:
        """The number of records in the current repository."""
        return len(account.repo.records) if account.repo else (await self.initial(account)).count

    async def car(self, account: SimulatedAccount) -> Car:
        """The CAR of the current head."""
        if account.repo is not None:
            head = account.repo.head.commit
            if account.car is None or account.car[0] != head:
                account.car = (head, account.repo.car())
            return Car(account.car[1])
        return (await self.initial(account)).car

    def create_empty(self, account: SimulatedAccount, rev: str) -> None:
        """Give a new account a repository without records."""
        root = mst.empty_tree()
        mst.seal(root)
        commit, block = sign_commit(account.did, rev, root.cid, self._accounts.key(account))
        account.repo = SimulatedRepo(account.did)
        account.repo.head = RepoHead(rev, commit, block, root)

    def _generate(self, account: SimulatedAccount) -> SimulatedRepo:
        config = self._config
        # the newest record is one to two hours older than the epoch, different for each account
        newest = self._epoch_micros - 7_200_000_000 + account.index * 37 % 3_600_000_000
        recipe = Recipe(
            config.seed,
            account.index,
            account.did,
            account.records,
            newest,
            config.hostile,
            config.big_record_bytes if account.index < config.big_repos else 0,
        )
        return generate(recipe, self._accounts.key(account), self.subjects)

    def _spool_initial(self, account: SimulatedAccount) -> InitialRepo:
        repo = self._generate(account)
        head = repo.head
        car = self._spool.write(head.commit, repo.walk(head))
        return InitialRepo(head.commit, head.rev, head.root.cid, car, len(repo.records))
