"""`protocol/` compiled and as Python: which one runs, and that both do the same."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import IS_COMPILED, PURE, SHARED, SOURCES, digest
from tests.protocol import outcomes
from tests.support import ROOT
from tests.support.size import sized
from tools import compile_protocol

needs_compiled = pytest.mark.skipif(not IS_COMPILED, reason="not compiled here")


def python(code: str, *, path: Path = ROOT, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != PURE}
    command = [sys.executable, "-P", "-c", code]
    env = clean | {"PYTHONPATH": str(path)} | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_the_suite_runs_compiled_where_there_is_a_compiler() -> None:
    """Or the modules that production runs would be tested nowhere."""
    if os.environ.get(PURE):
        pytest.skip("Python was asked for")
    assert IS_COMPILED or shutil.which("cc") is None, "make setup"


SHOWN = "import protocol, protocol.car; print(protocol.IS_COMPILED, protocol.car.__file__.endswith('.so'))"


@needs_compiled
def test_an_edited_source_runs_and_not_what_was_compiled_before(tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "protocol", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".compiled", tmp_path / ".compiled")
    assert python(SHOWN, path=tmp_path) == "True True"
    assert python(SHOWN, path=tmp_path, **{PURE: "1"}) == "False False"
    with (tmp_path / "protocol/mst/node.py").open("a") as source:
        source.write("\n")
    assert python(SHOWN, path=tmp_path) == "False False"


def broken(folder: Path) -> tuple[Path, Path]:
    """Copies of sources and build; the build's shared module, and a hidden link to nothing among the sources."""
    shutil.copytree(SOURCES, folder / "protocol", ignore=shutil.ignore_patterns("__pycache__"))
    build = folder / ".compiled" / digest()
    shutil.copytree(ROOT / ".compiled" / build.name, build)
    link = folder / "protocol/.#cid.py"
    link.symlink_to("someone@host.1")
    (shared,) = build.glob(f"{SHARED}.*")
    return shared, link


@needs_compiled
def test_an_editors_hidden_file_is_no_source_and_an_unreadable_source_is_no_error_here(tmp_path: Path) -> None:
    _, link = broken(tmp_path)
    assert python(SHOWN, path=tmp_path) == "True True"
    link.rename(tmp_path / "protocol/broken.py")
    assert python(SHOWN, path=tmp_path) == "False False"


@needs_compiled
def test_a_build_that_does_not_load_is_not_used_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut, or with an older C library. A build that loads stays: processes may use it."""
    shared, _ = broken(tmp_path)
    good, compiler = shared.read_bytes(), (shared.parent / "built_by").read_text()
    monkeypatch.setattr(compile_protocol, "COMPILED", tmp_path / ".compiled")
    assert compile_protocol.main() == 0  # nothing to do
    new = tmp_path / ".compiled/tmp1/built"
    shutil.copytree(shared.parent, new)
    inode = shared.stat().st_ino
    compile_protocol._install(new, shared.parent, compiler)
    assert shared.stat().st_ino == inode
    shared.write_bytes(b"")
    assert python(SHOWN, path=tmp_path) == "False False"
    assert not compile_protocol._usable(shared.parent, compiler)
    compile_protocol._install(new, shared.parent, compiler)
    assert shared.read_bytes() == good
    assert python(SHOWN, path=tmp_path) == "True True"


def test_what_killed_builds_left_does_not_push_out_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_protocol, "COMPILED", tmp_path)
    for number in range(5):
        (tmp_path / f"build{number}").mkdir()
        (tmp_path / f"build{number}/built_by").touch()
        os.utime(tmp_path / f"build{number}", (number, number))
    for name in ("killed", "running"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "killed", (9, 9))
    compile_protocol._remove_old()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build2", "build3", "build4", "running"]


def test_without_a_compiler_one_line_says_so_and_python_runs(tmp_path: Path) -> None:
    for package in ("protocol", "tools"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "protocol/cid.py").write_text("X: int = 1\n")  # the rest is not compiled before that is found out
    for path in (tmp_path / "protocol").rglob("*.py"):
        if path.name not in ("__init__.py", "cid.py"):
            path.unlink()
    env = os.environ | {"PYTHONPATH": str(tmp_path), "CC": "/none/cc"}
    command = [sys.executable, "-P", "-m", "tools.compile_protocol"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first == "sluice: compiling protocol/ …"
    assert "it runs as Python at half the speed" in last
    assert "/none/cc" in last
    assert list((tmp_path / ".compiled").iterdir()) == []
    assert python("import protocol; print(protocol.IS_COMPILED)", path=tmp_path) == "False"


@needs_compiled
def test_compiled_and_python_make_the_same_of_hostile_input() -> None:
    """G7, G9: same results and same errors. `FAILED` would be a defect that costs an event."""
    # both in new processes, because the keys of the test's repos depend on how many were made before
    code = f"from {outcomes.__name__} import main; main()"
    compiled, pure = (json.loads(python(code, **environment)) for environment in ({}, {PURE: "1"}))
    assert [one for one in compiled if one[2]] == []
    assert len(compiled) == len(pure) > 900
    assert [pair for pair in zip(compiled, pure, strict=True) if pair[0] != pair[1]][:3] == []


@needs_compiled
def test_the_tests_of_the_protocol_pass_in_python() -> None:
    """Those that take few seconds; all of them in `make test-long`."""
    quick = ["recorded", "test_live_commit.py", "test_live_inversion.py", "test_frames.py", "test_snapshot.py"]
    files = sized([f"tests/protocol/{name}" for name in quick], ["tests/protocol"])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=os.environ | {PURE: "1"}, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_a_caught_exception_has_a_name_of_its_own() -> None:
    """mypyc gives a name the type of the first `except` of its function, and raises TypeError for another."""
    for path in SOURCES.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                handlers = [one for one in ast.walk(function) if isinstance(one, ast.ExceptHandler) and one.name]
                assert len({one.name for one in handlers}) == len(handlers), f"{path.name}:{function.lineno}"
