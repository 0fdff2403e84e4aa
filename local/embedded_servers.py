"""The servers that `sluice up` embeds if the settings name none: Kafka and PostgreSQL.

They are supervised like the processes: a server that dies is restarted on its data, at the same address. A start takes seconds, so
each restart runs in a thread.
"""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from control.process_status import Process
from local.children.supervisor import Peaks, Say, restart_seconds
from local.embedded.embedded_database import EmbeddedDatabase
from local.embedded.embedded_log import EmbeddedLog
from local.view.live_view import Part
from schemas.settings import Settings

RESTART_SECONDS = 60.0
START_SECONDS = 900.0  # more than the servers' own limits together

Server = EmbeddedLog | EmbeddedDatabase


class EmbeddedServers:
    """Embedded broker and database, each unless the settings name another one."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._say = say
        self._servers: dict[str, Server] = {}
        self._restarting: dict[str, threading.Thread] = {}
        self._ends: Counter[str] = Counter()
        self.peaks = Peaks()
        data_dir: Path = settings.data_dir.expanduser().absolute()
        if not settings.kafka_bootstrap:
            self._servers["kafka"] = EmbeddedLog(data_dir / "log", say=lambda text: say("kafka", text))
        if not settings.database:
            self._servers["postgres"] = EmbeddedDatabase(data_dir / "database")

    def start(self) -> dict[str, str]:
        """Start the servers in parallel. Returns the settings with their addresses. Raises OperatorError."""
        with ThreadPoolExecutor(2) as pool:
            started = {name: pool.submit(self._start, name) for name in self._servers}
        addresses = {name: future.result(START_SECONDS) for name, future in started.items()}
        names = {"kafka": "kafka_bootstrap", "postgres": "database"}
        return {names[name]: address for name, address in addresses.items()}

    def _start(self, name: str) -> str:
        began = time.monotonic()
        address = self._servers[name].start()
        self._say(name, f"started in {time.monotonic() - began:.1f} s")
        return address

    @property
    def processes(self) -> list[Process]:
        """The server processes that run now."""
        return [Process(name, name, server.pid, 0) for name, server in self._servers.items() if server.pid is not None]

    @property
    def parts(self) -> list[Part]:
        """The servers, with their restarts."""
        return [Part(name, server.running, self._ends[name]) for name, server in self._servers.items()]

    def tick(self) -> None:
        """Restart servers that died. Call it from one thread."""
        # not PostgreSQL: its memory is shared by many processes
        self.peaks.read_rarely((one.name, one.pid) for one in self.processes if one.name == "kafka")
        for name, server in self._servers.items():
            thread = self._restarting.get(name)
            if server.running or (thread is not None and thread.is_alive()):
                continue
            self._ends[name] += 1
            wait = restart_seconds(self._ends[name])
            self._say(name, f"ended; restarting in {wait:.1f} s")
            self._restarting[name] = threading.Thread(target=self._restart, args=(name, server, wait), daemon=True)
            self._restarting[name].start()

    def stop(self) -> None:
        """Stop the servers cleanly, the database last."""
        for thread in self._restarting.values():
            thread.join(RESTART_SECONDS)
        for server in self._servers.values():
            server.stop()

    def _restart(self, name: str, server: Server, wait: float) -> None:
        time.sleep(wait)
        try:
            server.start()
        except Exception as err:
            self._say(name, f"cannot be started: {err}")  # the next tick tries again, later
        else:
            self._say(name, "is running again")
