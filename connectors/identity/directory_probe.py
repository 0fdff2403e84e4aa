"""Whether the PLC directory of the settings is one, and is up: it has just given a document that we can check.

A 404 in plain text is a directory's word where the directory is proven, and a proxy's page, or a wrong path, where it is
not. Used in one event loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from connectors.http.client import DOCUMENT_JSON, HttpAnswer
from protocol.did_document import Identity, IdentityReason, IdentityRejected, parse_document
from protocol.encoding.bounded_json import BadJson

UNPROVEN_SECONDS = 5.0  # a failed probe serves for so long


class DirectoryProof:
    """`probe` asks the directory for documents that it is known to have; it calls `seen` for each one that comes."""

    def __init__(self, probe: Callable[[], Awaitable[bool]]) -> None:
        self._probe = probe
        self._turn = asyncio.Lock()
        self._seen_at = float("-inf")  # moments are time.monotonic
        self._failed_at = float("-inf")

    def seen(self) -> None:
        """The directory gave the right document for a DID."""
        self._seen_at = time.monotonic()

    async def since(self, moment: float) -> bool:
        """Has it given one since then? Asks it, once for all callers, where nothing shows it."""
        async with self._turn:
            if self._seen_at >= moment:
                return True
            if time.monotonic() < self._failed_at + UNPROVEN_SECONDS:
                return False
            if await self._probe():
                self.seen()
                return True
            self._failed_at = time.monotonic()
            return False


def says_no(answer: HttpAnswer) -> bool:
    """A PLC directory's own word, in JSON. Without it the directory has to be proven."""
    try:
        body = answer.json(DOCUMENT_JSON)
    except BadJson:
        return False
    return isinstance(body, dict) and isinstance(body.get("message"), str)


def read_document(did: str, answer: HttpAnswer) -> Identity | IdentityRejected:
    """The identity of a 200 answer."""
    try:
        return parse_document(did, answer.json(DOCUMENT_JSON))
    except BadJson as err:
        return IdentityRejected(IdentityReason.NOT_AN_OBJECT, str(err))
