"""All metrics of all processes, in one place. Names that the predecessor's users have panels for keep their name.

No label takes unbounded values: DIDs and URLs of users never become labels; relays and labelers are configured, and of the
PDSes a few are shown at a time.
"""

from prometheus_client import Counter, Gauge, Histogram

# every flow
UP_SINCE = Gauge("sluice_started_time_seconds", "when this process started", ["flow"])
STATE = Gauge("sluice_state", "1 for the state that the process is in", ["flow", "state"])
LAST_DURABLE = Gauge("sluice_last_durable_time_seconds", "when the flow's position last became durable", ["flow"])
PRODUCED = Counter("sluice_produced_messages_total", "messages acknowledged by the log", ["topic"])
DROPPED = Counter("sluice_dropped_events_total", "events settled without an effect", ["flow", "reason"])
REJECTED = Counter("sluice_rejected_total", "typed rejections of input", ["flow", "reason"])
DEAD_LETTERS = Counter("sluice_dead_letters_total", "messages that went to the dead letters", ["flow", "reason"])
DISK_FREE = Gauge(
    "sluice_disk_free_bytes", "room left on the disk of a folder that this process writes", ["flow", "folder"]
)
DISK_SIZE = Gauge("sluice_disk_size_bytes", "size of that disk", ["flow", "folder"])
POOL = {  # the pool of the shared rate budget, in backfill
    "pool_size": Gauge("db_pool_size", "connections of the pool"),
    "pool_available": Gauge("db_pool_available", "idle connections of the pool"),
    "requests_waiting": Gauge("db_pool_waiting", "requests that wait for a connection"),
    "pool_max": Gauge("db_pool_max_size", "connections that the pool may have"),
}
KAFKA_LINES_SUPPRESSED = Counter(
    "sluice_kafka_log_lines_suppressed_total", "log lines of the Kafka client beyond twenty a minute"
)
PAUSED = Gauge("ingester_backpressure_active", "1 while a producer waits for its consumers", ["flow"])
LAG = Gauge("sluice_consumer_lag", "messages a group has not settled yet", ["group", "topic", "partition"])

# list_repos
LISTED = Counter("sluice_listed_repos_total", "repos seen in listings", ["result"])
LIST_DONE = Gauge("ingester_backfill_complete", "1 when a listing has reached its end", ["upstream"])
CURSOR_RESETS = Counter("ingester_backfill_cursor_reset_total", "listings begun anew from their start", ["upstream"])
CURSOR_SKIPS = Counter("ingester_backfill_cursor_skips_total", "listing cursors stepped over", ["upstream"])
INGEST_ERRORS = Counter("ingester_errors_total", "errors of upstream connections", ["flow", "reason"])

# firehose and labels
FIREHOSE_EVENTS = Counter("ingester_firehose_events_total", "events read from relays", ["relay", "kind"])
LABEL_FRAMES = Counter("sluice_label_frames_total", "frames read from labelers", ["labeler", "kind"])
WEBSOCKETS = Gauge("ingester_websocket_connections", "open websocket connections", ["flow"])
LAST_EVENT = Gauge(
    "ingester_last_event_time_seconds", "the upstream's own time of the event read last", ["flow", "upstream"]
)
UPSTREAM_SEQ = Gauge("upstream_cursor", "newest sequence number received", ["upstream"])
SEQUENCE_GAPS = Counter("sequence_gaps_total", "holes in an upstream's sequence", ["upstream"])
GAP_SEQS = Counter("sequence_gap_missed_seqs_total", "sequence numbers in these holes", ["upstream"])
QUEUE_FRAMES = Gauge("sluice_stream_queue_frames", "frames that wait in memory", ["flow"])
DEFERRED = Gauge("sluice_deferred_events", "events that wait for a key beside the stream", ["flow"])
DEFERRED_BYTES = Gauge("sluice_deferred_bytes", "memory of these events", ["flow"])
KEY_LOOKUPS = Counter("sluice_key_lookups_total", "signing keys that were needed", ["flow", "result"])
DIRECTORY_THROTTLED = Counter(
    "sluice_directory_throttled_total", "requests that the PLC directory refused for its limit; they are made again"
)
LOOSENED = Counter(
    "sluice_checks_failed_and_counted_total", "events that only the settings let pass", ["flow", "reason"]
)

# backfill
REPOS_RUNNING = Gauge("backfiller_repos_running", "repos being fetched")
REPOS_PROCESSED = Counter("backfiller_repos_processed_total", "attempts that ended with an outcome", ["status"])
REPOS_FAILED = Counter("backfiller_repos_failed_total", "attempts that failed", ["reason"])
RECORDS_EXTRACTED = Counter("backfiller_records_extracted_total", "records of verified snapshots")
REPOS_GIVEN_UP = Counter("backfiller_repos_dead_lettered_total", "repos that failed for the last time")
RETRIES = Counter("backfiller_retries_attempted_total", "attempts given back for another try")
FETCH_ERRORS = Counter("backfiller_car_fetch_errors_total", "getRepo requests that failed", ["reason"])
PARSE_ERRORS = Counter("backfiller_car_parse_errors_total", "CARs that could not be parsed", ["reason"])
VERIFY_ERRORS = Counter("backfiller_verification_errors_total", "snapshots that were refused", ["reason"])
CLAIMS = Counter("sluice_claims_total", "claims tried", ["result"])
FETCH_SECONDS = Histogram("sluice_fetch_seconds", "time of a getRepo", buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600))
FETCHED_BYTES = Counter("sluice_fetched_bytes_total", "bytes of CARs")

# index
RECORDS_WRITTEN = Counter("indexer_records_processed_total", "records written to or deleted from the tables", ["path"])
RECORDS_FAILED = Counter("indexer_records_failed_total", "records that could not be written")
STALE = Counter("indexer_stale_writes_skipped_total", "events that were older than the rows")
INDEX_EVENTS = Counter("sluice_indexed_events_total", "events settled by the index", ["kind"])
TRANSITIONS = Counter("sluice_phase_transitions_total", "repos that changed their phase", ["phase", "reason"])
RELEASED = Counter("sluice_held_events_released_total", "held events put through the gate")
INDEX_AGE = Gauge("sluice_index_event_age_seconds", "age of the newest indexed live event")
COPY_FALLBACKS = Counter("sluice_copy_fallbacks_total", "COPYs that collided and became upserts")
INDEX_SECONDS = Histogram("sluice_index_transaction_seconds", "time of an index transaction")
INDEX_BATCH_LIMIT = Gauge("sluice_index_batch_limit", "messages that an index transaction takes at most now")
ACK_FAILURES = Counter("indexer_ack_failures_total", "group offsets that the broker refused; the tables have their own")
APPVIEW_LACKING = Gauge("sluice_appview_lacking", "1 while `sluice appview rebuild` has to fill the AppView's tables")

APPVIEW_REFUSED = Gauge(
    "sluice_appview_refused",
    "notes that the fold has put aside because the AppView's tables refuse what follows from them",
)
FOLDED = Counter(
    "sluice_appview_folded_total", "posts, reposts and gates whose dependents in other repos were looked at"
)
FOLD_SECONDS = Histogram("sluice_appview_fold_seconds", "time of a transaction that does so")
KIND_EVENTS = {  # of live operations and of history alike
    f"app.bsky.{nsid}": Counter(f"indexer_{kind}_events_total", f"{kind} records written or deleted")
    for kind, nsid in {
        "post": "feed.post",
        "like": "feed.like",
        "follow": "graph.follow",
        "repost": "feed.repost",
        "block": "graph.block",
        "profile": "actor.profile",
    }.items()
}

# control
HANDLE_CHECKS = Counter("sluice_handle_checks_total", "handles that were checked both ways", ["result"])
STEPS_FAILED = Counter("sluice_control_steps_failed_total", "rounds of control's steps that failed", ["step"])
STORM_REPOS = Gauge(
    "sluice_storm_held_repos", "repos of a held reason: more would be fetched again in an hour than may be", ["reason"]
)
SCHEDULED = Counter("sluice_scheduled_repos_total", "repos that control queued, queued anew or took back", ["result"])
LETTERS_LOOKED_AT = Counter(
    "sluice_dead_letters_looked_at_total",
    "dead letters that control looked at by itself: events without a key, and commits too big for their frame",
    ["result"],
)
LETTERS_EXPIRED = Counter(
    "sluice_dead_letters_expired_total", "dead letters whose message retention has removed", ["state"]
)
PAST_END = Gauge(
    "sluice_group_past_end", "1 while a group stands past the end of its topic", ["group", "topic", "partition"]
)
LOST_MESSAGES = Gauge(
    "sluice_lost_messages", "messages that retention removed before their group settled them", ["group", "topic"]
)
# the predecessor's lengths of queues: messages that wait for their reader
LIVE_LENGTH = Gauge("ingester_firehose_live_length", "live events that wait for the index")
BACKFILL_LENGTH = Gauge("ingester_firehose_backfill_length", "records of history that wait for the index")
OUTPUT_LENGTH = Gauge("backfiller_output_stream_length", "the same under the name that panels of backfill use")
TASKS_LENGTH = Gauge("ingester_repo_backfill_length", "queued repos that no worker has read yet")
LABEL_LENGTH = Gauge("ingester_label_live_length", "labels that wait for the index")
INDEX_PENDING = Gauge("indexer_pending_messages", "messages of all topics that wait for the index")

# control, looked at now and then (control/tasks/gauges.py): what the tables and the log say, whoever wrote it
REPOS = Gauge("sluice_repos", "repos by phase", ["phase"])
REPOS_WAITING = Gauge("backfiller_repos_waiting", "repos that are not fetched yet")
REPOS_NEAR_LAST = Gauge("sluice_repos_near_last_attempt", "repos that wait for their last attempt or are in it")
REPOS_STUCK = Gauge("sluice_repos_stuck", "repos that were claimed over an hour ago and have produced nothing")
ESTIMATED_ROWS = Gauge("sluice_rows", "PostgreSQL's running estimate of rows", ["table"])
DATABASE_BYTES = Gauge("sluice_database_bytes", "size of the database on its disk")
JOBS = Gauge("sluice_jobs", "backfill jobs by status", ["status"])
JOBS_NEAR_LAST = Gauge("sluice_jobs_near_last_attempt", "jobs that are not over and that the next failure ends")
JOB_STILL = Gauge("sluice_jobs_still_seconds", "longest time that a running job has not moved")
JOB_RUNNING = Gauge("sluice_jobs_running_seconds", "age of the running job that started first")
HOSTS = Gauge("sluice_hosts", "PDSes that are known, fail, or are paused by their limits", ["state"])
HOST_REPOS = Gauge(
    "sluice_host_repos",
    "repos by phase of the few PDSes with most work left; a sample of large tables",
    ["host", "phase"],
)
PAUSE_LEFT = Gauge("sluice_quota_pause_seconds", "longest time that a quota still holds up a host or a job", ["what"])
LETTERS_OPEN = Gauge("sluice_dead_letters_open", "dead letters that nobody has retried or dismissed")
SKIPPED_OPEN = Gauge("sluice_skipped_ranges_open", "listing ranges that were stepped over and are not filled")
SKIPPED_AGE = Gauge("sluice_skipped_range_age_seconds", "age of the oldest of them")
GAPS_OPEN = Gauge("sluice_stream_gaps_open", "losses of upstream streams that no listing has answered yet")
CURSOR_AGE = Gauge("sluice_cursor_age_seconds", "time since an upstream's cursor was stored", ["flow", "upstream"])
OLDEST_UNSETTLED = Gauge(
    "sluice_oldest_unsettled_seconds", "age of the oldest message that a group has not settled", ["group", "topic"]
)
RETENTION = Gauge("sluice_retention_seconds", "how long the broker keeps a topic's messages", ["topic"])
HANDLES = Gauge(
    "sluice_handles",
    "handles by state, estimated in large tables; those that are due are counted to 100,000",
    ["state"],
)
HANDLES_LATE = Gauge("sluice_handles_late_seconds", "how long the check of a handle is overdue, at most")
AUDIT_FINDINGS = Gauge("sluice_audit_findings", "repos that the newest audit found wrong")
AUDIT_TIME = Gauge("sluice_audit_time_seconds", "when the newest audit last moved on")
LOOKS_FAILED = Counter("sluice_gauge_looks_failed_total", "looks at tables and log that failed", ["look"])
