"""The names of flows and processes, decided here.

A flow has one name with underscores: in metrics (label `flow`), logs, the database, and as its folder in `flows/`. Its process is
named with hyphens, as in Kubernetes and in `sluice run list-repos`. Commands accept both spellings.
"""

LIST_REPOS = "list_repos"
FLOWS = (LIST_REPOS, "firehose", "labels", "backfill", "index")


def flow_name(process: str) -> str:
    """The flow that a process runs; for `control`, its own name."""
    return process.replace("-", "_")


def process_name(flow: str) -> str:
    """The process that runs a flow. Also accepts the name of a process."""
    return flow.replace("_", "-")


PROCESSES = (*map(process_name, FLOWS), "control")
