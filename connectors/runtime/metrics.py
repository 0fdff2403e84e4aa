"""All metrics of all processes.

Label values are bounded: never DIDs or URLs of users. `upstream` is the URL of a configured relay or labeler; only a few PDSes
are exported at a time.
"""

from prometheus_client import Counter, Gauge, Histogram

# every process
STARTED = Gauge("sluice_started_timestamp_seconds", "start of this process", ["flow"])
STATE = Gauge("sluice_state", "1 for the current state of the process", ["flow", "state"])
LAST_CHECKPOINT = Gauge("sluice_last_checkpoint_timestamp_seconds", "last durable checkpoint of the flow", ["flow"])
PRODUCED = Counter("sluice_produced_messages_total", "messages that the log acknowledged", ["topic"])
DROPPED = Counter("sluice_dropped_events_total", "events without an effect", ["flow", "reason"])
REJECTED = Counter("sluice_rejected_total", "invalid input", ["flow", "reason"])
DEAD_LETTERS = Counter("sluice_dead_letters_total", "messages written to the dead letters", ["flow", "reason"])
DISK_FREE = Gauge("sluice_disk_free_bytes", "free space on the disk of a folder of this process", ["flow", "folder"])
DISK_SIZE = Gauge("sluice_disk_size_bytes", "size of that disk", ["flow", "folder"])
POOL = {  # of the shared rate budget, in backfill
    "pool_size": Gauge("sluice_database_pool_size", "connections in the pool"),
    "pool_available": Gauge("sluice_database_pool_idle", "idle connections in the pool"),
    "requests_waiting": Gauge("sluice_database_pool_waiting", "requests that wait for a connection"),
    "pool_max": Gauge("sluice_database_pool_max_size", "maximum connections in the pool"),
}
KAFKA_LINES_SUPPRESSED = Counter(
    "sluice_kafka_log_lines_suppressed_total", "log lines of the Kafka client beyond 20 a minute"
)
PAUSED = Gauge("sluice_backpressure_active", "1 while a producer is paused because its consumers are behind", ["flow"])
LAG = Gauge("sluice_consumer_lag", "messages that a group has not processed", ["group", "topic", "partition"])
TOPIC_LAG = Gauge("sluice_topic_lag", "messages of a topic that its group has not processed", ["topic"])

# list_repos
LISTED = Counter("sluice_listed_repos_total", "entries in listings", ["result"])
LISTING_COMPLETE = Gauge("sluice_listing_complete", "1 when a listing has reached its end", ["upstream"])
LISTING_RESTARTS = Counter("sluice_listing_restarts_total", "listings started again from the beginning", ["upstream"])
LISTING_SKIPS = Counter("sluice_listing_skips_total", "listing cursors skipped after repeated failures", ["upstream"])
UPSTREAM_ERRORS = Counter("sluice_upstream_errors_total", "errors of upstream connections", ["flow", "reason"])

# firehose and labels
FIREHOSE_EVENTS = Counter(
    "sluice_firehose_events_total",
    "events received from relays; with several shares each process receives all",
    ["upstream", "kind"],
)
LABEL_FRAMES = Counter("sluice_label_frames_total", "frames received from labelers", ["upstream", "kind"])
WEBSOCKETS = Gauge("sluice_websocket_connections", "open websocket connections", ["flow"])
LAST_EVENT = Gauge(
    "sluice_last_event_timestamp_seconds",
    "time in the last event received, as the upstream set it",
    ["flow", "upstream"],
)
UPSTREAM_SEQ = Gauge("sluice_upstream_seq", "highest sequence number received", ["upstream"])
SEQUENCE_GAPS = Counter("sluice_sequence_gaps_total", "gaps in an upstream's sequence", ["upstream"])
GAP_SEQS = Counter("sluice_sequence_gap_missed_seqs_total", "sequence numbers in these gaps", ["upstream"])
QUEUE_FRAMES = Gauge("sluice_stream_queue_frames", "frames in the queue behind the sockets", ["flow"])
DEFERRED = Gauge("sluice_deferred_events", "events deferred until their signing key is known", ["flow"])
DEFERRED_BYTES = Gauge("sluice_deferred_bytes", "memory of the deferred events", ["flow"])
KEY_LOOKUPS = Counter("sluice_key_lookups_total", "lookups of signing keys", ["flow", "result"])
DIRECTORY_THROTTLED = Counter(
    "sluice_directory_throttled_total", "requests that the PLC directory answered with 429; they are repeated"
)
REPORTED_FAILURES = Counter(
    "sluice_reported_failures_total", "failed checks of events accepted under SLUICE_VERIFY=report", ["flow", "reason"]
)

# backfill
REPOS_RUNNING = Gauge("sluice_backfill_repos_running", "repos being fetched")
REPOS_PROCESSED = Counter("sluice_backfill_repos_processed_total", "attempts with an outcome", ["status"])
ATTEMPTS_FAILED = Counter("sluice_backfill_attempts_failed_total", "failed attempts", ["reason"])
RECORDS_EXTRACTED = Counter("sluice_backfill_records_total", "records of verified snapshots")
REPOS_FAILED = Counter("sluice_backfill_repos_failed_total", "repos whose last attempt failed")
RETRIES = Counter("sluice_backfill_retries_total", "attempts released for a retry")
FETCH_ERRORS = Counter("sluice_backfill_fetch_errors_total", "failed getRepo requests", ["reason"])
PARSE_ERRORS = Counter("sluice_backfill_parse_errors_total", "CARs that could not be parsed", ["reason"])
VERIFY_ERRORS = Counter("sluice_backfill_verification_errors_total", "snapshots that failed verification", ["reason"])
CLAIMS = Counter("sluice_claims_total", "claims attempted", ["result"])
FETCH_SECONDS = Histogram(
    "sluice_fetch_seconds", "duration of a getRepo", buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
)
FETCHED_BYTES = Counter("sluice_fetched_bytes_total", "bytes of CARs received")

# index
RECORDS_WRITTEN = Counter("sluice_indexed_records_total", "record rows written or deleted", ["path"])
RECORDS_FAILED = Counter("sluice_index_records_failed_total", "messages that the database rejected")
STALE_EVENTS = Counter("sluice_index_stale_events_total", "events older than the rows")
INDEX_EVENTS = Counter("sluice_indexed_events_total", "events processed by the index", ["kind"])
TRANSITIONS = Counter("sluice_phase_transitions_total", "phase changes of repos", ["phase", "reason"])
RELEASED = Counter("sluice_buffered_events_released_total", "buffered events that passed the gate again")
INDEX_AGE = Gauge("sluice_index_event_age_seconds", "age of the newest live event when it was indexed")
COPY_FALLBACKS = Counter("sluice_copy_fallbacks_total", "COPYs with a conflict, repeated as upserts")
INDEX_SECONDS = Histogram("sluice_index_transaction_seconds", "duration of an index transaction")
INDEX_BATCH_LIMIT = Gauge("sluice_index_batch_limit", "current maximum of messages in an index transaction")
COMMITS_FAILED = Counter(
    "sluice_index_offset_commits_failed_total",
    "offset commits that the broker rejected; the tables hold the offsets too",
)
COLLECTION_RECORDS = Counter(
    "sluice_indexed_collection_records_total", "record rows of common collections written or deleted", ["collection"]
)
COLLECTIONS = frozenset(
    f"app.bsky.{name}"
    for name in ("feed.post", "feed.like", "feed.repost", "graph.follow", "graph.block", "actor.profile")
)
"""Values of that label."""
APPVIEW_INCOMPLETE = Gauge(
    "sluice_appview_incomplete", "1 until `sluice appview rebuild` has filled the AppView's tables"
)
APPVIEW_QUARANTINED = Gauge(
    "sluice_appview_quarantined", "reconciliation notes set aside because the AppView's tables reject their rows"
)
RECONCILED = Counter(
    "sluice_appview_reconciled_total", "posts, reposts and gates whose dependents in other repos were updated"
)
RECONCILE_SECONDS = Histogram("sluice_appview_reconcile_seconds", "duration of a reconciliation transaction")

# control
HANDLE_CHECKS = Counter("sluice_handle_checks_total", "handles checked in both directions", ["result"])
STEPS_FAILED = Counter("sluice_control_steps_failed_total", "failed rounds of control's tasks", ["step"])
STORM_REPOS = Gauge("sluice_storm_repos", "repos held back because too many need a fetch for one reason", ["reason"])
SCHEDULED = Counter("sluice_scheduled_repos_total", "repos queued, queued again or reclaimed by control", ["result"])
LETTERS_CHECKED = Counter(
    "sluice_dead_letters_checked_total",
    "dead letters that control retried: events without a key, and commits too big for a frame",
    ["result"],
)
LETTERS_EXPIRED = Counter(
    "sluice_dead_letters_expired_total", "dead letters removed by the topic's retention", ["state"]
)
PAST_END = Gauge(
    "sluice_group_past_end", "1 while a group's offset is past the end of its topic", ["group", "topic", "partition"]
)
LOST_MESSAGES = Gauge(
    "sluice_lost_messages", "messages removed by retention before their group processed them", ["group", "topic"]
)

# HTTP ports of all processes
HTTP_CUT = Counter(
    "sluice_http_connections_cut_total",
    "clients' connections closed by a bound: `address` and `all` for their number, `late` for their time",
    ["bound"],
)

# serve
SERVE_CLIENTS = Gauge("sluice_serve_streams", "open streams of clients")
SERVE_EVENTS = Counter("sluice_serve_events_total", "events sent to clients")
SERVE_SLOW = Counter("sluice_serve_slow_clients_total", "streams closed because their client was too slow")
SERVE_SEQ = Gauge("sluice_serve_seq", "`seq` of the next event")
SERVE_ANSWERS = Counter("sluice_serve_answers_total", "answers to clients of serve", ["route", "status"])

# control, measured at intervals (control/tasks/gauges.py)
REPOS = Gauge("sluice_repos", "repos by phase", ["phase"])
REPOS_NEAR_LAST = Gauge("sluice_repos_near_last_attempt", "repos whose next or current attempt is the last")
REPOS_STUCK = Gauge("sluice_repos_stuck", "repos claimed over an hour ago that have produced nothing")
SHARD_DOWN = Gauge("sluice_shard_down", "1 for a shard whose database does not answer", ["shard"])
ESTIMATED_ROWS = Gauge("sluice_rows", "rows of a table, as PostgreSQL estimates", ["table"])
DATABASE_BYTES = Gauge("sluice_database_bytes", "size of the database")
JOBS = Gauge("sluice_jobs", "backfill jobs by status", ["status"])
JOBS_NEAR_LAST = Gauge("sluice_jobs_near_last_attempt", "unfinished jobs that the next failure ends")
JOB_STILL = Gauge("sluice_jobs_still_seconds", "longest time without progress of a running job")
JOB_RUNNING = Gauge("sluice_jobs_running_seconds", "age of the oldest running job")
HOSTS = Gauge("sluice_hosts", "PDSes: known, failing, paused by their rate limit", ["state"])
HOST_REPOS = Gauge(
    "sluice_host_repos", "repos by phase of the ten PDSes with most work; large tables are sampled", ["host", "phase"]
)
PAUSE_LEFT = Gauge("sluice_quota_pause_seconds", "longest remaining rate-limit pause of a host or job", ["what"])
LETTERS_OPEN = Gauge("sluice_dead_letters_open", "dead letters neither retried nor dismissed")
SKIPPED_OPEN = Gauge("sluice_skipped_ranges_open", "skipped listing ranges that are not recovered")
SKIPPED_AGE = Gauge("sluice_skipped_range_age_seconds", "age of the oldest of them")
GAPS_OPEN = Gauge("sluice_stream_gaps_open", "losses of streams that no listing has resolved")
CURSOR_AGE = Gauge("sluice_cursor_age_seconds", "time since an upstream's cursor was stored", ["flow", "upstream"])
OLDEST_UNSETTLED = Gauge(
    "sluice_oldest_unsettled_seconds", "age of the oldest message that a group has not processed", ["group", "topic"]
)
RETENTION = Gauge("sluice_retention_seconds", "retention of a topic", ["topic"])
HANDLES = Gauge("sluice_handles", "handles by state; estimated in large tables, `due` counted to 100,000", ["state"])
HANDLES_LATE = Gauge("sluice_handles_late_seconds", "longest time that a handle check is overdue")
AUDIT_FINDINGS = Gauge("sluice_audit_findings", "wrong repos in the newest audit")
AUDIT_TIME = Gauge("sluice_audit_timestamp_seconds", "last progress of the newest audit")
QUERIES_FAILED = Counter("sluice_gauge_queries_failed_total", "failed queries of tables and log for gauges", ["query"])
