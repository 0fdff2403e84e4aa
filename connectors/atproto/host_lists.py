"""Reads the PDS lists of all relays periodically, with back-off while a list is incomplete."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from connectors.atproto.relay import Pager
from connectors.runtime import metrics
from schemas.flows import LIST_REPOS
from steps.backoff import backoff_seconds

RETRY_FIRST_SECONDS = 10.0
RETRY_LONGEST_SECONDS = 3600.0

logger = logging.getLogger(LIST_REPOS)


async def follow_hosts(
    pager: Pager, relays: Sequence[str], recheck_seconds: float, found: Callable[[str, list[str]], None]
) -> None:
    """Call `found(relay, urls)` for each list, even an incomplete one. Never returns."""
    failures = 0
    while True:
        failed = False
        for relay in relays:
            hosts = await pager.hosts(relay)
            if hosts.failure is not None:
                failed = True
                metrics.UPSTREAM_ERRORS.labels(LIST_REPOS, f"hosts_{hosts.failure.trouble}").inc()
                fields = {"upstream": relay, "why": hosts.failure.detail, "hosts": len(hosts.urls)}
                logger.warning("a relay's list of hosts is incomplete", extra=fields)
            if hosts.urls:
                found(relay, hosts.urls)
        failures = failures + 1 if failed else 0
        await asyncio.sleep(_wait(failures, recheck_seconds))


def _wait(failures: int, recheck_seconds: float) -> float:
    """Seconds until the next round: the recheck interval, or a back-off after failures."""
    if failures == 0:
        return recheck_seconds
    return backoff_seconds(failures, RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS)
