"""`make run` looks for Java and Maven before it installs anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The Makefile alone, and a PATH with `make` and its shell but neither Java nor Maven."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("make", "sh", "ls"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def make_java(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    env = {"PATH": f"{folder}/bin", **environment}
    done = subprocess.run(
        ["make", "java", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def tool(folder: Path, name: str) -> None:
    (folder / "bin" / name).symlink_to("/bin/true")


def test_what_is_missing_is_named_with_the_remedy(folder: Path) -> None:
    """In one line, with exit code 2; nothing is installed."""
    code, said = make_java(folder)
    assert code == 2
    assert said.splitlines()[0].startswith(
        "sluice: not found on the PATH: java mvn; install a Java 17+ runtime and Maven"
    )
    tool(folder, "java")
    code, said = make_java(folder)
    assert (code, "PATH: mvn;" in said) == (2, True)
    assert list(folder.glob(".*")) == []


def test_what_is_there_or_not_needed_is_not_asked_for(folder: Path) -> None:
    assert make_java(folder, "ARGS=--bootstrap broker:9092") == (0, "")
    assert make_java(folder, SLUICE_KAFKA_BOOTSTRAP="broker:9092") == (0, "")
    tool(folder, "java")
    (folder / ".sluice" / "kafka-4.0.0").mkdir(parents=True)
    assert make_java(folder) == (0, "")
