"""Measures the index's batches and adapts their message limit (decided by `steps.batch_size`).

`limit` is for the next poll. Call `begun` when it returned messages, and `ended` when they are committed; further calls of
`ended` do nothing.
"""

import logging
import time
from collections.abc import Callable

from connectors.runtime import metrics
from schemas.settings import Settings
from steps.batch_size import next_limit

log = logging.getLogger("index")


class BatchSize:
    """Starts at the largest limit of the settings. `clock`: seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = self.limit = settings.tuning.index_batch_messages
        self._bound = settings.tuning.index_batch_seconds
        self._clock = clock
        self._running: tuple[int, float] | None = None
        metrics.INDEX_BATCH_LIMIT.set(self.limit)

    def begun(self, messages: int) -> None:
        """A batch was read."""
        self._running = (messages, self._clock()) if messages else None

    def ended(self) -> None:
        """The batch is committed."""
        if self._running is None:
            return
        (messages, begin), self._running = self._running, None
        seconds = self._clock() - begin
        limit = next_limit(self.limit, messages, seconds, bound=self._bound, most=self._most)
        if limit == self.limit:
            return
        if limit < self.limit:
            log.info("slow batch", extra={"messages": messages, "seconds": round(seconds, 1), "limit": limit})
        self.limit = limit
        metrics.INDEX_BATCH_LIMIT.set(limit)
