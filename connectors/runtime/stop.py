"""The stop flag of the process: SIGTERM and SIGINT set `STOP`; sources drain and end when it is set."""

import signal
import threading

STOP = threading.Event()


class Stopping(Exception):
    """The process stops while a step waits; its batch is not done, and no position covers it."""


def stop_on_signals() -> None:
    """SIGTERM and SIGINT set `STOP`; a second one ends the process at once."""
    received: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:  # not STOP: the watchdog may have set it already
            raise SystemExit(128 + number)
        STOP.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
