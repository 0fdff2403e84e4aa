"""What the handlers of `serve` share: `request.app[CONTEXT]`."""

from aiohttp import web

from connectors.postgres.pooled_calls import PooledCalls
from schemas.settings import Settings


class ServeContext(PooledCalls):
    """One per application. The constructor does not connect."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "serve")


CONTEXT = web.AppKey("context", ServeContext)
