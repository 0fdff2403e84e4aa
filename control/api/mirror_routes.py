"""Routes of the mirror: status, repos, hosts, skipped listing ranges."""

from typing import Annotated

from fastapi import Path, Query

from connectors.postgres.sharded_queue import repo_queue
from control.api import models
from control.api.errors import Conflict, NotFound
from control.api.paging import cut, read_cursor
from control.api.router import Ctx, Cursor, Limit, Router, documented
from control.attention import as_json
from control.repo_audit import audit_one
from control.repo_details import find_repo
from control.tasks.figures import read_history
from flows.list_repos.gap_recovery import recover_now
from schemas.patterns import DID
from schemas.sql import queries

SQL = queries("api")
ROUTER = Router()
ALL = models.RangeIds()

RepoDid = Annotated[str, Path(pattern=DID, max_length=2048)]
RepoHost = Annotated[str | None, Query(max_length=1000, pattern=r"^[\x20-\x7e]*$", description="URL of the PDS")]


@ROUTER.get("/status")
def get_status(context: Ctx) -> models.StatusAnswer:
    """Repos, lag, rates, failures, cursors and problems of the mirror."""
    return models.StatusAnswer.model_validate(as_json(context.status()))


@ROUTER.get("/history")
def get_history(context: Ctx, hours: Annotated[float, Query(ge=0.1, le=48)] = 6) -> models.HistoryAnswer:
    """Rates and lags of the last hours, at most 300 points."""
    times, figures = read_history(context.rows, hours * 3600)
    return models.HistoryAnswer(at=times, figures=figures)


@ROUTER.get("/repos")
def list_repos(
    context: Ctx, phase: models.Phase = "failed", host: RepoHost = None, limit: Limit = 100, cursor: Cursor = ""
) -> models.RepoPage:
    """Repos in a phase (default: failed), in DID order."""
    after = read_cursor(cursor, str) or [""]
    values = {"phase": phase, "host": host, "after": after[0], "limit": limit + 1}
    page, following = cut(context.repos(SQL["repos"], values), limit, "did")
    return models.RepoPage.model_validate({"items": page, "cursor": following})


@ROUTER.get("/repos/{did}", responses=documented(404))
def get_repo(context: Ctx, did: RepoDid) -> models.RepoRow:
    """One repo."""
    row = find_repo(context, did)
    if row is None:
        raise NotFound(f"{did} is not known", "a repo is known once a mirrored relay or PDS has listed it")
    return models.RepoRow.model_validate(row)


@ROUTER.get("/repos/{did}/attempts", responses=documented(404))
def list_attempts(context: Ctx, did: RepoDid) -> models.AttemptList:
    """The newest ten attempts to fetch a repo, and one that runs, the newest first."""
    get_repo(context, did)
    return models.AttemptList.model_validate({"items": context.repo(SQL["repo_attempts"], did, limit=11)})


@ROUTER.post("/repos/{did}/retry", responses=documented(404, 409))
def retry_repo(context: Ctx, did: RepoDid) -> models.RepoRow:
    """Move a failed repo back to pending, and reset all fields of its failure."""
    before = get_repo(context, did)
    queue = repo_queue(context.settings)
    try:
        retried = queue.retry_failed([did])
    finally:
        queue.close()
    if not retried:
        raise Conflict(f"{did} is in phase {before.phase}", "only repos in phase failed are retried")
    return get_repo(context, did)


@ROUTER.post("/repos/{did}/audit", responses=documented(404, 409))
def audit_repo(context: Ctx, did: RepoDid) -> models.AuditAnswer:
    """Compare the rows of a repo in sync with what its account signed. If they differ, the repo is fetched again."""
    get_repo(context, did)
    found = audit_one(context.settings, did)
    queued = bool(found.findings) and bool(context.repo(queries("repo")["audit_repair"], did, dids=[did]))
    return models.AuditAnswer(did=did, records=found.records, findings=found.findings, queued=queued)


@ROUTER.get("/hosts")
def list_hosts(
    context: Ctx,
    failing: Annotated[bool, Query(description="only hosts that fail or are paused")] = False,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> models.HostPage:
    """PDSes, in the order of their URLs."""
    after = read_cursor(cursor, str) or [""]
    page, following = cut(
        context.rows(SQL["hosts"], {"failing": failing, "after": after[0], "limit": limit + 1}), limit, "host"
    )
    return models.HostPage.model_validate({"items": page, "cursor": following})


@ROUTER.get("/skipped")
def list_skipped_ranges(
    context: Ctx,
    open: Annotated[bool, Query(description="only ranges that are not recovered")] = False,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> models.SkippedRangePage:
    """Skipped listing ranges, the oldest first."""
    after = read_cursor(cursor, int) or [0]
    page, following = cut(
        context.rows(SQL["skipped"], {"open": open, "after": after[0], "limit": limit + 1}), limit, "id"
    )
    return models.SkippedRangePage.model_validate({"items": page, "cursor": following})


@ROUTER.post("/skipped/fill", responses=documented(409, 413, 415))
def fill_skipped_ranges(context: Ctx, body: models.RangeIds = ALL) -> models.RangesDue:
    """Make ranges due now: list-repos reads them again, and asks the PDSes if the relay does not answer."""
    due = recover_now(context.settings, body.ids)
    missing = sorted(set(body.ids or []) - set(due))
    if missing and not due:
        listed = ", ".join(map(str, missing[:20]))
        raise Conflict(f"not open, or not known: {listed}", "GET /api/v1/skipped?open=true")
    return models.RangesDue(due=due)
