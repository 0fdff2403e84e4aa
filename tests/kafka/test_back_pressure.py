"""How often the lag of a group is read, and when it pauses the live stream."""

from __future__ import annotations

import pytest

from connectors.kafka.back_pressure import CHECK_SECONDS, QUIET_FACTOR, HighWater
from connectors.kafka.offsets import NO_OFFSET
from schemas.settings import Settings
from schemas.shard_ranges import shard_ranges
from schemas.topics import FIREHOSE_LIVE


def test_a_topic_without_new_messages_is_checked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """S5; but not while the producer is paused: it goes on as soon as its consumers have caught up."""
    answers = iter([(1, None), (1, None), (2, None), (2, "behind"), (2, "behind"), (2, None)])
    watch, waits = HighWater(Settings(), "repo_backfill", "backfill"), list[float]()

    def check() -> str | None:
        end, why = next(answers)
        watch._ends = {("repo_backfill", 0): end}
        return why

    def wait(seconds: float) -> bool:
        waits.append(seconds / CHECK_SECONDS)
        if len(waits) == 6:
            watch._worker.stop()
        return False

    monkeypatch.setattr(watch, "_check", check)
    monkeypatch.setattr(watch._worker, "wait", wait)
    watch._run()
    assert waits == [1.0, QUIET_FACTOR, 1.0, 1.0, 1.0, QUIET_FACTOR]


def test_a_check_at_rest_is_one_request() -> None:
    """S5: once everything is read, the ends of the topic say that there is nothing new; a new message makes it a whole check."""
    watch, requests, written = HighWater(Settings(), "repo_backfill", "backfill"), list[str](), [10]

    class Log:
        """One partition, of which ten messages are read."""

        def parts(self, topics: list[str]) -> list[tuple[str, int]]:
            requests.append("parts")
            return [(topics[0], 0)]

        def ends(self, parts: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
            requests.append("ends")
            return dict.fromkeys(parts, written[0])

        def starts(self, parts: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
            requests.append("starts")
            return dict.fromkeys(parts, 0)

        def committed(self, _: str, parts: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
            requests.append("committed")
            return dict.fromkeys(parts, 10)

    watch._offsets = Log()  # type: ignore[assignment]
    watch._check()
    assert sorted(requests) == ["committed", "ends", "parts", "starts"]
    for end, asked in (
        (10, ["ends"]),
        (2_000_000, ["committed", "ends", "starts"]),
        (2_000_000, ["committed", "ends", "starts"]),
    ):
        requests.clear()
        written[0] = end
        paused = watch._check()
        assert sorted(requests) == asked
        assert (paused is not None) is (end > 10)


@pytest.mark.parametrize(
    ("sharded_in", "late", "pauses"),
    [("", {3}, True), ("0-1=A 2-3=B", {3}, False), ("0-1=A 2-3=B", {1, 3}, True), ("0-1=A 2-3=B", set(), False)],
)
def test_a_shard_that_is_days_behind_does_not_pause_the_firehose_for_all(
    sharded_in: str, late: set[int], pauses: bool
) -> None:
    """S10, B7: only all of them do. What retention removes is a gap, and found by a listing."""
    names = sharded_in.replace("A", "postgresql://a").replace("B", "postgresql://b")
    watch = HighWater(Settings(shards=names, kafka_partitions=4), FIREHOSE_LIVE, "index")
    parts = [(FIREHOSE_LIVE, number) for number in range(4)]

    class Log:
        """Ten messages in each partition, of which five are older than half of the retention."""

        def parts(self, _: object) -> list[tuple[str, int]]:
            return parts

        def ends(self, _: object) -> dict[tuple[str, int], int]:
            return dict.fromkeys(parts, 10)

        def starts(self, _: object) -> dict[tuple[str, int], int]:
            return dict.fromkeys(parts, 0)

        def committed(self, *_: object) -> dict[tuple[str, int], int]:
            return {part: 2 if part[1] in late else 10 for part in parts}

        def find(self, *_: object) -> dict[tuple[str, int], int]:
            return {part: NO_OFFSET if part[1] == 0 else 5 for part in parts}

        def retention(self, _: object) -> dict[str, float]:
            return {FIREHOSE_LIVE: 604_800.0}

    watch._offsets = Log()  # type: ignore[assignment]
    assert (watch._check() is not None) is pauses
    assert [one.name for one in shard_ranges(names)] == ([] if not names else ["0-1", "2-3"])
