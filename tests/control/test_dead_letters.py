"""Dead letters on a real log and database: indexed once, shown, retried with the code of today, dismissed."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass

import cbrrr
import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg.rows import TupleRow

from connectors.kafka.log import LogUnavailable, watermarks
from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer, Out, dead_letter
from connectors.postgres.connection import Database, tuple_database
from connectors.postgres.shards import Shards, with_main
from control.dead_letter_index import DeadLetterIndex, index_dead_letters
from control.dead_letters import DeadLetters
from control.tasks.dead_letter_retry import AFTER_SECONDS, DeadLetterRetry
from control.tasks.obsolete_rows import CHECK_SECONDS, ObsoleteRows, Removed
from control.tasks.shared_offsets import SharedOffsets
from protocol.event_stream import FrameReason
from protocol.labels import LabelReason
from protocol.verify_commit import VerifyReason
from schemas import wire
from schemas.errors import OperatorError
from schemas.reasons import DeadReason
from schemas.settings import Settings, load
from tests.support import zygote
from tests.support.flow_process import create_topics, read_topic, wait_until

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
TIME = "2026-01-01T00:00:00.000Z"
URL = "https://relay.test"


@dataclass
class Desk:
    settings: Settings
    letters: DeadLetters
    index: DeadLetterIndex
    db: psycopg.Connection[tuple]
    shards: Shards[Database[TupleRow]]

    def put(self, *letters: Out) -> list[tuple[int, int]]:
        """Write letters, index them; their places in the order of writing."""
        known = self.count()
        sent = LogProducer(self.settings).send(letters, range(len(letters)))
        wait_until(lambda: self.index.step(self.db) >= 0 and self.count() == known + len(letters))
        return [(sent[at].partition, sent[at].offset) for at in range(len(letters))]

    def count(self) -> int:
        return self.db.execute("select count(*) from sluice.dead_letter").fetchone()[0]

    def state(self, place: tuple[int, int]) -> str:
        return self.letters.show(place)["state"]

    def sent(self, topic: str) -> list[bytes]:
        return [message.value() for message in read_topic(self.settings.kafka_bootstrap, self.settings.topic(topic))]


@pytest.fixture
def desk(log: str, database: str) -> Iterator[Desk]:
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, 2)
    settings = load(kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix, allow_private_hosts=True)
    main, shards = with_main(settings, lambda one: tuple_database(one, "test"))
    with psycopg.connect(database, autocommit=True) as db:
        one = Desk(settings, DeadLetters(settings), DeadLetterIndex(settings), db, shards)
        yield one
        main.close()
        one.index.close()
        one.letters.close()


def test_every_refusal_has_its_code_and_its_line_of_help() -> None:
    """N4"""
    codes = {reason.value for kind in (FrameReason, VerifyReason, LabelReason) for reason in kind}
    assert codes <= {reason.value for reason in DeadReason}
    assert all(reason.help for reason in DeadReason)
    assert DeadReason.of("what nobody knows") is DeadReason.UNLISTED


def test_a_letter_is_indexed_once_and_keeps_its_state(desk: Desk) -> None:
    """N4: whoever reads the topic again changes nothing."""
    (place,) = desk.put(dead_letter("firehose_live", DeadReason.UNDECODABLE, "a NUL: \0", b"{", did=DID))
    assert desk.letters.dismiss(place)
    assert not desk.letters.dismiss(place)
    topic = desk.settings.topic("dead_letter")
    assert index_dead_letters(desk.db, read_topic(desk.settings.kafka_bootstrap, topic)) == 0
    (other,) = desk.put(dead_letter("firehose_live", DeadReason.UNDECODABLE, "other", b"{", did=DID))
    assert desk.count() == 2
    assert (desk.state(place), desk.state(other)) == ("dismissed", "open")


def test_a_message_of_the_index_is_settled_when_it_is_retried(desk: Desk) -> None:
    """N4: as one that an older release could not decode."""
    event = wire.AccountEvent(seq=1, time=TIME, did=DID, active=True)
    good = dead_letter("firehose_live", DeadReason.UNDECODABLE, "an older release", wire.encode(event), at=(0, 7))
    bad = dead_letter("firehose_live", DeadReason.UNDECODABLE, "not JSON", b"{", at=(0, 8))
    first, second = desk.put(good, bad)
    assert desk.letters.retry(first).state == "retried"
    assert desk.db.execute("select did, phase from sluice.repo").fetchall() == [(DID, "pending")]
    left = desk.letters.retry(second)
    assert (left.state, bool(left.why)) == ("open", True)
    assert (desk.state(first), desk.state(second)) == ("retried", "open")
    assert desk.letters.show(second)["error"] == left.why
    with pytest.raises(OperatorError, match="retried already"):
        desk.letters.retry(first)
    assert list(desk.letters.open_places()) == [second]


def test_a_retried_frame_passes_the_current_steps(desk: Desk) -> None:
    """N4: from its bytes to its topic."""
    header = cbrrr.encode_dag_cbor({"op": 1, "t": "#identity"})
    body = cbrrr.encode_dag_cbor({"seq": 5, "did": DID, "time": TIME, "handle": "Alice.test"})
    good = dead_letter(f"firehose {URL}", DeadReason.BAD_FIELD, "an older release", header + body)
    bad = dead_letter(f"firehose {URL}", DeadReason.UNDECODABLE, "garbage", b"garbage")
    label = dead_letter(f"labels {URL}", DeadReason.UNDECODABLE, "garbage", b"garbage")
    first, second, third = desk.put(good, bad, label)
    assert desk.letters.retry(first).state == "retried"
    (event,) = map(wire.decode_live, desk.sent("firehose_live"))
    assert (event.did, event.handle, event.relay) == (DID, "alice.test", URL)
    for place in (second, third):
        assert desk.letters.retry(place).why.startswith("undecodable: ")
        assert desk.state(place) == "open"
    assert list(desk.letters.open_places(topic="labels")) == [third]
    assert desk.sent("dead_letter")[3:] == []  # a retry that fails is no new letter


def test_a_task_is_sent_again_and_only_with_its_did(desk: Desk) -> None:
    """C3, N4"""
    task = wire.encode(wire.RepoTask(did=DID, attempt=0, reason="listed"))
    first, second = desk.put(
        dead_letter("repo_resync", DeadReason.BAD_TASK, "", task),
        dead_letter("repo_backfill", DeadReason.BAD_TASK, "", b"{}"),
    )
    assert desk.letters.retry(first).state == "retried"
    assert desk.sent("repo_resync") == [task]
    assert desk.letters.retry(second).state == "open"


def test_a_payload_that_was_cut_cannot_be_retried(desk: Desk) -> None:
    """N4"""
    (place,) = desk.put(dead_letter("firehose_live", DeadReason.UNDECODABLE, "", b"x" * 300_000))
    left = desk.letters.retry(place)
    assert (left.state, left.why) == ("open", "cannot be retried: only 262144 of 300000 bytes are kept")
    letter = desk.letters.show(place)["letter"]
    assert len(b64decode(letter["payload"] + "==")) == 262144
    assert letter["payload_size"] == 300_000


def test_a_slow_broker_is_not_taken_for_retention(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """N4: what was not read in time is there still, and nobody is told to dismiss it; what went meanwhile is gone."""
    event = wire.AccountEvent(seq=1, time=TIME, did=DID, active=True)
    (place,) = desk.put(dead_letter("firehose_live", DeadReason.UNDECODABLE, "old", wire.encode(event)))
    with monkeypatch.context() as slow:
        slow.setattr("control.dead_letters.READ_SECONDS", 0.0)
        for what in (desk.letters.show, desk.letters.retry):
            with pytest.raises(LogUnavailable, match="no answer within"):
                what(place)
    assert desk.state(place) == "open"
    marks = watermarks(desk.settings, ["dead_letter"])
    gone = TopicPartition(desk.settings.topic("dead_letter"), place[0], place[1] + 1)
    admin = AdminClient({"bootstrap.servers": desk.settings.kafka_bootstrap, "log_level": 0})
    admin.delete_records([gone])[gone].result(60)
    monkeypatch.setattr("control.dead_letters.watermarks", lambda *_: marks)  # asked for before it went
    assert desk.letters.show(place)["letter"] is None
    assert "retention has removed its payload" in desk.letters.retry(place).why


def test_dead_letters_without_a_key_are_retried_automatically_a_bounded_number_of_times(desk: Desk) -> None:
    """N1: a directory that is partly away refuses what may be an account's last commit."""
    header = cbrrr.encode_dag_cbor({"op": 1, "t": "#identity"})
    body = cbrrr.encode_dag_cbor({"seq": 5, "did": DID, "time": TIME, "handle": "a.test"})
    good, bad = header + body, b"garbage"
    origin, lacks = f"firehose {URL}", DeadReason.NO_KEY
    true, young, old, other, task, false = desk.put(
        dead_letter(origin, lacks, "the account's document: unreachable", good, did=DID),
        dead_letter(origin, lacks, "young", good, did=DID),
        dead_letter(origin, lacks, "old", good, did=DID),
        dead_letter(origin, DeadReason.BAD_SIGNATURE, "forged", good, did=DID),
        dead_letter("repo_resync", lacks, "no stream", good, did=DID),
        dead_letter(f"labels {URL}", lacks, "the document of x: no_identity", bad),
    )

    def aged(place: tuple[int, int], seconds: float) -> None:
        values = (seconds, *place)
        desk.db.execute(
            "update sluice.dead_letter set noticed_at = now() - make_interval(secs => %s)"
            " where part = %s and log_offset = %s",
            values,
        )

    for place in (true, other, task, false):
        aged(place, AFTER_SECONDS[0] + 5)
    aged(young, -3600)  # whatever the test takes
    aged(old, AFTER_SECONDS[-1] + 3600)
    retry, span = DeadLetterRetry(desk.settings), 200.0
    assert retry.round(span) == {"retried": 1, "open": 1}
    assert {place: desk.state(place) for place in (true, young, old, other, task, false)} == {
        true: "retried",
        **dict.fromkeys((young, old, other, task, false), "open"),
    }
    assert len(desk.sent("firehose_live")) == 1
    tries = 0
    for after in AFTER_SECONDS[1:]:
        aged(false, after + 5)
        tries += retry.round(span)["open"]
        aged(false, after + 3000)
        assert retry.round(span)["open"] == 0
    assert tries == len(AFTER_SECONDS) - 1


def test_letters_that_retention_removed_go_and_open_ones_are_named(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """The topic keeps a letter for 90 days; its row would stay for ever, open and not to be retried."""
    places = desk.put(*(dead_letter("firehose_live", DeadReason.UNDECODABLE, "e", b"{", did=DID) for _ in range(4)))
    partition = places[0][0]  # one key, one partition
    assert desk.letters.dismiss(places[0])
    topic = desk.settings.topic("dead_letter")
    admin = AdminClient({"bootstrap.servers": desk.settings.kafka_bootstrap, "log_level": 0})
    for done in admin.delete_records([TopicPartition(topic, partition, places[2][1])]).values():
        done.result(60)
    now = 0.0
    obsolete = ObsoleteRows(SharedOffsets(desk.settings), clock=lambda: now)
    assert obsolete.step(desk.db, desk.shards) == Removed(letters=2, open_letters=1)
    assert desk.db.execute("select part, log_offset, state from sluice.dead_letter order by log_offset").fetchall() == [
        (*place, "open") for place in places[2:]
    ]
    (line,) = [one for one in caplog.records if one.message == "retention removed open dead letters"]
    assert line.__dict__["letters"] == 1
    for done in admin.delete_records([TopicPartition(topic, partition, places[3][1])]).values():
        done.result(60)
    assert obsolete.step(desk.db, desk.shards) == Removed()  # it looks now and then
    now += CHECK_SECONDS
    assert obsolete.step(desk.db, desk.shards) == Removed(letters=1, open_letters=1)
    assert desk.count() == 1


def test_unused_hosts_are_removed(desk: Desk) -> None:
    """Any account can name a host in its document; each had a row for ever."""
    await_leaders(desk)
    desk.db.execute(
        """
        insert into sluice.host (host, last_seen_at, tokens_at, listed_at, paused_until)
        select name, now() - interval '31 days', now() - seen * interval '1 day', now() - listed * interval '1 day',
               now() + paused * interval '1 day'
        from (values ('old', 40, null::int, null::int), ('asked', 2, null, null), ('listed', null, 3, null),
                     ('paused', null, null, 1), ('silent', null, null, null)) as h (name, seen, listed, paused)
        union all select 'named', now(), null, null, null
        """
    )
    assert ObsoleteRows(SharedOffsets(desk.settings)).step(desk.db, desk.shards) == Removed(hosts=2)
    left = desk.db.execute("select host from sluice.host order by host").fetchall()
    assert left == [("asked",), ("listed",), ("named",), ("paused",)]


def await_leaders(desk: Desk) -> None:
    """Wait until every partition of the topic, which was just made, has a leader."""
    positions = Offsets(desk.settings)

    def led() -> bool:
        try:
            return bool(positions.starts(positions.parts(["dead_letter"])))
        except LogUnavailable:
            return False

    wait_until(led)


def test_resolved_history_is_removed_and_open_rows_stay(desk: Desk) -> None:
    """G6: resolved losses, recovered ranges, ended audits and cached identities stayed for ever."""
    await_leaders(desk)
    desk.db.execute(
        """
        insert into sluice.stream_gap (upstream, reason, noticed_at, answered_at)
        values ('old', 'test', now() - interval '40 days', now() - interval '31 days'),
               ('recent', 'test', now() - interval '40 days', now() - interval '29 days'),
               ('open', 'test', now() - interval '40 days', null);
        insert into sluice.skipped_range (upstream, from_cursor, to_cursor, reason, skipped_at, filled_at)
        values ('old', '1', '2', 'test', now() - interval '40 days', now() - interval '31 days'),
               ('open', '1', '2', 'test', now() - interval '40 days', null);
        insert into sluice.audit_run (options, updated_at, finished_at)
        values ('{}', now() - interval '31 days', now() - interval '31 days'),
               ('{}', now() - interval '31 days', now() - interval '31 days');
        insert into sluice.audit_finding (run, did, kind, detail) select id, 'did:plc:a', 'test', '' from sluice.audit_run;
        insert into sluice.identity (did, resolved_at)
        values ('did:plc:old', now() - interval '31 days'), ('did:plc:new', now());
        """
    )
    assert ObsoleteRows(SharedOffsets(desk.settings)).step(desk.db, desk.shards) == Removed(history=4)
    assert desk.db.execute("select upstream from sluice.stream_gap order by 1").fetchall() == [("open",), ("recent",)]
    assert desk.db.execute("select upstream from sluice.skipped_range").fetchall() == [("open",)]
    assert desk.db.execute("select did from sluice.identity").fetchall() == [("did:plc:new",)]
    assert desk.db.execute("select count(*), count(distinct run) from sluice.audit_finding").fetchone() == (1, 1)


def test_the_commands(desk: Desk) -> None:
    """N4"""

    def sluice(*arguments: str) -> subprocess.CompletedProcess[str]:
        settings = desk.settings
        environment = {
            **os.environ, "SLUICE_DATABASE": settings.database, "SLUICE_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "SLUICE_KAFKA_TOPIC_PREFIX": settings.kafka_topic_prefix,
        }  # fmt: skip
        return zygote.run(["sluice", "dead-letters", *arguments], env=environment, timeout=120)

    event = wire.encode(wire.AccountEvent(seq=1, time=TIME, did=DID, active=True))
    first, second = desk.put(
        dead_letter("firehose_live", DeadReason.UNDECODABLE, "e", event),
        dead_letter("firehose_live", DeadReason.UNDECODABLE, "e", b"{"),
    )
    shown = json.loads(sluice("show", f"{first[0]}:{first[1]}").stdout)
    assert (shown["help"], shown["state"]) == (DeadReason.UNDECODABLE.help, "open")
    retried = sluice("retry", "--all")
    assert (retried.returncode, len(retried.stdout.splitlines())) == (1, 2)
    assert sluice("dismiss", f"{second[0]}:{second[1]}").stdout == "dismissed 1\n"
    again = sluice("dismiss", f"{second[0]}:{second[1]}")
    assert (again.returncode, again.stdout) == (2, "")
    assert "is dismissed already" in again.stderr
    assert "there is no dead letter 5:5" in sluice("dismiss", "5:5").stderr
    assert sluice("retry").returncode == 2
    assert sluice("show", "7:0").returncode == 2
