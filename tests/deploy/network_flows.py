"""What the network policies permit, evaluated as a network plugin does, and what the settings of the pods need.

`wrong_flows(documents, processes)`: a sentence for each flow that a process needs and the policies refuse, and for each that they
permit and it does not need.
"""

import base64
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from connectors.http.addresses import IPV4_REFUSED, IPV6_REFUSED
from schemas.settings import Settings
from tests.deploy.rendering import Document

NAMESPACE = "sluice"
OUTSIDE = {
    "list-repos",
    "labels",
    "firehose",
    "backfill",
    "control",
}  # they request public servers; control those of handles
PUBLIC = ("1.1.1.1", "203.0.114.7", "2606:4700::1111")
# what the processes refuse to connect to: this node, other pods, Services, the cloud's metadata
INSIDE = ("169.254.169.254", *(str(network[0]) for network in (*IPV4_REFUSED, *IPV6_REFUSED)))
NAME_OF_NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """One end of a flow: a pod by its labels and its namespace's name, or an address."""

    name: str
    address: str = ""
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)


DNS = Peer("the cluster's DNS", namespace="kube-system", labels={"k8s-app": "kube-dns"})
PROMETHEUS = Peer("Prometheus", namespace="monitoring", labels={"app": "prometheus"})
NEIGHBOUR = Peer("another pod of the namespace", namespace=NAMESPACE, labels={"app": "x"})
STRANGER = Peer("a pod of another namespace", namespace="default", labels={"app": "x"})


def permitted(policies: list[Document], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether both the source's egress rules and the target's ingress rules let a connection pass."""
    ways = (("Egress", "egress", "to", source, target), ("Ingress", "ingress", "from", target, source))
    for kind, rules, peers, ours, theirs in ways:
        mine = [
            policy["spec"]
            for policy in policies
            if kind in policy["spec"]["policyTypes"]
            and policy["metadata"]["namespace"] == ours.namespace
            and _selects(policy["spec"]["podSelector"], ours.labels)
        ]
        passing = (rule for spec in mine for rule in spec.get(rules, []))
        if mine and not any(
            _port_fits(rule, port, protocol, target) and any(_fits(one, theirs) for one in rule[peers])
            for rule in passing
        ):
            return False
    return True


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "the evaluator knows no other selector"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _port_fits(rule: dict[str, Any], port: int, protocol: str, target: Peer) -> bool:
    for one in rule["ports"]:
        first = target.ports.get(one["port"]) if isinstance(one["port"], str) else one["port"]
        if one["protocol"] == protocol and first is not None and first <= port <= one.get("endPort", first):
            return True
    return False


def _fits(rule: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in rule:
        blocks = [rule["ipBlock"]["cidr"], *rule["ipBlock"].get("except", [])]
        inside = (
            [ipaddress.ip_address(peer.address) in ipaddress.ip_network(b) for b in blocks] if peer.address else [False]
        )
        return inside[0] and not any(inside[1:])
    if not peer.namespace:
        return False
    namespace = rule.get("namespaceSelector")
    same = (
        peer.namespace == NAMESPACE if namespace is None else _selects(namespace, {NAME_OF_NAMESPACE: peer.namespace})
    )
    return same and _selects(rule.get("podSelector", {}), peer.labels)


def _server(host: str, documents: list[Document]) -> Peer:
    """The pods behind a host name of the cluster: POD.SERVICE, SERVICE, or either with .NAMESPACE.svc…"""
    words = host.split(".")
    for doc in documents:
        if doc["kind"] == "Service" and doc["metadata"]["name"] in words[:2]:
            return Peer(host, namespace=NAMESPACE, labels=doc["spec"]["selector"])
    return Peer(host, namespace=words[words.index("svc") - 1])


def _database(documents: list[Document]) -> Peer:
    """The host in the Secret; production has none, and its database is in the namespace `postgres` until an operator edits it."""
    for doc in documents:
        if doc["kind"] == "Secret" and doc["metadata"]["name"].startswith("sluice-database"):
            url = base64.b64decode(doc["data"]["url"]).decode()
            return _server(urlsplit(url).hostname or "", documents)
    return Peer("the database", namespace="postgres")


def _needed(process: str, settings: Settings, documents: list[Document]) -> Iterator[tuple[Peer, int, str]]:
    yield from ((DNS, 53, protocol) for protocol in ("UDP", "TCP"))
    for broker in filter(None, settings.kafka_bootstrap.split(",")):
        host, _, port = broker.rpartition(":")
        yield _server(host, documents), int(port), "TCP"
    yield _database(documents), 5432, "TCP"
    if settings.kafka_schema_registry:
        registry = urlsplit(settings.kafka_schema_registry)
        yield _server(registry.hostname or "", documents), registry.port or 80, "TCP"
    if process in OUTSIDE:
        yield from ((Peer(address, address=address), 443, "TCP") for address in PUBLIC)


def wrong_flows(documents: list[Document], processes: dict[str, tuple[Peer, Settings]]) -> Iterator[str]:
    """`processes`: name of the process → its pod and its settings."""
    policies = [doc for doc in documents if doc["kind"] == "NetworkPolicy"]
    ours = [pod for pod, _ in processes.values()]
    for process, (pod, settings) in processes.items():
        for peer, port, protocol in _needed(process, settings, documents):
            if not permitted(policies, pod, peer, port, protocol):
                yield f"{pod.name} has no way to {peer.name}, port {port} {protocol}"
        for peer, port in _not_needed(process, ours):
            if permitted(policies, pod, peer, port):
                yield f"{pod.name} has a way to {peer.name}, port {port}"
        yield from _into(policies, process, pod)


def _not_needed(process: str, ours: list[Peer]) -> Iterator[tuple[Peer, int]]:
    yield from ((Peer(address, address=address), port) for address in INSIDE for port in (80, 443, 6443, 10250))
    closed = (22, 25, 80) if process in OUTSIDE else (22, 25, 80, 443)
    yield from ((Peer(address, address=address), port) for address in PUBLIC for port in closed)
    yield from ((pod, port) for pod in ours for port in pod.ports.values())
    yield from ((STRANGER, port) for port in (443, 5432, 8080, 9092))


def _into(policies: list[Document], process: str, pod: Peer) -> Iterator[str]:
    """Metrics are for Prometheus, the pages of control and the port of serve for pods of the namespace, and nothing for others."""
    public = {"control": "http", "serve": "clients"}.get(process)
    for name, port in pod.ports.items():
        for peer, expected in ((PROMETHEUS, name == "http"), (NEIGHBOUR, name == public), (STRANGER, False)):
            if permitted(policies, peer, pod, port) != expected:
                yield f"{pod.name} {'refuses' if expected else 'accepts'} {peer.name} on port {port}"
