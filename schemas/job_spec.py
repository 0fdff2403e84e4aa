"""Backfill jobs in the command line and HTTP API: request (`JobSpec`), state (`Job`) and dry run (`Plan`).

Jobs are stored in `sluice.backfill_job`.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_DIDS = 1_000_000
MAX_HOSTS = 10_000
MAX_PRIORITY = 1000

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2048)]
Source = Literal["relay", "hosts", "dids", "collection"]


class JobStatus(StrEnum):
    """States of a job; `steps.job_states` has the transitions, and the database refuses all others."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    PAUSED_QUOTA_LIMIT = "paused_quota_limit"
    RETRY = "retry"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobSpec(BaseModel):
    """What a job covers. The same source is the same job, whatever its batch size and priority."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source = Field(description="where the repos come from")
    relay: Name | None = Field(
        None, description="URL of the relay (relay, collection); default: the first relay of the settings"
    )
    hosts: list[Name] = Field(default_factory=list, max_length=MAX_HOSTS, description="PDSes, by URL or name (hosts)")
    dids: list[Name] = Field(default_factory=list, max_length=MAX_DIDS, description="repos, by DID (dids)")
    collection: Name | None = Field(None, description="NSID of the signal collection (collection)")
    batch_size: int = Field(1000, ge=1, le=1000, description="repos listed or queued in one step")
    priority: int = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="waiting jobs with a higher priority run first"
    )
    again: bool = Field(False, description="dids: fetch those that are in sync or failed again, too")
    dry_run: bool = Field(False, description="report what would be done without changing anything")

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        needed = {"hosts": self.hosts, "dids": self.dids, "collection": self.collection}
        if self.source in needed and not needed[self.source]:
            raise ValueError(f"a job from {self.source} needs `{self.source}`")
        allowed = {"relay": {"relay"}, "collection": {"relay", "collection"}}.get(self.source, {self.source})
        for name, value in {**needed, "relay": self.relay}.items():
            if value and name not in allowed:
                raise ValueError(f"`{name}` has no meaning in a job from {self.source}")
        if self.again and self.source != "dids":
            raise ValueError(f"`again` has no meaning in a job from {self.source}; it goes with a list of DIDs")
        return self


class JobCounts(BaseModel):
    """Repos of a job. The last four are counted every few seconds, from a sample where there are very many; they are `new`."""

    listed: int = Field(description="entries listed by its source so far, including repeated passes")
    new: int = Field(
        description="of these, new repos and repos fetched again; inactive ones become unavailable, the others"
        " are queued"
    )
    known: int = Field(description="of these, already known")
    in_sync: int = Field(description="of the known DIDs of a list, those already in sync; only `again` fetches them")
    synced: int = Field(description="repos of this job that are complete")
    failed: int = Field(description="repos that failed their last attempt")
    unavailable: int = Field(
        description="repos that are deactivated, taken down, deleted, not found or outside the boundary"
    )
    pending: int = Field(description="repos queued or being fetched")


class JobCutoff(BaseModel):
    """What the job covers: repos that existed at its creation. Later ones arrive by the stream. Records are never filtered by time."""

    time: datetime
    relay_seqs: dict[str, int] = Field(description="relay → sequence number that its stream had reached")


class Job(BaseModel):
    """A job and its progress. Times are those of the database."""

    id: int
    name: str
    source: Source
    spec: JobSpec | None = Field(description="the request; of a DID list only the first entries")
    status: JobStatus
    cutoff: JobCutoff
    checkpoint: dict[str, Any] = Field(
        description="position to continue from: the cursor of the listing, or the index in the list"
    )
    total: int | None = Field(description="hosts or DIDs in its list")
    counts: JobCounts
    rate_per_second: float | None = Field(description="recent rate of finished repos, per second")
    eta_seconds: float | None = Field(description="estimated time left, once everything is listed")
    retry_count: int
    resume_at: datetime | None = Field(description="when it resumes automatically (paused_quota_limit, retry)")
    error: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime


class Plan(BaseModel):
    """What a start would do. Nothing was changed."""

    name: str
    source: Source
    would: Literal["create", "resume", "nothing"]
    job: int | None = Field(description="the job that already exists")
    status: JobStatus | None = Field(description="its state")
    total: int | None = Field(description="hosts or DIDs in the list; unknown for a relay or a collection")
    new: int | None = Field(description="DIDs in the list that are new")
    known: int | None = Field(description="DIDs in the list that are already known")
    in_sync: int | None = Field(description="of these, already in sync; only `again` fetches them")
    items: list[str] = Field(description="the first entries that it would list or queue")
