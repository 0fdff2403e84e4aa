"""The true network of the gate's model: accounts with their history, the PDS that serves it, relays that tell of it.

`data` of a commit spells its records out ("a=7,b=9"), so that a root can be compared with rows by reading it. Revs and
times come from one growing counter. What a relay lost, said twice or said late is the schedule's choice, not this module's.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from protocol.syntax import tid_from_micros
from schemas import wire
from tests.model.model_filters import COLLECTIONS

RKEYS = "".join(COLLECTIONS)
FORGED = "~"  # above every true rev


def stamped(event: Any, **changes: Any) -> Any:
    """A copy of a message; fields that it does not have are left out."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return type(event)(**fields | {name: value for name, value in changes.items() if name in fields})


def data_of(records: dict[str, str]) -> str:
    """rkey → cid, as a text in place of an MST root."""
    return ",".join(f"{rkey}={cid}" for rkey, cid in sorted(records.items()))


def records_of(data: str) -> dict[str, str]:
    """The records under a root: what `data_of` made it of."""
    return dict(pair.split("=") for pair in data.split(",") if pair)  # type: ignore[misc]  # two parts each


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: the records after it, and what led to it. `ops`: (action, rkey, cid or None)."""

    rev: str
    records: dict[str, str]
    data: str
    since: str | None = None
    prev_data: str = ""
    ops: tuple[tuple[str, str, str | None], ...] = ()


@dataclass(slots=True)
class Account:
    """One repo: its chain, the pairs (rev, data) that it ever signed, and the account's state at its PDS."""

    did: str
    legacy: bool
    chain: list[Commit]
    signed: set[tuple[str, str]]
    state: str = "active"  # or throttled, deactivated, takendown, deleted
    forged: bool = False  # a forged rev was sent
    untold: bool = False  # inactive, and the event that said so got lost
    went_back: bool = False  # its PDS was restored from a backup
    barred: bool = False  # taken down by the only relay there is
    skew: int = 0  # how far the clock of its PDS is ahead

    @property
    def active(self) -> bool:
        """Whether it is to be shown."""
        return self.served and not self.barred

    @property
    def served(self) -> bool:
        """Whether its PDS serves it."""
        return self.state in ("active", "throttled")

    @property
    def status(self) -> str | None:
        return "takendown" if self.barred else None if self.state == "active" else self.state

    @property
    def head(self) -> Commit:
        return self.chain[-1]


@dataclass(slots=True)
class Network:
    """All accounts; every method returns the event that a relay would send, or changes nothing but the truth."""

    rng: Random
    accounts: dict[str, Account] = field(default_factory=dict)
    counter: int = 0

    def tid(self) -> str:
        """The next rev, which is also the next time."""
        self.counter += 1
        return tid_from_micros(self.counter)

    def add(self, did: str, *, empty: bool = False) -> Account:
        records = {rkey: self._cid() for rkey in RKEYS if self.rng.random() < 0.3 and not empty}
        first = Commit(self.tid(), records, data_of(records))
        account = Account(did, self.rng.random() < 0.25, [first], {(first.rev, first.data)})
        self.accounts[did] = account
        return account

    def write(self, account: Account) -> Commit:
        """A new head with up to two operations."""
        before = account.head
        commit = self._next(account, self.tid())
        account.chain.append(commit)
        account.signed.add((commit.rev, commit.data))
        assert commit.since == before.rev
        return commit

    def rewrite(self, account: Account) -> Commit | None:
        """A second commit with the head's rev and other data: the account signed both, its PDS keeps the chain's."""
        if len(account.chain) < 2 or account.legacy:  # without prev_data the two chains cannot be told apart
            return None
        head = account.chain.pop()
        twin = self._next(account, head.rev)
        account.chain.append(head)
        if twin.data == head.data:
            return None
        account.signed.add((twin.rev, twin.data))
        return twin

    def go_back(self, account: Account) -> None:
        """The PDS is restored from a backup that lacks its newest commit."""
        account.chain.pop()
        account.went_back = True

    def commit_event(self, account: Account, commit: Commit, seq: int, *, missing: bool = False) -> wire.CommitEvent:
        ops = [
            wire.Op(
                action=action,  # type: ignore[arg-type]  # one of three by construction
                collection=COLLECTIONS[rkey],
                rkey=rkey,
                cid=cid,
                reason="missing_block" if missing and cid else None,
            )
            for action, rkey, cid in commit.ops
        ]
        return wire.CommitEvent(
            seq=seq,
            time=commit.rev,
            did=account.did,
            rev=commit.rev,
            commit=f"commit{commit.rev}",
            commit_block="AAAA",
            data=commit.data,
            ops=ops,
            since=commit.since,
            prev_data=None if account.legacy else commit.prev_data,
        )

    def sync_event(self, account: Account, commit: Commit, seq: int) -> wire.SyncEvent:
        return wire.SyncEvent(seq=seq, time=self.tid(), did=account.did, rev=commit.rev, data=commit.data)

    def forged_event(self, account: Account, seq: int) -> wire.CommitEvent:
        """A rev from the far future that no snapshot will reach."""
        account.forged = True
        return wire.CommitEvent(
            seq=seq,
            time=self.tid(),
            did=account.did,
            rev=FORGED,
            commit="forged",
            commit_block="AAAA",
            data="forged",
            ops=[],
            since="forged",
            prev_data="forged",
        )

    def account_event(self, account: Account, seq: int, state: str) -> wire.AccountEvent:
        # a server that throttles an account sends `active` false, or leaves it out
        active = state == "active" or (state == "throttled" and self.counter % 2 == 0)
        odd = "takendown" if self.counter % 5 == 0 else None  # beside an active account it means nothing
        status = odd if state == "active" else state
        return wire.AccountEvent(seq=seq, time=self.clock(account), did=account.did, active=active, status=status)

    def takedown_event(self, account: Account) -> wire.AccountEvent:
        """An event of the relay itself, by its clock."""
        return wire.AccountEvent(seq=0, time=self.tid(), did=account.did, active=False, status="takendown")

    def lifted_event(self, account: Account) -> wire.AccountEvent:
        """The relay lifts its takedown: it sends the PDS's status, by its own clock."""
        return stamped(self.account_event(account, 0, account.state), time=self.tid())

    def clock(self, account: Account) -> str:
        """The time as the account's PDS has it."""
        self.tid()
        return tid_from_micros(max(1, self.counter + account.skew))

    def identity_event(self, account: Account, seq: int) -> wire.IdentityEvent:
        return wire.IdentityEvent(seq=seq, time=self.clock(account), did=account.did, handle=f"h{self.counter}.test")

    def _next(self, account: Account, rev: str) -> Commit:
        before, rng = account.head, self.rng
        records, ops = dict(before.records), []
        for rkey in rng.sample(RKEYS, rng.choice((0, 1, 1, 1, 2))):
            if rkey in records and rng.random() < 0.5:
                del records[rkey]
                ops.append(("delete", rkey, None))
                continue
            action = "update" if rkey in records else "create"
            records[rkey] = self._cid()
            ops.append((action, rkey, records[rkey]))
        return Commit(rev, records, data_of(records), before.rev, before.data, tuple(ops))

    def _cid(self) -> str:
        self.counter += 1
        return str(self.counter)
