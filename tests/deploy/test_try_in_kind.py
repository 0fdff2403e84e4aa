"""deploy/k8s/try.sh with stand-ins for Docker, kind, k3d and kubectl: which commands it runs, and what it says if one is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.rendering import OVERLAYS, ROOT

SCRIPT = ROOT / "deploy" / "k8s" / "try.sh"
COREUTILS = ("sh", "dirname", "sed", "grep", "echo")


def run(folder: Path, *arguments: str, tools: str, failing: str = "") -> tuple[int, str, list[str]]:
    """Exit code, what it prints as an error, and the commands; `tools` are on the PATH, those in `failing` answer 1."""
    log = folder / "log"
    for name in COREUTILS:
        (folder / name).symlink_to(str(shutil.which(name)))
    for name in tools.split():
        code = int(name in failing.split())
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\nexit {code}\n', "utf-8")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [SCRIPT, *arguments], env={"PATH": str(folder)}, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(("maker", "load"), [("kind", "kind load docker-image"), ("k3d", "k3d image import")])
def test_one_command_builds_loads_and_applies(maker: str, load: str, tmp_path: Path) -> None:
    code, _, commands = run(tmp_path, tools=f"docker kubectl {maker}")
    assert code == 0
    order = (
        "docker build --tag sluice:0.1.0",
        load,
        f"kubectl --context {maker}-sluice apply -k deploy/k8s/overlays/local",
    )
    at = [next(i for i, command in enumerate(commands) if command.startswith(wanted)) for wanted in order]
    assert at == sorted(at)
    assert "local" in OVERLAYS
    assert all(f"--context {maker}-sluice" in command for command in commands if command.startswith("kubectl"))


@pytest.mark.parametrize(
    ("tools", "failing", "line"),
    [
        ("kubectl kind", "", "docker is not on the PATH"),
        ("docker kubectl", "", "neither kind nor k3d is on the PATH"),
        ("docker kubectl kind", "docker", "Docker does not answer: start it"),
    ],
)
def test_what_is_missing_is_one_line_and_nothing_is_made(tools: str, failing: str, line: str, tmp_path: Path) -> None:
    code, said, commands = run(tmp_path, tools=tools, failing=failing)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert line in said
    assert [command for command in commands if "docker info" not in command] == []


def test_the_first_time_nothing_is_restarted_and_a_step_that_fails_ends_it(tmp_path: Path) -> None:
    _, _, commands = run(tmp_path, tools="docker kubectl kind")
    assert not [command for command in commands if "rollout restart" in command]
    (tmp_path / "second").mkdir()
    code, _, commands = run(tmp_path / "second", tools="docker kubectl kind", failing="kubectl")
    assert code == 1
    assert [command for command in commands if command.startswith("kubectl")] == [commands[-1]]


def test_it_removes_what_it_made(tmp_path: Path) -> None:
    code, _, commands = run(tmp_path, "delete", tools="docker kubectl kind")
    assert (code, commands[-1]) == (0, "kind delete cluster --name sluice")
