"""The stop flag of the process. SIGTERM and SIGINT set `STOP`; sources then drain and end."""

import signal
import threading

STOP = threading.Event()


class Stopping(Exception):
    """The process stops while a step waits. The batch is unfinished, and no position covers it."""


def stop_on_signals() -> None:
    """Install handlers: SIGTERM and SIGINT set `STOP`; a second signal ends the process immediately."""
    received: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:  # not STOP: the watchdog may have set it already
            raise SystemExit(128 + number)
        STOP.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
