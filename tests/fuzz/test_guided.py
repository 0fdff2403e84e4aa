"""A bounded run of the coverage-guided fuzzer, from real and hostile input on. What it finds is kept in `finds/`, and run first.

`make fuzz MINUTES=60` runs it for as long as you like.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from protocol import PURE
from tests.fuzz import targets
from tests.fuzz.seeds import SEEDS
from tests.support import ROOT
from tests.support.size import sized

HERE = Path(__file__).parent
SECONDS = float(os.environ.get("FUZZ_MINUTES") or sized(0.1, 1)) * 60
INPUT_SECONDS = 10  # of a single input; a frame of the largest size takes 0.1 s
INPUT_MEMORY_MB = 1024


def test_every_target_has_seeds() -> None:
    """Or its parser would hardly be reached."""
    assert set(SEEDS) == {target.__name__ for target in targets.TARGETS}


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.__name__)
def test_hostile_seeds_end_in_bounded_time_and_memory(target: object) -> None:
    """H2: every parser on every seed of every other one, bombs included."""
    for name, inputs in SEEDS.items():
        for data in inputs:
            tracemalloc.start()
            begin = time.process_time()
            target(data)  # type: ignore[operator]
            seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert seconds < 5, f"{name}: {len(data)} bytes, {seconds:.1f} s"
            assert peak < 100 * len(data) + 4_000_000, f"{name}: {len(data)} bytes, {peak} bytes of memory"


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """G7, G9, H2"""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, target in enumerate(targets.TARGETS):
        for at, data in enumerate(SEEDS[target.__name__]):
            (corpus / f"{number}-{at}").write_bytes(bytes([number]) + data)
    for find in (HERE / "finds").glob("*"):
        (corpus / find.name).write_bytes(find.read_bytes())
    options = [f"-max_total_time={SECONDS:.0f}", "-max_len=16384", "-print_final_stats=1"]
    options += [f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={INPUT_MEMORY_MB}", f"-artifact_prefix={tmp_path}/"]
    options += ["-seed=1"] if SECONDS < 60 else []
    command = [sys.executable, "-m", "tests.fuzz.guided", str(corpus), *options]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS * 2 + 230,
        check=False,
        cwd=ROOT,
        env=os.environ | {PURE: "1"},
    )
    finds = {path.name: path.read_bytes().hex() for path in tmp_path.iterdir() if path.is_file()}
    assert run.returncode == 0, f"{finds}\n{run.stderr[-3000:]}"
    executed = next(line for line in run.stderr.splitlines() if "number_of_executed_units" in line)
    print(executed)
    assert int(executed.split()[-1]) > 1000
    for path in corpus.iterdir():  # what reached new code in Python, now with the compiled modules
        targets.one(path.read_bytes())
