"""A labeler: its whole history of signed labels over subscribeLabels."""

import hashlib
import random
from base64 import b32encode, b64encode
from typing import Any

from aiohttp import web
from cbrrr import encode_dag_cbor

from simulator.events import Event
from simulator.faults.faults import Faults
from simulator.network import Network
from simulator.repo.car import cid_of, cid_text
from simulator.repo.keys import derive_key
from simulator.repo.records import POST, timestamp
from simulator.repo.tid import tid
from simulator.servers.plc import did_document
from simulator.servers.stream import EventStream

_VALUES = ("spam", "porn", "rude", "!hide", "!warn", "custom-value", "verified")
_ALL = 1 << 60

Label = dict[str, Any]


class Labeler:
    """The labeler with this index. `final` is the newest label per (src, uri, val, cid), negations included."""

    def __init__(self, network: Network, faults: Faults, index: int) -> None:
        self.network = network
        self.faults = faults
        self.index = index
        self.url = ""
        seed = network.config.seed
        digest = hashlib.sha256(f"{seed}/labeler/{index}".encode()).digest()
        self.did = "did:plc:" + b32encode(digest[:15]).decode().lower()
        self.key = derive_key("p256" if index % 2 else "secp256k1", seed, "labeler", index)
        self.final: dict[tuple[str, str, str, str], Label] = {}
        # cursor 0 returns the whole history: the window is unlimited
        self.stream = EventStream(1, _ALL, faults, index, fault_prefix="label_")
        self._rng = random.Random(f"{seed}/labels/{index}")
        for _ in range(network.config.labels):
            self.write_some()

    def document(self) -> dict[str, Any]:
        service = {"id": "#atproto_labeler", "type": "AtprotoLabeler", "serviceEndpoint": self.url}
        return did_document(self.did, f"labeler{self.index}.test", self.key, "atproto_label", [service])

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/xrpc/com.atproto.label.subscribeLabels", self.stream.serve)
        return app

    def write_some(self) -> None:
        """Publish a random batch of one to three labels: new ones, negations and renewals."""
        rng = self._rng
        batch = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            known = list(self.final.values()) if len(self.final) < 2000 else []
            if known and rng.random() < 0.25:
                old = rng.choice(known)
                batch.append(self.make(old["uri"], old["val"], cid=old.get("cid"), neg=not old.get("neg", False)))
            else:
                batch.append(self._random_label())
        self.publish(batch)

    def _random_label(self) -> Label:
        rng, accounts = self._rng, self.network.accounts.all
        did = rng.choice(accounts).did if accounts else "did:plc:nobody"
        uri, cid = did, None
        if rng.random() < 0.6:
            uri = f"at://{did}/{POST}/{tid(1_700_000_000_000_000 + rng.getrandbits(40))}"
            cid = cid_text(cid_of(uri.encode())) if rng.random() < 0.5 else None
        if (other := rng.random()) < 0.1:  # other subjects: a web page, or a record under a handle
            name = f"{rng.getrandbits(32):08x}.example"
            uri, cid = (f"https://{name}/page?a=1#b" if other < 0.05 else f"at://{name}/{POST}/{tid(1 << 50)}"), None
        expires = timestamp(self.network.clock.now_micros + 86_400_000_000) if rng.random() < 0.1 else None
        return self.make(uri, rng.choice(_VALUES), cid=cid, exp=expires)

    def make(self, uri: str, val: str, *, cid: str | None = None, neg: bool = False, exp: str | None = None) -> Label:
        """A signed label of the current time. cts increases strictly, so that the order of labels is unambiguous."""
        self.network.clock.now_micros += 1000
        label: Label = {"ver": 1, "src": self.did, "uri": uri, "val": val}
        label["cts"] = timestamp(self.network.clock.tick())
        if cid:
            label["cid"] = cid
        if neg:
            label["neg"] = True
        if exp:
            label["exp"] = exp
        return {**label, "sig": self.key.sign(encode_dag_cbor(label))}

    def publish(self, labels: list[Label]) -> int:
        """Send labels and add them to the expected state. Returns the seq."""
        if self.faults.fire("label_bad_sig", host=self.index):
            forged = self.make(labels[0]["uri"], "forged")
            self._send([{**forged, "sig": forged["sig"][:40] + bytes(24)}])
        if self.faults.fire("label_foreign_src", host=self.index):
            self._send([{**self.make(labels[0]["uri"], "foreign"), "src": "did:plc:somebodyelsealtogether"}])
        if self.faults.fire("label_giant", host=self.index):
            noise = "".join(self._rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8000))  # does not compress
            self._send([self.make(f"https://{noise}", "giant")])
        for label in labels:
            self.final[label["src"], label["uri"], label["val"], label.get("cid", "")] = label
        return self._send(labels)

    def _send(self, labels: list[Label]) -> int:
        return self.stream.publish(Event("#labels", self.did, {"labels": labels}))

    def state(self) -> list[Label]:
        """The newest label per (src, uri, val, cid), as JSON values: sig as {"$bytes"}."""
        return [_json_label(label) for label in self.final.values()]


def _json_label(label: Label) -> Label:
    return {**label, "sig": {"$bytes": b64encode(label["sig"]).decode().rstrip("=")}}
