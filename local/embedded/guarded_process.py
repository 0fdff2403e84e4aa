"""A server process that ends with us, with a data folder that it alone uses and a stable port.

`GuardedProcess.spawn` starts a server under `process_guard.py`. The server stops on request, or when this Python process ends (in any
way, even by SIGKILL), and is killed `stop_seconds` after that. It has a session of its own: a Ctrl-C in the terminal reaches only us,
so we can drain before the server stops.
"""

import fcntl
import json
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

GUARD = Path(__file__).with_name("process_guard.py")
LOOPBACK = "127.0.0.1"
# Below every system's ephemeral range (32768 upwards on Linux): otherwise an outgoing connection can take the port
# while the server is down, and a client that keeps trying to connect can even end up connected to itself.
PORT_RANGE = (20_000, 32_000)
LOG_KEEP_BYTES = 4 * 1024 * 1024
KILLED_SECONDS = 10.0
OBEY_SECONDS = 30.0  # limit for the guard's reaction to an order, then it is killed


class DataFolderBusy(Exception):
    """Another process (or a server that is still stopping) uses this data folder."""


def port_is_free(port: int) -> bool:
    """True if nothing listens on 127.0.0.1:port. Sockets in TIME_WAIT do not count; servers bind past them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def reserve_port(port: int) -> bool:
    """True if the port is free. For the next minute, `reserve_port` then returns False for it in every process of this machine.

    It leaves a connection of the port in TIME_WAIT, which does not keep a server from binding it. A server takes seconds until it
    listens on its port, and meanwhile another process of ours could choose the same port.
    """
    with socket.socket() as listener, socket.socket() as client:
        listener.settimeout(1.0)  # a client of a former server of this port may connect first
        client.settimeout(1.0)
        try:
            listener.bind((LOOPBACK, port))  # without SO_REUSEADDR, so a port in TIME_WAIT counts as taken
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.listen(1)
            client.connect((LOOPBACK, port))
            listener.accept()[0].close()  # the side that closes first stays in TIME_WAIT
            client.recv(1)
        except OSError:
            return False
    return True


def free_port(exclude: Sequence[int] = ()) -> int:
    """A free port of 127.0.0.1 outside the ephemeral range, reserved for a minute. Raises OSError."""
    chooser = random.SystemRandom()
    for _ in range(1000):
        port = chooser.randrange(*PORT_RANGE)
        if port not in exclude and reserve_port(port):
            return port
    raise OSError(f"no free port on {LOOPBACK} between {PORT_RANGE[0]} and {PORT_RANGE[1]}")


def remembered_ports(folder: Path, names: Sequence[str], wanted: Mapping[str, int | None]) -> dict[str, int]:
    """The ports by name, kept in `folder`/ports.json so that a restart has the same address.

    A wanted port is used in any case. A remembered port that another process took meanwhile is replaced.
    """
    path = folder / "ports.json"
    saved: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    ports: dict[str, int] = {}
    for name in names:
        port = wanted.get(name) or saved.get(name)
        if port is None or (not wanted.get(name) and not port_is_free(port)):
            port = free_port([*ports.values(), *saved.values()])
        ports[name] = port
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(ports))
    draft.replace(path)
    return ports


def lock_folder(folder: Path, wait_seconds: float) -> int:
    """File descriptor of an exclusive lock on `folder`; raises DataFolderBusy after `wait_seconds`.

    The server inherits it, so the lock lasts until the last of its processes has ended: a start right after a kill waits, and two
    servers never use one folder.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if time.monotonic() >= deadline:
                os.close(lock)
                raise DataFolderBusy(f"{folder} is in use by another process") from err
            time.sleep(0.05)
        else:
            return lock


class GuardedProcess:
    """One server and its guard. Made by `spawn`; not restartable."""

    def __init__(self, guard: subprocess.Popen[bytes], pid: int, log_path: Path, stop_seconds: float) -> None:
        self._guard = guard
        self._stop_seconds = stop_seconds
        self.pid = pid
        self.log_path = log_path

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        log_path: Path,
        lock: int,
        cwd: Path,
        env: Mapping[str, str],
        user: pwd.struct_passwd | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_seconds: float = 10.0,
    ) -> Self:
        """Starts `argv` (an absolute path first); its output goes to `log_path`. Does not wait until it serves.

        `lock` (from `lock_folder`) passes to the server and is closed here. With `user`, the server runs as that user.
        """
        spec = {
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "uid": user.pw_uid if user else None,
            "gid": user.pw_gid if user else None,
            "parent": os.getpid(),
            "stop_signal": int(stop_signal),
            "stop_seconds": stop_seconds,
        }
        if log_path.exists() and log_path.stat().st_size > LOG_KEEP_BYTES:
            log_path.replace(log_path.with_suffix(".1.log"))
        try:
            with log_path.open("ab") as log:
                guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARD), json.dumps(spec)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        finally:
            os.close(lock)
        assert guard.stdout is not None  # noqa: S101 - for the type checker; PIPE was asked for
        with guard.stdout:
            line = guard.stdout.readline()
        return cls(guard, int(line or -1), log_path, stop_seconds)

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The server's exit code (128 + signal if a signal ended it); None while it runs."""
        return self._guard.poll()

    def stop(self) -> None:
        """Stop the server; after `stop_seconds` the guard kills it. Returns when it has ended."""
        self._tell(b"s", self._stop_seconds + OBEY_SECONDS)

    def kill(self) -> None:
        """Send SIGKILL to the server (for fault tests). Returns when it has ended."""
        self._tell(b"k", OBEY_SECONDS)

    def wait(self, seconds: float) -> bool:
        """True if the server ended within `seconds`."""
        try:
            self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self) -> str:
        """The last non-empty line of the server's output, for error messages."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 8192))
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def _tell(self, order: bytes, seconds: float) -> None:
        pipe = self._guard.stdin
        assert pipe is not None  # noqa: S101 - for the type checker; PIPE was asked for
        if self.running and not pipe.closed:
            try:
                pipe.write(order)
                pipe.flush()
            except BrokenPipeError:
                pass  # it ended just before the order
        if not self.wait(seconds):
            self._guard.kill()  # takes the server along (PR_SET_PDEATHSIG)
            self._guard.wait(KILLED_SECONDS)
        if not pipe.closed:
            pipe.close()
