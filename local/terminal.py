"""Ctrl-C under `make`: the terminal sends the signal to make as well, which then ends with an error although we drained.

`foreground()` makes this process the terminal's foreground process group while it runs, as a shell does with its jobs. Then Ctrl-C
reaches only this process, and make reports our exit code. Without make or without a terminal it does nothing.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def foreground() -> Iterator[None]:
    """Take the terminal, and restore its foreground group at the end."""
    if "MAKELEVEL" not in os.environ or not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp():
        yield
        return
    before = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # tcsetpgrp from a background group would stop us
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # make would not notice that we stopped, and would block the shell
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(0, before)
