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
BUILT_BY = "built_by"
KEPT = 3
"""Builds that are kept: processes that run may still import from an earlier one."""
ABANDONED_SECONDS = 3600.0  # a build without `built_by` after so long was killed


def main() -> int:
    """Compile, and return the exit code."""
    compiler = f"mypy {version('mypy')} -O{OPTIMIZATION}\n"
    if _usable(COMPILED / digest(), compiler):
        return 0
    began = time.monotonic()
    _say("compiling protocol/ …")
    COMPILED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMPILED) as made:
        # of the copy, because the sources may change meanwhile
        shutil.copytree(SOURCES, Path(made) / SOURCES.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        folder = COMPILED / digest(Path(made) / SOURCES.name)
        problem = _compiled(Path(made))
        if problem:
            _say(f"… not compiled, it runs as Python at half the speed: {problem}")
            return 1
        built = Path(made) / "built"
        (built / BUILT_BY).write_text(compiler)
        _install(built, folder, compiler)
    _remove_old()
    _say(f"… {time.monotonic() - began:.0f} s")
    return 0


def _usable(folder: Path, compiler: str) -> bool:
    """Whether this compiler built the folder, and its code loads: a crash of the machine may have left empty files."""
    built_by = folder / BUILT_BY
    if not built_by.is_file() or built_by.read_text() != compiler:
        return False
    command = [sys.executable, "-S", "-c", f"import {SHARED}"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0  # noqa: S603 - our own code


def _install(built: Path, folder: Path, compiler: str) -> None:
    """Move the build to its folder, durably; not if another process has put the same one there, which processes may already use."""
    if _usable(folder, compiler):
        return
    for path in (built, *built.rglob("*")):
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)
    if folder.exists():
        folder.rename(built.parent / "replaced")
    built.rename(folder)


def _remove_old() -> None:
    """Remove all builds but the newest, and what killed builds left."""
    folders = sorted(COMPILED.iterdir(), key=lambda path: path.stat().st_mtime)
    builds = [path for path in folders if (path / BUILT_BY).is_file()]
    before = time.time() - ABANDONED_SECONDS
    abandoned = [path for path in folders if path not in builds and path.stat().st_mtime < before]
    for old in (*builds[:-KEPT], *abandoned):
        shutil.rmtree(old, ignore_errors=True)


def _compiled(folder: Path) -> str:
    """Compile `folder/protocol` into `folder/built`. Returns '', or the last line of the compiler's output if it fails."""
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
