"""Processes from the fork server: `ForkServer(modules).spawn(argv, …)` is a `Forked`, used like a `subprocess.Popen`.

The first server of `sluice up` is a fork of it, so that what both use is imported once. Otherwise, and when the server has died, it is
a new interpreter. Linux only.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from local.forks.fork_server import serve

AVAILABLE = sys.platform == "linux"
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = (0.001, 0.05)
ANSWER_SECONDS = 60.0  # of a server that may still be importing


class Forked:
    """One forked process: the part of `subprocess.Popen` that we need."""

    def __init__(self, argv: Sequence[str], pid: int) -> None:
        self.args = list(argv)
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code (minus the signal that ended it), None while it runs."""
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        pause = POLL_SECONDS[0]
        while (code := self.poll()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(min(pause, left))
            pause = min(pause * 2, POLL_SECONDS[1])
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A fork server of this process, which imports `modules` in this order. `pid`: its pid, 0 before the first start."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = list(modules)
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        self.pid = 0

    def start(self, *, fork: bool = False) -> None:
        """Start the server, or start it again. It imports while we go on. `fork`: as a fork of this process, if it has one thread."""
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if fork and len(list(Path("/proc/self/task").iterdir())) == 1:
            self.pid = self._forked(ours, theirs)
        else:
            theirs.set_inheritable(True)
            argv = [sys.executable, "-P", "-m", serve.__module__, str(theirs.fileno()), *self._modules]
            self.pid = os.posix_spawn(sys.executable, argv, dict(os.environ), setsid=True)
        theirs.close()
        ours.settimeout(ANSWER_SECONDS)
        self._connection = ours

    def _forked(self, ours: socket.socket, theirs: socket.socket) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # as before each fork of the server: our own collector would write to what we share with it
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.setsid()
            try:
                serve(theirs, self._modules)
            finally:
                os._exit(1)
        return pid

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: int,
        stderr: int,
        title: str,
        module: str = "",
        cwd: Path | None = None,
    ) -> Forked:
        """Start `[python, -P, -m, module, …]` or `[python, -c, code, …]` with this environment and these open files.

        It has a session of its own. `title`: its command line in /proc. `module`: what the server imports before, if it has to. Raises
        OSError if it cannot be started.
        """
        request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd or ""), "title": title, "module": module}
        page = json.dumps(request).encode()
        with self._lock:
            for attempt in (1, 2):
                with suppress(ConnectionError, TimeoutError):
                    pid = self._ask(page, (stdout, stderr))
                    if pid:
                        return Forked(argv, pid)
                if attempt == 1:
                    self.start()  # it has died, hangs, or was not started yet
        raise ConnectionError("the fork server does not answer")

    def _ask(self, page: bytes, files: tuple[int, int]) -> int:
        """The pid of the process; 0 if the server has ended."""
        if self._connection is None:
            return 0
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(page))
        nothing = os.open(os.devnull, os.O_RDONLY)
        # orphans become our children only for this moment: at other times, nothing here would wait for them
        _adopt_orphans(True)
        try:
            socket.send_fds(self._connection, [page], [nothing, *files])
            return int.from_bytes(self._connection.recv(4), "big")
        finally:
            _adopt_orphans(False)
            os.close(nothing)

    def close(self) -> None:
        """End the server. Its processes go on."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


def _adopt_orphans(wanted: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
