"""The firehose in several shares: what each passes over, and changes of their number under load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import cbrrr
import psycopg
import pytest

from connectors.atproto.stream_sockets import WAKE, Frame
from connectors.postgres.stream_cursors import CursorStore
from connectors.runtime import metrics
from flows.firehose.flow import decode_all, follower
from flows.streams import Received
from protocol.encoding.timestamps import to_unix
from schemas.settings import Settings
from steps.cursor import Cursors, Gap
from steps.shares import WHOLE, Mark, Share
from tests.flows.firehose.hostile_frames import framed
from tests.flows.firehose.relay_reading import FIRST_SEQ, SIZE, last_seq, seqs
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import FlowProcess, wait_until
from tests.support.live_flow import LiveBed, LiveFlow
from tests.support.simulation import Simulation

Start = Callable[..., Simulation]
TIME = "2026-01-01T00:00:00.000Z"
RELAY = "https://relay.test"


def account(seq: int, number: int) -> bytes:
    return framed("#account", {"seq": seq, "did": f"did:plc:{number}", "time": TIME, "active": True})


STREAM = [
    *(account(seq, seq % 7) for seq in range(1, 30)),
    b"garbage",
    framed("#unknown", {"seq": 30}),
    framed("#account", {"seq": 31, "did": "did:plc:1", "time": TIME}),  # a refused frame with a DID
    framed("#account", {"seq": 2**50, "did": "did:plc:2", "time": TIME}),
    framed("#account", {"seq": 32, "did": "no DID", "time": TIME, "active": True}),
    framed("#info", {"name": "OutdatedCursor"}),
    framed("#commit", {"seq": 33}),
    *(account(seq, seq % 7) for seq in range(40, 60)),  # after a gap
    account(50, 3),  # a repeat
    cbrrr.encode_dag_cbor({"op": -1}) + cbrrr.encode_dag_cbor({"error": "ConsumerTooSlow"}),
]


def follow(share: Share, batch: int = 5) -> tuple[list[Received], Cursors]:
    """What a share passes on of the stream, and where it stands afterwards."""
    cursors = Cursors()
    step, frames = follower(cursors, share), [Frame(RELAY, data) for data in STREAM]
    frames.append(Frame(RELAY, account(9, 4), restarted=True))
    passed_on = [one for at in range(0, len(frames), batch) for one in step(decode_all(frames[at : at + batch]))]
    return passed_on, cursors


def test_shares_stand_where_one_process_would_and_each_event_is_of_one() -> None:
    """S3: positions, gaps and the restarted sequence are the same; dead letters without a DID are of the first share."""
    alone, cursors = follow(Share())
    found = [follow(Share(number, 3)) for number in range(3)]
    together = [one.frame.data for passed_on, _ in found for one in passed_on]
    assert sorted(together) == sorted(one.frame.data for one in alone)
    assert all(len(passed_on) > 8 for passed_on, _ in found)
    assert all((one.positions, one.gaps) == (cursors.positions, cursors.gaps) for _, one in found)
    assert cursors.positions == {RELAY: 9}
    assert [gap.reason for gap in cursors.gaps] == ["outdated_cursor", "sequence_gap", "sequence_restarted"]
    assert b"garbage" in [one.frame.data for one in found[0][0]]


def test_a_share_without_events_of_its_own_is_not_behind() -> None:
    """SluiceStreamBehind takes the slowest share."""
    other = "https://quiet-share.test"
    share = next(share for share in (Share(0, 2), Share(1, 2)) if not share.owns("did:plc:1"))
    assert follower(Cursors(), share)(decode_all([Frame(other, account(1, 1))])) == []
    gauge = metrics.LAST_EVENT.labels("firehose", other)
    assert gauge._value.get() == to_unix(TIME)


def test_every_share_passes_on_what_wakes_it() -> None:
    """Deferred events are released by an empty frame."""
    assert follower(Cursors(), Share(1, 3))(decode_all([WAKE]))


def in_order(messages: Iterable[tuple[str, dict[str, Any]]]) -> bool:
    """Whether every account's commits were first written in their order; from whichever relay."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, value in messages:
        if value["type"] == "commit":
            found[key].append(value["rev"])
    return all([*dict.fromkeys(revs)] == sorted({*revs}) for revs in found.values())


def positions(bed: FlowBed | LiveBed, relay: str, count: int) -> list[int]:
    """Durable positions of the shares of this number."""
    query = "select position::bigint from sluice.cursor where flow = 'firehose' and upstream = %s and shares = %s"
    return [int(row[0]) for row in bed.rows(query, relay, count)]


def reach_all(bed: FlowBed | LiveBed, of: list[Any], relay: str, seq: int) -> None:
    """Wait until every share is durable at this seq."""
    wait_until(
        lambda: len(found := positions(bed, relay, len(of))) == len(of) and min(found) >= seq,
        what=lambda: f"{relay}: {positions(bed, relay, len(of))} at {seq}",
        of=of,
    )


def start_shares(bed: FlowBed | LiveBed, network: Simulation, count: int) -> list[Any]:
    shared = {"plc": network.plc, "relays": network.relays, "firehose_start": "oldest", "firehose_shares": count}
    return [bed.start("firehose", **shared, firehose_share=number) for number in range(count)]


def test_one_three_and_two_shares_of_two_relays_lose_nothing(
    simulator: Start, live_bed: LiveBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3: each number starts beside the one before, as in a rolling update; then that one is killed."""
    monkeypatch.setattr("connectors.atproto.stream.TOUCH_SECONDS", 0.2)
    network = simulator(**SIZE, relays=2, writer_rate=200)
    running: list[LiveFlow] = []
    for count in (1, 3, 2):
        new = start_shares(live_bed, network, count)
        for number, relay in enumerate(network.relays):
            reach_all(live_bed, new, relay, last_seq(network, number))
        for one in running:
            one.kill()
        running = new
    network.quiesce()
    for number, relay in enumerate(network.relays):
        reach_all(live_bed, running, relay, last_seq(network, number))
    messages = live_bed.messages("firehose_live")
    events = {
        (value["type"], key, value.get("rev") or (value["time"], value.get("active"), value.get("handle")))
        for key, value in messages
    }
    assert len(events) == last_seq(network) - FIRST_SEQ + 1
    assert in_order(messages)
    assert live_bed.messages("dead_letter") == []
    assert live_bed.rows("select * from sluice.stream_gap") == []
    wait_until(lambda: live_bed.rows("select distinct shares from sluice.cursor") == [(2,)], of=running)
    duplicates = [one.metric("sluice_dropped_events_total", reason="duplicate") for one in running]
    assert all(duplicates)  # a share gets both relays' copies of its events


def test_shares_that_begin_at_once_have_one_epoch_and_retire_what_they_passed(database: str) -> None:
    """S3: with an epoch each, every change of the number would look as if the relay's sequence had begun again."""
    settings = Settings(database=database)
    stores = [CursorStore(settings, "firehose", Share(number, 2)) for number in range(2)]
    assert [store.starts([RELAY]) for store in stores] == [{}, {}]
    gap = Gap(RELAY, None, 9, "began_at_tip")
    assert [store.begin(RELAY, 9, {"epoch": 100 + number}, gap) for number, store in enumerate(stores)] == [100, 100]
    whole = CursorStore(settings, "firehose")
    assert whole.starts([RELAY]) == {RELAY: Mark(100, 9)}
    stores[0].save({RELAY: 20}, {})
    whole.save({RELAY: 15}, {})
    stores[0].retire([RELAY])  # the other share is not there yet
    assert CursorStore(settings, "firehose").load()[RELAY].position == "15"
    assert CursorStore(settings, "firehose", Share(0, 2)).starts([RELAY]) == {RELAY: Mark(100, 20)}
    assert CursorStore(settings, "firehose", Share(1, 3)).starts([RELAY]) == {RELAY: Mark(100, 15)}
    stores[1].save({RELAY: 15}, {})
    stores[0].retire([RELAY])
    assert whole.load() == {}
    assert [store.load()[RELAY].position for store in stores] == ["20", "15"]
    for store in (*stores, whole):
        store.close()


def test_two_numbers_that_retire_rows_at_once_leave_those_of_one(database: str) -> None:
    """S3: each has passed the other. Without the lock both remove the other's rows, and the next start would lose its position."""
    settings = Settings(database=database)
    with ExitStack() as closed:
        stores = [CursorStore(settings, "firehose", share) for share in (WHOLE, Share(0, 2), Share(1, 2))]
        for store in stores:
            closed.callback(store.close)
            store.begin(RELAY, 9, {"epoch": 100}, None)
        # both have read the rows and wait at their first write, the lock or a deletion
        pool = closed.enter_context(ThreadPoolExecutor(2))
        blocker = closed.enter_context(psycopg.connect(database))
        blocker.execute("lock table sluice.cursor in share row exclusive mode")
        racing = [pool.submit(store.retire, [RELAY]) for store in stores[:2]]
        with psycopg.connect(database, autocommit=True) as db:
            waiting = "select count(*) = 2 from pg_locks where relation = 'sluice.cursor'::regclass and not granted"
            wait_until(lambda: db.execute(waiting).fetchone() == (True,))
            blocker.rollback()
            for one in racing:
                one.result(30)
            left = db.execute("select shares, count(*) from sluice.cursor group by shares").fetchall()
        assert left in ([(1, 1)], [(2, 2)])


def test_a_share_that_missed_a_restart_of_the_sequence_records_a_gap_once(database: str) -> None:
    """S3: its events at the end of the old sequence may be lost; a listing finds them."""
    with (
        closing(CursorStore(Settings(database=database), "firehose", Share(0, 2))) as away,
        closing(CursorStore(Settings(database=database), "firehose", Share(1, 2))) as followed,
        psycopg.connect(database, autocommit=True) as db,
    ):
        db.execute("insert into sluice.repo (did) values ('did:plc:a')")
        away.save({RELAY: 900}, {RELAY: {"epoch": 7, "time": "2026-01-01T00:00:00Z"}})
        followed.save({RELAY: 5}, {RELAY: {"epoch": 8, "time": "2026-01-02T00:00:00Z"}})
        gaps = "delete from sluice.stream_gap returning reason"
        assert away.starts([RELAY]) == {RELAY: Mark(8, 5)}
        assert db.execute(gaps).fetchall() == [("sequence_restarted",)]
        assert away.load()[RELAY].detail == {"epoch": 8, "time": "2026-01-01T00:00:00Z"}
        assert away.starts([RELAY]) == {RELAY: Mark(8, 5)}
        assert db.execute(gaps).fetchall() == []


def test_kill_9_of_one_share_under_load_and_other_numbers_of_shares(simulator: Start, flow_bed: FlowBed) -> None:
    """S3, G1, G8: as processes: 1, 3 with a share killed, 2. Every commit is in the log, few twice."""
    network = simulator(**SIZE, writer_rate=80)
    (relay,) = network.relays
    (whole,) = start_shares(flow_bed, network, 1)
    reach_all(flow_bed, [whole], relay, FIRST_SEQ + 30)
    assert whole.terminate() == 0
    three: list[FlowProcess] = start_shares(flow_bed, network, 3)
    reach_all(flow_bed, three, relay, last_seq(network))
    three[1].kill()
    killed_at = last_seq(network)
    wait_until(lambda: last_seq(network) > killed_at + 30, what="the others go on")
    three[0].kill()
    three[2].kill()
    killed = dict(zip((0, 1, 2), sorted(positions(flow_bed, relay, 3)), strict=True))
    two: list[FlowProcess] = start_shares(flow_bed, network, 2)
    network.quiesce()
    reach_all(flow_bed, two, relay, last_seq(network))
    assert [one.terminate() for one in two] == [0, 0]
    messages = flow_bed.messages("firehose_live")
    found = seqs(flow_bed, relay)
    assert set(found) == set(range(FIRST_SEQ, last_seq(network) + 1))
    assert in_order(messages)
    # a kill repeats what was written after the last checkpoint; the lowest share leads the next number
    assert len(found) - len(set(found)) <= last_seq(network) - killed[0]
    assert flow_bed.rows("select * from sluice.stream_gap") == []
    assert flow_bed.messages("dead_letter") == []
