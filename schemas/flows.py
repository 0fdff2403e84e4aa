"""The names of flows and processes.

A flow's name has underscores: in metrics (label `flow`), logs, the database, and as its folder in `flows/`. The name of its
process has hyphens: in Kubernetes and in `sluice run list-repos`. Commands accept both.
"""

LIST_REPOS = "list_repos"
FLOWS = (LIST_REPOS, "firehose", "labels", "backfill", "index")


def flow_name(process: str) -> str:
    """The flow of a process; `control` and `serve` are returned unchanged."""
    return process.replace("-", "_")


def process_name(flow: str) -> str:
    """The process of a flow. Also accepts the name of a process."""
    return flow.replace("_", "-")


PROCESSES = (*map(process_name, FLOWS), "control", "serve")
