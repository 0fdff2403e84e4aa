"""A bounded run of the coverage-guided fuzzer, from real input on. What it finds is kept in `finds/`, and run first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from test_parsers import BLOCKS, FRAMES, NODES, REPO

HERE = Path(__file__).parent
SECONDS = 12


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """G7, G9"""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = [
        (b"\0", FRAMES),
        (b"\1", [REPO.car()]),
        (b"\2", NODES),
        (b"\3", [REPO.blocks[REPO.commit]]),
        (b"\4", BLOCKS),
    ]
    for number, (target, inputs) in enumerate(seeds):
        for at, data in enumerate(inputs):
            (corpus / f"{number}-{at}").write_bytes(target + data)
    for find in (HERE / "finds").glob("*"):
        (corpus / find.name).write_bytes(find.read_bytes())
    options = [f"-max_total_time={SECONDS}", "-max_len=16384", "-seed=1", "-rss_limit_mb=2048", "-print_final_stats=1"]
    command = [sys.executable, str(HERE / "guided.py"), str(corpus), *options, f"-artifact_prefix={tmp_path}/"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 20, check=False)
    finds = {path.name: path.read_bytes().hex() for path in tmp_path.iterdir() if path.is_file()}
    assert run.returncode == 0, f"{finds}\n{run.stderr[-3000:]}"
    executed = next(line for line in run.stderr.splitlines() if "number_of_executed_units" in line)
    assert int(executed.split()[-1]) > 1000
