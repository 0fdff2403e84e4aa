"""Alert rules: tested by promtool, built on metrics that exist, each with its runbook section and its two cases (U3, N8)."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import connectors.runtime.metrics  # noqa: F401 - registers every metric
from connectors.atproto.stream_sockets import SILENCE_FACTOR_WITHOUT_CURSOR
from schemas.settings import Settings
from tests.deploy.rendering import K8S, ROOT

MONITORING = K8S / "base" / "monitoring"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text("utf-8"))["groups"] for rule in group["rules"]
]
TESTS: dict[str, Any] = yaml.load(
    (MONITORING / "rules_test.yml").read_text("utf-8"), yaml.BaseLoader
)  # to others 0x20 is a number
CASES: list[dict[str, Any]] = TESTS["tests"]
FUNCTIONS = {
    "absent",
    "and",
    "by",
    "changes",
    "histogram_quantile",
    "increase",
    "max",
    "offset",
    "on",
    "or",
    "rate",
    "sum",
}
FUNCTIONS |= {"time", "unless", "vector", "deriv", "min", "group_left"}


def promtool(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    assert found, "promtool is missing: `make tools` installs it (Debian's package prometheus)"
    return subprocess.run([found, *args], cwd=folder, capture_output=True, text=True, check=False)


def exported() -> set[str]:
    """Every sample name that our processes may have."""
    names = {"up"}
    for metric in REGISTRY.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(metric.type, [""])
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def used(expression: str) -> set[str]:
    """Metric names of an expression: words that are not labels, functions or strings."""
    bare = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\[[^]]*\]|#.*|\b(?:by|on|group_left) \([^)]*\)|\boffset \w+", " ", expression)
    return set(re.findall(r"[a-z_]{2,}", bare)) - FUNCTIONS


def own(alert: str) -> list[dict[str, Any]]:
    """The cases of one alert, without what they expect of others."""
    found = []
    for case in CASES:
        expected = [test for test in case["alert_rule_test"] if test["alertname"] == alert]
        if expected:
            found.append({key: case[key] for key in case if key != "promql_expr_test"} | {"alert_rule_test": expected})
    return found


def each_alone(folder: Path, changed: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Every rule, changed like this, with its own cases only: all rules on all cases take a minute."""
    names = sorted({rule["alert"] for rule in RULES})
    for name in names:
        rules = [rule | changed for rule in RULES if rule["alert"] == name]
        group = {"name": name, "rules": [{key: rule[key] for key in rule if rule[key] is not None} for rule in rules]}
        tests = TESTS | {"rule_files": [f"{name}.yml"], "tests": own(name)}
        (folder / f"{name}.yml").write_text(yaml.safe_dump({"groups": [group]}), "utf-8")
        (folder / f"{name}_test.yml").write_text(yaml.safe_dump(tests), "utf-8")
    return promtool("test", "rules", *(f"{name}_test.yml" for name in names), folder=folder)


def test_every_rule_passes_its_tests(tmp_path: Path) -> None:
    checked = promtool("check", "rules", "rules.yml", folder=MONITORING)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = each_alone(tmp_path, {})
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("broken", ["vector(1) == 0", "vector(1)"])
def test_a_rule_that_always_or_never_fires_fails_its_tests(tmp_path: Path, broken: str) -> None:
    """The cases hold each rule: promtool names every one of them when all are broken."""
    tested = each_alone(tmp_path, {"expr": broken, "for": None})
    assert tested.returncode != 0
    named = set(re.findall(r"alertname: (\w+)", tested.stdout + tested.stderr))
    assert named == {rule["alert"] for rule in RULES}


def test_silence_is_counted_in_the_cases_as_the_watchdog_counts_it() -> None:
    """A relay that says nothing raises the counter this often, and the first time after so long where it has no cursor."""
    silence = float(Settings.model_fields["stream_silence_seconds"].default)
    cases = [case for case in CASES if case["name"].startswith("SluiceUpstreamSilent")]
    assert {case["interval"] for case in cases} == {f"{silence * 1.25:.0f}s"}, "it looks four times in that time"
    (fresh,) = (case for case in cases if "fresh mirror" in case["name"])
    unheard, _, _ = fresh["input_series"][1]["values"].partition(" ")
    assert silence * SILENCE_FACTOR_WITHOUT_CURSOR <= int(unheard.removeprefix("_x")) * silence * 1.25


BORN = re.compile(r"(\w+_total(?:\{[^}]*\})?) unless \1 offset (\w+) or increase\(\1\[\2\]\)")
COUNTED = {
    rule["alert"]: " ".join(rule["expr"].split())
    for rule in RULES
    if re.search(r"(increase|rate)\(", rule["expr"]) and rule["alert"] != "SluiceIndexStuck"
}
"""Rules about what was counted within a window. SluiceIndexStuck is about nothing being counted: an absent series is none."""


def test_rules_count_what_a_new_series_begins_with() -> None:
    """U3: a counter that is born at 150 has no increase."""
    assert len(COUNTED) > 10
    wrong = {alert for alert, expr in COUNTED.items() if re.search(r"(increase|rate)\(", BORN.sub("", expr))}
    assert wrong == set()


def test_counters_are_absent_at_the_beginning_of_each_case() -> None:
    """U3: as they are in a process that was just started."""
    counters = [one for case in CASES for one in case["input_series"] if "_total" in one["series"]]
    assert len(counters) > 30
    assert [one["series"] for one in counters if not str(one["values"]).startswith("_")] == []


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES if rule["alert"] in COUNTED and "for" not in rule])
def test_the_first_burst_fires(tmp_path: Path, alert: str) -> None:
    """U3: the series appears at a thousand and stays there."""
    found = BORN.search(COUNTED[alert])
    assert found is not None
    name, _, matchers = found[1].partition("{")
    labels = dict(re.findall(r'(\w+)="([^"|]*)', matchers)) | {"instance": "a"}
    by = re.search(r"by \(([^)]*)\)", COUNTED[alert])
    labels = {label.strip(): "x" for label in by[1].split(",")} | labels if by else labels
    series = name + "{" + ", ".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
    shutil.copy(MONITORING / "rules.yml", tmp_path)
    query = {"expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})', "eval_time": "30m"}
    case = {
        "interval": "1m",
        "input_series": [{"series": series, "values": "_x20 1000x80"}],
        "promql_expr_test": [{**query, "exp_samples": [{"labels": "{}", "value": 1}]}],
    }
    (tmp_path / "burst.yml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [case]}), "utf-8"
    )
    tested = promtool("test", "rules", "burst.yml", folder=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_fires_once_and_stays_quiet_once() -> None:
    """U3. T5: SluiceReposStuck, SluiceJobStuck and SluiceReposNearLastAttempt among them."""
    fires, quiet = set(), set()
    for case in CASES:
        for test in case["alert_rule_test"]:
            (fires if test["exp_alerts"] else quiet).add(test["alertname"])
    assert fires == quiet == {rule["alert"] for rule in RULES}


def test_rules_ask_for_metrics_that_exist() -> None:
    assert used('sum by (flow) (rate(sluice_nonsense_total{a="b"}[5m])) > 0') == {"sluice_nonsense_total"}
    wrong = {rule["alert"]: names for rule in RULES if (names := used(rule["expr"]) - exported())}
    assert wrong == {}


def test_dashboard_asks_for_metrics_that_exist() -> None:
    (path,) = (MONITORING / "dashboards").glob("*.json")
    asked = [target["expr"] for panel in json.loads(path.read_text("utf-8"))["panels"] for target in panel["targets"]]
    assert len(asked) > 10
    assert {name for expression in asked for name in used(expression)} - exported() == set()


def test_every_alert_has_its_section_in_the_runbook() -> None:
    """U3: the anchor that the annotation names exists, and no section is left over. Alertmanager and Grafana link `runbook_url`."""
    sections = {
        title.lower() for title in re.findall(r"^### (\w+)$", (ROOT / "docs" / "runbook.md").read_text("utf-8"), re.M)
    }
    assert {rule["alert"].lower() for rule in RULES} == sections
    for rule in RULES:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("/runbook.md#")
        assert (page, anchor) == ('{{ or $externalLabels.sluice_docs "docs" }}', rule["alert"].lower())


def test_operator_rules_are_those_rules() -> None:
    folder = K8S / "components" / "prometheus-operator"
    module_spec = importlib.util.spec_from_file_location("operator_rules", folder / "rules.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    text = (folder / "rules.yaml").read_text("utf-8")
    assert text == module.prometheus_rule(), "run .venv/bin/python deploy/k8s/components/prometheus-operator/rules.py"
    assert [rule for group in yaml.safe_load(text)["spec"]["groups"] for rule in group["rules"]] == RULES
