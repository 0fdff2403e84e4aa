"""Compiles `protocol/` with mypyc, unless its sources and mypy are unchanged: `python -m tools.compile_protocol`.

The sources are plain Python and run without this step, at half the speed. Exit code 1 and one line on standard error if they
cannot be compiled, for example because there is no C compiler. `protocol/__init__.py` finds the result.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from protocol import COMPILED, NEVER_COMPILED, PURE, SHARED, SOURCES, digest

OPTIMIZATION = "1"  # -O3 takes half as long again to compile, and runs no faster
KEPT = 3
"""Builds that are kept: processes that run may still import from an earlier one."""


def main() -> int:
    """Compile, and return the exit code."""
    compiler = f"mypy {version('mypy')} -O{OPTIMIZATION}\n"
    folder = COMPILED / digest()
    built_by = folder / "built_by"
    if built_by.is_file() and built_by.read_text() == compiler:
        return 0
    began = time.monotonic()
    _say("compiling protocol/ …")
    COMPILED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMPILED) as made:
        problem = _compiled(Path(made))
        if problem:
            _say(f"… not compiled, it runs as Python at half the speed: {problem}")
            return 1
        built = Path(made) / "built"
        (built / built_by.name).write_text(compiler)
        shutil.rmtree(folder, ignore_errors=True)
        built.rename(folder)
    builds = sorted((path for path in COMPILED.iterdir()), key=lambda path: path.stat().st_mtime)
    for old in builds[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    _say(f"… {time.monotonic() - began:.0f} s")
    return 0


def _compiled(folder: Path) -> str:
    """Compile into `folder/built`. Returns '', or the last line of the compiler's output if it fails."""
    shutil.copytree(SOURCES, folder / SOURCES.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", "from tools.compile_protocol import build; build()"]
    environment = os.environ | {"PYTHONPATH": str(SOURCES.parent), PURE: "1"}
    done = subprocess.run(  # noqa: S603 - our own code
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
    return lines[-1] if done.returncode else ""


def build() -> None:
    """Compile the folder `protocol` of the current folder into `built`."""
    from mypyc.build import include_dir, mypycify  # noqa: PLC0415 - only where there is something to compile
    from setuptools import setup  # noqa: PLC0415

    modules = [str(path) for path in sorted(Path(SOURCES.name).rglob("*.py")) if path.stem not in NEVER_COMPILED]
    options = ["--config-file=", "--ignore-missing-imports", "--cache-dir=mypy", *modules]
    extensions = mypycify(
        options, opt_level=OPTIMIZATION, debug_level="0", group_name=SHARED.removesuffix("__mypyc"), target_dir="c"
    )
    repaired = Path("repaired/bytes_ops.c")
    repaired.parent.mkdir()
    repaired.write_text(_repaired(Path(include_dir()) / repaired.name))
    for extension in extensions:
        extension.include_dirs.insert(0, str(repaired.parent))
    setup(
        name="protocol",
        packages=[],
        ext_modules=extensions,
        script_args=["-q", "build_ext", "--build-lib", "built", "--build-temp", "objects"],
    )


def _repaired(source: Path) -> str:
    """mypyc's code for slices of bytes: one that ends before it starts is empty in Python, and raises SystemError there."""
    code, wrong = source.read_text(), "slice_len = endn - startn;"
    if code.count(wrong) != 1:
        sys.exit(f"{source.name} of this version of mypyc is not the one that is repaired here")
    return code.replace(wrong, "slice_len = endn < startn ? 0 : endn - startn;")


def _say(text: str) -> None:
    print(f"sluice: {text}", file=sys.stderr)  # noqa: T201 - the output of a build step


if __name__ == "__main__":
    sys.exit(main())
