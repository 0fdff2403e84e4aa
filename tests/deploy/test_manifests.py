"""Every overlay, alone and with each component, renders, fits the Kubernetes API and fits the code; broken copies do not."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from connectors.kafka.offsets import GROUP_TOPICS
from schemas.settings import Settings
from tests.deploy.manifest_checks import faults, misread, pods
from tests.deploy.rendering import COMPONENTS, OVERLAYS, ROOT, Document, copy, read, render, rendered

OLDEST, NEWEST = "1.29", "1.37"  # matchLabelKeys of topology spread came with 1.27, and 1.29 is what we promise
CRDS = {path.stem: path for path in (ROOT / "tests" / "deploy" / "crds").glob("*.json")}
DOCUMENTED = (ROOT / "docs" / "deploying.md").read_text("utf-8")
CASES = [(overlay, []) for overlay in OVERLAYS] + [(o, [c]) for o in OVERLAYS for c in COMPONENTS]
CASES += [(overlay, COMPONENTS) for overlay in OVERLAYS]


CRD_VALIDATORS = {kind: Draft202012Validator(json.loads(path.read_text("utf-8"))) for kind, path in CRDS.items()}


def refused(documents: list[Document], version: str) -> Iterator[str]:
    """Errors that the API server would report; a kind without a schema is an error."""
    for doc in documents:
        for message in validation_errors(json.dumps(doc), version):
            yield f"{doc['kind']} {doc['metadata']['name']}: {message}"


@cache
def validation_errors(document: str, version: str) -> list[str]:
    """Errors in one document, as JSON. Most documents are the same in several overlays, so results are kept."""
    doc = json.loads(document)
    if doc["kind"] in CRDS:
        return [error.message for error in CRD_VALIDATORS[doc["kind"]].iter_errors(doc)]
    try:
        kubernetes_validate.validate(doc, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as err:
        return [err.message]
    return []


@pytest.mark.parametrize(("overlay", "components"), CASES)
def test_overlay_fits_the_kubernetes_api_and_the_code(overlay: str, components: list[str]) -> None:
    """U1, N8."""
    documents = rendered(overlay, components)
    assert [*refused(documents, OLDEST), *refused(documents, NEWEST)] == []
    assert faults(documents, DOCUMENTED) == []
    assert {doc["kind"] for doc in documents} & set(CRDS) == set() if not components else True
    assert all("namespace" in doc["metadata"] for doc in documents if doc["kind"] != "Namespace")


def container(documents: list[Document], workload: str = "sluice-index") -> dict[str, Any]:
    (pod,) = (pod for pod in pods(documents) if pod.name == workload)
    found: dict[str, Any] = pod.spec["containers"][0]
    return found


def variable(documents: list[Document], workload: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in container(documents, workload)["env"] if one["name"] == name)
    return dict(found)


def spec(documents: list[Document], kind: str, name: str) -> dict[str, Any]:
    (doc,) = (doc for doc in documents if doc["kind"] == kind and doc["metadata"]["name"].startswith(name))
    found: dict[str, Any] = doc.get("spec", doc)
    return found


def labels(documents: list[Document], workload: str) -> dict[str, str]:
    found: dict[str, str] = spec(documents, "Deployment", workload)["template"]["metadata"]["labels"]
    return found


def settings(documents: list[Document]) -> dict[str, str]:
    found: dict[str, str] = spec(documents, "ConfigMap", "sluice-settings")["data"]
    return found


def drop_policy(documents: list[Document], name: str) -> None:
    documents[:] = [doc for doc in documents if (doc["kind"], doc["metadata"]["name"]) != ("NetworkPolicy", name)]


def internet(documents: list[Document]) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = spec(documents, "NetworkPolicy", "sluice-internet")["egress"]
    return rules


Break = Callable[[list[Document]], object]
BROKEN: dict[str, tuple[Break, str]] = {
    "deleted probe port": (lambda d: container(d).pop("ports"), "asks port http, which the container does not have"),
    "renamed probe port": (
        lambda d: container(d)["readinessProbe"]["httpGet"].update(port="htpp"),
        "readinessProbe asks port htpp",
    ),
    "probe of a path that nobody serves": (
        lambda d: container(d)["livenessProbe"]["httpGet"].update(path="/health"),
        "asks /health, which nobody serves",
    ),
    "misspelt setting": (
        lambda d: settings(d).update(SLUICE_RELAY="https://relay.example"),
        "SLUICE_RELAY is not a setting",
    ),
    "setting that is no number": (
        lambda d: settings(d).update(SLUICE_KAFKA_PARTITIONS="many"),
        "SLUICE_KAFKA_PARTITIONS:",
    ),
    "missing setting": (lambda d: settings(d).pop("SLUICE_RELAYS"), "SLUICE_RELAYS is not set"),
    "listening on loopback": (lambda d: settings(d).pop("SLUICE_HTTP_HOST"), "where no probe reaches it"),
    "another port": (lambda d: settings(d).update(SLUICE_HTTP_PORT="9999"), "listens on 9999"),
    "floating tag": (lambda d: container(d).update(image="registry.example.com/sluice:latest"), "no fixed version"),
    "no tag": (lambda d: container(d).update(image="registry.example.com:5000/sluice"), "no fixed version"),
    "unknown process": (lambda d: container(d).update(args=["run", "indexer"]), "there is no process indexer"),
    "unknown command": (lambda d: container(d).update(args=["runn", "index"]), "runn"),
    "unknown option": (lambda d: container(d).update(args=["run", "index", "--fast"]), "--fast"),
    "two labels": (lambda d: spec(d, "Deployment", "sluice-labels").update(replicas=2), "must run once"),
    "labels updated by rolling": (
        lambda d: spec(d, "Deployment", "sluice-labels")["strategy"].update(type="RollingUpdate"),
        "never twice at a time",
    ),
    "more firehoses than shares": (
        lambda d: spec(d, "StatefulSet", "sluice-firehose").update(replicas=2),
        "2 pods have 1 shares",
    ),
    "firehoses without a number": (
        lambda d: container(d, "sluice-firehose").update(env=container(d)["env"]),
        "do not know their share",
    ),
    "short grace": (
        lambda d: spec(d, "Deployment", "sluice-index")["template"]["spec"].update(terminationGracePeriodSeconds=30),
        "is killed after 30 s",
    ),
    "hung for long": (
        lambda d: container(d)["livenessProbe"].pop("terminationGracePeriodSeconds"),
        "is killed 150 s after it was found hung",
    ),
    "service links": (
        lambda d: spec(d, "Deployment", "sluice-index")["template"]["spec"].pop("enableServiceLinks"),
        "takes variables of Services",
    ),
    "root": (
        lambda d: spec(d, "Deployment", "sluice-index")["template"]["spec"]["securityContext"].update(runAsUser=0),
        "may run as root",
    ),
    "writable root": (lambda d: container(d)["securityContext"].pop("readOnlyRootFilesystem"), "writes to its root"),
    "capabilities": (lambda d: container(d)["securityContext"].pop("capabilities"), "keeps privileges"),
    "no memory limit": (lambda d: container(d)["resources"].pop("limits"), "does not say what it needs"),
    "undocumented secret": (
        lambda d: variable(d, "sluice-index", "SLUICE_DATABASE")["valueFrom"]["secretKeyRef"].update(key="dsn"),
        "neither there nor documented",
    ),
    "control without a token": (
        lambda d: container(d, "sluice-control").update(env=container(d)["env"]),
        "SLUICE_API_TOKEN has no Secret",
    ),
    "control that waits for a token": (
        lambda d: variable(d, "sluice-control", "SLUICE_API_READ_TOKEN")["valueFrom"]["secretKeyRef"].pop("optional"),
        "waits for the Secret of SLUICE_API_READ_TOKEN",
    ),
    "a token in clear": (lambda d: settings(d).update(SLUICE_API_TOKEN="x"), "has SLUICE_API_TOKEN in clear"),
    "config map that is not there": (
        lambda d: container(d)["envFrom"][0]["configMapRef"].update(name="settings"),
        "wants the ConfigMap settings",
    ),
    "small scratch": (
        lambda d: spec(d, "Deployment", "sluice-backfill")["template"]["spec"]["volumes"][0].update(
            emptyDir={"sizeLimit": "1Gi"}
        ),
        "into 1Gi",
    ),
    "budget that blocks every drain": (
        lambda d: spec(d, "PodDisruptionBudget", "sluice-index").update(maxUnavailable=0),
        "sluice-index: its budgets are [0]",
    ),
    "budget for a single process": (
        lambda d: spec(d, "PodDisruptionBudget", "sluice-index")["selector"]["matchLabels"].update(
            {"app.kubernetes.io/component": "labels"}
        ),
        "sluice-labels: its budgets are [1], should be []",
    ),
    "budget for nobody": (
        lambda d: spec(d, "PodDisruptionBudget", "sluice-index")["selector"]["matchLabels"].update(component="x"),
        "selects nothing",
    ),
    "service with a port that is not there": (
        lambda d: spec(d, "Service", "sluice-control")["ports"][0].update(targetPort="web"),
        "names port web",
    ),
    "no way to the log": (lambda d: drop_policy(d, "sluice-log-and-database"), "has no way to the database, port 5432"),
    "no way to the internet": (lambda d: drop_policy(d, "sluice-internet"), "has no way to 1.1.1.1, port 443"),
    "control without a way to the hosts of handles": (
        lambda d: labels(d, "sluice-control").pop("sluice/internet"),
        "sluice-control has no way to 1.1.1.1, port 443",
    ),
    "index with a way to the internet": (
        lambda d: labels(d, "sluice-index").update({"sluice/internet": "true"}),
        "sluice-index has a way to 1.1.1.1, port 443",
    ),
    "no way to names": (lambda d: drop_policy(d, "sluice-names"), "has no way to the cluster's DNS, port 53 UDP"),
    "a way to the cloud's metadata": (
        lambda d: internet(d)[0]["to"][0]["ipBlock"]["except"].remove("169.254.0.0/16"),
        "sluice-backfill has a way to 169.254.169.254, port 443",
    ),
    "a way to every port": (lambda d: internet(d)[0]["ports"][0].update(port=1, endPort=65535), "1.1.1.1, port 25"),
    "brokers of any namespace": (
        lambda d: spec(d, "NetworkPolicy", "sluice-log-and-database")["egress"][0]["to"][0].update(
            namespaceSelector={}
        ),
        "has a way to a pod of another namespace, port 9092",
    ),
    "closed metrics": (lambda d: drop_policy(d, "sluice-metrics"), "sluice-index refuses Prometheus on port 8080"),
    "closed control": (
        lambda d: drop_policy(d, "sluice-control"),
        "sluice-control refuses another pod of the namespace",
    ),
    "open to every namespace": (
        lambda d: spec(d, "NetworkPolicy", "sluice-metrics")["ingress"][0]["from"][0].update(namespaceSelector={}),
        "sluice-index accepts a pod of another namespace on port 8080",
    ),
    "no index": (lambda d: d.remove(next(x for x in d if x["metadata"]["name"] == "sluice-index")), "processes are"),
}


@pytest.fixture
def production() -> list[Document]:
    return rendered("production")


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named(production: list[Document], what: str) -> None:
    """N8: each mistake in a rendered copy, one at a time."""
    documents = deepcopy(production)
    change, sentence = BROKEN[what]
    change(documents)
    assert documents != production, "nothing was broken"
    assert [fault for fault in faults(documents, DOCUMENTED) if sentence in fault] != []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: container(d).update(imagePullPolice="Always"), "imagePullPolice"),
        (lambda d: spec(d, "Deployment", "sluice-index").update(replicas="2"), "'2' is not"),
        (lambda d: spec(d, "Deployment", "sluice-index").pop("selector"), "selector"),
        (lambda d: d[0].update(kind="Namespaces"), "Namespaces"),
        (lambda d: d[0].update(apiVersion="v2"), "Namespace"),
    ],
)
def test_what_the_api_refuses_is_named(production: list[Document], change: Break, sentence: str) -> None:
    documents = deepcopy(production)
    change(documents)
    assert [fault for fault in refused(documents, NEWEST) if sentence in fault] != []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ScaledObject", lambda s: s["triggers"][0]["metadata"].pop("consumerGroup")),
        ("ScaledObject", lambda s: s.update(maxReplicas=3)),
        ("PodMonitor", lambda s: s["podMetricsEndpoints"][0].update(ports="http")),
        ("PrometheusRule", lambda s: s["groups"][0]["rules"][0].pop("expr")),
    ],
)
def test_what_a_crd_refuses_is_named(kind: str, change: Callable[[dict[str, Any]], object]) -> None:
    documents = rendered("production", COMPONENTS)
    doc = next(doc for doc in documents if doc["kind"] == kind)
    assert list(refused(documents, NEWEST)) == []
    change(doc["spec"])
    assert list(refused(documents, NEWEST)) != []


def test_no_source_has_a_key_twice() -> None:
    """kustomize and the API server would each take one of them in silence."""
    sources = [*(ROOT / "deploy").rglob("*.y*ml"), ROOT / "redpanda.yml"]
    assert len(sources) > 20
    for path in sources:
        read(path.read_text("utf-8"))
    with pytest.raises(yaml.YAMLError, match="twice: a"):
        read("a: 1\na: 2\n")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_setting_is_the_number_of_shares_and_of_firehose_pods(overlay: str, tmp_path: Path) -> None:
    """S3: in the overlay's settings, beside the addresses that it sets there."""
    folder = copy(tmp_path) / "overlays" / overlay
    with (folder / "settings.env").open("a") as file:
        file.write("SLUICE_FIREHOSE_SHARES=3\n")
    documents = render(folder)
    assert spec(documents, "StatefulSet", "sluice-firehose")["replicas"] == 3
    assert faults(documents, DOCUMENTED) == []


def test_scaling_follows_the_groups_of_the_code() -> None:
    """U1: by lag, up to the number of partitions."""
    documents = rendered("production", ["keda"])
    scaled = [doc["spec"] for doc in documents if doc["kind"] == "ScaledObject"]
    assert len(scaled) == 2
    partitions = int(settings(documents)["SLUICE_KAFKA_PARTITIONS"])
    for one in scaled:
        group = one["scaleTargetRef"]["name"].removeprefix("sluice-")
        assert "replicas" not in spec(documents, "Deployment", f"sluice-{group}"), "two would own the count"
        assert one["maxReplicaCount"] <= partitions
        for trigger in one["triggers"]:
            assert trigger["metadata"]["consumerGroup"] == Settings().group(group)
            assert trigger["metadata"]["topic"] in GROUP_TOPICS[group]
            assert trigger["metadata"]["bootstrapServersFromEnv"] in settings(documents)


def test_the_dashboard_is_in_the_folder_that_grafana_reads(production: list[Document]) -> None:
    """U3: one ConfigMap with the label that its sidecar asks for, under a name that an upgrade replaces."""
    (found,) = (doc for doc in production if doc.get("metadata", {}).get("labels", {}).get("grafana_dashboard") == "1")
    assert (found["kind"], found["metadata"]["name"]) == ("ConfigMap", "sluice-dashboard")
    assert json.loads(found["data"]["sluice.json"])["title"] == "Sluice"


def test_the_secret_of_the_brokers_is_documented() -> None:
    """Its user, its password and the file that is mounted: each is named where nobody is told to make it."""
    documents = rendered("production", ["broker-security"])
    found = faults(documents, DOCUMENTED.replace("secret generic sluice-broker", "a secret"))
    for what in ("sluice-broker with username", "sluice-broker with password", "sluice-broker with ca.crt is mounted"):
        assert [fault for fault in found if what in fault]


def test_image_is_of_this_release() -> None:
    release = (ROOT / "pyproject.toml").read_text("utf-8").partition('version = "')[2].partition('"')[0]
    for overlay in OVERLAYS:
        images = {c["image"] for pod in pods(rendered(overlay)) if pod.ours for c in pod.containers}
        assert {image.rpartition(":")[2] for image in images} == {release}


def test_command_line_reads_what_it_knows() -> None:
    assert misread(["topics", "apply"]) is None
    assert misread(["topics", "aply"]) is not None
