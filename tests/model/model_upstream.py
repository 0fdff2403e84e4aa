"""What the network does to a schedule: writes, losses, forgeries, account news, deliveries and listings."""

from collections.abc import Iterable
from typing import Any

from connectors.postgres.repo_queue import ListedRepo
from schemas import wire
from steps.gate.filters import covers
from steps.gate.model import Phase
from tests.model.model_checks import Checks
from tests.model.model_filters import CHOICES
from tests.model.model_messages import short
from tests.model.model_network import Account, stamped
from tests.model.model_relays import Relay
from tests.model.model_rows import PDS


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
        self.send(event, may_lose=True)

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
            self.send(event, may_lose=True)

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
            self.send(event)
            self.send(true)  # a twin whose original is never sent is left to the audit

    def do_go_back(self) -> None:
        """The PDS loses its newest commit; only a refetch can notice, so something forged has to cause one."""
        account = self.account()
        busy = any(event.did == account.did for relay in self.relays for event in relay.pipe)
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
        self.send(event)

    def do_sync(self) -> None:
        account = self.account()
        if account.state == "active":
            commit = account.head if self.rng.random() < 0.7 else self.rng.choice(account.chain)
            event = self.network.sync_event(account, commit, 0)
            self.say("#sync", account.did, commit.rev)
            self.send(event, may_lose=True)

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
        self.tell_relays(self.network.account_event(account, 0, account.state))

    def tell_relays(self, event: Any) -> None:
        """News of an account into the relays' pipes; one of several may lose it."""
        telling = [relay for relay in self.relays if event.did not in relay.barred]
        if len(telling) > 1 and not self.calm and not self.profile.skewed and self.rng.random() < self.profile.loss:
            self.fired["a relay loses an account event"] += 1
            telling.remove(self.rng.choice(telling))
        for relay in telling:
            relay.say(event, self.rng.randint(1, 3))

    def do_clock(self) -> None:
        """The clock of a PDS is wrong; behind only where the one relay's sequence makes up for it."""
        if self.profile.skewed:
            account = self.account()
            behind = len(self.relays) == 1 and not self.profile.weights.get("restart")
            account.skew = self.rng.choice((0, 300, -40) if behind else (account.skew or 300,))
            self.fired["a clock behind"] += account.skew < 0
            self.say("clock", account.did, account.skew)

    def do_takedown(self) -> None:
        """A relay takes an account down, or lifts that: its own event, by its own clock."""
        account, relay = self.account(), self.rng.choice(self.relays)
        if account.did in relay.barred:
            self.lift(relay, account)
        elif account.state == "active" and not account.untold:
            self.fired["a relay's own takedown"] += 1
            self.say("relay", relay.name, "takes down", account.did)
            relay.say(self.network.takedown_event(account), 1)
            relay.barred.add(account.did)
            self.disturbed = True  # what it passes on behind the takedown does not follow on what it passed on before
            account.barred = len(self.relays) == 1

    def lift(self, relay: Relay, account: Account) -> None:
        self.say("relay", relay.name, "lifts the takedown of", account.did)
        relay.barred.discard(account.did)
        account.barred = account.untold = False
        relay.say(self.network.lifted_event(account), 1)

    def do_restart(self) -> None:
        """A relay restarts its sequence; events in flight keep their old numbers."""
        relay = self.rng.choice(self.relays)
        if self.profile.skewed:
            if len(self.relays) > 1 or any(account.skew < 0 for account in self.network.accounts.values()):
                return
            while relay.pipe:
                self.receive(relay, relay.pipe.pop(0))
        relay.epoch += 1
        relay.seq = 0
        self.fired["a relay restarts its sequence"] += 1
        self.say("relay", relay.name, "restarts its sequence")

    def do_reread(self) -> None:
        """A connection resumes at an earlier number: all events from there arrive again, in order."""
        relay = self.rng.choice(self.relays)
        again = relay.sent[-self.rng.randint(1, 6) :]
        again = [
            event
            for event in again
            if not self.network.accounts[event.did].went_back and getattr(event, "epoch", relay.epoch) == relay.epoch
        ]
        if again:
            self.disturbed = True
            self.fired["read again"] += 1
            self.say("relay", relay.name, "is read again")
            for event in again:
                self.receive(relay, event)

    def do_false_news(self) -> None:
        """The host that an account has left calls it deleted or deactivated."""
        account = self.account()
        if account.state == "active":
            self.fired["false news"] += 1
            event = self.network.account_event(account, 0, self.rng.choice(("deleted", "deleted", "deactivated")))
            self.say("false news", account.did, event.status)
            self.tell_relays(event)

    def do_identity(self) -> None:
        event = self.network.identity_event(self.account(), 0)
        self.say("#identity", event.did, event.time)
        self.send(event)

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
        slow = self.profile.lagging and self.rng.random() < 0.85  # the last relay lags behind the others
        relay = self.rng.choice(self.relays[: -1 if slow and len(self.relays) > 1 else None])
        for event in relay.pipe[: self.rng.randint(1, 4)]:
            relay.pipe.pop(0)
            self.fired["a relay that lags"] += relay is self.relays[-1] and len(relay.pipe) > 10
            self.receive(relay, event)
        if self.rng.random() < 0.1:
            self.reorder(relay)

    def reorder(self, relay: Relay) -> None:
        """Events of different repos overtake each other within a relay, before they get their numbers there."""
        dids = [event.did for event in relay.pipe]
        if len(set(dids)) < 2 or relay.epoch:
            return
        queues = {did: [event for event in relay.pipe if event.did == did] for did in dids}
        numbers = [event.seq for event in relay.pipe]
        self.rng.shuffle(dids)
        relay.pipe[:] = [stamped(queues[did].pop(0), seq=seq) for did, seq in zip(dids, numbers, strict=True)]
        self.fired["another order"] += 1

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
            listed.append(ListedRepo(account.did, rev, account.active, None if account.active else account.status))
        tasks = self.tables.discover(listed).tasks
        for entry in listed:
            if self.tables.rows[entry.did].repo.phase in (Phase.PENDING, Phase.UNAVAILABLE, Phase.FAILED):
                self.seen[entry.did] = max(self.seen[entry.did], entry.rev)
            elif self.tables.rows[entry.did].listed_rev == entry.rev:
                self.fired["listed ahead of a backfill"] += self.tables.rows[entry.did].repo.phase == Phase.BACKFILL
                self.listed[entry.did] = entry.rev
        self.say("listing", [(e.did, e.rev, e.active) for e in listed], "queues", [task.did for task in tasks])
        self.queue("repo_backfill", tasks)

    def do_pds_listing(self) -> None:
        """A PDS lists what it calls its own: the true one, which does not know of takedowns, or anybody."""
        host = self.rng.choice((PDS, "elsewhere"))
        self.tables.now += self.rng.choice((0.0, 3700.0))
        listed = [
            ListedRepo(one.did, host=host) for one in self.network.accounts.values() if one.did in self.tables.rows
        ]
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
