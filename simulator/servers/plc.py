"""The PLC directory: DID documents of accounts and labelers."""

import asyncio
from typing import Any

from aiohttp import web

from simulator.faults.faults import Faults
from simulator.network import Network
from simulator.repo.keys import SigningKey, derive_key, multikey

_CONTEXT = [
    "https://www.w3.org/ns/did/v1",
    "https://w3id.org/security/multikey/v1",
    "https://w3id.org/security/suites/secp256k1-2019/v1",
]


def did_document(
    did: str, handle: str, key: SigningKey, fragment: str, services: list[dict[str, str]]
) -> dict[str, Any]:
    """A DID document. In one of eight, the first verification method is not the signing key, which the standard allows."""
    decoy = {
        "id": f"{did}#atproto_label" if fragment == "atproto" else f"{did}#atproto",
        "type": "Multikey",
        "controller": did,
        "publicKeyMultibase": multikey(derive_key("secp256k1", "decoy", did)),
    }
    return {
        "@context": _CONTEXT,
        "id": did,
        "alsoKnownAs": [f"at://{handle}"],
        "verificationMethod": [
            *([decoy] if did[-1] in "a2e6" else []),
            {
                "id": f"{did}#{fragment}",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": multikey(key),
            },
        ],
        "service": services,
    }


class PlcDirectory:
    """Serves `GET /{did}`. `labelers`: DID → document."""

    def __init__(self, network: Network, faults: Faults) -> None:
        self.network = network
        self.faults = faults
        self.pds_urls: list[str] = []
        self.labelers: dict[str, dict[str, Any]] = {}
        self._allowance, self._allowed_at = 0.0, asyncio.get_running_loop().time()

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/_health", self._health)
        app.router.add_get("/{did}", self._document)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": "simulator"})

    async def _document(self, request: web.Request) -> web.Response:
        did = request.match_info["did"]
        if self.faults.fire("plc_500", did=did):
            return web.json_response({"message": "injected"}, status=500)
        if (refused := self._throttled(did)) is not None:
            return refused
        plain = self.faults.fire("plc_plain_404", did=did)
        if plain is not None:
            return web.Response(status=int(plain.get("status", 404)), text=f"DID not registered: {did}")
        if self.faults.fire("plc_other_did", did=did):
            other = self.network.accounts.all[-1].did
            return web.json_response(self.account_document(other))
        slow = self.faults.fire("plc_slow", did=did)
        if slow:
            await asyncio.sleep(slow.get("seconds", 2))
        document = self.labelers.get(did) or (self.account_document(did) if did.startswith("did:plc:") else None)
        if document is None:
            return web.json_response({"message": f"DID not registered: {did}"}, status=404)
        return web.json_response(document, content_type="application/did+ld+json")

    def _throttled(self, did: str) -> web.Response | None:
        """429 if `plc_429` is on and the request is above its rate, else None. A burst may use one second of the rate."""
        limit = self.faults.parameters("plc_429")
        if limit is None:
            return None
        rate, now = float(limit.get("rate", 0)), asyncio.get_running_loop().time()
        self._allowance = min(rate, self._allowance + (now - self._allowed_at) * rate)
        self._allowed_at = now
        if self._allowance >= 1:
            self._allowance -= 1
            return None
        if self.faults.fire("plc_429", did=did) is None:
            return None
        wait = limit.get("retry_after")
        headers = {} if wait is None else {"Retry-After": str(wait)}
        return web.json_response({"message": "too many requests"}, status=429, headers=headers)

    def account_document(self, did: str) -> dict[str, Any] | None:
        """The document of an account; None if the DID is unknown."""
        account = self.network.accounts.by_did.get(did)
        if account is None:
            return None
        service = {
            "id": "#atproto_pds",
            "type": "AtprotoPersonalDataServer",
            "serviceEndpoint": self.pds_urls[account.pds],
        }
        return did_document(did, account.handle, self.network.accounts.key(account), "atproto", [service])
