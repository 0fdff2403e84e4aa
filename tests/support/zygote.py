"""Processes without the second that importing everything takes: forked from one interpreter that has imported it before.

`spawn(job, …)` is `subprocess.Popen` for our own code. A job is `["module", name, *arguments]`, `["code", text, *arguments]` or
`["sluice", *arguments]`. The process is as real as another: it has a pid, an environment, files, signals and an exit code of
its own. At its end threads are joined and exit handlers run; the interpreter is not taken apart. What /proc shows as its
command and its first environment is the parent's.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from tests.support import ROOT

PRELOADED = (
    "cli.main", "flows.backfill.flow", "flows.firehose.flow", "flows.index.flow", "flows.labels.flow",
    "flows.list_repos.flow", "control.control_process", "simulator.__main__", "bytewax.run",
)  # fmt: skip
START_SECONDS = 120
_server: tuple[int, str, subprocess.Popen[bytes]] | None = None


class Forked:
    """The part of `subprocess.Popen` that tests need."""

    def __init__(self, job: list[str], files: tuple[int, int], env: dict[str, str], cwd: Path, session: bool) -> None:
        self.args = job
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(_address())
        request = json.dumps({"job": job, "env": env, "cwd": str(cwd), "session": session}).encode()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
        self._socket.sendmsg([len(request).to_bytes(4, "big")], [rights])
        self._socket.sendall(request)
        self._socket.settimeout(START_SECONDS)
        self.pid = int.from_bytes(_exactly(self._socket, 4), "big")

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(_exactly(self._socket, 4), "big", signed=True)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._socket.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def spawn(
    job: list[str],
    *,
    stdout: int,
    stderr: int,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
    session: bool = False,
) -> Forked:
    """Start a job with these open files; `stdout=subprocess.PIPE` gives the process a text stream `stdout`.

    `session`: in a session of its own.
    """
    given = dict(os.environ) if env is None else env
    if stdout != subprocess.PIPE:
        return Forked(job, (stdout, stderr), given, cwd, session)
    ours, theirs = os.pipe()
    try:
        process = Forked(job, (theirs, stderr), given, cwd, session)
    finally:
        os.close(theirs)
    process.stdout = os.fdopen(ours, "r", encoding="utf-8")
    return process


def run(
    job: list[str], *, env: dict[str, str] | None = None, timeout: float, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, as `subprocess.run` with `capture_output`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = spawn(job, stdout=out.fileno(), stderr=err.fileno(), env=env, cwd=cwd)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(job, code, out.read(), err.read())


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes; a wait that times out has taken none of them."""
    data = connection.recv(size, socket.MSG_PEEK)
    if not data:
        raise ConnectionError("the zygote has ended")
    return connection.recv(size, socket.MSG_WAITALL)


def _address() -> str:
    """The socket of this process's server, which is started with the first call."""
    global _server  # noqa: PLW0603 - one for a process
    if _server is None or _server[0] != os.getpid():
        folder = tempfile.mkdtemp(prefix="sluice-zygote-")
        path = f"{folder}/socket"
        command = [sys.executable, "-m", "tests.support.zygote", path]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        _server = os.getpid(), path, process
        atexit.register(process.kill)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _server[1]


# --- in the server


def serve(path: str) -> dict[str, Any]:
    """Fork a process for each request. Returns in the child, with its request; never in the server itself."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    awake, wakes = socket.socketpair()
    for end in (awake, wakes, listener):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the processes
    signal.set_wakeup_fd(wakes.fileno())
    children: dict[int, socket.socket] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    import select

    while True:
        ready, _, _ = select.select([listener, awake, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)  # the tests have ended
        if awake in ready:
            awake.recv(4096)
            _report_ended(children)
        if listener in ready:
            connection, _ = listener.accept()
            connection.setblocking(True)
            request, files = _received(connection)
            pid = os.fork()
            if pid == 0:
                for other in (connection, listener, awake, *children.values()):
                    other.close()
                _become(request, files)
                wakes.close()
                return request
            for file in files:
                os.close(file)
            children[pid] = connection
            connection.sendall(pid.to_bytes(4, "big"))


def _report_ended(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as connection:
            try:
                connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
            except OSError:
                continue  # the test did not wait for it


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, files, _, _ = socket.recv_fds(connection, 4, 2)
    return json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)), files


def _become(request: dict[str, Any], files: list[int]) -> None:
    """In the child: the request's files, environment and folder."""
    import random

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in zip((nothing, *files), (0, 1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if request["session"]:
        os.setsid()
    random.seed()


def perform(job: list[str]) -> None:
    """Run the job as the main program."""
    kind, *arguments = job
    if kind == "sluice":
        from cli.main import main

        sys.argv = ["sluice", *arguments]
        sys.exit(main())
    name, *rest = arguments
    sys.argv = [name if kind == "module" else "-c", *rest]
    if kind == "module":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})  # our own code


def end(job: list[str]) -> None:
    """Perform the job and end with its exit code."""
    import threading
    import traceback

    code = 0
    try:
        perform(job)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import gc
    import importlib

    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()
    end(serve(sys.argv[1])["job"])
