"""`--until-synced`: done only when listing, repos, queues, streams and index all are."""

from dataclasses import replace

from connectors.kafka.offsets import PartitionLag
from control.process_status import ProcessStatus
from control.status import PHASES, MirrorStatus
from local.until_synced import QUIET_SECONDS, SyncCheck
from schemas.settings import load

RELAY = "https://relay.test"


class Clock:
    """Wall time of the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def firehose(event_time: float = 0.0, seq: float = 5, waiting: float = 0, connected: float = 1) -> ProcessStatus:
    labels = (("upstream", RELAY),)
    metrics = {
        "sluice_websocket_connections": {(): connected},
        "sluice_last_event_timestamp_seconds": {(): event_time},
        "sluice_upstream_seq": {labels: seq},
        "sluice_stream_queue_frames": {(): waiting},
    }
    return ProcessStatus("firehose", "firehose", 1, 1, "working", metrics=metrics)


def done(**repos: int) -> MirrorStatus:
    return MirrorStatus(
        repos=dict.fromkeys(PHASES, 0) | {"sync": 3} | repos,
        retrying=0,
        records=9,
        labels=0,
        buffered_events=0,
        partition_lags=[
            PartitionLag("index", "firehose_live", 0, 0, 7, 7),
            PartitionLag("backfill", "repo_backfill", 0, 0, 3, 3),
        ],
        failing_hosts=[],
        failures=[],
        cursors=[],
        dead_letters={},
        jobs=[{"kind": "relay", "relay": RELAY, "status": "completed", "name": "list", "checkpoint": {}}],
        skipped_ranges=0,
        stream_gaps=0,
        processes=[firehose(event_time=2000.0)],
    )


def looker() -> tuple[SyncCheck, Clock]:
    clock = Clock()
    return SyncCheck(load(relays=[RELAY]), clock), clock


def test_done_at_once_when_everything_is() -> None:
    assert looker()[0].check(done(unavailable=1, failed=1))


def test_a_relay_s_listing_that_was_cut_is_not_its_end_but_a_pds_s_holds_up_nothing() -> None:
    """H3."""
    synced, _ = looker()
    cut = {"done": True, "cut": "the cursors repeat"}
    relay = {"kind": "relay", "relay": RELAY, "status": "running", "name": "list", "checkpoint": cut}
    assert not synced.check(replace(done(), jobs=[relay]))
    assert synced.waits_for == f"the listing of {RELAY}"
    pds = {"kind": "pds", "relay": None, "status": "running", "name": "list", "checkpoint": cut}
    assert synced.check(replace(done(), jobs=[*done().jobs, pds]))


def test_waits_for_a_listing_that_has_not_ended() -> None:
    synced, _ = looker()
    running = [{"kind": "relay", "relay": RELAY, "status": "running", "name": "list", "checkpoint": {}}]
    assert not synced.check(replace(done(), jobs=[]))
    assert not synced.check(replace(done(), jobs=running))
    assert synced.waits_for == f"the listing of {RELAY}"


def test_waits_for_repos_that_move_and_for_queued_ones() -> None:
    synced, _ = looker()
    assert not synced.check(done(pending=1))
    assert not synced.check(done(backfill=1))
    assert not synced.check(replace(done(), partition_lags=[PartitionLag("backfill", "repo_resync", 0, 0, 2, 3)]))
    assert synced.waits_for == "1 queued repos"


def test_waits_for_a_stream_that_is_behind() -> None:
    synced, clock = looker()
    behind = replace(done(), processes=[firehose(event_time=10.0)])
    assert not synced.check(behind)
    assert not synced.check(replace(done(), processes=[]))
    assert not synced.check(replace(done(), processes=[firehose(connected=0)]))
    clock.now += QUIET_SECONDS
    assert not synced.check(replace(done(), processes=[firehose(waiting=1)]))
    assert not synced.check(replace(done(), processes=[firehose(seq=6)])), "it moved"
    clock.now += QUIET_SECONDS
    assert synced.check(replace(done(), processes=[firehose(seq=6)]))


def test_waits_for_every_share_of_a_stream() -> None:
    synced, _ = looker()
    assert not synced.check(replace(done(), processes=[firehose(event_time=2000.0), firehose(event_time=10.0)]))
    assert synced.check(replace(done(), processes=[firehose(event_time=2000.0)] * 2))


def test_a_stream_that_has_only_just_connected_is_not_quiet_yet() -> None:
    """Its silence from before the connection proves nothing: the upstream may be about to send a whole past."""
    synced, clock = looker()
    for connected in (0, 1):
        clock.now += QUIET_SECONDS
        assert not synced.check(replace(done(), processes=[firehose(connected=connected)]))
    clock.now += QUIET_SECONDS
    assert synced.check(replace(done(), processes=[firehose()]))


def test_waits_until_the_index_has_what_the_log_held() -> None:
    """A writer that goes on does not move the goal."""
    synced, _ = looker()
    backfill = PartitionLag("backfill", "repo_backfill", 0, 0, 3, 3)
    for position, end, expected in ((5, 7, False), (6, 20, False), (7, 30, True)):
        standings = [PartitionLag("index", "firehose_live", 0, 0, position, end), backfill]
        assert synced.check(replace(done(), partition_lags=standings)) is expected


def test_a_repo_that_moves_again_before_the_end_is_waited_for() -> None:
    synced, _ = looker()
    behind = [PartitionLag("index", "firehose_live", 0, 0, 5, 7)]
    assert not synced.check(replace(done(), partition_lags=behind))
    assert not synced.check(done(pending=1))
    assert synced.check(done())
