"""Processes of ours without the seconds that their imports take: forked by the product's fork server (`local.forks.forked_process`).

`spawn(job, …)` is `subprocess.Popen` for a job: `["module", name, *arguments]`, `["code", text, *arguments]` or
`["sluice", *arguments]`. Each has a session of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import IO

from local.commands import preloaded
from local.forks import forked_process
from local.forks.forked_process import ForkServer
from tests.support import ROOT


class Forked(forked_process.Forked):
    """A forked process, and its output as text if that was asked for."""

    stdout: IO[str] | None = None


@cache
def _server(owner: int) -> ForkServer:
    return ForkServer(["cli.main", *preloaded(simulate=True), "simulator.__main__"])


def spawn(job: list[str], *, stdout: int, stderr: int, env: dict[str, str] | None = None, cwd: Path = ROOT) -> Forked:
    """Start a job with these open files; `stdout=subprocess.PIPE` gives the process a text stream `stdout`."""
    kind, *words = job
    argv = [sys.executable, *{"sluice": ["-m", "cli"], "module": ["-m"], "code": ["-c"]}[kind], *words]
    piped = stdout == subprocess.PIPE
    reading, writing = os.pipe() if piped else (-1, stdout)
    try:
        made = _server(os.getpid()).spawn(
            argv,
            env=dict(os.environ) if env is None else env,
            stdout=writing,
            stderr=stderr,
            title="python " + " ".join(job if kind != "code" else job[2:]),
            module="bytewax.run",  # the last one
            cwd=cwd,
        )
    finally:
        if piped:
            os.close(writing)
    process = Forked(made.args, made.pid)
    process.stdout = os.fdopen(reading, "r", encoding="utf-8") if piped else None
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
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(job, code, out.read(), err.read())
