"""The scope, options, counts and report of an audit."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from steps.repo_audit import MEANING, Finding, FindingKind

CHUNK_REPOS = 200


@dataclass(frozen=True, slots=True)
class AuditScope:
    """Which repos: these DIDs, or a random sample of this size, or (both None) all repos in sync."""

    dids: tuple[str, ...] | None = None
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """`bodies`: hash every record again. `restart`: do not resume an audit that was stopped. `chunk`: repos per chunk."""

    bodies: bool = True
    against_pds: bool = False
    repair: bool = False
    restart: bool = False
    workers: int = 1
    chunk: int = CHUNK_REPOS


@dataclass(slots=True)
class AuditTally:
    """Counts of an audit.

    `unanswered`: keys or PDSes that did not answer; neither a difference nor a proof. `unrooted`: repos with a part of their rows
    because of a collection filter, so no root can be rebuilt; their records and commits were checked. With `repair`, each repo
    that differs is `repaired` (it will be fetched), `queued` (it was to be fetched already), or in `not_repaired` with its phase.
    """

    repos: int = 0
    proven: int = 0
    records: int = 0
    bodies: int = 0
    without_body: int = 0
    compared: int = 0
    unanswered: int = 0
    unrooted: int = 0
    differing: int = 0
    repaired: int = 0
    queued: int = 0
    not_repaired: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class AuditReport:
    """The result of an audit. `not_checked`: DID → phase of repos that were named and are not in sync."""

    tally: AuditTally
    findings: list[Finding]
    not_checked: dict[str, str]
    seconds: float
    resumed: bool = False

    @property
    def good(self) -> bool:
        """No difference, and every named repo was checked."""
        return not self.tally.differing and not self.not_checked

    def as_json(self) -> dict[str, Any]:
        return {
            "good": self.good,
            **asdict(self.tally),
            "seconds": round(self.seconds, 2),
            "records_per_second": round(self.tally.records / max(self.seconds, 1e-9)),
            "resumed": self.resumed,
            "not_checked": self.not_checked,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def as_text(self) -> str:
        tally = self.tally
        lines = [f"{one.did}  {one.kind}: {one.detail}" for one in self.findings]
        lines += [f"{did}  not checked: {phase}" for did, phase in self.not_checked.items()]
        lines += [f"{count} × {kind}: {MEANING[FindingKind(kind)]}" for kind, count in sorted(tally.kinds.items())]
        lines.append(
            f"{tally.proven} of {tally.repos} repos are what their accounts signed; {tally.records} records,"
            f" {tally.bodies} of them hashed again, {tally.without_body} without a body; {self.seconds:.1f} s"
        )
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        tally, lines = self.tally, []
        if tally.unanswered:
            lines.append(f"{tally.unanswered} keys or PDSes did not answer")
        if tally.unrooted:
            lines.append(
                f"{tally.unrooted} repos have only the rows of a collection filter: their records and commits were checked,"
                " but their trees cannot be rebuilt; --against-pds compares their commits with their PDSes"
            )
        if tally.repaired:
            lines.append(f"{tally.repaired} repos will be fetched again")
        if tally.queued:
            lines.append(f"{tally.queued} repos that differ are being fetched already")
        lines += [f"{did}  not repaired: {why}" for did, why in sorted(tally.not_repaired.items())]
        if tally.not_repaired:
            lines.append(
                f"{len(tally.not_repaired)} repos that differ cannot be fetched now: `sluice backfill retry` retries failed ones;"
                " an account that becomes active again is fetched automatically"
            )
        return lines


def merged(reports: Sequence[AuditReport]) -> AuditReport:
    """The reports of several shards as one."""
    first, *others = reports
    for other in others:
        for one in fields(AuditTally):
            mine, theirs = getattr(first.tally, one.name), getattr(other.tally, one.name)
            setattr(first.tally, one.name, mine + theirs if isinstance(mine, int) else _added(mine, theirs))
        first.findings += other.findings
        first.not_checked |= other.not_checked
        first.seconds += other.seconds
        first.resumed |= other.resumed
    return first


def _added(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Counts are added; other values are of different repos."""
    return mine | {key: mine[key] + value if isinstance(mine.get(key), int) else value for key, value in theirs.items()}
