"""What the network does to a schedule: writes, losses, forgeries, account news, deliveries and listings."""

from collections.abc import Iterable
from typing import Any

from model_checks import Checks
from model_filters import CHOICES
from model_messages import short, with_seq
from model_network import Account
from model_tables import PDS

from connectors.repos import Listed
from schemas import wire
from steps.filters import covers
from steps.gate_types import Phase


class Upstream(Checks):
    """Everything outside of our own processes."""

    __slots__ = ()

    def do_write(self) -> None:
        account = self.account()
        if not account.active:
            return
        commit = self.network.write(account)
        self.say("write", account.did, commit.rev, commit.ops, "->", commit.data)
        event = self.network.commit_event(account, commit, 0)
        self.send(lambda seq: with_seq(event, seq), may_lose=True)

    def do_odd_commit(self) -> None:
        """A commit that was too large for the stream, or came without the block of a record."""
        account = self.account()
        if account.state == "active":
            commit = self.network.write(account)
            event: Any = self.network.sync_event(account, commit, 0)
            if self.rng.random() < 0.5:
                event = self.network.commit_event(account, commit, 0, missing=True)
            self.disturbed = True
            self.fired["too large, or a block missing"] += 1
            self.say("odd commit", account.did, short(event))
            self.send(lambda seq: with_seq(event, seq), may_lose=True)

    def do_burst(self) -> None:
        for _ in range(6):
            self.do_write()

    def do_rewrite(self) -> None:
        account = self.account()
        twin = self.network.rewrite(account)
        if twin is not None:
            self.fired["rewrite"] += 1
            self.disturbed = True
            self.say("rewrite", account.did, twin.rev, twin.data)
            event = self.network.commit_event(account, twin, 0)
            true = self.network.commit_event(account, account.head, 0)
            self.send(lambda seq: with_seq(event, seq))
            self.send(lambda seq: with_seq(true, seq))  # a twin whose original nobody ever sends is the audit's to find

    def do_go_back(self) -> None:
        """The PDS loses its newest commit; only a refetch can notice, so something forged has to cause one."""
        account = self.account()
        busy = any(event.did == account.did for pipe in self.pipes for event in pipe)
        if account.state == "active" and len(account.chain) > 1 and not busy:
            self.fired["PDS went back"] += 1
            self.say("go back", account.did)
            self.network.go_back(account)
            self.forge(account)

    def do_forge(self) -> None:
        self.forge(self.account())

    def forge(self, account: Account) -> None:
        self.disturbed = True
        self.fired["forged rev"] += 1
        self.say("forge", account.did)
        event = self.network.forged_event(account, 0)
        self.send(lambda seq: with_seq(event, seq))

    def do_sync(self) -> None:
        account = self.account()
        if account.state == "active":
            commit = account.head if self.rng.random() < 0.7 else self.rng.choice(account.chain)
            event = self.network.sync_event(account, commit, 0)
            self.say("#sync", account.did, commit.rev)
            self.send(lambda seq: with_seq(event, seq), may_lose=True)

    def do_account(self) -> None:
        account = self.account()
        inactive = ("deactivated", "takendown", "deleted")
        account.state = self.rng.choice((*inactive, "throttled") if account.state == "active" else ("active",))
        account.untold = not account.active and self.rng.random() < self.profile.loss
        self.say("account", account.did, account.state, "untold" if account.untold else "")
        if account.untold:
            self.fired["lost account event"] += 1
        else:
            self.tell(account)

    def tell(self, account: Account) -> None:
        account.untold = False
        event = self.network.account_event(account, 0, account.state)
        self.send(lambda seq: with_seq(event, seq))

    def do_false_news(self) -> None:
        """The host that an account has left calls it deleted or deactivated."""
        account = self.account()
        if account.state == "active":
            self.fired["false news"] += 1
            event = self.network.account_event(account, 0, self.rng.choice(("deleted", "deleted", "deactivated")))
            self.say("false news", account.did, event.status)
            self.send(lambda seq: with_seq(event, seq))

    def do_identity(self) -> None:
        event = self.network.identity_event(self.account(), 0)
        self.say("#identity", event.did, event.time)
        self.send(lambda seq: with_seq(event, seq))

    def do_filter(self) -> None:
        """The operator sets another filter, at any moment, or has the rows outside of it removed."""
        if self.rng.random() < 0.3:
            self.fired["pruned"] += not self.tables.filter.filter.clean
            self.say("prune")
            self.tables.prune()
            return
        before, collections = self.tables.filter.filter, self.rng.choice(CHOICES)
        during = any(row.repo.phase == Phase.BACKFILL for row in self.tables.rows.values())
        self.fired["narrowed"] += not covers(collections, before.collections)
        self.fired["widened"] += not covers(before.collections, collections)
        self.fired["filter changed during a backfill"] += during
        self.say("filter", collections)
        self.tables.set_filter(collections)

    def do_deliver(self) -> None:
        number = self.rng.randrange(len(self.pipes))
        pipe = self.pipes[number]
        for event in pipe[: self.rng.randint(1, 4)]:
            pipe.pop(0)
            self.live.append(event)
            self.say("live", len(self.live) - 1, "<-", short(event))

    def do_again(self) -> None:
        """Something old comes again: a reconnect, a second relay, a producer that was not sure."""
        recent = [event for event in self.live[-8:] if not self.network.accounts[event.did].went_back]
        if recent:
            event = self.rng.choice(recent)
            self.disturbed = True
            self.fired["late or doubled event"] += 1
            self.live.append(event)
            self.say("live", len(self.live) - 1, "<- again", short(event))

    def do_listing(self) -> None:
        listed = []
        for account in self.network.accounts.values():
            if account.state == "deleted" or (not self.calm and self.rng.random() < 0.2):
                continue
            if self.must_recover_by_events(account):
                continue
            rev = (
                account.head.rev
                if self.calm or self.rng.random() < 0.8
                else self.rng.choice(("", account.chain[0].rev))
            )
            active = account.active
            listed.append(Listed(account.did, rev, active, None if active else account.state))
        tasks = self.tables.discover(listed).tasks
        for entry in listed:
            if self.tables.rows[entry.did].repo.phase in (Phase.PENDING, Phase.UNAVAILABLE, Phase.FAILED):
                self.heard[entry.did] = max(self.heard[entry.did], entry.rev)
            elif self.tables.rows[entry.did].listed_rev == entry.rev:
                self.fired["listed ahead of a backfill"] += self.tables.rows[entry.did].repo.phase == Phase.BACKFILL
                self.listed[entry.did] = entry.rev
        self.say("listing", [(e.did, e.rev, e.active) for e in listed], "queues", [task.did for task in tasks])
        self.queue("repo_backfill", tasks)

    def do_pds_listing(self) -> None:
        """A PDS lists what it calls its own: the true one, which does not know of takedowns, or anybody."""
        host = self.rng.choice((PDS, "elsewhere"))
        self.tables.now += self.rng.choice((0.0, 3700.0))
        listed = [Listed(one.did, host=host) for one in self.network.accounts.values() if one.did in self.tables.rows]
        before = {did: (row.repo.phase, row.repo.active) for did, row in self.tables.rows.items()}
        self.tables.discover(listed)
        self.say("listing of", host)
        for did, (phase, active) in before.items():
            repo = self.tables.rows[did].repo
            self.fired["reopened by its PDS"] += repo.phase != phase
            if repo.active != active or (repo.phase != phase and host != PDS):
                self.fail(f"{did}: a list of {host} made it {self.show(did)}")

    def must_recover_by_events(self, account: Account) -> bool:
        """At first no listing reopens what is unavailable: true account events alone have to do it."""
        row = self.tables.rows.get(account.did)
        unavailable = row is not None and row.repo.phase == Phase.UNAVAILABLE
        return self.calm and self.quiet_rounds <= 20 and unavailable

    def queue(self, topic: str, tasks: Iterable[wire.RepoTask]) -> None:
        for task in tasks:
            if self.crashes():
                self.fired["lost task"] += 1
                self.say("the task of", task.did, "is lost")
            else:
                self.tasks[topic].append((self.tables.now, task))
