"""Run the simulated network (`python -m simulator`). Each field of SimulatorConfig is an option.

Faults: `--faults name=probability,…` or `--faults '{"name": {"p": 0.1, "times": 3}}'`. Prints one JSON line of URLs when ready.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any, NoReturn

from simulator.config import ImpossibleConfigError
from simulator.faults.faults import NAMES, UnknownFaultError
from simulator.server import SimulatorConfig, serve


def parse_faults(text: str) -> dict[str, Any]:
    """Parse `name=p,name=p` or a JSON object. Raises ValueError for anything else."""
    if text.startswith("{"):
        parsed: dict[str, Any] = json.loads(text)
        return parsed
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {name: float(value or 1) for name, _, value in pairs}


class _OneLine(argparse.ArgumentParser):
    """Reports an error in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line: one option per field of SimulatorConfig."""
    faults = "\n".join(f"  {name}: {text}" for name, text in NAMES.items())
    options = _OneLine(
        prog="python -m simulator",
        description=__doc__,
        epilog=f"faults:\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(SimulatorConfig):
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if field.name == "faults":
            options.add_argument(flag, type=parse_faults, default={}, help=text)
        elif field.name == "epoch_micros":
            options.add_argument(flag, type=int, default=None, help=text)
        elif isinstance(field.default, bool):
            options.add_argument(flag, action="store_true", help=text)
        else:
            options.add_argument(
                flag, type=type(field.default), default=field.default, help=f"{text}; default %(default)s"
            )
    return options


def main() -> int:
    """Run the command. A bad option or a port in use gives one line and exit code 2."""
    options = vars(parser().parse_args())
    try:
        return serve(SimulatorConfig(**options))
    except (OSError, UnknownFaultError, ImpossibleConfigError) as error:
        print(f"simulator: {error}", file=sys.stderr)  # noqa: T201  a command's message
        return 2


if __name__ == "__main__":
    sys.exit(main())
