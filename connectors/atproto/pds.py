"""com.atproto.sync.getRepo at a PDS: (DID, host) → Download, or FetchFailed with a typed reason.

Redirects are followed here, not by the HTTP library, because every hop must pass the host guard and the budget of its own host.
The body is streamed into a Spool, which bounds memory.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp

from connectors.atproto.rate_budget import HostBudget, HostPaused
from connectors.atproto.spool import Spool, SpoolBudget, SpoolFull
from connectors.http.client import (
    REDIRECTS,
    HostRefused,
    check_url,
    origin,
    redirected,
    retry_after,
    to_http_error,
    xrpc_error,
)
from connectors.kafka.producer import now_text
from connectors.runtime import metrics
from protocol.car import CarLimits
from protocol.car_format import may_be_car
from schemas.settings import Settings
from steps.host_speed import Transfer
from steps.retry import ACCOUNT_ERRORS, Failure, FailureReason

MAX_REDIRECTS = 4
CAR_START_BYTES = 24  # enough to recognize a body that is not a CAR
MAX_ERROR_BYTES = 16 * 1024


class FetchFailed(Exception):
    """The fetch failed. `host`: the origin that counts as the cause, if any."""

    def __init__(self, failure: Failure, host: str | None = None) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.host = host


@dataclass(frozen=True, slots=True)
class Download:
    """A complete CAR. `time`: of its completion. Close the spool after use."""

    did: str
    host: str
    time: str
    spool: Spool


class PdsClient:
    """getRepo for one process, in one event loop."""

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        budget: HostBudget,
        spools: SpoolBudget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._session = session
        self._budget = budget
        self._spools = spools

    async def get_repo(self, did: str, pds: str, transfer: Transfer | None = None) -> Download:
        """Fetch the whole repo. `transfer` records the start and the received bytes. Raises FetchFailed."""
        transfer = transfer or Transfer(pds)
        settings = self._settings
        car = CarLimits(blocks=settings.max_car_blocks, total=settings.backfill_max_car_bytes)
        spool = Spool(self._spools, settings.tuning.car_memory_bytes, car)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.tuning.fetch_total_seconds):
                await self._follow(f"{pds}/xrpc/com.atproto.sync.getRepo?did={quote(did, safe=':')}", spool, transfer)
        except BaseException as err:
            spool.close()
            if isinstance(err, TimeoutError):
                seconds = self._settings.tuning.fetch_total_seconds
                raise FetchFailed(
                    Failure(FailureReason.TIMEOUT, f"{pds}: incomplete after {seconds:g} s"), pds
                ) from err
            raise
        metrics.FETCH_SECONDS.observe(time.monotonic() - started)
        metrics.FETCHED_BYTES.inc(spool.size)
        return Download(did, pds, now_text(), spool)

    async def _follow(self, url: str, spool: Spool, transfer: Transfer) -> None:
        """Request, and follow redirects. Failures are attributed to the first host; only its own responses change its budget."""
        asked: str | None = None
        for _ in range(MAX_REDIRECTS + 1):
            try:
                check_url(url, allow_private=self._settings.allow_private_hosts)
            except HostRefused as err:
                raise FetchFailed(Failure(FailureReason.FORBIDDEN_HOST, str(err)), asked) from err
            host = origin(url)
            asked = asked or host
            try:
                async with self._budget.request(host):
                    location = await self._request(url, host, asked, spool, transfer=transfer)
            except HostRefused as err:
                raise FetchFailed(Failure(FailureReason.FORBIDDEN_HOST, str(err)), asked) from err
            except HostPaused as err:
                if host != asked:
                    why = f"{asked} redirects to {err}"
                    raise FetchFailed(Failure(FailureReason.RATE_LIMITED, why, err.seconds), asked) from err
                raise FetchFailed(Failure(err.reason, str(err), err.seconds)) from err
            if location is None:
                return
            url = _joined(url, location, asked)
        raise FetchFailed(Failure(FailureReason.TOO_MANY_REDIRECTS, url[:200]), asked)

    async def _request(self, url: str, host: str, asked: str, spool: Spool, *, transfer: Transfer) -> str | None:
        """One request: stream the body into the spool, or return the Location of a redirect.

        `asked`: the first host, to which failures are attributed.
        """
        transfer.request_sent(self._clock())
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                if host == asked:
                    await self._budget.apply_headers(host, response.headers)
                if response.status in REDIRECTS and "Location" in response.headers:
                    return response.headers["Location"]
                if response.status != 200:
                    body = await response.content.read(MAX_ERROR_BYTES)
                    raise FetchFailed(_refusal(response, body, host), asked)
                await self._stream(response, asked, spool, transfer)
                return None
        except aiohttp.ClientPayloadError as err:
            raise FetchFailed(Failure(FailureReason.CUT_OFF, f"{host}: after {spool.size} bytes"), asked) from err
        except aiohttp.ConnectionTimeoutError as err:
            raise FetchFailed(Failure(FailureReason.UNREACHABLE, f"{host}: no connection in time"), asked) from err
        except aiohttp.ServerTimeoutError as err:
            seconds = self._settings.tuning.fetch_idle_seconds
            raise FetchFailed(Failure(FailureReason.SILENT, f"{host}: no byte for {seconds:g} s"), asked) from err
        except (aiohttp.ClientError, OSError, ValueError) as err:
            if isinstance(err, TimeoutError):
                raise  # of the total timeout
            known = to_http_error(err, url)
            reason = FailureReason.FORBIDDEN_HOST if isinstance(known, HostRefused) else FailureReason.UNREACHABLE
            raise FetchFailed(Failure(reason, str(known)), asked) from err

    async def _stream(self, response: aiohttp.ClientResponse, host: str, spool: Spool, transfer: Transfer) -> None:
        limit = self._settings.backfill_max_car_bytes
        start = b""
        try:
            async for chunk in response.content.iter_any():
                if spool.size + len(chunk) > limit:
                    raise FetchFailed(
                        Failure(
                            FailureReason.TOO_LARGE, f"{host}: more than {limit} bytes (SLUICE_BACKFILL_MAX_CAR_BYTES)"
                        ),
                        host,
                    )
                if spool.size < CAR_START_BYTES:
                    start = (start + chunk)[:CAR_START_BYTES]
                    if not may_be_car(start):
                        raise FetchFailed(Failure(FailureReason.NOT_A_CAR, f"{host}: status 200, and {start!r}"), host)
                spool.write(chunk)
                transfer.received = spool.size
        except SpoolFull as err:
            raise FetchFailed(Failure(FailureReason.SPOOL_FULL, str(err))) from err


def _joined(url: str, location: str, host: str) -> str:
    try:
        return redirected(url, location)
    except HostRefused as err:
        raise FetchFailed(Failure(FailureReason.FORBIDDEN_HOST, str(err)), host) from err


def _refusal(response: aiohttp.ClientResponse, body: bytes, host: str) -> Failure:
    """The failure for an error status."""
    name, message = xrpc_error(body)
    wait = retry_after(response.headers, time.time())
    if response.status == 429:
        return Failure(FailureReason.RATE_LIMITED, f"{host} answered 429", wait)
    if name in ACCOUNT_ERRORS and 400 <= response.status < 500:
        return Failure(ACCOUNT_ERRORS[name], f"{name}: {message}")
    return Failure(FailureReason.HTTP_STATUS, f"{host} answered {response.status} {name} {message}".rstrip(), wait)
