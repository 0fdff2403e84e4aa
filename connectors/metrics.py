"""All metrics of all processes, in one place. Names that the predecessor's users have panels for keep their name.

No label takes unbounded values: hosts, DIDs and URLs of users never become labels; relays and labelers are configured.
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
PAUSED = Gauge("ingester_backpressure_active", "1 while a producer waits for its consumers", ["flow"])
LAG = Gauge("sluice_consumer_lag", "messages a group has not settled yet", ["group", "topic", "partition"])

# list_repos
LISTED = Counter("sluice_listed_repos_total", "repos seen in listings", ["result"])
LIST_DONE = Gauge("ingester_backfill_complete", "1 when a listing has reached its end", ["upstream"])
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
KEY_LOOKUPS = Counter("sluice_key_lookups_total", "signing keys that were needed", ["flow", "result"])
LOOSENED = Counter(
    "sluice_checks_failed_and_counted_total", "events that only the settings let pass", ["flow", "reason"]
)

# backfill
REPOS_RUNNING = Gauge("backfiller_repos_running", "repos being fetched")
REPOS_PROCESSED = Counter("backfiller_repos_processed_total", "attempts that ended with an outcome", ["status"])
REPOS_FAILED = Counter("backfiller_repos_failed_total", "attempts that failed", ["reason"])
RECORDS_EXTRACTED = Counter("backfiller_records_extracted_total", "records of verified snapshots")
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

# control
SCHEDULED = Counter("sluice_scheduled_repos_total", "repos that control queued, queued anew or took back", ["result"])
PAST_END = Gauge(
    "sluice_group_past_end", "1 while a group stands past the end of its topic", ["group", "topic", "partition"]
)
