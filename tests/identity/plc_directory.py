"""A PLC directory of a test's own, and the look-up of many keys."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections import Counter
from typing import Any

from connectors.identity.key_ring import KeyRing, KeyUnavailable
from simulator.repo.keys import derive_key, multikey

KNOWN, NEW = "did:plc:" + "k" * 24, "did:plc:" + "n" * 24
KEY = multikey(derive_key("secp256k1", "account"))


class Directory:
    """A PLC directory behind a proxy: `dead` DIDs are answered with 503; its health page has a status of its own.

    With a `rate` it answers so many requests a second, the others with 429, and so it does `puts_off` requests for a DID first.
    It is a did:web host too, which answers 429 only.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.dead: set[str] = set()
        self.health = 404
        self.rate: float | None = None
        self.retry_after: str | None = None
        self.puts_off: dict[str, int] = {}
        self.refused = 0
        self._tokens, self._at, self._lock = 0.0, time.monotonic(), threading.Lock()
        directory = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                did = self.path[1:]
                directory.asked[did] += 1
                key = {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": KEY}
                status, body = 200, json.dumps({"id": did, "verificationMethod": [key]}).encode()
                if did == "_health":
                    status, body = directory.health, b"a page"
                elif did in directory.dead:
                    status, body = 503, b""
                if (
                    did == ".well-known/did.json"
                    or directory.limits()
                    or directory.asked[did] <= directory.puts_off.get(did, 0)
                ):
                    status, body = 429, b"{}"
                self.send_response(status)
                if status == 429 and directory.retry_after is not None:
                    self.send_header("Retry-After", directory.retry_after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def limits(self) -> bool:
        """Whether this request is one too many."""
        with self._lock:
            if self.rate is None:
                return False
            now = time.monotonic()
            self._tokens = min(self.rate, self._tokens + (now - self._at) * self.rate)
            self._at = now
            allowed = self._tokens >= 1
            self._tokens -= allowed
            self.refused += not allowed
            return not allowed


def find(ring: KeyRing[str | None], dids: set[str]) -> dict[str, str | KeyUnavailable | None]:
    """The key of every DID, when all answers have come. Raises Stopping."""
    found: dict[str, str | KeyUnavailable | None] = dict(ring.known(dids))
    ring.ask(dids - found.keys())
    while dids - found.keys():
        ring.wait()
        found |= {did: key.value for did, key in ring.answers().items()}
    return found
