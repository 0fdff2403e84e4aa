"""docs/metrics.md names every metric, every metric is counted somewhere, and the predecessor's names can be recorded."""

import re

import yaml

from tests.deploy.rendering import K8S, ROOT
from tools.metrics_page import PAGE, declared, page, row

NAMES = """
ingester_firehose_events_total ingester_firehose_live_length ingester_firehose_backfill_length
ingester_repo_backfill_length ingester_label_live_length ingester_websocket_connections ingester_errors_total
ingester_backpressure_active ingester_backfill_complete ingester_backfill_cursor_skips_total
ingester_backfill_cursor_reset_total ingester_last_event_time_seconds
backfiller_repos_waiting backfiller_repos_running backfiller_repos_processed_total backfiller_repos_failed_total
backfiller_repos_dead_lettered_total backfiller_records_extracted_total backfiller_retries_attempted_total
backfiller_car_fetch_errors_total backfiller_car_parse_errors_total backfiller_verification_errors_total
backfiller_output_stream_length
indexer_records_processed_total indexer_records_failed_total indexer_stale_writes_skipped_total indexer_pending_messages
indexer_ack_failures_total indexer_post_events_total indexer_like_events_total indexer_follow_events_total
indexer_repost_events_total indexer_block_events_total indexer_profile_events_total
db_pool_size db_pool_available db_pool_waiting db_pool_max_size
upstream_cursor sequence_gaps_total sequence_gap_missed_seqs_total
"""
PREDECESSOR = set(re.findall(r"\w+", NAMES))


def test_the_page_has_todays_metrics() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "run .venv/bin/python -m tools.metrics_page"
    assert page(text.replace("| gauge |", "| counter |", 1)) == text, "a line that is wrong is seen"


def test_names_have_one_prefix_and_base_units() -> None:
    names = {row(metric).split("`")[1] for _, metric in declared()}
    assert {name for name in names if not name.startswith("sluice_")} == set()
    assert {name for name in names if re.search(r"_(time_seconds|ms|millis|minutes|hours|kb|mb)(_|$)", name)} == set()
    labels = {label for _, metric in declared() for label in metric._labelnames}
    assert labels & {"relay", "labeler", "source"} == set(), "`upstream` is the label of their URL"


def test_names_of_the_predecessor_are_recorded() -> None:
    rules = yaml.safe_load((K8S / "base" / "monitoring" / "former_names.yml").read_text("utf-8"))["groups"][0]["rules"]
    assert {rule["record"] for rule in rules} == PREDECESSOR
    names = {row(metric).split("`")[1] for _, metric in declared()}
    assert {name for rule in rules for name in re.findall(r"sluice_\w+", rule["expr"])} - names == set()


def test_every_metric_is_counted_somewhere() -> None:
    sources = [
        path.read_text("utf-8")
        for folder in ("connectors", "appview", "flows", "serve", "control", "local", "ops")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("metrics.py", "metrics_page.py")
    ]
    used = {name for text in sources for name in re.findall(r"\bmetrics\.([A-Z][A-Z_]+)", text)}
    assert {name for name, _ in declared()} - used == set()


def test_no_label_may_take_any_value() -> None:
    """DIDs, handles and URLs of users never become labels; a host does in one gauge, which shows ten at a time."""
    labels = {(name, label) for name, metric in declared() for label in metric._labelnames}
    assert not {label for _, label in labels} & {"did", "handle", "uri", "cid", "rev", "job", "error", "url", "pds"}
    assert {name for name, label in labels if label == "host"} == {"HOST_REPOS"}
