"""The process between us and a server: it starts the server, executes one-letter orders, and stops the server when we end.

Run as a script: `python -I -S process_guard.py SPEC`; SPEC is the JSON object that `guarded_process` writes. Orders come on stdin (`s`
stop, `k` kill); the end of stdin means that the owner has ended, and the server is stopped. The first line of stdout is the server's
pid. The exit code is the server's (128 + signal if a signal ended it).

PR_SET_PDEATHSIG alone is not enough: that signal is sent when the *thread* that forked ends, it gives the server no time to close its
files, and it is cleared when the process changes its user. This module uses only the standard library, so it starts in a few
milliseconds and needs little memory.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
ORPHAN_POLL_SECONDS = 0.5


def _become_server(spec: dict[str, Any], guard_pid: int) -> None:
    """In the fork: drop privileges, set the parent-death signal, and execute the server. Never returns."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and an ignored signal survives exec
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if spec["uid"] is not None:
        os.setgroups([])
        os.setgid(spec["gid"])
        os.setuid(spec["uid"])
    if sys.platform == "linux":
        # after setuid, which clears it; for the case that the guard itself is killed with SIGKILL
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard_pid:
            os._exit(126)
    os.chdir(spec["cwd"])
    os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - that no shell is involved is the intention


def _start(spec: dict[str, Any]) -> int:
    guard_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _become_server(spec, guard_pid)
    except OSError as err:
        os.write(2, f"cannot start {spec['argv'][0]}: {err}\n".encode())
    finally:
        os._exit(126)


def _order(wake: int, parent: int) -> str:
    """Wait for the end of a child or an order: "" (check the child), "s" or "k"."""
    readable, _, _ = select.select([0, wake], [], [], ORPHAN_POLL_SECONDS)
    if wake in readable:
        received = os.read(wake, 64)
        if any(number != signal.SIGCHLD for number in received):
            return "s"
    if 0 in readable:
        return os.read(0, 1).decode() or "s"
    # a pipe that another child of our owner inherited never ends, so check the owner itself too
    return "s" if os.getppid() != parent else ""


def main() -> int:
    spec = json.loads(sys.argv[1])
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    signal.set_wakeup_fd(wake_end)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    if os.getppid() != spec["parent"]:
        return 1
    pid = _start(spec)
    os.write(1, f"{pid}\n".encode())
    os.close(1)
    kill_at: float | None = None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if kill_at is None:
            order = _order(wake, spec["parent"])
        else:
            # no more orders: the owner's end of the pipe may be closed, and would then always be ready
            readable, _, _ = select.select([wake], [], [], 0.05)
            if readable:
                os.read(wake, 64)
            order = "k" if time.monotonic() >= kill_at else ""
        if order == "s":
            os.kill(pid, spec["stop_signal"])
            kill_at = time.monotonic() + spec["stop_seconds"]
        elif order == "k":
            os.kill(pid, signal.SIGKILL)
            kill_at = kill_at or time.monotonic() + spec["stop_seconds"]


if __name__ == "__main__":
    sys.exit(main())
