"""The HTTP API of control and its status page: a FastAPI application in `application.py`, served by `serve.py`.

    /api/v1/…                      the routes of the `*_routes.py` modules, described by /api/openapi.json
    /api/…                         the same under their old paths (jobs: /api/backfill), not in the document
    /healthz, /readyz, /metrics    as in every process, without a token
    /, /events, /page/…            the status page, `control/page`

A success is a model as JSON. Every other answer is `{"version": 1, "error": {"code", "message", "remedy"}}` with a 4xx or 5xx
status. Lists are paged: `limit` bounds a page, `cursor` of an answer asks for the next page, null marks the last one.
`guard.py` checks access. Import this package in the control process only: FastAPI takes long to load.
"""
