"""The state diagram of docs/design.md §5 has the transitions that the gate makes, and no others."""

import re
from itertools import product

from schemas import wire
from steps.gate import transitions as gate
from steps.gate.model import Phase, Reason, Repo
from tests.steps.gate.gate_events import account, commit, ended, identity, op, repo_in, sync_event, synced
from tests.support import ROOT

Event = wire.CommitEvent | wire.SyncEvent | wire.IdentityEvent | wire.AccountEvent | wire.RepoOutcome
PAGE = ROOT / "docs" / "design.md"
BY_STATEMENTS = {("pending", "backfill")} | {
    *((phase, "excluded") for phase in ("pending", "sync", "failed", "unavailable")),
    *(("excluded", phase) for phase in ("pending", "unavailable")),
}
"""Made by SQL alone: a claim, and what a change of the boundary does."""

REASONS = [None, Reason.DESYNC, Reason.DELETION, Reason.DELETED, "not_found", "takendown"]
REPOS = [
    repo_in(
        phase,
        active=active,
        reason=reason,
        retry_count=failures,
        buffered=buffered,
        buffered_rev="6" if buffered else "",
    )
    for phase, active, reason, failures, buffered in product(
        Phase, (True, False), REASONS, (0, 4), (0, gate.RULES.max_buffered)
    )
]
EVENTS: list[Event] = [
    commit("6", "five", "six", op("create", "a")),
    commit("7", "six", "seven"),
    sync_event("6", "other"),
    identity("2026-01-02"),
    *(account("2026-01-02", active=True, status=status) for status in (None, "throttled")),
    *(
        account("2026-01-02", active=False, status=one)
        for one in (None, "takendown", "deleted", "deactivated", "throttled")
    ),
    *(synced(1, rev, "six", count) for rev in ("4", "6") for count in (0, 1)),
    *(ended(1, reason, deleted=reason == "deleted") for reason in ("deleted", "not_found", "takendown")),
    ended(1, "not_found", ("2026-01-03", 1)),
]


def after(repo: Repo, event: Event) -> Repo:
    if isinstance(event, wire.AccountEvent):
        return gate.on_account(repo, event).repo
    if isinstance(event, wire.IdentityEvent):
        return gate.on_identity(repo, event).repo
    if isinstance(event, wire.RepoOutcome):
        return gate.on_outcome(repo, event).repo
    return gate.on_live(repo, event).repo


def test_the_diagram_has_every_transition_of_the_gate_and_no_other() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+): ", PAGE.read_text("utf-8"), re.MULTILINE))
    made = {(str(repo.phase), str(after(repo, event).phase)) for repo in REPOS for event in EVENTS}
    assert drawn == {(old, new) for old, new in made if old != new} | BY_STATEMENTS
