"""Checks whether SLUICE_PLC is a working PLC directory, that is, has recently returned a valid document.

Only then does a 404 in plain text mean "no such identity"; otherwise it may come from a proxy or a wrong path. For one event
loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from connectors.http.client import DOCUMENT_JSON, HttpAnswer
from protocol.did_document import IdentityReason, IdentityRejected, ResolvedIdentity, parse_document
from protocol.encoding.bounded_json import BadJson

PROBE_AGAIN_SECONDS = 5.0  # minimum interval after a failed probe


class DirectoryProof:
    """`probe` requests documents that the directory is known to have, and returns whether it got one.

    `seen_at`: when the directory last returned a valid document.
    """

    def __init__(self, probe: Callable[[], Awaitable[bool]], clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._probing = asyncio.Lock()
        self.seen_at = float("-inf")
        self._failed_at = float("-inf")

    def seen(self) -> None:
        """Record that the directory returned a valid document of the requested DID."""
        self.seen_at = self._clock()

    async def since(self, moment: float) -> bool:
        """Whether the directory has returned a valid document since `moment`. Otherwise probe; concurrent callers share one."""
        async with self._probing:
            if self.seen_at >= moment:
                return True
            if self._clock() < self._failed_at + PROBE_AGAIN_SECONDS:
                return False
            if await self._probe():
                self.seen()
                return True
            self._failed_at = self._clock()
            return False


def has_directory_message(answer: HttpAnswer) -> bool:
    """Whether a 404 or 410 has the JSON message of a PLC directory; otherwise use DirectoryProof."""
    try:
        body = answer.json(DOCUMENT_JSON)
    except BadJson:
        return False
    return isinstance(body, dict) and isinstance(body.get("message"), str)


def read_document(did: str, answer: HttpAnswer) -> ResolvedIdentity | IdentityRejected:
    """The identity in a 200 response."""
    try:
        return parse_document(did, answer.json(DOCUMENT_JSON))
    except BadJson as err:
        return IdentityRejected(IdentityReason.NOT_AN_OBJECT, str(err))
