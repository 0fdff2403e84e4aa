"""What no schema knows of our manifests: `faults(documents) -> sentences`, empty where all is well.

Pods are checked against the code: their settings are loaded by the real settings class, their commands parsed by the real
command line, and what a process needs is asked of `local.run`.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from typer.main import get_command

from cli.main import app
from connectors.kafka.producer import DELIVERY_SECONDS
from local.run import require
from schemas.errors import OperatorError
from schemas.flows import PROCESSES
from schemas.settings import PREFIX, SECRETS, Settings, SettingsError, load
from schemas.tuning import Tuning
from tests.deploy.network_flows import NAMESPACE, Peer, wrong_flows
from tests.deploy.rendering import Document

SINGLE = {"list-repos", "labels"}
SHARED = {"firehose"}
MANY = {"backfill", "index", "serve"}
SECRET_SETTINGS = {f"{PREFIX}{name.upper()}" for name in (*SECRETS, "database", "shards")}
POD_INDEX = "metadata.labels['apps.kubernetes.io/pod-index']"
LONGEST_HUNG_SECONDS = 30
SHARE = "$(POD_INDEX)"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
TAGGED = re.compile(r"^(?P<name>[a-z0-9.:/_-]+?):(?P<tag>v?[0-9][A-Za-z0-9._-]*)(@sha256:[0-9a-f]{64})?$")
COMMAND: Any = get_command(app)
UNITS = {"Mi": 1024**2, "Gi": 1024**3}


@dataclass(frozen=True, slots=True)
class Pod:
    """A workload and its pod template."""

    workload: Document
    ours: bool

    @property
    def name(self) -> str:
        return str(self.workload["metadata"]["name"])

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.workload["spec"]["template"]["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.workload["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        return {p["name"]: p["containerPort"] for c in self.spec["containers"] for p in c.get("ports", [])}


def pods(documents: list[Document]) -> list[Pod]:
    """Every workload; ours are those that carry our name."""
    found = [Pod(doc, False) for doc in documents if doc["kind"] in WORKLOADS]
    return [Pod(pod.workload, pod.labels.get("app.kubernetes.io/name") == "sluice") for pod in found]


def faults(documents: list[Document], documented: str) -> list[str]:
    """Everything that is wrong. `documented` is the text that has to name each Secret that must be made by hand."""
    found: list[str] = []
    for pod in pods(documents):
        checks = [
            _images(pod),
            _probes(pod),
            _restricted(pod),
            _resources(pod),
            _references(pod, documents, documented),
            _mounted(pod, documents, documented),
        ]
        if pod.ours:
            checks += [_settings(pod, documents), _commands(pod), _stopping(pod), _count(pod, documents), _tokens(pod)]
        found += [f"{pod.name}: {fault}" for check in checks for fault in check]
    found += [*_selectors(documents), *_budgets(documents), *_flows(documents), *_in_clear(documents)]
    running = {str(pod.spec["containers"][0]["args"][1]) for pod in pods(documents) if pod.ours}
    if running != set(PROCESSES):
        found.append(f"processes are {sorted(running)}, should be {sorted(PROCESSES)}")
    return found


def _images(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if not TAGGED.match(container["image"]):
            yield f"image {container['image']} has no fixed version"


def _probes(pod: Pod) -> Iterator[str]:
    for container in pod.spec["containers"]:
        named = {port["name"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind)
            if probe is None:
                if pod.ours or kind == "readinessProbe":
                    yield f"{container['name']} has no {kind}"
            elif "httpGet" in probe:
                if probe["httpGet"]["port"] not in named:
                    yield f"{kind} asks port {probe['httpGet']['port']}, which the container does not have"
                if pod.ours and probe["httpGet"]["path"] not in ("/healthz", "/readyz"):
                    yield f"{kind} asks {probe['httpGet']['path']}, which nobody serves"


def _restricted(pod: Pod) -> Iterator[str]:
    whole = pod.spec.get("securityContext", {})
    if not whole.get("runAsNonRoot") or not whole.get("runAsUser"):
        yield "may run as root"
    if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "mounts a service account token"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "takes variables of Services, which Sluice would refuse as settings"
    for container in pod.containers:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{container['name']} keeps privileges"
        if pod.ours and own.get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} writes to its root file system"


def _resources(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{container['name']} does not say what it needs"


def _references(pod: Pod, documents: list[Document], documented: str) -> Iterator[str]:
    there = {
        (doc["kind"], doc["metadata"]["name"], key)
        for doc in documents
        if doc["kind"] in ("ConfigMap", "Secret")
        for key in {**doc.get("data", {}), **doc.get("stringData", {})}
    }
    names = {(kind, name) for kind, name, _ in there}
    for container in pod.containers:
        for source in container.get("envFrom", []):
            name = source["configMapRef"]["name"]
            if ("ConfigMap", name) not in names:
                yield f"{container['name']} wants the ConfigMap {name}, which is not there"
        for variable in container.get("env", []):
            wanted = variable.get("valueFrom", {}).get("secretKeyRef")
            if not wanted:
                continue
            told = f"secret generic {wanted['name']}" in documented and f"{wanted['key']}=" in documented
            told = told or (wanted.get("optional") is True and ("Secret", wanted["name"]) in names)
            if ("Secret", wanted["name"], wanted["key"]) not in there and not told:
                yield f"the Secret {wanted['name']} with {wanted['key']} is neither there nor documented"


def _tokens(pod: Pod) -> Iterator[str]:
    """Off loopback the API and the page need a token, and a pod has to start before somebody has made one."""
    for container in pod.spec["containers"]:
        if container["args"] != ["run", "control"]:
            continue
        secret = {v["name"]: v["valueFrom"].get("secretKeyRef", {}) for v in container["env"] if "valueFrom" in v}
        for name in ("SLUICE_API_TOKEN", "SLUICE_API_READ_TOKEN"):
            if name not in secret:
                yield f"{name} has no Secret, so its status page and API are locked for ever"
            elif secret[name].get("optional") is not True:
                yield f"waits for the Secret of {name}"


def _in_clear(documents: list[Document]) -> Iterator[str]:
    """Settings that are secrets are in no ConfigMap, which more people may read than Secrets."""
    for doc in documents:
        if doc["kind"] == "ConfigMap":
            for name in sorted(SECRET_SETTINGS & set(doc.get("data", {}))):
                yield f"ConfigMap {doc['metadata']['name']} has {name} in clear"


def _mounted(pod: Pod, documents: list[Document], documented: str) -> Iterator[str]:
    there = {doc["metadata"]["name"] for doc in documents if doc["kind"] == "Secret"}
    for volume in pod.spec.get("volumes", []):
        secret = volume.get("secret")
        if not secret or secret["secretName"] in there:
            continue
        for item in secret.get("items", [{"key": ""}]):
            told = f"secret generic {secret['secretName']}" in documented and f"{item['key']}=" in documented
            if not told:
                yield f"the Secret {secret['secretName']} with {item['key']} is mounted, and neither there nor documented"


def environment(container: dict[str, Any], documents: list[Document]) -> dict[str, str]:
    """The variables of a container, with something fit in the place of its Secrets."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for doc in documents:
            if doc["kind"] == "ConfigMap" and doc["metadata"]["name"] == source["configMapRef"]["name"]:
                found |= doc["data"]
    given = [v for v in container.get("env", []) if v["name"] != f"{PREFIX}SHARDS"]  # optional
    return found | {v["name"]: v.get("value", _value_of(v)) for v in given}


def _value_of(variable: dict[str, Any]) -> str:
    field = variable.get("valueFrom", {}).get("fieldRef")
    if field is None:
        return "postgresql://somebody@postgres:5432/x"
    return "0" if field["fieldPath"] == POD_INDEX else "unknown field"


def settings_of(container: dict[str, Any], documents: list[Document]) -> Settings:
    """The settings that a process would have in this container. Raises SettingsError."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with patch.dict(os.environ, outside | environment(container, documents), clear=True):
        return load()


def _settings(pod: Pod, documents: list[Document]) -> Iterator[str]:
    for container in pod.containers:
        given = environment(container, documents)
        foreign = [name for name in given if not name.startswith(PREFIX) and f"$({name})" not in str(container["args"])]
        if foreign:
            yield f"{container['name']} is given {foreign}, which are no settings"
        try:
            settings = settings_of(container, documents)
            if container["args"][0] == "run":
                require(container["args"][1], settings)
        except (SettingsError, OperatorError) as err:
            yield f"{container['name']}: {err}"
            continue
        if container["name"] == "sluice" and settings.http_port not in pod.ports.values():
            yield f"listens on {settings.http_port}, and its ports are {pod.ports}"
        if settings.http_host != "0.0.0.0":
            yield f"listens on {settings.http_host}, where no probe reaches it"
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod.spec["volumes"] if volume["name"] == "scratch"]
        if "backfill" in container["args"] and _bytes(sizes[0]) <= settings.backfill_spool_bytes:
            yield f"spools {settings.backfill_spool_bytes} bytes into {sizes[0]}"


def _bytes(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def _commands(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if "command" in container:
            yield f"{container['name']} replaces the image's entry point"
        if wrong := misread([arg.replace(SHARE, "0") for arg in container.get("args", [])]):
            yield f"{container['name']}: {wrong}"


def misread(args: list[str]) -> str | None:
    """What the command line has against these arguments, or None."""
    command = COMMAND
    context, name, rest = None, "sluice", list(args)
    try:
        while hasattr(command, "resolve_command"):
            context = command.make_context(name, [], parent=context, resilient_parsing=True)
            name, command, rest = command.resolve_command(context, rest)
        given = command.make_context(name, rest, parent=context).params
    except Exception as err:
        return f"sluice {' '.join(args)}: {err}"
    if "process" in given and given["process"] not in PROCESSES:
        return f"there is no process {given['process']}"
    return None


def _stopping(pod: Pod) -> Iterator[str]:
    hung = pod.spec["containers"][0].get("livenessProbe", {}).get("terminationGracePeriodSeconds", 150)
    if hung > LONGEST_HUNG_SECONDS:
        yield f"is killed {hung} s after it was found hung"
    longest = Tuning().drain_seconds + DELIVERY_SECONDS
    if pod.spec["terminationGracePeriodSeconds"] <= longest:
        yield f"is killed after {pod.spec['terminationGracePeriodSeconds']} s, and may drain for {longest:.0f} s"


def _count(pod: Pod, documents: list[Document]) -> Iterator[str]:
    process = pod.spec["containers"][0]["args"][1]
    spec = pod.workload["spec"]
    if process in SINGLE and (spec.get("replicas") != 1 or spec["strategy"]["type"] != "Recreate"):
        yield "must run once, and never twice at a time"
    if process in SHARED:
        (container,) = pod.spec["containers"]
        given = environment(container, documents)
        if pod.workload["kind"] != "StatefulSet" or not _numbered(container, given):
            yield "its pods do not know their share"
        elif given.get("SLUICE_FIREHOSE_SHARES") != str(spec.get("replicas")):
            yield f"{spec.get('replicas')} pods have {given.get('SLUICE_FIREHOSE_SHARES')} shares"
    if process in MANY and spec["strategy"]["type"] != "RollingUpdate":
        yield "could be replaced one by one"


def _budgets(documents: list[Document]) -> Iterator[str]:
    """A node can always be drained, and no drain stops all pods of a process that has several."""
    budgets = [doc["spec"] for doc in documents if doc["kind"] == "PodDisruptionBudget"]
    for pod in (pod for pod in pods(documents) if pod.ours):
        several = pod.spec["containers"][0]["args"][1] in {*MANY, "control"}
        found = [budget["maxUnavailable"] for budget in budgets if _fits(pod.labels, budget["selector"])]
        if found != [1] * several:
            yield f"{pod.name}: its budgets are {found}, should be {[1] * several}"


def _numbered(container: dict[str, Any], given: dict[str, str]) -> bool:
    return f"--share={SHARE}" in container["args"] and given.get("POD_INDEX") == "0"


def _fits(labels: dict[str, str], selector: dict[str, Any]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _selectors(documents: list[Document]) -> Iterator[str]:
    everyone = pods(documents)
    for doc in documents:
        kind, spec, name = doc["kind"], doc.get("spec", {}), doc["metadata"]["name"]
        if kind in WORKLOADS and not _fits(Pod(doc, False).labels, spec["selector"]):
            yield f"{name}: its selector does not fit its own pods"
        if kind in ("PodDisruptionBudget", "PodMonitor", "NetworkPolicy", "Service"):
            selector = spec.get("podSelector") or spec.get("selector", {})
            chosen = [
                p for p in everyone if _fits(p.labels, selector if kind != "Service" else {"matchLabels": selector})
            ]
            if not chosen:
                yield f"{kind} {name} selects nothing"
            ports = [p.get("targetPort") for p in spec.get("ports", [])] if kind == "Service" else []
            ports += [p["port"] for rule in spec.get("ingress", []) for p in rule["ports"]]
            ports += [endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", [])]
            for pod in chosen:
                for port in ports:
                    if port not in (pod.ports if isinstance(port, str) else pod.ports.values()):
                        yield f"{kind} {name} names port {port}, which {pod.name} does not have"


def _flows(documents: list[Document]) -> Iterator[str]:
    """The network policies let pass what the settings need, and nothing else."""
    processes: dict[str, tuple[Peer, Settings]] = {}
    for pod in (pod for pod in pods(documents) if pod.ours):
        container = pod.spec["containers"][0]
        with suppress(SettingsError):  # reported by the check of the settings
            peer = Peer(pod.name, namespace=NAMESPACE, labels=pod.labels, ports=pod.ports)
            processes[container["args"][1]] = peer, settings_of(container, documents)
    yield from wrong_flows(documents, processes)
