"""Intervals, limits and sizes that operators need not change. Private: not listed among the settings.

Tests override them, also in child processes: `SLUICE_TUNING='{"lease_seconds": 2}'`.
"""

from pydantic import BaseModel, ConfigDict, Field


class Tuning(BaseModel):
    """Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # processes
    epoch_seconds: float = Field(default=0.5, gt=0)
    """Interval of a flow's checkpoints."""
    watchdog_seconds: float = Field(default=60.0, ge=1)
    """A process whose flow or event loop makes no progress for this long ends and is restarted."""
    stalled_seconds: float = Field(default=300.0, gt=0)
    """/readyz fails after this long without progress while there is work."""
    drain_seconds: float = Field(default=10.0, ge=0)
    """On SIGTERM: time for downloads that are nearly complete; the others are released."""
    transport_session_seconds: float = Field(default=30.0, ge=6)
    """Session timeout of consumer groups."""
    kafka_high_water_messages: int = Field(default=1_000_000, ge=1)
    """Consumer lag at which a producer of work pauses."""
    live_high_water_fraction: float = Field(default=0.5, gt=0, le=1)
    """The firehose pauses when its oldest unindexed message has used this share of the topic's retention."""

    # identities, keys and handles
    identity_cache_seconds: float = Field(default=3600.0, gt=0)
    """Lifetime of a resolved DID document."""
    identity_cache_entries: int = Field(default=50_000, ge=1)
    """Resolved DIDs in memory, per process."""
    identity_negative_seconds: float = Field(default=60.0, ge=0)
    """First wait before a DID without a document or response is resolved again; doubles up to an hour."""
    key_cache_entries: int = Field(default=200_000, ge=100)
    """Signing keys in memory."""
    key_cache_seconds: float = Field(default=86_400.0, gt=0)
    """Lifetime of a cached signing key; an #identity event or a bad signature ends it earlier."""
    reresolve_seconds: float = Field(default=60.0, ge=0)
    """Minimum interval between resolutions of one DID after bad signatures."""
    handle_retry_seconds: float = Field(default=3600.0, gt=0)
    """First wait before an unverified handle is checked again."""

    # listings
    list_page_size: int = Field(default=1000, ge=1, le=1000)
    """`limit` of a listRepos request."""
    list_recheck_seconds: float = Field(default=300.0, gt=0)
    """Interval at which a finished listing of a relay continues from its end."""
    list_relist_seconds: float = Field(default=86_400.0, gt=0)
    """Interval at which a relay is listed again from the start."""
    list_hosts_at_once: int = Field(default=20, ge=1)
    """Maximum PDSes with a listRepos request in flight."""
    list_hosts_recheck_seconds: float = Field(default=3600.0, gt=0)
    """Interval at which a finished listing of a PDS continues from its end."""
    list_host_repos: int = Field(default=5_000_000, ge=1)
    """Maximum entries read of one PDS's listing; a longer listing is cut, and that is recorded."""
    list_retry_seconds: float = Field(default=0.5, gt=0)
    """First back-off of a failed listRepos page."""
    gap_relist_seconds: float = Field(default=3600.0, gt=0)
    """Minimum interval between listings of a relay after losses of its stream."""
    listed_rev_grace_seconds: float = Field(default=600.0, ge=0)
    """A listed rev that is ahead of ours for this long counts as a lost event."""
    skip_after_failures: int = Field(default=5, ge=1)
    """Failures in a row at one cursor before it is skipped."""
    skip_step: int = Field(default=1000, ge=1)
    """Distance of one skip of a numeric cursor."""

    # streams
    firehose_share: int = Field(default=0, ge=0)
    """Which of `firehose_shares` this process is, from 0; set by `sluice run firehose --share`."""
    stream_queue_frames: int = Field(default=20_000, ge=100)
    """Frames buffered per flow; a frame above 2 KiB counts as several."""
    dedup_entries: int = Field(default=500_000, ge=1000)
    """Events remembered to drop duplicates from several relays; at least the newer half of them."""

    # backfill
    lease_seconds: float = Field(default=60.0, gt=1)
    """Lease of a claim; renewed while its worker runs and its download progresses."""
    replayed_lease_seconds: float = Field(default=600.0, gt=1)
    """Lease of an attempt that a replayed log opened, which has no worker, until its outcome is read."""
    resyncs_per_repo_hour: int = Field(default=12, ge=1)
    """Maximum fetches of one repo within an hour, regardless of its events."""
    retry_first_seconds: float = Field(default=5.0, ge=0)
    """First back-off of a failed repo."""
    retry_max_seconds: float = Field(default=3600.0, ge=0)
    """Longest back-off of a failed repo."""
    stale_seconds: float = Field(default=600.0, gt=0)
    """Time in which a PDS may serve a snapshot older than an event seen."""
    host_queue_seconds: float = Field(default=30.0, gt=0)
    """A repo is deferred if its PDS's queue would take longer than this."""
    host_window_seconds: float = Field(default=300.0, gt=0)
    """Window of `pds_requests`."""
    rate_limit_pause_seconds: float = Field(default=60.0, gt=0)
    """Pause of a host that answers 429 without Retry-After."""
    fetch_connect_seconds: float = Field(default=10.0, gt=0)
    """Connect timeout of every request."""
    fetch_idle_seconds: float = Field(default=300.0, gt=0)
    """A getRepo without a byte for this long is aborted."""
    fetch_total_seconds: float = Field(default=3600.0, gt=0)
    """Maximum time of one getRepo."""
    car_memory_bytes: int = Field(default=8 * 1024**2, ge=0)
    """CARs above this size are spooled to disk."""
    car_block_bytes: int = Field(default=512, ge=1)
    """A CAR may have one block for so many bytes of `backfill_max_car_bytes`: 4 million, about 3.3 million records."""
    snapshot_max_bytes: int = Field(default=0, ge=0)
    """Maximum bytes of a repo's records, counted once per leaf of the tree; 0: `backfill_max_car_bytes`."""

    # index
    index_batch_messages: int = Field(default=5000, ge=1)
    """Maximum messages in one transaction."""
    index_batch_seconds: float = Field(default=1.0, gt=0)
    """A batch that takes longer halves the next one, because live events and rebalances wait for the end of a batch."""
    buffered_events_per_repo: int = Field(default=10_000, ge=1)
    """Maximum live events buffered for one repo; above it the repo is fetched again."""
    buffered_bytes_per_repo: int = Field(default=64 * 1024 * 1024, ge=1)
    """Maximum bytes of live events buffered for one repo; above it the repo is fetched again."""

    # serve
    serve_connections: int = Field(default=2000, ge=1)
    """Maximum connections of `serve`; at the limit the oldest idle one is closed."""
    serve_address_connections: int = Field(default=200, ge=1)
    """Maximum connections of one address."""
    serve_address_requests: float = Field(default=50.0, gt=0)
    """Requests a second of one address, after a burst of ten times as many."""

    # control
    history_days: float = Field(default=30.0, gt=0)
    """Retention of resolved losses, recovered listing ranges, ended audits, cached identities and unused hosts."""
    control_interval_seconds: float = Field(default=1.0, gt=0)
    """Interval at which control checks for due and expired work."""
    queue_batch: int = Field(default=2000, ge=1)
    """Maximum repos that control queues in one step."""
    requeue_after_seconds: float = Field(default=30.0, gt=0)
    """A queued repo without a message is queued again after this long."""
