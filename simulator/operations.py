"""Single operations on the running network, by name and JSON arguments: what `POST /op` of the control API does."""

from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import Any

from cbrrr import CID

from simulator.accounts import OperationError, SimulatedAccount, Status
from simulator.network import Network
from simulator.repo.odd_leaves import odd_ops
from simulator.repo.records import fresh
from simulator.repo.repository import Action, RecordWrite
from simulator.servers.labeler import Labeler
from simulator.servers.relay import Relay

Arguments = dict[str, Any]
Perform = Callable[[SimulatedAccount, Arguments], Awaitable[dict[str, Any] | None]]

_STATUS: dict[str, Status | None] = {
    "activate": None,
    "deactivate": "deactivated",
    "takedown": "takendown",
    "suspend": "suspended",
    "delete_account": "deleted",
}
_WRITES: dict[str, Action] = {"create": "create", "update": "update", "delete": "delete"}


class Operations:
    """Performs one operation at a time. All but `new_account` and `label` take the `did` of an account."""

    def __init__(self, network: Network, relays: list[Relay], labelers: list[Labeler]) -> None:
        self._network = network
        self._relays = relays
        self._labelers = labelers
        self._on_account: dict[str, Perform] = {
            "commit": self._commit,
            "odd_leaf": self._odd_leaf,
            "handle": self._handle,
            "migrate": self._migrate,
            "relay_takedown": self._relay_takedown,
            "relay_restore": self._relay_restore,
            "rotate_key": self._rotate_key,
            "sync": self._sync,
        }

    async def perform(self, name: str, arguments: Arguments) -> dict[str, Any]:
        """Perform one operation and return its result, by default {did, rev}.

        Names: new_account; label; create, update, delete; activate, deactivate, takedown, suspend, delete_account; and
        those in `_on_account`. Raises OperationError for an unknown name or DID, or if the network rejects the operation.
        """
        if name == "new_account":
            return await self._new_account()
        if name == "label":
            return self._label(arguments)
        account = self._network.accounts.find(arguments["did"])
        result: dict[str, Any] | None = None
        if name in _WRITES:
            result = await self._write(account, _WRITES[name], arguments)
        elif name in _STATUS:
            await self._network.set_status(account, _STATUS[name])
        elif name in self._on_account:
            result = await self._on_account[name](account, arguments)
        else:
            raise OperationError(f"unknown operation {name!r}")
        _, rev = await self._network.repositories.head(account)
        return {"did": account.did, "rev": rev} | (result or {})

    async def _new_account(self) -> dict[str, Any]:
        account = await self._network.new_account()
        return {"did": account.did, "handle": account.handle, "pds": account.pds}

    def _label(self, arguments: Arguments) -> dict[str, Any]:
        """{uri, val, neg?, cid?, exp?, labeler?: index}"""
        labeler = self._labelers[int(arguments.pop("labeler", 0))]
        return {"seq": labeler.publish([labeler.make(**arguments)])}

    async def _write(self, account: SimulatedAccount, action: Action, arguments: Arguments) -> dict[str, Any]:
        """{path? or collection? and rkey?, record?}: one record. A missing path or record is drawn from the seed."""
        network = self._network
        path, value = arguments.get("path"), _from_json(arguments.get("record"))
        if path is None and "collection" in arguments:
            path = f"{arguments['collection']}/{arguments.get('rkey') or network.clock.next_tid()}"
        if path is None or (value is None and action != "delete"):
            drawn = fresh(network.rng, network.clock.tick(), network.repositories.subjects)
            path, value = path or drawn[0], value or drawn[1]
        await network.commit(account, [RecordWrite(action, path, None if action == "delete" else value)])
        return {"path": path}

    async def _commit(self, account: SimulatedAccount, arguments: Arguments) -> None:
        """{ops?: [{action, path or paths, record?}]}: all in one commit; without ops an empty one."""
        writes = [
            RecordWrite(op["action"], path, _from_json(op.get("record")))
            for op in arguments.get("ops", [])
            for path in op.get("paths") or [op["path"]]
        ]
        await self._network.commit(account, writes)

    async def _odd_leaf(self, account: SimulatedAccount, arguments: Arguments) -> dict[str, Any]:
        """{kind, bytes?, count?}: see `odd_leaves`."""
        network = self._network
        writes = odd_ops(arguments["kind"], network.clock.tick, network.rng, arguments)
        await network.commit(account, writes)
        return {"paths": [write.path for write in writes]}

    async def _handle(self, account: SimulatedAccount, arguments: Arguments) -> dict[str, Any]:
        """{handle?, announce?, domain?}: see `Network.change_handle`."""
        announce, domain = arguments.get("announce", True), arguments.get("domain", True)
        handle = await self._network.change_handle(account, arguments.get("handle"), announce=announce, domain=domain)
        return {"handle": handle}

    async def _migrate(self, account: SimulatedAccount, arguments: Arguments) -> dict[str, Any]:
        """{pds?: index, noisy?}: see `Network.migrate`."""
        noisy = arguments.get("noisy", False)
        return {"pds": await self._network.migrate(account, arguments.get("pds"), noisy=noisy)}

    async def _relay_takedown(self, account: SimulatedAccount, arguments: Arguments) -> None:
        """{relay?: index}: take the account down at one relay only."""
        self._relays[int(arguments.get("relay", 0))].take_down(account)

    async def _relay_restore(self, account: SimulatedAccount, arguments: Arguments) -> None:
        """{relay?: index}: end a relay_takedown."""
        self._relays[int(arguments.get("relay", 0))].take_down(account, down=False)

    async def _rotate_key(self, account: SimulatedAccount, _arguments: Arguments) -> None:
        await self._network.rotate_key(account)

    async def _sync(self, account: SimulatedAccount, _arguments: Arguments) -> None:
        """Emit a #sync event of the current head."""
        await self._network.repositories.live(account)
        self._network.emit_sync(account)


def _from_json(value: Any) -> Any:
    """Convert a JSON record to the data model: {"$link"} and {"$bytes"} become CIDs and bytes."""
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$link"}:
        return CID.decode(value["$link"])
    if value.keys() == {"$bytes"}:
        return b64decode(value["$bytes"] + "==")
    return {key: _from_json(item) for key, item in value.items()}
