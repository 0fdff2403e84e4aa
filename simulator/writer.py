"""The live writer: commits and account changes on random accounts, at a chosen rate.

The steps depend on the seed, not on time: the n-th step is the same in every run.
"""

import asyncio
import random

from simulator.accounts import SimulatedAccount
from simulator.faults.faults import Faults
from simulator.network import Network
from simulator.repo.odd_leaves import KINDS as ODD_LEAVES
from simulator.repo.odd_leaves import odd_ops
from simulator.repo.records import changed, fresh, hostile_records
from simulator.repo.repository import RecordWrite, SimulatedRepo
from simulator.servers.labeler import Labeler

_TICK = 0.01  # seconds between bursts
_LABEL_SHARE = 0.05


class Writer:
    """Draws and performs steps. `rate` is in steps per second; 0 pauses."""

    def __init__(self, network: Network, labelers: list[Labeler], faults: Faults) -> None:
        config = network.config
        self.network = network
        self.rate = config.writer_rate
        self.steps = 0
        self._labelers = labelers
        self._faults = faults
        self._rng = random.Random(f"{config.seed}/writer")
        self._busy = asyncio.Lock()
        self._hostile = hostile_records() if config.hostile else []
        self._changed = asyncio.Event()
        big = config.big_repos if config.repos > config.big_repos else 0
        candidates = range(big, config.repos)  # writing to big repositories would load them into memory
        chosen = (
            candidates
            if len(candidates) <= config.writer_repos
            else candidates[:: -(-len(candidates) // config.writer_repos)]
        )
        self._accounts = [network.accounts.all[index] for index in chosen]

    async def run(self) -> None:
        """Perform steps at the current rate until cancelled."""
        due, last = 0.0, self._now()
        while True:
            if self.rate <= 0:
                self._changed.clear()
                await self._changed.wait()
                due, last = 0.0, self._now()
            now = self._now()
            due = min(due + (now - last) * self.rate, self.rate)  # after a stall, catch up at most one second
            last = now
            while due >= 1 and self.rate > 0:
                due -= 1
                await self.step()
                if self._now() - now > 0.05:
                    await asyncio.sleep(0)
                    now = self._now()
            await asyncio.sleep(_TICK)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def set_rate(self, rate: float) -> None:
        """Set the rate in steps per second; 0 pauses."""
        self.rate = rate
        self._changed.set()

    async def settle(self) -> None:
        """Wait for the current step to finish."""
        async with self._busy:
            pass

    async def step(self) -> None:
        """One step: a commit or an account change (a share `churn` of the steps), in some steps after a batch of labels."""
        async with self._busy:
            self.steps += 1
            rng = self._rng
            if self._labelers and rng.random() < _LABEL_SHARE:
                rng.choice(self._labelers).write_some()
            if rng.random() < self.network.config.churn:
                await self._change_account()
            else:
                await self.commit_somewhere()

    async def commit_somewhere(self) -> None:
        """Make one commit on a random active account."""
        account = self._pick_active()
        if account is not None:
            repo = await self.network.repositories.live(account)
            await self.network.commit(account, self._odd_ops(account) or self._draw_ops(repo))

    def _pick_active(self) -> SimulatedAccount | None:
        for _ in range(50):
            if not self._accounts:
                return None
            account = self._accounts[int(self._rng.random() * len(self._accounts))]
            if account.active:
                return account
        return None

    def _odd_ops(self, account: SimulatedAccount) -> list[RecordWrite]:
        """The writes of unusual leaves if one of their faults fires, else none."""
        for kind in ODD_LEAVES:
            given = self._faults.fire(kind, did=account.did)
            if given is not None:
                return odd_ops(kind, self.network.clock.tick, self._rng, given)
        return []

    def _draw_ops(self, repo: SimulatedRepo) -> list[RecordWrite]:
        rng, network = self._rng, self.network
        if rng.random() < 0.03:
            return []  # an empty commit is valid
        ops: dict[str, RecordWrite] = {}
        for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 4, 5))):
            draw = rng.random()
            if self._hostile and draw < 0.05:
                like, hostile = rng.choice(self._hostile)
                new = f"{like.partition('/')[0]}/{network.clock.next_tid()}"
                ops[new] = RecordWrite("create", new, hostile)
                continue
            path = repo.random_path(rng) if draw > 0.7 else None
            if path is None or path in ops:
                new, value = fresh(rng, network.clock.tick(), network.repositories.subjects)
                ops[new] = RecordWrite("create", new, value)
            elif draw > 0.88:
                ops[path] = RecordWrite(
                    "update", path, changed(rng, path, network.clock.tick(), network.repositories.subjects)
                )
            else:
                ops[path] = RecordWrite("delete", path)
        return list(ops.values())

    async def _change_account(self) -> None:
        rng, network = self._rng, self.network
        if not self._accounts or rng.random() < 0.25:
            self._accounts.append(await network.new_account())
            return
        account = self._accounts[int(rng.random() * len(self._accounts))]
        if account.status == "deleted":
            return
        if not account.active:
            await network.set_status(account, None)
            return
        draw = rng.random()
        if draw < 0.4:
            await network.change_handle(account, announce=rng.random() < 0.8)
        elif draw < 0.6:
            await network.set_status(account, "deactivated")
        elif draw < 0.7:
            await network.set_status(account, "takendown")
        elif draw < 0.75:
            await network.set_status(account, "suspended")
        elif draw < 0.85:
            await network.set_status(account, "deleted")
        elif draw < 0.95 and network.config.pdses > 1:
            await network.migrate(account, noisy=rng.random() < 0.5)
        else:
            await network.repositories.live(account)
            network.emit_sync(account)
