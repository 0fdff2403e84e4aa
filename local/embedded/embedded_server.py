"""What the embedded servers have in common: one guarded process over a folder, from `start` to `stop` or `kill`."""

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from local.embedded.guarded_process import GuardedProcess


class EmbeddedServer(ABC):
    """A server over `data_dir`; in a `with` statement it runs until the end."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self._process: GuardedProcess | None = None

    @abstractmethod
    def start(self) -> str:
        """Starts the server, unless it runs, and returns its address once it answers."""

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def stop(self) -> None:
        """Stops the server cleanly. No-op if it does not run."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL, for fault tests. The next `start` has the same data and address."""
        if self._process is not None:
            self._process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
