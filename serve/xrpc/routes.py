"""The routes of the reads: a method of XRPC → its function."""

from collections.abc import Callable

import msgspec
from aiohttp import web

from connectors.http.server import Handler
from connectors.postgres.pooled_calls import PooledCalls
from serve.context import CONTEXT
from serve.guard import HEADERS
from serve.xrpc import identity_reads, label_reads, record_reads, sync_reads
from serve.xrpc.car_responses import add_permits, get_record, get_repo
from serve.xrpc.label_stream import add_label_stream
from serve.xrpc.parameters import Query
from serve.xrpc.stored_repos import Row

Read = Callable[[PooledCalls, Query], Row]

READS: dict[str, Read] = {
    "com.atproto.sync.getLatestCommit": sync_reads.get_latest_commit,
    "com.atproto.sync.getRepoStatus": sync_reads.get_repo_status,
    "com.atproto.sync.listRepos": sync_reads.list_repos,
    "com.atproto.sync.listReposByCollection": sync_reads.list_repos_by_collection,
    "com.atproto.repo.getRecord": record_reads.get_record,
    "com.atproto.repo.listRecords": record_reads.list_records,
    "com.atproto.repo.describeRepo": record_reads.describe_repo,
    "com.atproto.identity.resolveHandle": identity_reads.resolve_handle,
    "com.atproto.identity.resolveDid": identity_reads.resolve_did,
    "com.atproto.identity.resolveIdentity": identity_reads.resolve_identity,
    "com.atproto.label.queryLabels": label_reads.query_labels,
}


def add_routes(app: web.Application) -> None:
    """Add the reads, and the CARs."""
    add_permits(app)
    add_label_stream(app)
    for method, read in READS.items():
        app.router.add_get(f"/xrpc/{method}", _answering(read))
    app.router.add_get("/xrpc/com.atproto.sync.getRepo", get_repo, allow_head=False)
    app.router.add_get("/xrpc/com.atproto.sync.getRecord", get_record, allow_head=False)


def _answering(read: Read) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        context = request.app[CONTEXT]
        found = await context.run(read, context, request.query)
        return web.Response(body=msgspec.json.encode(found), headers={"Content-Type": "application/json", **HEADERS})

    return answer
