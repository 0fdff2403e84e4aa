"""Handlers that look at the mirror: status, repos, hosts, skipped ranges."""

from connectors.postgres.repo_queue import RepoQueue
from control.api import models
from control.api.context import Context
from control.api.errors import Conflict, NotFound
from control.api.pages import cut, read_cursor
from control.api.route import Nothing
from control.attention import as_json
from control.skipped_ranges import fill_now
from schemas.sql import queries

SQL = queries("api")


def status(context: Context, _asked: Nothing, _body: None) -> models.Status:
    """One look at database and broker."""
    return models.Status.model_validate(as_json(context.status()))


def repo(context: Context, asked: models.Did, _body: None) -> models.Repo:
    """One repo."""
    rows = context.rows(SQL["repo"], {"did": asked.did})
    if not rows:
        raise NotFound(f"{asked.did} is not known", "it is known when a relay or a PDS that is mirrored lists it")
    return models.Repo.model_validate(rows[0])


def repos(context: Context, asked: models.RepoPage, _body: None) -> models.Repos:
    """A page of the repos in a phase, in DID order."""
    after = read_cursor(asked.cursor, str) or [""]
    values = {"phase": asked.phase, "host": asked.host, "after": after[0], "limit": asked.limit + 1}
    page, cursor = cut(context.rows(SQL["repos"], values), asked.limit, "did")
    return models.Repos(items=[models.Repo.model_validate(row) for row in page], cursor=cursor)


def retry_repo(context: Context, asked: models.Did, _body: None) -> models.Repo:
    """Put a failed repo back to pending, all fields of the failure reset together."""
    before = repo(context, asked, None)
    store = RepoQueue(context.settings)
    try:
        retried = store.retry_failed([asked.did])
    finally:
        store.close()
    if not retried:
        raise Conflict(f"{asked.did} is in phase {before.phase}", "only repos in phase failed are retried")
    return repo(context, asked, None)


def hosts(context: Context, asked: models.HostPage, _body: None) -> models.Hosts:
    """A page of PDSes, in the order of their URLs."""
    after = read_cursor(asked.cursor, str) or [""]
    values = {"failing": asked.failing, "after": after[0], "limit": asked.limit + 1}
    page, cursor = cut(context.rows(SQL["hosts"], values), asked.limit, "host")
    items = [models.Host.model_validate({**row, "passes": row["pass"]}) for row in page]
    return models.Hosts(items=items, cursor=cursor)


def skipped(context: Context, asked: models.SkippedPage, _body: None) -> models.SkippedRanges:
    """A page of skipped listing ranges, the oldest first."""
    after = read_cursor(asked.cursor, int) or [0]
    values = {"open": asked.open, "after": after[0], "limit": asked.limit + 1}
    page, cursor = cut(context.rows(SQL["skipped"], values), asked.limit, "id")
    return models.SkippedRanges(items=[models.SkippedRange.model_validate(row) for row in page], cursor=cursor)


def fill(context: Context, _asked: Nothing, body: models.Fill) -> models.Filled:
    """Make ranges due now: list-repos reads them again, and lists the PDSes where the relay stays mute."""
    due = fill_now(context.settings, body.ids)
    missing = sorted(set(body.ids or []) - set(due))
    if missing and not due:
        raise Conflict(f"not open, or not known: {', '.join(map(str, missing[:20]))}", "GET /api/skipped?open=true")
    return models.Filled(due=due)
