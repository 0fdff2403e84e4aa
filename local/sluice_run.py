"""`sluice run` for the processes of `sluice up`: `python -m local.sluice_run run [--share N] --parent PID NAME`.

They are forks, which share the memory that none of them touches. The whole command line would touch 5 MB in each.
"""

import argparse
import atexit
import faulthandler
import gc
import sys

from connectors.runtime.errors import OPERATOR_ERRORS, one_line
from local.run import die_with, run
from schemas.errors import EXIT_OPERATOR
from schemas.settings import load


def main() -> None:
    """Run one process. Its settings come from the environment."""
    faulthandler.enable()
    atexit.register(gc.freeze)  # as in cli/main.py
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("name")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--share", type=int)
    given = parser.parse_args()
    die_with(given.parent)
    try:
        run(given.name, load(firehose_share=given.share))
    except OPERATOR_ERRORS as err:
        sys.stderr.write(f"sluice: {one_line(err)}\n")
        sys.exit(EXIT_OPERATOR)


if __name__ == "__main__":
    main()
