"""The index's workers: batches in any size and interleaving, crashes, rebalances, zombies, replays, retention, and time."""

from collections.abc import Iterable
from typing import Any

from schemas import wire
from tests.model.model_rows import Crash, PartitionLost
from tests.model.model_state import IndexWorker
from tests.model.model_workers import Workers


class Index(Workers):
    """flows.index, reduced to its transaction."""

    __slots__ = ()

    def do_index(self) -> None:
        self.index(self.index_workers[-1])

    def do_zombie_index(self) -> None:
        if len(self.index_workers) > 1:
            self.index(self.rng.choice(self.index_workers[:-1]))

    def do_rebalance(self) -> None:
        self.say("rebalance")
        self.index_workers = [*self.index_workers[-2:], IndexWorker(dict(self.tables.offsets))]

    def index(self, worker: IndexWorker, most: int = 5) -> None:
        """One batch: some messages of each topic, in any interleaving of the two."""
        topics = {"firehose_backfill": self.backfill, "firehose_live": self.live}
        counts = {topic: self.rng.randint(0, most) for topic in topics}
        queues, spans = self.batch(worker.positions, counts)
        if not spans:
            return
        self.commit_batch(worker, queues, spans)

    def commit_batch(self, worker: IndexWorker, queues: dict[str, list[Any]], spans: dict[str, Any]) -> None:
        crash = self.crashes()
        before = {did: self.tables.rows[did].repo for did in queues if did in self.tables.rows}
        outside = {did: self.outside(did) for did in before}
        zombie = worker is not self.index_workers[-1]
        self.say("index", "(zombie)" if zombie else "", spans, "crashes before commit" if crash else "")
        try:
            self.tables.index(queues, spans, crash=crash)
        except Crash:
            self.fired["index crashed before commit"] += 1
            worker.positions = dict(self.tables.offsets)
            return
        except PartitionLost:
            self.fired["partition lost"] += 1
            self.say("  partition lost")
            if zombie:
                self.index_workers.remove(worker)
            else:
                worker.positions = dict(self.tables.offsets)
            return
        worker.positions = {topic: spans.get(topic, (0, at))[1] for topic, at in worker.positions.items()}
        for did, messages in queues.items():
            self.note_heard(did, messages)
            self.check_transition(before.get(did), did, messages)
            self.check_outside(before.get(did), did, outside.get(did, set()), messages)
            self.say("  ", self.show(did))
        if self.crashes():  # after the commit: the next one begins at the stored positions
            worker.positions = dict(self.tables.offsets)

    def note_heard(self, did: str, messages: Iterable[Any]) -> None:
        for message in messages:
            if isinstance(message.event, wire.CommitEvent | wire.SyncEvent) and message.event.rev > self.seen[did]:
                self.seen[did] = message.event.rev

    def do_replay(self) -> None:
        """`sluice replay TOPIC` from some offset up to the index's own position: no row changes (G2)."""
        topic = self.rng.choice(("firehose_backfill", "firehose_live"))
        begin = self.rng.randint(self.log_start[topic], self.tables.offsets[topic])
        self.replay(topic, begin)

    def do_truncate(self) -> None:
        """Retention passes the index: what it has not read is lost (and recorded)."""
        topic = self.rng.choice(("firehose_backfill", "firehose_live"))
        log = self.backfill if topic == "firehose_backfill" else self.live
        at = self.tables.offsets[topic]
        lost = log[at : at + self.rng.randint(1, 3)]
        if not lost or any(isinstance(event, wire.AccountEvent | wire.IdentityEvent) for event in lost):
            return
        self.fired["retention passed the index"] += 1
        self.disturbed = True
        self.log_start[topic] = at + len(lost)
        self.say("retention:", topic, "loses", at, "to", at + len(lost))
        self.tables.lose(topic, at + len(lost))
        self.do_rebalance()

    def do_pass_time(self) -> None:
        self.tables.now += self.rng.choice((1.0, 6.0, 31.0, 61.0))

    def do_leap(self) -> None:
        self.tables.now += self.rng.choice((301.0, 601.0, 3700.0))
