"""The coverage-guided fuzzer over the parsers: `python guided.py CORPUS [libFuzzer options]`. A find ends it with its bytes.

The first byte of an input chooses the parser (targets.py), the rest is its input.
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]

with atheris.instrument_imports(include=["protocol", "steps"], enable_loader_override=False):
    import targets

if __name__ == "__main__":
    atheris.Setup(sys.argv, targets.one)
    atheris.Fuzz()
