"""`make run` on a terminal: Ctrl-C ends the mirror, and make exits with the mirror's code."""

import os
import pty
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import signal, sys, time
from contextlib import nullcontext
from local.terminal import foreground
def end(*_):
    print("drained", flush=True)
    time.sleep(0.3)
    sys.exit(0)
with {hold}():
    signal.signal(signal.SIGINT, end)
    print("ready", flush=True)
    time.sleep(60)
"""


def make_on_a_terminal(folder: Path, hold: str) -> tuple[int, str]:
    """Exit code of make (negative: signal) after a Ctrl-C, and what the terminal showed."""
    (folder / "program.py").write_text(PROGRAM.format(hold=hold))
    (folder / "Makefile").write_text(f"run:\n\t@exec {sys.executable} program.py\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvp("make", ["make", "run"])
    shown, sent = "", False
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            shown += os.read(terminal, 1000).decode()
        except OSError:  # the last process on the terminal has closed it
            break
        if "ready" in shown and not sent:
            os.write(terminal, b"\x03")
            sent = True
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_make_exits_with_our_code(tmp_path: Path) -> None:
    code, shown = make_on_a_terminal(tmp_path, "foreground")
    assert "drained" in shown
    assert code == 0


def test_without_the_terminal_make_would_fail(tmp_path: Path) -> None:
    """The fault is real: this is what foreground() is for."""
    code, _ = make_on_a_terminal(tmp_path, "nullcontext")  # whether the program still drains depends on who is faster
    assert code != 0


def test_nothing_happens_without_make(monkeypatch: pytest.MonkeyPatch) -> None:
    from local.terminal import foreground

    monkeypatch.delenv("MAKELEVEL", raising=False)
    group = os.getpgrp()
    with foreground():
        assert os.getpgrp() == group
