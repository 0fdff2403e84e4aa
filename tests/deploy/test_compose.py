"""redpanda.yml holds to the code: ports, names, settings, commands; versions, health checks and volumes are there (U2)."""

import re
from typing import Any

import pytest
import yaml

from control.api.guard import TokenScope, needs_token, token_scope
from local.run import require
from schemas.flows import PROCESSES
from tests.deploy.manifest_checks import TAGGED, misread, settings_of
from tests.deploy.rendering import ROOT, read

TEXT = (ROOT / "redpanda.yml").read_text("utf-8")
ENV = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


def filled(text: str, **given: str) -> dict[str, Any]:
    """The document with these variables, and the defaults of the others."""
    (document,) = read(VARIABLE.sub(lambda found: given.get(found[1], found[2]), text))
    return dict(document)


COMPOSE = filled(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "SLUICE_KAFKA_BOOTSTRAP" in str(service.get("environment"))]


def mounts() -> list[tuple[str, str]]:
    return [tuple(volume.split(":")[:2]) for s in SERVICES.values() for volume in s.get("volumes", []) if ":" in volume]


def config(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / "compose" / name).read_text("utf-8"))


def as_container(service: dict[str, Any]) -> dict[str, Any]:
    return {"env": [{"name": name, "value": value} for name, value in service["environment"].items()]}


def test_every_process_runs_with_settings_that_it_can_start_with() -> None:
    assert {name for name in OURS if SERVICES[name]["command"][0] == "run"} == set(PROCESSES)
    for name in OURS:
        settings = settings_of(as_container(SERVICES[name]), [])
        assert misread(SERVICES[name]["command"]) is None
        assert (settings.http_host, settings.http_port) == ("0.0.0.0", 8080)
        if SERVICES[name]["command"][0] == "run":
            require(SERVICES[name]["command"][1], settings)


def test_a_misspelt_setting_would_be_seen() -> None:
    broken = filled(TEXT.replace("SLUICE_KAFKA_PARTITIONS", "SLUICE_PARTITION"))
    with pytest.raises(Exception, match="SLUICE_PARTITION is not a setting"):
        settings_of(as_container(broken["services"]["index"]), [])


def test_the_token_of_the_page_and_the_api_reaches_control_alone() -> None:
    """They listen on every address of the container, where nobody may ask without one."""
    services = filled(TEXT, SLUICE_API_TOKEN="a-long-word")["services"]
    settings = {name: settings_of(as_container(services[name]), []) for name in OURS}
    assert needs_token(settings["control"])
    assert token_scope(settings["control"], "a-long-word") == TokenScope.ADMIN
    assert {name for name in OURS if settings[name].api_token} == {"control"}


def test_addresses_name_services_that_listen_there() -> None:
    settings = settings_of(as_container(SERVICES["index"]), [])
    redpanda = " ".join(SERVICES["redpanda"]["command"])
    assert settings.kafka_bootstrap == "redpanda:9092"
    assert "--kafka-addr=internal://0.0.0.0:9092" in redpanda
    assert "--advertise-kafka-addr=internal://redpanda:9092" in redpanda
    assert settings.kafka_schema_registry == "http://redpanda:8081"
    assert "--schema-registry-addr=0.0.0.0:8081" in redpanda
    postgres = SERVICES["postgres"]["environment"]
    user, password, base = postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"], postgres["POSTGRES_DB"]
    assert settings.database == f"postgresql://{user}:{password}@postgres:5432/{base}"
    assert config("console.yml")["kafka"]["brokers"] == [settings.kafka_bootstrap]
    assert config("console.yml")["schemaRegistry"]["urls"] == [settings.kafka_schema_registry]


def test_the_console_needs_only_what_compose_starts() -> None:
    """U2: it does not start without the git repository of a `topicDocumentation`, and clones it with depth 1."""
    assert "topicDocumentation" not in str(config("console.yml"))
    named = re.findall(r"(?:https?://)?([a-z-]+):\d+", str(config("console.yml")))
    assert set(named) == {"redpanda"}


def test_prometheus_scrapes_every_process_and_has_our_rules() -> None:
    scraped = config("prometheus.yml")["scrape_configs"][0]
    assert scraped["job_name"] == "sluice"
    (found,) = scraped["dns_sd_configs"]
    assert set(found["names"]) == set(PROCESSES)
    assert found["port"] == 8080
    assert ("./deploy/k8s/base/monitoring/rules.yml", "/etc/prometheus/rules.yml") in mounts()
    assert config("grafana/datasources.yml")["datasources"][0]["url"] == "http://prometheus:9090"


def test_versions_are_fixed_health_is_checked_and_data_is_kept() -> None:
    for name, service in SERVICES.items():
        assert TAGGED.match(service["image"]), f"{name}: {service['image']}"
        assert "healthcheck" in service or name in OURS, f"{name} has no health check"  # ours: the image's
    for name in ("redpanda", "postgres", "prometheus", "alertmanager", "grafana"):
        assert any(volume.split(":")[0] in COMPOSE["volumes"] for volume in SERVICES[name]["volumes"]), name
    for source, _ in mounts():
        assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source


def test_ports_are_on_loopback_and_none_comes_twice() -> None:
    ports = [str(port) for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    outside = [port.split(":")[1] for port in ports]
    assert len(outside) == len(set(outside))
    for number in set(re.findall(r"localhost:(\d+)", TEXT.partition("name: sluice")[0])):
        assert number in outside, f"the head names port {number}"


def test_env_example_has_every_variable_with_its_default() -> None:
    assert dict(VARIABLE.findall(TEXT)) == ENV


def test_our_processes_hold_to_the_image() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["stop_grace_period"] == "150s"
