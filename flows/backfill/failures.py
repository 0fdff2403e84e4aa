"""Applies the decision of `steps.retry` on a failed attempt to the host, the row and the metrics."""

import logging

from connectors.atproto.rate_budget import HostBudget
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable
from connectors.postgres.repo_queue import Claim
from connectors.runtime import metrics
from flows.backfill.async_queue import AsyncRepoQueue
from steps.retry import (
    NOT_ASKED,
    Decision,
    Failure,
    FailureReason,
    GiveUp,
    PauseHost,
    RetryIn,
    RetryPolicy,
    Unavailable,
    decide,
    uncounted_seconds,
)

log = logging.getLogger("backfill")


class FailureHandler:
    """Settles failed attempts of one worker."""

    def __init__(self, queue: AsyncRepoQueue, budget: HostBudget, policy: RetryPolicy) -> None:
        self._queue = queue
        self._budget = budget
        self._policy = policy

    async def handle(self, claim: Claim, failure: Failure, host: str | None) -> Unavailable | None:
        """Release the claim: retry later, or give up. `host`: the origin to blame.

        If the failure is a state of the account, the claim is kept and the state returned: it becomes the outcome.
        """
        decision = decide(failure, claim.retry_count, self._policy, key=claim.did, deletion=claim.reason == "deletion")
        if isinstance(decision, Unavailable):
            return decision
        if failure.reason in NOT_ASKED:
            metrics.CLAIMS.labels("deferred").inc()
        else:
            metrics.FETCH_ERRORS.labels(failure.reason).inc()
        if isinstance(decision, PauseHost) and host is not None:
            await self._budget.pause(host, decision.seconds, str(failure))
        counted, seconds = _terms(decision)
        if counted:
            metrics.ATTEMPTS_FAILED.labels(failure.reason).inc()
            if host is not None:
                await self._budget.record_failure(host, str(failure))
        await self._release(claim, failure, decision, seconds, counted=counted)
        return None

    async def _release(
        self, claim: Claim, failure: Failure, decision: Decision, seconds: float, *, counted: bool
    ) -> None:
        last = isinstance(decision, GiveUp)
        metrics.RETRIES.inc(not last)
        phase = await self._queue.run(
            lambda queue: queue.retry(
                claim.did,
                claim.attempt,
                str(failure),
                seconds,
                counted=counted,
                last=last,
                uncounted_seconds=uncounted_seconds(failure.reason),
                growing=isinstance(decision, RetryIn) and decision.growing,
            )
        )
        metrics.REPOS_FAILED.inc(phase == "failed")
        quiet = logging.DEBUG if failure.reason in NOT_ASKED else logging.INFO
        fields = {"did": claim.did, "why": str(failure), "phase": phase, "in_seconds": round(seconds, 1)}
        log.log(logging.WARNING if phase == "failed" else quiet, "attempt ended", extra=fields)


def identity_failure(did: str, err: IdentityNotFound | IdentityUnreachable) -> Failure:
    """Why a DID could not be resolved. A directory outage is no fault of the repo; a did:web host belongs to the account."""
    if isinstance(err, IdentityNotFound):
        return Failure(FailureReason.DID_TOMBSTONED if err.gone else FailureReason.DID_NOT_FOUND, str(err))
    if err.unusable:
        return Failure(FailureReason.BAD_DOCUMENT, str(err))
    own = did.startswith("did:web:")
    return Failure(
        FailureReason.WEB_UNREACHABLE if own else FailureReason.DIRECTORY_UNREACHABLE, str(err), err.retry_after
    )


def _terms(decision: Decision) -> tuple[bool, float]:
    """(the attempt counts, seconds until the next)."""
    if isinstance(decision, PauseHost):
        return False, decision.retry_seconds
    if isinstance(decision, RetryIn):
        return decision.counted, decision.seconds
    return True, 0.0
