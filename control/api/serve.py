"""`Server(health, settings)`: the API in a daemon thread with a loop of its own, so that control's work does not wait for it.

`start()` listens, and raises OSError when the port is taken; it ends with the process, or by `close()`.
"""

import asyncio
import threading

from aiohttp import web

from connectors import metrics
from connectors.process import Health
from control.api import make_app
from control.api.context import Context
from schemas.settings import Settings

SHUTDOWN_SECONDS = 2.0


class Server:
    """One per process."""

    def __init__(self, health: Health, settings: Settings) -> None:
        self._health = health
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api", daemon=True)
        self._runner: web.AppRunner | None = None

    def start(self) -> int:
        """Listen; the port."""
        self._thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError:
            self.close()
            raise
        metrics.UP_SINCE.labels(self._health.flow).set_to_current_time()
        return port

    def close(self) -> None:
        """Stop listening and end the thread; open requests have a moment."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        app = make_app(Context(self._settings, self._health))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._settings.http_host, self._settings.http_port).start()
        return int(self._runner.addresses[0][1])
