"""Each benchmark of the pipeline runs, with a size of seconds, and prints its figures (bench/)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT

SMALL = {
    "index": ("--records", "600", "--present", "600", "--per-repo", "20", "--live", "300"),
    "firehose": ("--events", "300", "--repos", "20"),
    "backfill": ("--repos", "10", "--records-per-repo", "20"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_and_prints_its_figures(name: str) -> None:
    command = [sys.executable, "-m", f"bench.{name}", *SMALL[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["bench"] == name
    assert figures["floor_per_second"] > 0, "the rate itself is 0 where one look sees all of so small a run"
