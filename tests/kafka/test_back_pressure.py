"""How often the lag of a group is read."""

from __future__ import annotations

import pytest

from connectors.kafka.back_pressure import CHECK_SECONDS, QUIET_FACTOR, HighWater
from schemas.settings import Settings


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
