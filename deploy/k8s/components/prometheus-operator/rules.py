"""base/monitoring/rules.yml → rules.yaml, the same rules as the operator's PrometheusRule.

`.venv/bin/python deploy/k8s/components/prometheus-operator/rules.py` writes it; a test holds that the two agree.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RULES = FOLDER.parents[1] / "base" / "monitoring" / "rules.yml"
HEAD = """\
# Made by rules.py from base/monitoring/rules.yml: edit that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sluice
  labels:
    app.kubernetes.io/name: sluice
spec:
"""


def prometheus_rule() -> str:
    """The text of rules.yaml."""
    lines = [line for line in RULES.read_text("utf-8").splitlines() if not line.startswith("#")]
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


if __name__ == "__main__":
    (FOLDER / "rules.yaml").write_text(prometheus_rule(), "utf-8")
