"""`WorkerThread`: a background thread whose errors reach its owner thread (B8).

    worker = WorkerThread("gauges", run)
    worker.start()
    worker.check()      # called regularly by the owner: raises the error that ended `run`
    worker.stop(1.0)    # asks `run` to return, and waits at most one second

    def run() -> None:
        while not worker.stopping:
            ...
            worker.wait(10.0)

The watchdog watches the thread (connectors/runtime/watchdog.py): `run` must call `wait()` or `watchdog.mark()` at least every
`watchdog_seconds`, or the process ends. `Stopping` ends the thread without an error. An owner that raises its own error reads
`error` instead of calling `check()`.

Threads that run an asyncio loop use `connectors.runtime.background_loop.Background`.
"""

import threading
from collections.abc import Callable

from connectors.runtime import watchdog
from connectors.runtime.stop import Stopping


class WorkerThread:
    """A daemon thread that runs `run` once. `name` appears in stack dumps and in the watchdog's report."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self._run = run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        """Start the thread. Call it once."""
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if any."""
        if self.error is not None:
            raise self.error

    def stop(self, seconds: float = 0.0) -> None:
        """Ask `run` to return, and wait at most `seconds`. Does nothing else if the thread was never started."""
        self._stop.set()
        if self.alive:
            self._thread.join(seconds)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called. For `run`."""
        return self._stop.is_set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait, marking progress for the watchdog. True if `stop` was called meanwhile. For `run`."""
        return watchdog.wait(self._stop, seconds)

    def _guarded(self) -> None:
        try:
            with watchdog.watched(self._thread.name):
                self._run()
        except Stopping:
            pass
        except BaseException as err:  # the owner raises it
            self.error = err
