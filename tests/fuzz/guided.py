"""The coverage-guided fuzzer over the parsers: `python -m tests.fuzz.guided CORPUS [options]`. A find ends it with its bytes.

The first byte of an input chooses the parser (targets.py), the rest is its input.
"""

import os
import sys

import atheris

from protocol import PURE

assert os.environ.get(PURE), "the fuzzer follows Python's instructions, and sees none of compiled modules"

with atheris.instrument_imports(include=["protocol", "steps"], enable_loader_override=False):
    from tests.fuzz import targets

if __name__ == "__main__":
    atheris.Setup(sys.argv, targets.one)
    atheris.Fuzz()
