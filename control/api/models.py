"""Answers and parameters of the routes. Times are RFC 3339; revs and CIDs are text as upstream writes them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from control.api.route import Page
from schemas.job_spec import Job, JobStatus
from schemas.patterns import DID, PLACE

MAX_ID = 2**63 - 1

Phase = Literal["pending", "backfill", "sync", "unavailable", "failed"]


class Taken(BaseModel):
    """Parameters: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class Id(Taken):
    """A job or a range."""

    id: int = Field(ge=1, le=MAX_ID)


class Did(Taken):
    """A repo."""

    did: str = Field(pattern=DID, max_length=2048)


class LetterPlace(Taken):
    """A dead letter by its place in the topic."""

    id: str = Field(pattern=PLACE, description="PARTITION:OFFSET")


class RepoPage(Page):
    """Which repos."""

    phase: Phase = Field("failed", description="failed ones unless another phase is named")
    host: str | None = Field(None, max_length=1000, pattern=r"^[\x20-\x7e]*$", description="URL of the PDS")


class HostPage(Page):
    """Which hosts."""

    failing: bool = Field(False, description="only those that fail or are paused")


class LetterPage(Page):
    """Which dead letters."""

    state: Literal["open", "retried", "dismissed", "all"] = "open"
    reason: str | None = Field(None, max_length=100, pattern=r"^[\x20-\x7e]*$")


class SkippedPage(Page):
    """Which skipped ranges."""

    open: bool = Field(False, description="only those that are not filled")


class JobPage(Page):
    """Which jobs."""

    status: JobStatus | None = None


class Repo(BaseModel):
    """A repo as the mirror knows it."""

    did: str
    host: str | None
    handle: str | None
    phase: Phase
    reason: str | None = Field(description="why it is in this phase")
    active: bool
    status: str | None = Field(description="the account's status upstream, while it is not active")
    attempt: int
    rev: str = Field(description="what the rows stand at; empty before the first backfill")
    heard_rev: str
    data: str | None = Field(description="root of the tree at rev")
    commit: str | None
    held: int = Field(description="live events that wait for this backfill")
    retry_count: int
    desyncs: int
    last_error: str | None
    worker: str | None
    job: int | None
    next_retry_at: datetime | None
    queued_at: datetime | None
    lease_until: datetime | None
    phase_since: datetime
    discovered_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


class Repos(BaseModel):
    """A page of repos."""

    items: list[Repo]
    cursor: str | None = Field(description="of the next page; null: this was the last")


class Host(BaseModel):
    """A PDS."""

    host: str
    relay: str | None
    status: str
    cursor: str | None = Field(description="where its own listing stands")
    passes: int = Field(description="listings from start to end")
    listed_at: datetime | None
    request_limit: int | None
    paused_until: datetime | None
    pause_reason: str | None
    requests: int
    failures: int
    consecutive_failures: int
    last_error: str | None
    last_seen_at: datetime


class Hosts(BaseModel):
    """A page of hosts."""

    items: list[Host]
    cursor: str | None


class Letter(BaseModel):
    """A dead letter's row."""

    id: str = Field(description="PARTITION:OFFSET")
    topic: str
    did: str | None
    reason: str
    error: str
    state: Literal["open", "retried", "dismissed"]
    noticed_at: datetime
    settled_at: datetime | None


class Letters(BaseModel):
    """A page of dead letters, the newest first."""

    items: list[Letter]
    cursor: str | None


class WholeLetter(Letter):
    """A dead letter with what its reason means and what the topic has."""

    help: str
    letter: dict[str, Any] | None = Field(description="as the topic has it; null: retention has removed it")


class LetterSettled(BaseModel):
    """What became of a retry or a dismissal."""

    id: str
    state: Literal["open", "retried", "dismissed"]
    why: str = Field(description="why it is still open")


class Jobs(BaseModel):
    """A page of jobs."""

    items: list[Job]
    cursor: str | None


class SkippedRange(BaseModel):
    """A listing range that was stepped over."""

    id: int
    upstream: str
    from_cursor: str
    to_cursor: str
    reason: str
    retry_count: int
    next_retry_at: datetime
    skipped_at: datetime
    filled_at: datetime | None
    filled_by: str | None


class SkippedRanges(BaseModel):
    """A page of skipped ranges."""

    items: list[SkippedRange]
    cursor: str | None


class Fill(Taken):
    """Which ranges to make due; all open ones without ids."""

    ids: list[int] | None = Field(None, max_length=1000, description="each of them open")


class Filled(BaseModel):
    """Ranges that are due now."""

    due: list[int]


class Standing(BaseModel):
    """One group in one partition."""

    group: str
    topic: str
    partition: int
    start: int
    position: int
    end: int
    lag: int
    past_end: bool
    lost: int


class Status(BaseModel):
    """One look at everything. Rows of tables are objects of their columns; ages are in seconds."""

    model_config = ConfigDict(extra="allow")

    repos: dict[str, int] = Field(description="by phase")
    retrying: int
    records: int = Field(description="estimated")
    labels: int = Field(description="estimated")
    held_events: int = Field(description="counted to 100,000")
    lag: dict[str, int] = Field(description="group/topic → messages not settled")
    standings: list[Standing]
    failing_hosts: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    cursors: list[dict[str, Any]]
    dead_letters: dict[str, int] = Field(description="by state")
    jobs: list[dict[str, Any]] = Field(description="what is not over first; 100 at most")
    jobs_found: int = Field(description="jobs in all; GET /api/backfill pages through them")
    skipped_ranges: int
    stream_gaps: int
    attention: list[dict[str, Any]] = Field(description="what needs an operator: what, remedy, bad (or it only waits)")
    paused: list[str] = Field(description="what waits on purpose, and why")
