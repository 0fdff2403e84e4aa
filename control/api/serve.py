"""`Server(health, settings)`: the API in a daemon thread with a loop of its own, so that control's work does not wait for it.

`start()` listens, and raises OSError when the port is taken; it ends with the process, or by `close()`.
"""

from connectors.http import server as http_server
from connectors.runtime import metrics
from connectors.runtime.process import Health
from control.api import make_app
from control.api.context import Context
from schemas.settings import Settings


class Server:
    """One per process."""

    def __init__(self, health: Health, settings: Settings) -> None:
        self._health = health
        app = make_app(Context(settings, health))
        self._server = http_server.Server(app, settings.http_host, settings.http_port, "api")
        self.close = self._server.close

    def start(self) -> int:
        """Listen; the port."""
        port = self._server.start()
        metrics.UP_SINCE.labels(self._health.flow).set_to_current_time()
        return port
