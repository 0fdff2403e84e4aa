"""The end of the control process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from control.process_status import request
from local.embedded.guarded_process import free_port
from schemas.settings import Settings, variables
from tests.support import ROOT
from tests.support.flow_process import wait_until

SHARE = 0.15  # of the CPU time that the process has used before


def test_control_drains_without_a_search_of_its_memory(
    settings_of: Callable[..., Settings], database: str, tmp_path: Path
) -> None:
    """G6: as in a pod, in an interpreter of its own, whose end collected garbage for ten seconds on a slow machine."""
    settings = settings_of(database=database, http_port=free_port(), data_dir=tmp_path)
    command = [sys.executable, "-m", "cli", "run", "control"]
    log = tmp_path / "log"
    with log.open("w") as output:
        control = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | variables(settings), stdout=output, stderr=output
        )

    def works() -> bool:
        assert control.poll() is None, log.read_text()
        try:
            return request(settings.http_port, "/readyz")[0] == 200
        except OSError:
            return False

    wait_until(works, 120)
    times = psutil.Process(control.pid).cpu_times()
    os.kill(control.pid, signal.SIGTERM)
    _, status, used = os.wait4(control.pid, 0)
    control.returncode = os.waitstatus_to_exitcode(status)
    assert control.returncode == 0, log.read_text()
    before = times.user + times.system
    assert used.ru_utime + used.ru_stime - before < SHARE * before
