"""What the handlers share: settings, health, pooled connections, threads for blocking work, and the collector of the status."""

import threading

from connectors.postgres.pooled_calls import PooledCalls
from connectors.runtime.health import Health
from control.status import Collector, MirrorStatus
from schemas.settings import Settings


class Context(PooledCalls):
    """One per application. The constructor does not connect."""

    def __init__(self, settings: Settings, health: Health) -> None:
        super().__init__(settings, "api")
        self.health = health
        self._collecting = threading.Lock()
        self._collector = Collector(settings)

    def status(self) -> MirrorStatus:
        """The state of database and broker; collected by one caller at a time. Raises psycopg.Error and LogUnavailable."""
        with self._collecting:
            return self._collector.with_rates()
