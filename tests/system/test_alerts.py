"""Alerts end to end (N8): a real Prometheus with our rules scrapes real flows; the index stops, alerts fire; it goes on, they resolve."""

import json
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.embedded.guarded_process import free_port
from tests.support.simulation import Simulation
from tests.support.whole_mirror import ROOT, Mirror, prefix, wait_for

RULES = ROOT / "deploy" / "k8s" / "base" / "monitoring" / "rules.yml"
LAG = {"SluiceLiveLag", "SluiceIndexStuck"}
KINDS = ("index", "control", "firehose")


def hurried(rules: str) -> str:
    """The same rules where a minute is a second, and the lag of a hundred thousand events one of forty."""
    fast = re.sub(r"\b(\d+)m\b", r"\1s", re.sub(r"\b1h\b", "60s", rules))
    assert fast.count("> 100000\n") == 1
    return fast.replace("> 100000\n", "> 40\n")


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[int]:
    """Debian's Prometheus on a free port, looking every second."""
    found = shutil.which("prometheus")
    assert found, "prometheus is missing: `make tools` installs it (Debian's package prometheus)"
    (folder / "rules.yml").write_text(hurried(RULES.read_text("utf-8")), "utf-8")
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "sluice", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    port = free_port()
    options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen([found, *options], cwd=folder, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(60)


def firing(port: int) -> set[str]:
    """Names of the alerts that fire now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/alerts", timeout=60) as answer:
        alerts = json.load(answer)["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def scraped(port: int, query: str) -> float:
    """The answer to a query; 0 while Prometheus starts."""
    url = f"http://127.0.0.1:{port}/api/v1/query?query={query}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
    except OSError:
        return 0.0
    return float(result[0]["value"][1]) if result else 0.0


def test_lag_alerts_fire_while_the_index_is_stopped_and_resolve_after(
    tmp_path: Path,
    simulator: Callable[..., Simulation],
    log: str,
    database: str,
    mirror: Callable[..., Mirror],
) -> None:
    """U3, N8: SIGSTOP of the index is seen as lag by the real rules in a real Prometheus, and its end as well."""
    simulation = simulator(repos=20, records_per_repo=2, writer_rate=15, seed=11)
    mirrored = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix())
    processes = {"control": mirrored.run("control")}  # makes the topics; the others start when these have leaders
    wait_for(lambda: processes["control"].look().ready, 120, mirrored.last_lines)
    processes |= {kind: mirrored.run(kind) for kind in KINDS if kind != "control"}
    index = processes["index"]
    wait_for(lambda: index.metric("sluice_indexed_events_total") > 0, 120, mirrored.last_lines)
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with prometheus(folder, [f"127.0.0.1:{one.port}" for one in processes.values()]) as port:
        wait_for(lambda: scraped(port, "sum(rate(sluice_indexed_events_total[10s]))") > 0, 120, "nothing was scraped")
        wait_for(lambda: not firing(port) & LAG, 120, lambda: f"firing: {firing(port)}")
        index.process.send_signal(signal.SIGSTOP)
        try:
            wait_for(lambda: firing(port) >= LAG, 120, lambda: f"firing: {firing(port)}")
        finally:
            index.process.send_signal(signal.SIGCONT)
        wait_for(lambda: not firing(port) & LAG, 120, lambda: f"still firing: {firing(port)}")
        # a scrape that took longer than its second counts as none
        wait_for(lambda: scraped(port, 'sum(up{job="sluice"})') == len(KINDS), 120, "not all were scraped in the end")


def test_hurried_rules_are_the_rules() -> None:
    """Only times and that one figure differ."""
    slow, fast = yaml.safe_load(RULES.read_text("utf-8")), yaml.safe_load(hurried(RULES.read_text("utf-8")))
    names = [rule["alert"] for group in fast["groups"] for rule in group["rules"]]
    assert names == [rule["alert"] for group in slow["groups"] for rule in group["rules"]]
    assert set(names) >= LAG
    with pytest.raises(AssertionError):
        hurried(RULES.read_text("utf-8").replace("> 100000\n", "> 5\n"))
