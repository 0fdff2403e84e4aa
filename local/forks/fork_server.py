"""The fork server: one interpreter that imports what the processes of `sluice up` need, and forks them (a tenth of a second each).

A forked process is as real as one that was started: it has its own pid, session, environment, files, signals, exit code and command
line (`ps` shows it), and its parent is the server's owner, not the server. To get that parent, the server forks twice while the owner
is a subreaper (`local.forks.forked_process`). So the end of the server ends none of its processes. It ends with its owner.

The server has no thread, no librdkafka or libpq object and no event loop: after a fork, those would be broken in the child.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

REQUEST_BYTES = 1 << 20


def serve(connection: socket.socket, modules: Sequence[str]) -> NoReturn:
    """Import the modules, and fork a process for each request. Ends with the connection.

    A request that arrives during the imports is executed as soon as the module that it needs is imported.
    """
    os.closerange(3, connection.fileno())  # what our owner inherited is not for its processes
    os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    waiting = list(modules)
    while True:
        if waiting and not select.select([connection], [], [], 0)[0]:
            _import(waiting.pop(0))
            continue
        request, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 3)
        if not request:
            os._exit(0)
        wanted = json.loads(request)
        while wanted["module"] in waiting:
            _import(waiting.pop(0))
        connection.send(_fork(connection, wanted, files).to_bytes(4, "big"))
        for file in files:
            os.close(file)


def _import(module: str) -> None:
    with suppress(ImportError):  # the process that needs it raises it again, and can report it
        importlib.import_module(module)


def _fork(connection: socket.socket, request: dict[str, Any], files: list[int]) -> int:
    """Fork the process; its pid. It becomes a child of our owner, because the process between it and us ends at once."""
    gc.freeze()  # the collector would otherwise write to all of the memory that is shared with us
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        between = os.getpid()
        pid = os.fork()
        if pid:
            os.write(writing, pid.to_bytes(4, "big"))
            os._exit(0)
        for file in (connection.detach(), reading, writing):
            os.close(file)
        while os.getppid() == between:
            time.sleep(0.0002)
        _run(request, files)
    os.close(writing)
    os.waitpid(between, 0)
    pid = int.from_bytes(os.read(reading, 4), "big")
    os.close(reading)
    return pid


def _run(request: dict[str, Any], files: list[int]) -> NoReturn:
    """In the child: take files, environment and title, and run the Python command line to its end."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, number in zip(files, (0, 1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    if request["cwd"]:
        os.chdir(request["cwd"])
    random.seed()
    _retitle(request["title"])
    _end(request["argv"])


def _retitle(title: str) -> None:
    """Overwrite the command line that /proc shows with this one, as far as there is room."""
    with suppress(OSError, ValueError, IndexError):
        Path("/proc/self/comm").write_text(title[:15])
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(stat[45]), int(stat[46])  # arg_start and arg_end
        text = b"\0".join(word.encode() for word in title.split(" "))[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


def _perform(argv: list[str]) -> None:
    """Run a Python command line, `[python, -P, -m, module, …]` or `[python, -c, code, …]`, in this interpreter."""
    _, *options = argv
    if options[0] == "-P":
        options = options[1:]
    else:
        sys.path.insert(0, os.getcwd())
    kind, program, *arguments = options
    sys.argv = [program if kind == "-m" else "-c", *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own code


def _end(argv: list[str]) -> NoReturn:
    """Run the command line and end with its exit code, as the interpreter does: threads are joined, exit handlers run."""
    code = 0
    try:
        _perform(argv)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
