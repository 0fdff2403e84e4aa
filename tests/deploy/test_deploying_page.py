"""docs/deploying.md: the commands of its page that need no cluster are run, and its steps fit the manifests."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifest_checks import faults
from tests.deploy.rendering import KUBECTL, ROOT, RenderError, render, rendered
from tests.deploy.test_manifests import DOCUMENTED, NEWEST, refused, spec

BLOCKS = [
    re.sub(r"^ {3}", "", block, flags=re.M) for block in re.findall(r"^ *```\n(.*?)^ *```", DOCUMENTED, re.M | re.S)
]


def block(words: str) -> str:
    """The code block that has these words."""
    (found,) = (block for block in BLOCKS if words in block)
    return found


def a_copy_of_ones_own(folder: Path) -> Path:
    """What the page's commands make beside a checkout; the overlay."""
    checkout = folder / "sluice"
    checkout.mkdir()
    (checkout / "deploy").symlink_to(ROOT / "deploy")
    path = f"{KUBECTL.parent}{os.pathsep}{os.environ['PATH']}"
    commands = ["bash", "-e", "-o", "pipefail", "-c", block("our-mirror")]
    done = subprocess.run(
        commands, cwd=checkout, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout
    return folder / "our-mirror" / "k8s" / "overlays" / "ours"


def test_a_copy_in_a_repository_of_ones_own_renders(tmp_path: Path) -> None:
    """U1: with the page's commands; the overlay's folder alone has no base."""
    overlay = a_copy_of_ones_own(tmp_path)
    assert faults(render(overlay), DOCUMENTED) == []
    alone = overlay.rename(tmp_path / "alone")
    with pytest.raises(RenderError, match="base"):
        render(alone)


def test_pdses_on_other_ports_get_their_way(tmp_path: Path) -> None:
    """The page's patch, in the file that it names."""
    overlay = a_copy_of_ones_own(tmp_path)
    before = spec(render(overlay), "NetworkPolicy", "sluice-internet")["egress"][0]["ports"]
    with (overlay / "kustomization.yaml").open("a") as kustomization:
        kustomization.write(block("endPort"))
    documents = render(overlay)
    ports = spec(documents, "NetworkPolicy", "sluice-internet")["egress"][0]["ports"]
    assert [port["port"] for port in before] == [443]
    assert ports == [*before, {"port": 1024, "endPort": 65535, "protocol": "TCP"}]
    assert list(refused(documents, NEWEST)) == []


def test_what_is_stopped_for_a_restore_stays_stopped() -> None:
    """G1, G2: an autoscaler that may not go to 0 is taken away first, and nothing is asked of a process that is stopped."""
    documents = rendered("production", ["keda"])
    scaled = [doc["spec"]["minReplicaCount"] for doc in documents if doc["kind"] == "ScaledObject"]
    assert min(scaled) > 0, "it would let them be"
    commands = block("--replicas=0").splitlines()
    objects, everything, gone = (
        next(n for n, command in enumerate(commands) if words in command)
        for words in (
            "delete scaledobject --all",
            "scale deployment,statefulset --selector=app.kubernetes.io/name=sluice --replicas=0",
            "--for=delete",
        )
    )
    assert objects < everything < gone
    assert DOCUMENTED.count("--replicas=0") == 1, "another place that stops everything has no such step"
    stopped = DOCUMENTED.partition("--for=delete")[2].partition("kubectl apply -k")[0]
    assert re.findall(r"exec deploy/(\S+)", stopped) == []
