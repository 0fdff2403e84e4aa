"""Answers of the routes. Times are RFC 3339; revs and CIDs are text as upstream writes them."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.job_spec import Job

Phase = Literal["pending", "backfill", "sync", "unavailable", "failed", "excluded"]
DeadLetterState = Literal["open", "retried", "dismissed"]

T = TypeVar("T", bound=BaseModel)


class ItemPage(BaseModel, Generic[T]):
    """A page of a list."""

    items: list[T]
    cursor: str | None = Field(description="`cursor` of the request for the next page; null: this is the last page")


class RepoRow(BaseModel):
    """A repo as the mirror knows it."""

    did: str
    host: str | None
    handle: str | None
    phase: Phase
    reason: str | None = Field(description="why it is in this phase")
    active: bool
    status: str | None = Field(description="the account's status upstream, while it is not active")
    attempt: int
    rev: str = Field(description="rev of the rows; empty before the first backfill")
    seen_rev: str
    data: str | None = Field(description="root of the tree at rev")
    commit: str | None
    buffered: int = Field(description="live events that wait for this backfill")
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


class AttemptRow(BaseModel):
    """An attempt to fetch a repo."""

    attempt: int
    outcome: Literal["running", "synced", "unavailable", "failed", "deferred", "released", "dropped"] = Field(
        description="deferred: not counted; released: its worker stopped; dropped: the index did not use it, `error` is why"
    )
    started_at: datetime | None
    ended_at: datetime | None
    host: str | None = Field(description="PDS")
    error: str | None


class AttemptList(BaseModel):
    """The newest attempts of a repo."""

    items: list[AttemptRow]


class HostRow(BaseModel):
    """A PDS."""

    host: str
    relay: str | None
    status: str
    cursor: str | None = Field(description="position of its own listing")
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


class DeadLetterRow(BaseModel):
    """A dead letter without its payload."""

    id: str = Field(description="PARTITION:OFFSET")
    topic: str
    did: str | None
    reason: str
    error: str
    state: DeadLetterState
    noticed_at: datetime
    settled_at: datetime | None


class DeadLetterDetail(DeadLetterRow):
    """A dead letter with the meaning of its reason and the message in the topic."""

    help: str
    letter: dict[str, Any] | None = Field(description="the message; null: retention has removed it")


class DeadLetterResult(BaseModel):
    """The outcome of a retry or a dismissal."""

    id: str
    state: DeadLetterState
    why: str = Field(description="why it is still open")


class SkippedRangeRow(BaseModel):
    """A listing range that was skipped."""

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


class RangeIds(BaseModel):
    """Which ranges to make due; all open ones without ids."""

    model_config = ConfigDict(extra="forbid")

    ids: list[int] | None = Field(
        default=None, max_length=1000, description="ids of open ranges; default: all open ranges"
    )


class RangesDue(BaseModel):
    """Ranges that are due now."""

    due: list[int]


class PartitionOffsets(BaseModel):
    """Offsets of one group in one partition."""

    group: str
    topic: str
    partition: int
    start: int
    position: int
    end: int
    lag: int
    past_end: bool
    lost: int


class StatusAnswer(BaseModel):
    """The state of database, broker and processes. Table rows are objects of their columns; ages are in seconds."""

    model_config = ConfigDict(extra="allow")

    repos: dict[str, int] = Field(description="by phase")
    retrying: int
    records: int = Field(description="estimated")
    labels: int = Field(description="estimated")
    buffered_events: int = Field(description="counted to 100,000")
    lag: dict[str, int] = Field(description="group/topic → messages that the group has not processed")
    partition_lags: list[PartitionOffsets]
    failing_hosts: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    cursors: list[dict[str, Any]]
    dead_letters: dict[str, int] = Field(description="by state")
    jobs: list[dict[str, Any]] = Field(description="unfinished ones first; 100 at most")
    jobs_found: int = Field(description="jobs in all; GET /api/v1/jobs pages through them")
    skipped_ranges: int
    stream_gaps: int
    attention: list[dict[str, Any]] = Field(
        description="problems for the operator: what, remedy, bad (the mirror is wrong or makes no progress)"
    )
    paused: list[str] = Field(description="what is paused on purpose, and why")


class HistoryAnswer(BaseModel):
    """Figures over time, one column each; null where a figure is not known."""

    at: list[float] = Field(description="Unix time in seconds, ascending")
    figures: dict[str, list[float | None]] = Field(
        description="repos, records, events: per second; `lag TOPIC`: messages that its groups have not processed"
    )


class AuditAnswer(BaseModel):
    """What an audit of one repo found."""

    did: str
    records: int = Field(description="rows that were checked")
    findings: list[str] = Field(description="differences, at most 100; none: every row matches what the account signed")
    queued: bool = Field(description="whether the repo is fetched again for them")


RepoPage = ItemPage[RepoRow]
HostPage = ItemPage[HostRow]
DeadLetterPage = ItemPage[DeadLetterRow]
SkippedRangePage = ItemPage[SkippedRangeRow]
JobPage = ItemPage[Job]
