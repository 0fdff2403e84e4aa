"""Manifests as `kubectl apply -k` would send them: `rendered(overlay, components)` of this repository, `render(folder)` of a copy."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT

K8S = ROOT / "deploy" / "k8s"
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())

Document = dict[str, Any]


class RenderError(Exception):
    """kustomize refused; the message is its own."""


class _Strict(yaml.CSafeLoader):
    """YAML in which a key may not come twice."""


def _mapping(loader: Any, node: Any) -> Any:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = {str(key) for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(twice)}", node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, True)


_Strict.add_constructor("tag:yaml.org,2002:map", _mapping)


def read(text: str) -> list[Any]:
    """Every document of a YAML text. Raises yaml.YAMLError, also for a key that comes twice."""
    return [document for document in yaml.load_all(text, _Strict) if document is not None]


def render(folder: Path) -> list[Document]:
    """Documents that kustomize makes of a folder. Raises RenderError."""
    return read(_kustomize(folder))


def rendered(overlay: str, components: Iterable[str] = ()) -> list[Document]:
    """Documents of an overlay with components, to be changed at will. kustomize runs once for each combination."""
    return read(_text(overlay, tuple(components)))


@cache
def _text(overlay: str, components: tuple[str, ...]) -> str:
    if not components:
        return _kustomize(K8S / "overlays" / overlay)
    with tempfile.TemporaryDirectory() as folder:
        return _kustomize(with_components(copy(Path(folder)), overlay, components))


def _kustomize(folder: Path) -> str:
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(done.stderr.strip())
    return done.stdout


def copy(folder: Path) -> Path:
    """A copy of deploy/k8s under `folder`."""
    return Path(shutil.copytree(K8S, folder / "k8s"))


def with_components(k8s: Path, overlay: str, components: Iterable[str]) -> Path:
    """A new folder in a copy of deploy/k8s that adds components to an overlay, as a user does it."""
    folder = k8s / "overlays" / f"{overlay}-and-{'-'.join(components)}"
    folder.mkdir()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "sluice",
        "resources": [f"../{overlay}"],
        "components": [f"../../components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), "utf-8")
    return folder
