"""Ctrl-C under `make`: the terminal sends it to make as well, which then ends with an error although we drained.

`foreground()` makes this process the terminal's foreground group for as long as it runs, as a shell does with its jobs,
so that Ctrl-C reaches only us and make reports our exit code. Nothing happens without make or without a terminal.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def foreground() -> Iterator[None]:
    """Hold the terminal, and give it back at the end."""
    if "MAKELEVEL" not in os.environ or not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp():
        yield
        return
    before = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else taking the terminal back from outside its group stops us
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # make would not notice that we stopped, and hold the shell
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(0, before)
